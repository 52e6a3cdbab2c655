import os
import pathlib
from unittest.mock import create_autospec

import jinja2
import pytest
from salt.exceptions import CommandExecutionError
from salt.modules import cp
from salt.utils.jinja import SerializerExtension

from _modules import llm_deploy
from _modules import llm_files as llm_files_module

TEMPLATES = {
    "head/files/config.yaml.jinja": (
        "key: {{ secrets['head.key'] | json }}\nport: {{ service.port }}"
    ),
    "head/files/live/routes.yaml.jinja": "clients: {{ secrets['clients'] | json }}",
}


@pytest.fixture
def templates():
    return dict(TEMPLATES)


@pytest.fixture
def secrets():
    return {"head.key": "canary-1", "clients": {"default": "canary-2"}}


@pytest.fixture
def refused():
    """What was taken back, by service."""
    return {}


@pytest.fixture
def carried():
    """The services that this host carries."""
    return ["head"]


@pytest.fixture
def llm_files(
    refused, configure_loader, platform, templates, secrets, carried, tmp_path, monkeypatch
):
    platform["site"]["root"] = str(tmp_path / "root")
    platform["services"]["head"] |= {
        "files": ["config.yaml"],
        "live_files": ["routes.yaml"],
        "secrets": ["head.key", "clients"],
        "user": os.getuid(),
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(templates),
        undefined=jinja2.StrictUndefined,
        extensions=[SerializerExtension],
    )
    monkeypatch.setattr(llm_files_module, "_environment", lambda: environment)
    return configure_loader(
        llm_files_module,
        salt={
            "llm_config.platform": lambda: platform,
            "llm_config.service": lambda name: platform["services"][name],
            "llm_config.secret": lambda name: secrets[name],
            "llm_deploy.refused": create_autospec(llm_deploy.refused, side_effect=refused.get),
            "llm_config.carried": lambda: carried,
        },
    )


def _afresh(llm_files):
    llm_files.__context__.clear()
    llm_files_module._environment().cache.clear()


def test_write_puts_every_file_where_its_container_reads_it(llm_files):
    assert llm_files.write("head") == {"config.yaml": "create", "routes.yaml": "create"}
    static = pathlib.Path(llm_files.digests("head")["directory"], "config.yaml")
    live = pathlib.Path(llm_files.folder("head"), "live", "routes.yaml")
    assert static.read_text() == 'key: "canary-1"\nport: 4000'
    assert live.read_text() == 'clients: {"default": "canary-2"}'
    assert [path.stat().st_mode & 0o777 for path in (static, live)] == [0o400, 0o400]
    assert static.parent.stat().st_mode & 0o777 == 0o500
    assert static.parent.parent.stat().st_mode & 0o777 == 0o700


def test_write_again_changes_nothing(llm_files):
    llm_files.write("head")
    _afresh(llm_files)
    assert llm_files.pending("head") == {}
    assert llm_files.write("head") == {}


def test_a_secret_of_a_file_changes_its_fingerprint_and_not_the_file(llm_files, secrets):
    llm_files.write("head")
    before = llm_files.digests("head")
    secrets["head.key"] = "canary-3"
    _afresh(llm_files)
    after = llm_files.digests("head")
    assert after["files"] == before["files"]
    assert after["secrets"].keys() == before["secrets"].keys() == {"head.key"}
    assert after["secrets"] != before["secrets"]
    assert after["directory"] != before["directory"]


def test_a_live_secret_is_no_reason_to_replace_the_container(llm_files, secrets):
    llm_files.write("head")
    before = llm_files.digests("head")
    secrets["clients"]["default"] = "canary-4"
    _afresh(llm_files)
    assert llm_files.digests("head") == before
    assert llm_files.write("head") == {"routes.yaml": "change"}


def test_digests_hold_no_secret(llm_files):
    assert "canary" not in repr(llm_files.digests("head"))


def test_fingerprints_of_two_hosts_differ(llm_files):
    llm_files.write("head")
    before = llm_files.digests("head")["secrets"]
    llm_files._key_path().unlink()
    llm_files._make_fingerprint_key()
    assert llm_files.digests("head")["secrets"] != before


def test_a_file_changed_by_hand_is_put_back(llm_files):
    llm_files.write("head")
    path = pathlib.Path(llm_files.digests("head")["directory"], "config.yaml")
    path.chmod(0o600)
    path.write_text("mine")
    assert llm_files.write("head") == {"config.yaml": "change"}
    assert path.read_text() != "mine"


def test_what_an_interrupted_write_left_is_cleared(llm_files):
    llm_files.write("head")
    left = pathlib.Path(llm_files.folder("head"), ".unfinished-1")
    left.mkdir()
    pathlib.Path(llm_files.folder("head"), "live", "routes.yaml").unlink()
    llm_files.write("head")
    assert not left.exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nothing }}", "salt://head/files/config.yaml.jinja: 'nothing' is undefined"),
        ("ok\n{% if %}", "salt://head/files/config.yaml.jinja:2: "),
    ],
)
def test_a_wrong_template_is_named(llm_files, templates, template, message):
    templates["head/files/config.yaml.jinja"] = template
    with pytest.raises(CommandExecutionError) as error:
        llm_files.pending("head")
    assert message in str(error.value)


