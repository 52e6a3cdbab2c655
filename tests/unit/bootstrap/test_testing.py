"""
What becomes of the engine that was started for the tests.
"""

import io
import json
import subprocess
from unittest.mock import create_autospec

import pytest

from bootstrap import daemons, down, engine, progress, testing


@pytest.fixture
def keeper(monkeypatch):
    """What keeps the engine."""
    keeper = create_autospec(daemons.Systemd, instance=True)
    monkeypatch.setattr(daemons, "of", lambda _: keeper)
    return keeper


@pytest.fixture
def removed(monkeypatch):
    """What is removed, in order."""
    found = []
    monkeypatch.setattr(engine, "answers", lambda: True)
    monkeypatch.setattr(engine, "data_folder", lambda: "/data")
    monkeypatch.setattr(down, "remove_images", lambda _: found.append("images"))
    monkeypatch.setattr(down, "others", list)
    monkeypatch.setattr(down, "uninstall", lambda _, noted, data, log: found.append(data) or [])
    return found


@pytest.fixture
def said(monkeypatch):
    """What is printed."""
    out = io.StringIO()
    monkeypatch.setattr(testing, "Progress", lambda steps: progress.Progress(steps, out=out))
    return out


@pytest.fixture
def brought(tmp_path):
    """The notes of an engine that the tests brought."""
    (tmp_path / "engine.json").write_text(json.dumps({"packages": ["docker.io"]}))
    return tmp_path


def test_engine_that_the_tests_brought_goes(brought, keeper, removed, said):
    testing.end_engine(brought)
    assert keeper.stop_engine.called
    assert removed == ["images", "/data"]
    assert "removed" in said.getvalue()


def test_engine_that_was_installed_before_is_stopped_alone(tmp_path, keeper, removed, said):
    testing.end_engine(tmp_path)
    assert keeper.stop_engine.called
    assert removed == []
    assert "it was installed before" in said.getvalue()


def test_engine_that_others_use_by_now_stays(brought, keeper, removed, monkeypatch, said):
    monkeypatch.setattr(down, "others", lambda: ["theirs"])
    testing.end_engine(brought)
    assert removed == ["images"]
    assert "others use it by now (theirs)" in said.getvalue()


def test_engine_that_cannot_be_removed_is_told(brought, keeper, removed, monkeypatch):
    monkeypatch.setattr(down, "uninstall", lambda *_: ["apt-get purge failed"])
    with pytest.raises(progress.Failure, match="apt-get purge failed"):
        testing.end_engine(brought)


def test_soak_hands_on_what_is_asked(monkeypatch):
    started = create_autospec(subprocess.run)
    started.return_value.returncode = 3
    monkeypatch.setattr(testing.subprocess, "run", started)
    monkeypatch.setattr(testing.up, "environment_alone", lambda _: None)
    monkeypatch.setattr(engine, "answers", lambda: True)
    assert testing.soak(10, seed=7) == 3
    environment = started.call_args.kwargs["env"]
    asked = {name: environment[name] for name in environment if name.startswith("LLM_SOAK_")}
    assert asked == {"LLM_SOAK_MINUTES": "10", "LLM_SOAK_SEED": "7", "LLM_SOAK_STEPS": "0"}
