"""
Images built by the real engine, from small folders.
"""

import contextlib
import os
import re
import threading
import time

import llm_builder
import llm_engine
import pytest
from salt.exceptions import CommandExecutionError
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_image as llm_image_module
from tests.support import tiny
from tests.support.faults import engine_on_a_small_disk
from tests.support.registry import registry

pytestmark = pytest.mark.docker

NAME = f"test-{os.getpid()}"
GROUND, TOP = f"{NAME}-ground", f"{NAME}-top"
ARGUMENT = GROUND.upper().replace("-", "_")


@pytest.fixture
def folder(tmp_path, image):
    """The images: a ground, and one with two stages that stands on it."""
    files = {
        f"{GROUND}/Dockerfile": f"FROM {image}\nCOPY word /word\nCOPY certificates/ /trusted/\n",
        f"{GROUND}/word": "hello",
        f"{TOP}/Dockerfile": (
            f"ARG {ARGUMENT}\nFROM ${{{ARGUMENT}}} AS build\nARG VERSION\n"
            'RUN ["/bin/busybox", "sh", "-c", "echo $VERSION $PPID $RANDOM > /made"]\n'
            f"FROM ${{{ARGUMENT}}}\nCOPY --from=build /made /made\n"
        ),
    }
    for path, text in files.items():
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).write_text(text)
    return tmp_path / "images"


@pytest.fixture
def llm_image(folder, tmp_path, monkeypatch):
    """The module, with a label of its own: what it removes is this test's alone."""
    monkeypatch.setattr(llm_builder, "LABEL", f"llm-test-{NAME}")
    services = {"web": {"image": TOP, "version": "1.0"}}
    salt = {
        "cp.cache_dir": lambda *_, **__: [
            str(path) for path in folder.rglob("*") if path.is_file()
        ],
        "llm_config.platform": lambda: {"services": services},
    }
    dunders = {
        "__salt__": salt,
        "__opts__": {"cachedir": str(tmp_path), "id": "node1", "saltenv": "base"},
        "__context__": {},
    }
    with LoaderModuleMock({llm_image_module: dunders}):
        yield llm_image_module
        with contextlib.suppress(CommandExecutionError):
            llm_image_module.remove()


def change(llm_image, path, text):
    path.write_text(text)
    llm_image.__context__.clear()


def ids(llm_image):
    return llm_builder.Builder().ours()


def test_build_then_nothing_to_do(llm_image):
    ground, top = llm_image.reference(GROUND), llm_image.reference(TOP)
    assert llm_image.pending(["web"]) == {"build": [top], "pull": []}
    assert llm_image.build(["web"]) == sorted([ground, top])
    before = ids(llm_image)
    assert set(before) == {ground, top}
    assert llm_image.pending(["web"]) == {"build": [], "pull": []}
    assert llm_image.build(["web"]) == []
    assert ids(llm_image) == before


def test_build_leaves_no_stage_behind(llm_image):
    llm_image.build(["web"])
    assert llm_builder.Builder().images(label=[llm_builder.LABEL], dangling=["true"]) == []


def test_build_again_when_the_content_changes(llm_image, folder):
    llm_image.build(["web"])
    change(llm_image, folder / GROUND / "word", "other")
    made = llm_image.build(["web"])
    assert [name.split(":")[0] for name in made] == [f"llm/{GROUND}", f"llm/{TOP}"]
    assert len(ids(llm_image)) == 4
    change(llm_image, folder / GROUND / "word", "hello")
    assert llm_image.build(["web"]) == []


def test_build_that_fails_shows_the_end_of_its_log(llm_image, folder):
    words = "for i in 1 2 3; do echo line $i; done; exit 7"
    change(
        llm_image,
        folder / TOP / "Dockerfile",
        f'ARG {ARGUMENT}\nFROM ${{{ARGUMENT}}}\nRUN ["/bin/busybox", "sh", "-c", "{words}"]\n',
    )
    with pytest.raises(CommandExecutionError) as caught:
        llm_image.build(["web"])
    assert f"image {TOP} cannot be built: " in str(caught.value)
    assert "returned a non-zero code: 7" in str(caught.value)
    assert "line 2\nline 3" in str(caught.value)
    assert llm_image.reference(TOP) not in ids(llm_image)


