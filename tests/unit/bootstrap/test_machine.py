"""
What stops `make up` before it changes anything.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import llm_source
import pytest

from bootstrap import engine, environment, listeners, machine, packages

HOSTS = "hosts: {node1: {address: 127.0.0.1, roles: []}}\n"


@pytest.fixture
def port():
    """A port of this machine that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def installation(site):
    """An installation whose ports nobody holds."""
    return site(HOSTS + "salt: {publish_port: 1, return_port: 2}\n")


@pytest.mark.parametrize("python", [(3, 9, 2), (3, 10, 0), (3, 14, 0), (4, 0, 0)])
def test_python_that_salt_does_not_run_on_is_refused(python):
    assert any("Salt needs 3.11, 3.12 or 3.13" in line for line in machine.python(python))


@pytest.mark.parametrize("python", [(3, 11, 0), (3, 12, 9), (3, 13, 1)])
def test_python_that_salt_runs_on_is_taken(python):
    assert not list(machine.python(python))


def test_basics_refuse_a_user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert any(line.startswith("not root") for line in machine.basics())


@pytest.mark.parametrize(
    ("system", "is_fine"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, True),
        ({"ID": "debian", "VERSION_ID": "13"}, True),
        ({"ID": "ubuntu", "VERSION_ID": "24.04"}, True),
        ({"ID": "debian", "VERSION_ID": "11", "PRETTY_NAME": "Debian 11"}, False),
        ({"ID": "fedora", "PRETTY_NAME": "Fedora 42"}, False),
        ({}, False),
    ],
)
def test_basics_know_the_systems(monkeypatch, system, is_fine):
    monkeypatch.setattr(machine, "release", lambda: system)
    found = [line for line in machine.basics() if "runs on Debian" in line]
    assert bool(found) is not is_fine


def test_release_reads_quoted_values(tmp_path):
    path = tmp_path / "os-release"
    path.write_text('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n')
    assert machine.release(path)["VERSION_ID"] == "13"


def test_ports_name_the_holder(site, port):
    found = list(machine.ports(site(f"salt: {{publish_port: {port}, return_port: 1}}")))
    assert len(found) == 1
    assert f"port {port} is held by process {os.getpid()} (" in found[0]
    command = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
    assert f"({command[:20]}" in found[0]


def test_ports_held_by_our_own_master_are_fine(site, port, monkeypatch):
    installation = site(f"salt: {{publish_port: {port}, return_port: {port}}}")
    ours = listeners.Process(7, f"python salt-master -c {installation.conf}")
    monkeypatch.setattr(listeners, "holder", lambda _: ours)
    assert not list(machine.ports(installation))


def test_disk_says_how_much_is_needed(installation, monkeypatch):
    usage = create_autospec(os.statvfs_result, instance=True, free=machine.GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(environment, "is_current", lambda _: False)
    found = list(machine.disk(installation))
    assert found
    assert all("1.0 GiB free" in line and "GiB are needed" in line for line in found)


def test_disk_asks_little_once_all_is_there(installation, monkeypatch):
    installation.log.mkdir(parents=True)
    (installation.log / "up.json").touch()
    usage = create_autospec(os.statvfs_result, instance=True, free=machine.GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(environment, "is_current", lambda _: True)
    assert not list(machine.disk(installation))


def test_links_are_as_git_keeps_them(repository):
    assert not list(machine.links(repository))


def test_links_that_became_something_else(tmp_path):
    (tmp_path / "salt" / "_states").mkdir(parents=True)
    (tmp_path / "salt" / "_utils").symlink_to("../_utils")
    (tmp_path / "salt" / "orch").write_text("../orch")
    found = list(machine.links(tmp_path))
    hint = ": clone again with links (git config core.symlinks true)"
    assert found == [
        f"salt/_modules is missing, expected a link to ../_modules{hint}",
        f"salt/_states is a folder, expected a link to ../_states{hint}",
        f"salt/orch is a file, expected a link to ../orch{hint}",
    ]


def test_links_are_those_that_the_review_knows():
    assert machine.LINKS == llm_source.FOLDERS


def test_root_of_somebody_else_is_refused(installation):
    installation.root.mkdir()
    assert not list(machine.root(installation))
    (installation.root / "letters").write_text("theirs")
    assert "not ours" in next(machine.root(installation))
    installation.remember()
    assert not list(machine.root(installation))


@pytest.mark.parametrize("root", ["/", "/var", "relative/folder"])
def test_root_that_purge_must_never_remove_is_refused(site, root):
    assert "absolute path" in next(machine.root(site(f"root: {root}")))


def test_unreachable_mirror_is_named_without_its_password(port):
    closed = f"http://user:word@127.0.0.1:{port + 1 if port < 65535 else port - 1}/simple"
    (line,) = machine.unreachable(closed, "for Python packages")
    assert "does not answer" in line
    assert "word" not in line


def test_mirrors_are_not_asked_when_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "unreachable", lambda *_: pytest.fail("asked"))
    assert not list(machine.mirrors([], True))


def test_problems_come_all_at_once(site, port, monkeypatch):
    installation = site(HOSTS + f"salt: {{publish_port: {port}, return_port: 1}}\n")
    installation.root.mkdir()
    (installation.root / "letters").write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "release", lambda: {"ID": "debian", "VERSION_ID": "13"})
    monkeypatch.setattr(machine, "memory", lambda: ["too little memory"])
    monkeypatch.setattr(machine, "links", lambda: ["salt/orch is a file"])
    monkeypatch.setattr(packages, "missing", lambda: ["gcc"])
    monkeypatch.setattr(packages, "mirrors", lambda: ["http://127.0.0.1:1/debian"])
    monkeypatch.setattr(engine, "problems", lambda: ["no engine"])
    monkeypatch.setattr(environment, "is_current", lambda _: True)
    found = "\n".join(machine.problems(installation))
    ours = ("memory", "salt/orch", f"port {port}", "not ours")
    for part in (*ours, "no engine", "127.0.0.1:1", "gcc"):
        assert part in found


def test_bootstrap_needs_nothing_but_python(repository):
    program = "import sys; import bootstrap.__main__; print(sorted(sys.modules))"
    imported = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, 'bin'); {program}"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
