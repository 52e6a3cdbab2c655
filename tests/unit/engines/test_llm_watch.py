import logging
import queue
from unittest.mock import create_autospec

import llm_engine
import pytest
from salt.exceptions import CommandExecutionError

from _engines import llm_watch as llm_watch_engine
from _modules import llm_watch as llm_watch_module

OURS = {"Type": "container", "Actor": {"Attributes": {"llm.site": "llm", "name": "llm-head-1-g1"}}}
THEIRS = {"Type": "container", "Actor": {"Attributes": {"name": "postgres"}}}
NETWORK = {"Type": "network", "Actor": {"Attributes": {"name": "llm-network"}}}


class Ended(BaseException):
    """The minion has ended."""


@pytest.fixture
def streams():
    """What the container engine tells, one list for each connection; then it does not answer."""
    return []


@pytest.fixture
def engine(streams, monkeypatch):
    """The container engine, whose stream ends after what it has to tell."""

    def stream(types, kinds):
        yield from streams.pop(0) if streams else ()
        raise llm_engine.NoAnswer("the engine does not answer")

    found = create_autospec(llm_engine.Engine, instance=True)
    found.stream.side_effect = stream
    monkeypatch.setattr(llm_watch_engine.llm_engine, "Engine", lambda path: found)
    return found


@pytest.fixture
def look():
    """A look, after which there is nothing more to do; the minion ends at the sixth."""
    return create_autospec(llm_watch_module.look, side_effect=[None] * 5 + [Ended])


@pytest.fixture
def slept(monkeypatch):
    """The pauses that were made."""
    found = []
    monkeypatch.setattr(llm_watch_engine.time, "sleep", found.append)
    return found


@pytest.fixture
def log(monkeypatch):
    found = create_autospec(logging.Logger, instance=True)
    monkeypatch.setattr(llm_watch_engine, "log", found)
    return found


@pytest.fixture
def llm_watch(configure_loader, look, engine, slept, log):
    return configure_loader(llm_watch_engine, salt={"llm_watch.look": look})


def test_looks_at_once_and_whenever_something_happens(llm_watch, look, streams, slept):
    streams += [[OURS, OURS], [NETWORK]]
    with pytest.raises(Ended):
        llm_watch.start("/var/lib/llm")
    look.assert_called_with("/var/lib/llm")
    # What comes together is one reason, and the end of the stream is one too.
    assert slept[0] == llm_watch.SETTLED


def test_an_engine_that_is_gone_is_asked_again_ever_more_seldom(llm_watch, look, slept, engine):
    look.side_effect = [CommandExecutionError("no answer")] * 7 + [Ended]
    with pytest.raises(Ended):
        llm_watch.start("/var/lib/llm")
    assert engine.stream.call_count >= 7
    # After the event of its end it settles each time, then waits.
    assert slept[1::2] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(("again", "seconds"), [(None, 300), (0, 1), (12.5, 12.5), (4000, 300)])
def test_a_look_tells_when_the_next_one_is_due(llm_watch, look, again, seconds):
    look.side_effect = [again]
    assert llm_watch._look("/var/lib/llm") == seconds


def test_a_look_that_fails_is_repeated(llm_watch, look, log):
    look.side_effect = [CommandExecutionError("deployed.json: what is this")]
    assert llm_watch._look("/var/lib/llm") == llm_watch.LONGEST
    assert "what is this" in str(log.warning.call_args)


def test_others_containers_are_no_reason_to_look(llm_watch, engine, streams):
    streams.append([THEIRS, OURS, THEIRS, NETWORK])
    heard = llm_watch._listening()
    assert [heard.get(timeout=10) for _ in range(3)] == [OURS, NETWORK, llm_watch.GONE]
    assert engine.stream.call_args.args[0] == ["container", "network"]


def test_without_an_event_it_looks_when_the_time_has_come(llm_watch):
    assert llm_watch._is_there(queue.Queue(), 0.01) is True


def test_it_ends_when_its_code_is_another(llm_watch, look, monkeypatch):
    versions = iter([1, 1, 2])
    monkeypatch.setattr(llm_watch_engine, "_code", lambda: next(versions))
    llm_watch.start("/var/lib/llm")
    assert look.call_count == 1


def test_its_code_is_all_that_a_look_runs(llm_watch, repository):
    names = {name for name, _ in llm_watch._code()}
    assert {"llm_watch.py", "llm_plan.py", "llm_container.py"} <= names
