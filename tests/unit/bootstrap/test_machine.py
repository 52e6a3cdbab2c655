"""
What stops `make up` before it changes anything.
"""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import llm_source
import pytest

import bootstrap.__main__
from bootstrap import engine, environment, interpreter, listeners, machine, packages

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
    (line,) = machine.python(python)
    assert f"python3 is {python[0]}.{python[1]} (" in line
    assert "Salt needs 3.11, 3.12 or 3.13" in line


def test_python_that_cannot_read_the_rest_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    assert bootstrap.__main__.main() == 1
    said = capsys.readouterr().err
    assert "python3 is 3.8 (" in said
    assert "make up PYTHON=" in said


def test_every_python_can_read_what_tells_it(repository):
    for path in (repository / "bin" / "bootstrap").glob("*.py"):
        told = path.name in ("__init__.py", "__main__.py", "interpreter.py")
        oldest = (3, 6) if told else interpreter.READS
        ast.parse(path.read_text(), path.name, feature_version=oldest)


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


@pytest.fixture
def asked(monkeypatch):
    """The mirrors that are asked, and what for; each answers."""
    found = {}
    monkeypatch.setattr(environment, "is_current", lambda _: True)
    monkeypatch.setattr(environment, "index", lambda: "https://pypi.example/simple")
    monkeypatch.setattr(packages, "mirrors", lambda: ["http://debian.example/InRelease"])
    monkeypatch.setattr(
        machine, "unreachable", lambda url, purpose, *_: found.update({url: purpose}) or ()
    )
    return found


def test_mirrors_are_not_asked_once_all_is_there(installation, asked):
    installation.log.mkdir(parents=True)
    (installation.log / "up.json").touch()
    assert not list(machine.mirrors(installation, []))
    assert asked == {}


def test_mirrors_are_asked_while_engine_and_images_are_still_to_come(installation, asked):
    assert not list(machine.mirrors(installation, []))
    assert asked == {
        "http://debian.example/InRelease": "for engine, images",
        "https://pypi.example/simple/uv/": "for Python packages",
    }


@pytest.fixture
def apt_config(monkeypatch):
    """What apt's configuration says, by option."""
    options = {}

    def run(argv, **_):
        assert argv[:3] == ["apt-config", "shell", "proxy"]
        said = [f"proxy='{options[name]}'\n" for name in argv[3::2] if name in options]
        return subprocess.CompletedProcess(argv, 0, "".join(said), "")

    monkeypatch.setattr(subprocess, "run", create_autospec(subprocess.run, side_effect=run))
    return options


@pytest.mark.parametrize(
    ("options", "proxies"),
    [
        ({}, None),
        ({"http::Proxy": "http://near:3142"}, {"https": "http://near:3142"}),
        ({"http::Proxy": "http://near:1", "https::Proxy": "http://b:2"}, {"https": "http://b:2"}),
        ({"http::Proxy": "http://near:3142", "https::Proxy": "DIRECT"}, {}),
        ({"https::Proxy": "http://near:1", "https::Proxy::debian.example": "DIRECT"}, {}),
        ({"http::Proxy-Auto-Detect": "/usr/bin/finds"}, {"https": "/usr/bin/finds"}),
    ],
)
def test_proxies_are_those_of_apt(apt_config, options, proxies):
    apt_config |= {f"Acquire::{name}": value for name, value in options.items()}
    assert packages.proxies("https://debian.example/InRelease") == proxies


def test_mirror_is_asked_through_the_proxy_of_apt(monkeypatch, port):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url = "http://debian.invalid/InRelease"
    (line,) = machine.unreachable(url, "for gcc", {"http": f"http://127.0.0.1:{port}"}, 0.2)
    assert "timed out" in line, "nobody answers at this port, but somebody listens"
    (line,) = machine.unreachable(url, "for gcc")
    assert "refused" in line


@pytest.mark.parametrize("proxy", ["socks5h://near:1080", "/usr/bin/finds"])
def test_mirror_is_not_asked_through_what_only_apt_can_use(proxy):
    assert not list(machine.unreachable("http://debian.invalid/", "for gcc", {"http": proxy}))


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
    program = "import sys; import bootstrap.commands; print(sorted(sys.modules))"
    imported = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, 'bin'); {program}"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
