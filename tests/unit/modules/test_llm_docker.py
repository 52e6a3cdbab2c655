"""
The engine's installation, configuration and start, without an engine.
"""

import json
import shutil
import subprocess
from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError
from salt.modules import aptpkg

from _modules import llm_docker


@pytest.fixture
def install():
    """apt, which brings what is asked for."""
    return create_autospec(aptpkg.install, return_value={"docker.io": {"old": "", "new": "26"}})


@pytest.fixture
def module(configure_loader, tmp_path, monkeypatch, install):
    """The module on a host without systemd and without an engine."""
    monkeypatch.setattr(llm_docker, "CONFIGURATION", tmp_path / "docker" / "daemon.json")
    monkeypatch.setattr(llm_docker, "APPARMOR", tmp_path / "apparmor")
    monkeypatch.setattr(llm_docker, "SYSTEMD", tmp_path / "systemd")
    monkeypatch.setattr(llm_docker, "answers", lambda: False)
    monkeypatch.setattr(llm_docker, "_forwarding", lambda: {"switch": "0", "policy": "ACCEPT"})
    pillar = {"llm": {"site": {"root": str(tmp_path / "root")}}}
    return configure_loader(llm_docker, salt={"pkg.install": install}, pillar=pillar)


@pytest.fixture
def programs(monkeypatch):
    """The programs that there are; a test adds to them."""
    there = set()
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name if name in there else None)
    return there


@pytest.fixture
def noted(tmp_path):
    """A function that returns what is noted for the day when the platform goes."""
    return lambda: json.loads((tmp_path / "root" / "engine.json").read_text())


def test_missing_is_nothing_where_an_engine_answers(module, monkeypatch, programs):
    monkeypatch.setattr(llm_docker, "answers", lambda: True)
    assert module.missing() == []


def test_missing_names_packages_by_their_programs(module, programs):
    assert module.missing() == ["docker.io", "iptables"]
    programs.add("dockerd")
    assert module.missing() == ["iptables"]


@pytest.mark.parametrize(("enabled", "wanted"), [("Y\n", True), ("N\n", False)])
def test_missing_asks_for_apparmor_only_where_the_kernel_wants_it(
    module, programs, enabled, wanted
):
    llm_docker.APPARMOR.write_text(enabled)
    assert ("apparmor" in module.missing()) is wanted


def test_install_configures_before_it_installs(module, programs, install, noted):
    install.side_effect = lambda **_: programs.update({"dockerd", "iptables"}) or {"docker.io": {}}
    assert module.install(["docker.io"]) == ["docker.io"]
    written = json.loads(llm_docker.CONFIGURATION.read_text())
    assert written["live-restore"] is True
    assert written["log-opts"] == {"max-size": "10m", "max-file": "3"}
    assert not any("tcp" in str(value) for value in written.values())
    forwarding = {"switch": "0", "policy": "ACCEPT"}
    assert noted() == {
        "packages": ["docker.io"],
        "configuration": {},
        "forwarding": forwarding,
    }


def test_install_that_brings_nothing_is_an_error(module, programs):
    with pytest.raises(CommandExecutionError, match="did not install docker.io"):
        module.install(["docker.io"])


def test_configure_keeps_what_an_administrator_wrote(module, noted):
    llm_docker.CONFIGURATION.parent.mkdir()
    llm_docker.CONFIGURATION.write_text('{"live-restore": false, "data-root": "/srv/docker"}')
    module.configure()
    module.configure()
    written = json.loads(llm_docker.CONFIGURATION.read_text())
    assert written["live-restore"] is False
    assert written["data-root"] == "/srv/docker"
    assert written["log-driver"] == "json-file"
    assert noted()["configuration"] == {"live-restore": False, "data-root": "/srv/docker"}


def test_start_without_systemd_and_supervisor_is_a_session_of_its_own(
    module, monkeypatch, tmp_path
):
    popen = create_autospec(subprocess.Popen)
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(llm_docker, "answers", lambda: popen.called)
    (tmp_path / "root").mkdir()
    assert module.start(timeout=1) is True
    assert popen.call_args.args == (["dockerd"],)
    assert popen.call_args.kwargs["start_new_session"] is True


def test_start_with_a_supervisor_makes_it_a_program(module, monkeypatch, tmp_path, noted):
    run = create_autospec(
        subprocess.run, return_value=subprocess.CompletedProcess([], 0, "engine: added", "")
    )
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(llm_docker, "answers", lambda: run.called)
    folder = tmp_path / "root" / "salt" / "supervisor"
    (folder / "programs").mkdir(parents=True)
    (folder / "supervisord.conf").write_text("")
    module.start(timeout=1)
    assert "command=dockerd" in (folder / "programs" / "engine.conf").read_text()
    assert noted() == {"supervised": True}
    assert [call.args[0][-1] for call in run.call_args_list] == ["update", "engine"]


def test_start_with_systemd_enables_the_service(module, monkeypatch):
    run = create_autospec(subprocess.run, return_value=subprocess.CompletedProcess([], 0, "", ""))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(llm_docker, "answers", lambda: run.called)
    llm_docker.SYSTEMD.mkdir()
    module.start(timeout=1)
    assert run.call_args.args[0] == ("systemctl", "enable", "--now", "docker.service")


def test_start_that_fails_says_the_engines_last_words(module, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "Popen", create_autospec(subprocess.Popen))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "engine.log").write_text("failed to start daemon: no cgroups\n")
    with pytest.raises(CommandExecutionError, match="no cgroups"):
        module.start(timeout=0)


def test_start_that_systemd_refuses_says_why(module, monkeypatch):
    refused = subprocess.CompletedProcess([], 1, "", "Unit docker.service not found.")
    monkeypatch.setattr(subprocess, "run", create_autospec(subprocess.run, return_value=refused))
    llm_docker.SYSTEMD.mkdir()
    with pytest.raises(CommandExecutionError, match="not found"):
        module.start()