def test_remove_leaves_nothing(llm_files):
    llm_files.write("head")
    folder = llm_files.folder("head")
    assert llm_files.removable("head") == [f"{folder}/config", f"{folder}/live"]
    llm_files.remove("head")
    assert not os.path.exists(folder)
    assert llm_files.removable("head") == []
    llm_files.remove("head")


def test_remove_keeps_the_certificate(llm_files):
    llm_files.write("head")
    key = pathlib.Path(llm_files.folder("head"), "tls", "key.pem")
    key.parent.mkdir()
    key.touch()
    llm_files.remove("head")
    assert [path.name for path in pathlib.Path(llm_files.folder("head")).iterdir()] == ["tls"]
    assert key.exists()
    assert llm_files.removable("head") == []


def test_clear_removes_what_neither_the_wish_nor_a_container_needs(llm_files, secrets):
    folders = []
    for number in range(3):
        secrets["head.key"] = f"canary-{number}"
        _afresh(llm_files)
        llm_files.write("head")
        folders.append(llm_files.digests("head")["directory"])
    llm_files.clear("head", [folders[1], "/etc"])
    config = pathlib.Path(llm_files.folder("head"), "config")
    assert {str(path) for path in config.iterdir()} == set(folders[1:])
    assert llm_files.pending("head") == {}


def test_clear_on_a_host_that_carries_the_service_no_more(llm_files, secrets, carried):
    llm_files.write("head")
    carried.clear()
    secrets.clear()
    _afresh(llm_files)
    llm_files.clear("head", [])
    assert not list(pathlib.Path(llm_files.folder("head"), "config").iterdir())


def test_clear_where_there_is_nothing(llm_files):
    llm_files.clear("head", [])
    assert not os.path.exists(llm_files.folder("head"))


def test_pending_leaves_out_the_live_file_that_was_taken_back(llm_files, refused, secrets):
    llm_files.write("head")
    secrets["clients"] = {"default": "canary-3"}
    _afresh(llm_files)
    assert llm_files.pending("head") == {"routes.yaml": "change"}
    refused["head"] = {"files": llm_files.fingerprints("head")}
    assert llm_files.pending("head") == {}
    assert llm_files.pending("head", anew=True) == {"routes.yaml": "change"}
    secrets["clients"] = {"default": "canary-4"}
    _afresh(llm_files)
    assert llm_files.pending("head") == {"routes.yaml": "change"}


def test_take_back_puts_live_files_back_as_they_were_when_approved(llm_files, templates):
    name = "head/files/live/routes.yaml.jinja"
    live = pathlib.Path(llm_files.folder("head"), "live", "routes.yaml")
    llm_files.write("head")
    assert llm_files.take_back("head") == []
    approved = live.read_text()
    for text in ("unproven", "worse"):
        templates[name] = text
        _afresh(llm_files)
        assert llm_files.write("head") == {"routes.yaml": "change"}
    assert llm_files.take_back("head") == ["routes.yaml"]
    assert live.read_text() == approved
    assert live.stat().st_mode & 0o777 == 0o400
    assert llm_files.pending("head") == {"routes.yaml": "change"}
    assert llm_files.take_back("head") == []
    assert [path.name for path in live.parent.parent.iterdir() if "live" in path.name] == ["live"]


def test_take_back_after_an_approval_changes_nothing(llm_files, templates):
    llm_files.write("head")
    templates["head/files/live/routes.yaml.jinja"] = "proven"
    _afresh(llm_files)
    llm_files.write("head")
    llm_files.approve("head")
    assert llm_files.take_back("head") == []
    assert llm_files.pending("head") == {}


def test_fingerprint_key_of_an_interrupted_run_is_made_anew(llm_files):
    path = llm_files._key_path()
    path.parent.mkdir(parents=True)
    path.touch()
    path.with_name(f".{path.name}.new").write_bytes(b"half")
    llm_files.write("head")
    assert len(path.read_bytes()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert not path.with_name(f".{path.name}.new").exists()


def test_fingerprint_key_on_a_full_disk_is_no_empty_one(llm_files, monkeypatch):
    full = create_autospec(pathlib.Path.write_bytes, side_effect=OSError(28, "No space left"))
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(CommandExecutionError, match=r"fingerprint\.key: No space left"):
        llm_files.write("head")
    assert not llm_files._key_path().exists()


def test_template_comes_from_the_file_server_once_it_is_wanted(configure_loader, tmp_path):
    place = tmp_path / "files/base/mesh/files"
    fetch = create_autospec(cp.cache_dir, side_effect=lambda _: place.mkdir(parents=True))
    module = configure_loader(
        llm_files_module, salt={"cp.cache_dir": fetch}, opts={"cachedir": str(tmp_path)}
    )
    assert module._template("mesh/files/missing.jinja") is None
    (place / "sources.jinja").write_text("{{ service }}")
    assert module._environment().get_template("mesh/files/sources.jinja").render(service=1) == "1"
    fetch.assert_called_once_with("salt://mesh/files")