def test_build_interrupted_does_not_block_the_next(llm_image, folder, engine):
    dockerfile = folder / TOP / "Dockerfile"
    good = dockerfile.read_text()
    wait = good.replace("echo $VERSION", "sleep 60; echo $VERSION")
    change(llm_image, dockerfile, wait)
    builder = llm_builder.Builder()
    threading.Timer(3, builder.cancel).start()
    start = time.monotonic()
    llm_image_module._builder, original = lambda: builder, llm_image_module._builder
    try:
        with pytest.raises(CommandExecutionError):
            llm_image.build(["web"])
    finally:
        llm_image_module._builder = original
    assert time.monotonic() - start < 20
    change(llm_image, dockerfile, good)
    assert llm_image.reference(TOP) in llm_image.build(["web"])
    time.sleep(1)
    assert [each for each in engine.containers() if llm_builder.LABEL in each["Labels"]] == []


def test_remove_takes_the_steps_that_a_killed_engine_left(llm_image, engine):
    llm_image.build(["web"])
    body = {"Image": llm_image.reference(TOP), "Cmd": ["/bin/busybox", "true"]}
    service = {"Labels": {"llm.site": NAME}}
    step, kept = engine.create(f"{NAME}-step", body), engine.create(f"{NAME}-web", body | service)
    try:
        with pytest.raises(CommandExecutionError, match=f"^llm/{TOP}:.* was not removed: "):
            llm_image.remove()
        found = [each["Id"] for each in engine.containers()]
        assert kept in found
        assert step not in found
    finally:
        engine.remove(kept)


def test_build_of_an_image_that_no_registry_has(llm_image):
    own = f"127.0.0.1:9/{NAME}@sha256:{'0' * 64}"
    assert llm_image.pending([own]) == {"build": [], "pull": [own]}
    with pytest.raises(CommandExecutionError, match="cannot be pulled|refused"):
        llm_image.build([own])


@pytest.fixture
def small(llm_image, monkeypatch):
    """
    The module with an engine on a disk of 48 megabytes, where it thinks that there is room; a
    function that gives the disk another size.
    """
    with (
        engine_on_a_small_disk("48m") as (address, resize),
        monkeypatch.context() as patch,
    ):
        patch.setenv("DOCKER_HOST", address)
        patch.setitem(llm_image.__opts__, "docker.url", address)
        patch.setattr(llm_image, "ROOM", 1)
        yield resize


def images(llm_image):
    """Return the ids of all images of the engine, with those that have no name."""
    return {image["Id"] for image in llm_image._builder().images()}


def test_build_and_pull_on_a_disk_that_is_full(llm_image, folder, small, image, tmp_path):
    """It says which disk and what to do first, and leaves nothing; with room it works."""
    tiny.make_image(image, tiny.busybox(tmp_path))
    write = 'RUN ["/bin/busybox", "dd", "if=/dev/zero", "of=/{}", "bs=1M", "count={}"]\n'
    text = f"FROM {image}\n" + write.format("some", 8) + write.format("more", 60)
    change(llm_image, folder / GROUND / "Dockerfile", text)
    before, place = images(llm_image), llm_image._builder().info()["DockerRootDir"]
    with registry(80 * 1024**2) as pulled:
        for wanted, words in ((GROUND, f"image {GROUND} cannot be built"), (pulled, "be pulled")):
            with pytest.raises(CommandExecutionError) as caught:
                llm_image.build([wanted])
            first, rest = str(caught.value).split("\n", 1)
            assert re.fullmatch(
                rf"node1: disk: {place} was full, and has [34]\d(\.\d)?m left by now; "
                r"make room \(salt-run llm.prune\)",
                first,
            )
            assert words in rest
            assert images(llm_image) == before
        small("400m")
        assert len(llm_image.build([GROUND, pulled])) == 2
        assert len(images(llm_image) - before) == 2


def test_remove_takes_ours_alone(llm_image, image):
    llm_image.build(["web"])
    assert len(llm_image.remove()) == 2
    assert ids(llm_image) == {}
    assert llm_engine.Engine().image(image)
