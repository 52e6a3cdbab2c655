"""
What `make down` says where the platform does not stop as it should.
"""

import io
from pathlib import Path
from types import SimpleNamespace
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
    monkeypatch.setattr(down.daemons, "of", lambda _: SimpleNamespace(is_whole=lambda: True))
    monkeypatch.setattr(down.variables, "installation", lambda _: {})
    monkeypatch.setattr(down, "run", create_autospec(down.run, return_value=code))
    said = io.StringIO()
    down.stop_platform(Progress(1, out=said), installation)
    assert ("orch.teardown failed" in said.getvalue()) is bool(code)
    assert (f"Log: {Path(installation.log, 'down')}" in said.getvalue()) is bool(code)
    assert asked.call_args.args == ("POST", "/containers/id1/stop")
