"""
What `make down` says where the platform does not stop as it should.
"""

import io
import json
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from bootstrap import down
from bootstrap.installation import REPOSITORY, Installation
from bootstrap.progress import Failure, Progress


@pytest.fixture
def installation(tmp_path):
    installation = create_autospec(Installation, instance=True)
    installation.log, installation.name = tmp_path, "llm"
    return installation


@pytest.fixture
def asked(monkeypatch):
    """What the engine is asked while a container runs, and whether the daemons are stopped."""
    left = [{"Id": "id1", "Names": ["/llm-head-1-g1"]}]
    asked = create_autospec(down.engine.ask)
    monkeypatch.setattr(down.engine, "answers", lambda: True)
    monkeypatch.setattr(down.engine, "labelled", lambda kind, label: left)
    monkeypatch.setattr(down.engine, "ask", asked)
    keeper = create_autospec(down.daemons.Supervisor, instance=True)
    keeper.stop.side_effect = lambda: asked("STOP", "daemons")
    monkeypatch.setattr(down.daemons, "of", lambda _: keeper)
    monkeypatch.setattr(down.variables, "installation", lambda _: {})
    return asked


@pytest.fixture
def teardown(installation, monkeypatch):
    """A function that lets the teardown end with an exit code, and with a step that failed."""

    def ends(code, step=None, comment=""):
        state = {"__id__": step, "result": False, "comment": comment, "__run_num__": 0}
        answer = json.dumps({"data": {"node1_master": {"x_|-x_|-x_|-x": state}}})

        def run(*_, **__):
            if step:
                (installation.log / "teardown.json").write_text(answer)
            return code

        monkeypatch.setattr(down, "run", create_autospec(down.run, side_effect=run))

    return ends


@pytest.mark.parametrize("code", [0, 1])
def test_a_teardown_that_fails_is_told_and_the_engine_stops_the_rest(
    installation, asked, teardown, code
):
    teardown(code, *(("head stopped", "node1 does not answer") if code else ()))
    said = io.StringIO()
    down.stop_platform(Progress(1, out=said), installation)
    assert ("orch.teardown failed" in said.getvalue()) is bool(code)
    assert ("node1 does not answer" in said.getvalue()) is bool(code)
    assert (f"Log: {Path(installation.log, 'down')}" in said.getvalue()) is bool(code)
    # With the minion goes its watch, before what it would start again.
    assert [call.args[:2] for call in asked.call_args_list] == [
        ("STOP", "daemons"),
        ("POST", "/containers/id1/update"),
        ("POST", "/containers/id1/stop"),
    ]


@pytest.mark.parametrize("runs", [True, False], ids=["a container runs", "none does yet"])
def test_nothing_is_stopped_while_somebody_else_changes_the_platform(
    installation, asked, teardown, monkeypatch, runs
):
    if not runs:
        monkeypatch.setattr(down.engine, "labelled", lambda kind, label: [])
    teardown(1, down.LOCKED, "the platform is locked: deploy")
    with pytest.raises(Failure, match=r"^the platform is locked: deploy$"):
        down.stop_platform(Progress(1, out=io.StringIO()), installation)
    asked.assert_not_called()
    assert f"\n{down.LOCKED}:\n" in (REPOSITORY / "orch" / "teardown.sls").read_text()
