"""
What the bootstrap program reads from site.yaml, with a YAML library and without.
"""

import pytest
import yaml

from bootstrap import installation
from bootstrap.progress import Failure

ONE = "hosts: {node1: {address: 127.0.0.1, roles: []}}\n"
TWO = "hosts:\n  far: {address: 192.0.2.7}\n  near: {address: 127.0.0.1}\n"


@pytest.fixture(params=("library", "none"))
def reading(request, site, monkeypatch, tmp_path):
    """With the YAML library of this Python, and without any."""
    if request.param == "none":
        monkeypatch.setattr(installation, "PYTHON", tmp_path / "no-python")


def test_scalars_of_the_site_agree_with_the_library(repository):
    text = (repository / "pillar" / "site.yaml").read_text()
    rough, whole = installation.scalars(text), yaml.safe_load(text)
    for key in ("name", "root", "environment", "public_name"):
        assert rough[key] == whole[key]
    assert {key: int(port) for key, port in rough["salt"].items()} == whole["salt"]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize(
    "text",
    [
        "salt: {publish_port: 14505, return_port: 14506}   # others are taken",
        "salt:\n  publish_port: 14505\n  return_port: 14506",
    ],
)
def test_ports_come_from_the_site(site, text):
    found = site(text)
    assert (found.publish_port, found.return_port, found.name) == (14505, 14506, "trial")


def test_ports_have_defaults(site):
    assert (site().publish_port, site().return_port) == (4505, 4506)


def test_host_is_the_one_with_an_address_of_this_machine(site):
    assert site(TWO).host() == "near"
    assert site(TWO).address() == "127.0.0.1"


def test_master_of_one_host_listens_on_the_loopback(site):
    assert site(ONE).address() == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts: {far: {address: 192.0.2.7}}", "no host has an address of this machine (far)"),
        ("hosts: {a1: {address: 127.0.0.1}, b1: {address: 127.0.0.2}}", "several hosts have"),
        ("hosts: [node1]", "hosts must be a mapping"),
        ("hosts: {node1: 127.0.0.1}", "hosts must be a mapping"),
        ("", "hosts must be a mapping"),
    ],
)
def test_host_that_cannot_be_told_is_explained(site, text, said):
    with pytest.raises(Failure) as failure:
        site(text).host()
    assert said in str(failure.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts: {a: [}", "is not YAML"),
        ("salt: 4505", "salt must be a mapping"),
        ("salt: {publish_port: many}", "salt must be a mapping"),
    ],
)
def test_site_with_a_mistake_is_one_line(site, text, said):
    with pytest.raises(Failure) as failure:
        site(text)
    assert said in str(failure.value)
    assert len(failure.value.problems) == 1
    assert "Traceback" not in str(failure.value)


def test_forgiving_reads_what_it_can_of_a_broken_site(site, tmp_path):
    found = site("hosts: {a: [}", forgiving=True)
    assert (found.name, found.root) == ("trial", tmp_path / "root")


def test_root_is_ours_once_something_is_remembered(site):
    found = site()
    assert found.marker() is None
    found.remember(packages=["gcc"])
    found.remember(packages=["gcc", "gnupg"])
    assert found.marker() == {"packages": ["gcc", "gnupg"]}


def test_write_replaces_only_what_differs(tmp_path):
    path = tmp_path / "folder" / "file"
    assert installation.write(path, "one") is True
    assert installation.write(path, "one") is False
    assert installation.write(path, "two") is True
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o600)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
