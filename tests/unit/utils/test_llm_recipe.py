import io
import re
import tarfile

import llm_recipe
import pytest

BASE = llm_recipe.Recipe("base", {"Dockerfile": b"ARG ORIGIN=debian\nARG SUITE\nFROM ${ORIGIN}\n"})
TOOLS = llm_recipe.Recipe("tools", {"Dockerfile": b"ARG BASE\nFROM ${BASE}\n"}, "", [BASE])


def make(version="1.0", needs=(BASE,), **files):
    given = {"Dockerfile": b"ARG BASE\nFROM ${BASE}\nARG VERSION\n", "a/b": b"one"}
    return llm_recipe.Recipe("web", given | files, version, list(needs))


def test_reference_is_the_same_for_the_same_content():
    assert make().reference == make().reference
    assert make().reference.startswith("llm/web:")
    assert len(make().reference) == len("llm/web:") + 12


@pytest.mark.parametrize(
    "other",
    [
        make(version="1.1"),
        make(**{"a/b": b"two"}),
        make(**{"a/c": b""}),
        make(needs=[llm_recipe.Recipe("base", BASE.files | {"certificates/x.crt": b"x"})]),
        make(needs=[BASE, TOOLS]),
    ],
    ids=["version", "content", "file", "base", "another base"],
)
def test_reference_changes_with(other):
    assert other.reference != make().reference


def test_arguments_are_those_that_are_asked_for():
    offered = {"ORIGIN": "x", "http_proxy": "y", "UNKNOWN": "z"}
    proxy = {"http_proxy": "y"}  # a build knows it unasked
    assert make().arguments(offered) == {"BASE": BASE.reference, "VERSION": "1.0"} | proxy
    assert BASE.arguments(offered) == {"ORIGIN": "x"} | proxy


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "no_proxy"])
def test_arguments_of_a_proxy_reach_every_build(name):
    assert TOOLS.arguments({name: "x"}) == {"BASE": BASE.reference, name: "x"}


@pytest.mark.parametrize(
    ("program", "argument"),
    [(r"\buv pip install", "UV_DEFAULT_INDEX"), (r"(?<!uv )\bpip install", "PIP_INDEX_URL")],
)
def test_arguments_of_the_package_index_reach_what_installs_from_it(repository, program, argument):
    texts = [path.read_text() for path in (repository / "salt/images").glob("*/Dockerfile")]
    installing = [text for text in texts if re.search(program, text)]
    assert installing
    for text in installing:
        recipe = llm_recipe.Recipe("web", {"Dockerfile": text.encode()})
        assert recipe.arguments({argument: "x"})[argument] == "x"


def test_default_of_an_argument():
    assert BASE.default("ORIGIN") == "debian"
    assert BASE.default("SUITE") == ""
    assert BASE.default("NONE") == ""


def test_context_holds_all_files_and_no_times():
    archive = make(**{"run.py": b"#!/usr/bin/python3\n"}).context({"more": b"m"})
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {entry.name: entry for entry in tar}
        assert list(found) == ["Dockerfile", "a/b", "more", "run.py"]
        assert tar.extractfile("a/b").read() == b"one"
    assert {entry.mtime for entry in found.values()} == {0}
    assert found["run.py"].mode == 0o755
    assert found["a/b"].mode == 0o644


def test_needed_are_arguments_before_the_first_stage():
    dockerfile = "ARG BASE\nARG MODEL_PROXY=x\nARG OTHER\nFROM ${BASE}\nARG TOOLS\n"
    assert llm_recipe.needed(dockerfile, {"tools", "model-proxy", "base"}) == [
        "base",
        "model-proxy",
    ]


def test_ordered_has_each_once_after_what_it_needs():
    web = make(needs=[BASE, TOOLS])
    assert llm_recipe.ordered([web, make(), TOOLS]) == [BASE, TOOLS, web, make()]
