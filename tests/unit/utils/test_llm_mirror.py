import os

import llm_mirror
import pytest

DEB822 = """\
Types: deb
# http://snapshot.debian.org/archive/debian/20250520T000000Z
URIs: https://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/k.gpg] https://download.docker.com/linux/debian bookworm stable
deb [signed-by=/x] http://near.example/debian bookworm main
# deb http://old.example/debian bookworm-updates main
deb http://near.example/debian bookworm-updates main
deb http://near.example/debian-security bookworm-security main
"""
UBUNTU = """\
deb http://archive.ubuntu.com/ubuntu noble main
deb http://archive.ubuntu.com/ubuntu noble-updates main
"""


@pytest.fixture
def put(tmp_path):
    def put_(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return put_


@pytest.fixture(autouse=True)
def configured(tmp_path, monkeypatch):
    """A function that has apt's configuration say something; it says nothing at first."""
    program = tmp_path / "programs" / "apt-config"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def configured_(**options):
        cases = "".join(f"{name}) echo \"proxy='{value}'\";;" for name, value in options.items())
        program.write_text(
            f"#!/bin/sh\nkind=${{3#Acquire::}}; case ${{kind%%::*}} in {cases} esac\n"
        )
        program.chmod(0o755)

    configured_(none="")
    return configured_


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("debian.sources", DEB822, "https://mirror.example"),
        ("a.list", ONE_LINE, "http://near.example"),
        ("a.list", UBUNTU, "http://deb.debian.org"),
        ("a.sources", DEB822.replace("Types: deb\n", "Enabled: no\n"), "http://deb.debian.org"),
        ("a.list", "nonsense\n", "http://deb.debian.org"),
    ],
    ids=["deb822", "one line", "ubuntu", "disabled", "nonsense"],
)
def test_apt_follows_the_host(tmp_path, put, path, text, found):
    put(f"etc/apt/sources.list.d/{path}", text)
    assert llm_mirror.apt(tmp_path) == (f"{found}/debian", f"{found}/debian-security")
    assert f"URIs: {found}/debian\nSuites: trixie trixie-updates\n" in llm_mirror.sources(
        "trixie", tmp_path
    )


def test_apt_without_any_file(tmp_path):
    assert llm_mirror.apt(tmp_path) == (llm_mirror.DEBIAN, llm_mirror.SECURITY)


def test_certificates_of_the_host(tmp_path, put):
    put("usr/local/share/ca-certificates/inner/a.crt", "A")
    put("usr/local/share/ca-certificates/readme.txt", "no")
    found = llm_mirror.certificates(tmp_path)
    assert set(found) == {"certificates/inner/a.crt", "certificates/README"}
    assert found["certificates/inner/a.crt"] == b"A"


def test_authorities_of_the_host(tmp_path, put):
    assert llm_mirror.authorities(tmp_path) == b""
    put("etc/ssl/certs/ca-certificates.crt", "A")
    assert llm_mirror.authorities(tmp_path) == b"A"


def test_arguments_of_the_environment(tmp_path):
    environment = {
        "HTTPS_PROXY": "http://p:1",
        "GOPROXY": "https://go",
        "PIP_INDEX_URL": "https://i",
    }
    assert llm_mirror.arguments(environment, tmp_path) == {
        "https_proxy": "http://p:1",
        "HTTPS_PROXY": "http://p:1",
        "UV_DEFAULT_INDEX": "https://i",
        "PIP_INDEX_URL": "https://i",
        "GOPROXY": "https://go",
    }


def test_arguments_of_a_proxy_that_apt_alone_is_told_of(tmp_path, configured):
    configured(http="http://near:3142", https="DIRECT")
    near = {"http_proxy": "http://near:3142", "HTTP_PROXY": "http://near:3142"}
    assert llm_mirror.arguments({}, tmp_path) == near
    own = {"http_proxy": "http://own:1", "HTTP_PROXY": "http://own:1"}
    assert llm_mirror.arguments({"http_proxy": "http://own:1"}, tmp_path) == own


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:3128", "http://me:pw@localhost:3128"])
def test_arguments_leave_out_a_proxy_that_a_build_cannot_reach(tmp_path, proxy):
    environment = {"https_proxy": proxy}
    assert llm_mirror.arguments(environment, tmp_path) == {}
    assert llm_mirror.proxies(environment)["HTTPS_PROXY"] == proxy


def test_arguments_of_pip(tmp_path, put):
    put("etc/pip.conf", "[global]\nindex-url = https://i/%%simple\n")
    assert llm_mirror.arguments({}, tmp_path)["PIP_INDEX_URL"] == "https://i/%%simple"
    put("etc/pip.conf", "nonsense")
    assert llm_mirror.arguments({}, tmp_path) == {}


def test_without_passwords():
    assert llm_mirror.without_passwords("at https://me:pw@host/x!") == "at https://host/x!"
