import concurrent.futures
import fcntl
import threading
import time
from unittest.mock import create_autospec, patch

import llm_builder
import llm_debootstrap
import llm_engine
import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import llm_image as llm_image_module
from _modules import llm_retention

OWN = "registry.example/vllm@sha256:" + "a" * 64
FOLDERS = {
    "base": "ARG SUITE=trixie\nARG ORIGIN=debian@sha256:1\nFROM ${ORIGIN}\n",
    "tools": "ARG BASE\nFROM ${BASE}\n",
    "web": "ARG BASE\nARG TOOLS\nFROM ${TOOLS}\nARG VERSION\nFROM ${BASE}\n",
    "store": "ARG BASE\nFROM ${BASE}\nARG VERSION\n",
}
SERVICES = {
    "front": {"image": "web", "version": "1.0"},
    "store": {"image": "store", "version": "2.0"},
    "model": {"image": OWN, "version": ""},
}


@pytest.fixture
def folder(tmp_path):
    for name, dockerfile in FOLDERS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "Dockerfile").write_text(dockerfile)
    return tmp_path / "images"


@pytest.fixture
def services():
    return {name: dict(service) for name, service in SERVICES.items()}


@pytest.fixture
def builder():
    builder = create_autospec(llm_builder.Builder, instance=True)
    builder.made, builder.path = {}, "/"
    builder.ours.side_effect = lambda: dict(builder.made)
    builder.build.side_effect = lambda reference, *_, **__: builder.made.update({reference: "id"})
    builder.image.side_effect = llm_engine.NotFound("no such image", 404)
    builder.info.return_value = {"DockerRootDir": "/"}
    return builder


@pytest.fixture
def llm_image(configure_loader, folder, services, builder, tmp_path):
    salt = {
        "cp.cache_dir": lambda *_, **__: [
            str(path) for path in folder.rglob("*") if path.is_file()
        ],
        "llm_config.platform": lambda: {"services": services},
        "llm_retention.prune": create_autospec(
            llm_retention.prune, return_value={"containers": {}, "images": {"llm/front:1": 9}}
        ),
    }
    module = configure_loader(llm_image_module, salt=salt)
    room = llm_image_module.ROOM * 100
    usage = patch.object(llm_image_module.shutil, "disk_usage")
    with patch.object(module, "_builder", lambda: builder), usage as disk_usage:
        disk_usage.return_value.free = room
        with patch.object(module, "LOCK", str(tmp_path / "lock")):
            yield module


def names(builder):
    return [call.args[0].split(":")[0] for call in builder.build.call_args_list]


def test_reference_follows_version_and_folder(llm_image, services, folder):
    first = llm_image.reference("web")
    assert first == llm_image.reference("web", "1.0") != llm_image.reference("web", "1.1")
    (folder / "base" / "more").write_text("x")
    llm_image.__context__.clear()
    assert llm_image.reference("web") != first


def test_reference_with_a_digest_is_the_users_own(llm_image):
    assert llm_image.reference(OWN) == OWN


def test_reference_of_an_unknown_folder(llm_image):
    with pytest.raises(CommandExecutionError, match='no image "nope".*there are base, store'):
        llm_image.reference("nope")


def test_reference_when_services_disagree(llm_image, services):
    services["other"] = {"image": "web", "version": "0.9"}
    with pytest.raises(CommandExecutionError, match=r"different versions: 0\.9, 1\.0"):
        llm_image.reference("web")


def test_pending_names_what_is_lacking(llm_image, builder):
    web, store = llm_image.reference("web"), llm_image.reference("store")
    wanted = ["front", "store", "model"]
    assert llm_image.pending(wanted) == {"build": sorted([web, store]), "pull": [OWN]}
    builder.made[web] = "id"
    builder.image.side_effect = None
    llm_image.__context__.clear()
    assert llm_image.pending(wanted) == {"build": [store], "pull": []}


def test_pending_on_a_host_without_an_engine(llm_image, builder):
    builder.path = "/no/such/socket"
    lacking = {"build": [llm_image.reference("web")], "pull": [OWN]}
    assert llm_image.pending(["front", "model"]) == lacking
    assert not builder.ours.called


@pytest.mark.parametrize("images", [None, [], "head"])
def test_pending_wants_a_list(llm_image, images):
    with pytest.raises(SaltInvocationError):
        llm_image.pending(images)


def test_build_goes_from_the_ground_up_and_pulls(llm_image, builder):
    made = llm_image.build(["front", "model"])
    assert names(builder) == ["llm/base", "llm/tools", "llm/web"]
    assert {name.split(":")[0] for name in made} == {
        "llm/base", "llm/tools", "llm/web", OWN.split(":")[0],
    }  # fmt: skip
    builder.pull.assert_any_call(OWN, timeout=llm_builder.SILENCE)
    arguments = builder.build.call_args_list[-1].args[2]
    assert arguments == {
        "BASE": llm_image.reference("base"),
        "TOOLS": llm_image.reference("tools"),
        "VERSION": "1.0",
    }
    builder.forget_stages.assert_called_once_with()


