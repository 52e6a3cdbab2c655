"""
When Salt's daemons are started or started again.
"""

from unittest.mock import create_autospec

import pytest

from bootstrap import configuration, daemons, listeners, progress

HOSTS = "hosts: {node1: {address: 127.0.0.1, roles: []}}\n"


class Kept(daemons.Keeper):
    """A keeper whose daemons run, and that is written as it shall be."""

    def configure(self):
        return False

    def is_whole(self):
        return True

    def start(self, restart):
        raise AssertionError


@pytest.fixture
def keeper(site, monkeypatch):
    """A keeper of daemons that run with what is written."""
    monkeypatch.setattr(listeners, "inodes", lambda *_: {"1"})
    installation = site(HOSTS)
    configuration.ensure(installation)
    keeper = Kept(installation)
    keeper.started_with.write_text(keeper.digest())
    keeper.start = create_autospec(keeper.start)
    return keeper


@pytest.fixture
def ensure(keeper):
    """A function that sees to it that the daemons run, and returns those that it started."""
    return lambda: keeper.ensure_running(create_autospec(progress.Progress, instance=True))


def test_daemons_that_run_as_written_are_left_alone(keeper, ensure):
    assert ensure() == []
    assert not keeper.start.called


def test_daemons_that_do_not_run_are_started(keeper, ensure):
    keeper.is_whole = lambda: False
    assert ensure() == list(daemons.PROGRAMS)
    keeper.start.assert_called_once_with(restart=False)


@pytest.mark.parametrize("kept", [True, False], ids=["how they are kept", "what they read"])
def test_daemons_are_restarted_when_it_changes(keeper, ensure, kept):
    if kept:
        keeper.configure = lambda: True
    else:
        keeper.started_with.write_text("older")
    assert ensure() == list(daemons.PROGRAMS)
    keeper.start.assert_called_once_with(restart=True)
    keeper.configure = lambda: False
    assert ensure() == []
