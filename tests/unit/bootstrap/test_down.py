"""
What `make down` says where the platform does not stop as it should.
"""

import io
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from bootstrap import down
from bootstrap.installation import Installation
from bootstrap.progress import Progress


@pytest.fixture
def installation(tmp_path):
    installation = create_autospec(Installation, instance=True)
    installation.log, installation.name = tmp_path, "llm"
    return installation


@pytest.mark.parametrize("code", [0, 1])
def test_a_teardown_that_fails_is_told_and_the_engine_stops_the_rest(
    installation, monkeypatch, code
):
    left = [{"Id": "id1", "Names": ["/llm-head-1-g1"]}]
    asked = create_autospec(down.engine.ask)
    monkeypatch.setattr(down.engine, "answers", lambda: True)
    monkeypatch.setattr(down.engine, "labelled", lambda kind, label: left)
    monkeypatch.setattr(down.engine, "ask", asked)
    keeper = create_autospec(down.daemons.Supervisor, instance=True)
    keeper.stop.side_effect = lambda: asked("STOP", "daemons")
    monkeypatch.setattr(down.daemons, "of", lambda _: keeper)
    monkeypatch.setattr(down.variables, "installation", lambda _: {})
    monkeypatch.setattr(down, "run", create_autospec(down.run, return_value=code))
    said = io.StringIO()
    down.stop_platform(Progress(1, out=said), installation)
    assert ("orch.teardown failed" in said.getvalue()) is bool(code)
    assert (f"Log: {Path(installation.log, 'down')}" in said.getvalue()) is bool(code)
    # With the minion goes its watch, before what it would start again.
    assert [call.args[:2] for call in asked.call_args_list] == [
        ("STOP", "daemons"),
        ("POST", "/containers/id1/update"),
        ("POST", "/containers/id1/stop"),
    ]