def test_build_makes_nothing_twice(llm_image, builder):
    llm_image.build(["front"])
    assert llm_image.build(["front"]) == []
    assert llm_image.build(["store"]) == [llm_image.reference("store")]
    assert names(builder) == ["llm/base", "llm/tools", "llm/web", "llm/store"]


def test_build_is_side_by_side(llm_image, builder):
    together = threading.Barrier(2, timeout=10)

    def build(reference, *_, **__):
        if "/tools:" in reference or "/store:" in reference:
            together.wait()

    builder.build.side_effect = build
    llm_image.build(["front", "store"])
    assert not together.broken


def test_build_waits_for_another_run(llm_image, builder):
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        open(llm_image.LOCK, "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        first, second = (pool.submit(llm_image.build, ["store"]) for _ in range(2))
        time.sleep(0.3)
        assert not builder.build.called
        fcntl.flock(lock, fcntl.LOCK_UN)
        made = {len(first.result()), len(second.result())}
    assert made == {0, 2}
    assert names(builder) == ["llm/base", "llm/store"]


def test_build_leaves_out_what_stands_on_a_failure(llm_image, builder):
    def build(reference, *_, **__):
        if "/tools:" in reference:
            raise CommandExecutionError("the last lines")

    builder.build.side_effect = build
    with pytest.raises(CommandExecutionError) as caught:
        llm_image.build(["front", "store"])
    assert str(caught.value) == "image tools cannot be built: the last lines"
    assert sorted(names(builder)) == ["llm/base", "llm/store", "llm/tools"]
    builder.forget_stages.assert_called_once_with()


def test_build_interrupted_cancels_the_engine(llm_image, builder):
    with (
        patch.object(llm_image_module.concurrent.futures, "wait", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        llm_image.build(["store"])
    builder.cancel.assert_called_once_with()


def test_build_without_room(llm_image, builder):
    llm_image_module.shutil.disk_usage.return_value.free = 10
    with pytest.raises(
        CommandExecutionError, match=r"3 images takes up to 1.5g, and / has 10 left"
    ):
        llm_image.build(["front"])
    assert not builder.build.called
    llm_image.__salt__["llm_retention.prune"].assert_called_once_with()


def test_build_makes_room_with_what_nobody_needs(llm_image, builder):
    def make_room():
        llm_image_module.shutil.disk_usage.return_value.free = llm_image_module.ROOM * 9
        return {"containers": {}, "images": {"llm/front:1": 9}}

    llm_image_module.shutil.disk_usage.return_value.free = 10
    llm_image.__salt__["llm_retention.prune"].side_effect = make_room
    llm_image.build(["front"])
    assert builder.build.called


def test_build_without_registry_makes_debian(llm_image, builder, tmp_path):
    builder.pull.side_effect = CommandExecutionError("no such host")
    archive = (tmp_path / "archive").open("w+b")
    with patch.object(llm_debootstrap, "archive", autospec=True, return_value=archive) as made:
        llm_image.build(["store"])
    made.assert_called_once_with("trixie", str(tmp_path))
    builder.load.assert_called_once_with(archive, "llm/debian:trixie", label="debian")
    assert builder.build.call_args_list[0].args[2]["ORIGIN"] == "llm/debian:trixie"


def test_build_without_registry_and_debootstrap(llm_image, builder):
    builder.pull.side_effect = CommandExecutionError("no such host")
    failure = CommandExecutionError("debootstrap is not installed")
    with (
        patch.object(llm_debootstrap, "archive", autospec=True, side_effect=failure),
        pytest.raises(CommandExecutionError, match="no such host; and debootstrap is not"),
    ):
        llm_image.build(["store"])


def test_build_takes_the_origin_that_is_there(llm_image, builder):
    builder.image.side_effect = None
    llm_image.build(["store"])
    assert not builder.pull.called
    assert builder.build.call_args_list[0].args[2]["ORIGIN"] == "debian@sha256:1"


def test_remove_names_those_in_use(llm_image, builder):
    builder.made = {"llm/a:1": "1", "llm/b:2": "2", "llm/c:3": "3"}
    builder.remove_image.side_effect = [
        None,
        llm_engine.EngineError("a container uses it", 409),
        llm_engine.NotFound("gone", 404),
    ]
    with pytest.raises(CommandExecutionError, match="^llm/b:2 was not removed: a container"):
        llm_image.remove()
    assert builder.remove_image.call_count == 3
