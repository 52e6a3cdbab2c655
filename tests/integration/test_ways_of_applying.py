"""
All ways of applying end in the same place, and a second run of any of them changes nothing.
"""

import contextlib
import json
import uuid

import pytest

from tests.support.operator import set_secret
from tests.support.platform import changes

IN_CLEAR = "#!yaml|gpg\nllm: {secrets: {cache: {password: hidden-in-clear}}}\n"
COMMANDS = [
    ("run", "state.orchestrate", "orch.deploy"),
    ("salt", "*", "state.apply"),
    ("salt", "-I", "llm:roles:rate-limiter", "state.apply", "rate-limiter"),
    ("call", "state.apply"),
    ("call", "--local", "state.apply"),
]


def _orchestration(platform, *arguments):
    done = platform.deploy("--out=json", *arguments)
    steps = json.loads(done.stdout)["data"]
    found = {}
    for master in steps.values():
        for step in master.values():
            states = step["changes"].get("ret")
            if step["__sls__"] and isinstance(states, dict):
                found |= changes(states)
            if step["result"] is False:
                found[step["__id__"]] = step["comment"]
    return found


def _highstate(platform, *arguments):
    return changes(json.loads(platform.salt("*", "state.apply", *arguments, "--out=json").stdout))


def _role(platform, *arguments):
    role = ["-I", "llm:roles:rate-limiter", "state.apply", "rate-limiter"]
    done = platform.salt(*role, *arguments, "--out=json")
    return changes(json.loads(done.stdout))


def _call(platform, *arguments):
    return changes(json.loads(platform.call("state.apply", *arguments, "--out=json").stdout))


def _masterless(platform, *arguments):
    done = platform.call("--local", "state.apply", *arguments, "--out=json")
    return changes(json.loads(done.stdout))


WAYS = [_orchestration, _highstate, _role, _call, _masterless]


@pytest.mark.parametrize("way", WAYS)
def test_a_second_run_changes_nothing(platform, way):
    before = platform.containers()
    assert way(platform) == {}
    assert platform.containers() == before


def _limit(platform):
    return platform.service_changed("rate-limiter", memory="160m")


def _template(platform):
    path = "salt/rate-limiter/files/settings.env.jinja"
    text = (platform.folder / path).read_text() + f"# {uuid.uuid4()}\n"
    return platform.changed(path, text)


@contextlib.contextmanager
def _secret(platform):
    path = "pillar/secrets/head.sls"
    kept = (platform.folder / path).read_text()
    with platform.changed(path, kept):
        set_secret(platform, "head.key", "sk-of-another-day")
        yield


CHANGES = {  # what is said of it, and what happens when it comes and when it goes
    _limit: (
        "memory 128m → 160m",
        {"rate-limiter is running"},
        {"rate-limiter is running"},
    ),
    _template: (
        "file settings.env changed",
        {"rate-limiter is configured", "rate-limiter is running"},
        {"rate-limiter is running"},
    ),
    _secret: (
        "secret head.key changed",
        {"head is configured", "head is running", "tail is configured"},
        {"head is running", "tail is configured"},
    ),
}


@pytest.mark.parametrize(
    ("way", "change"),
    zip(WAYS, (_template, _limit, _template, _secret, _limit), strict=True),
)
def test_a_dry_run_says_what_then_happens(platform, way, change):
    words, come, go = CHANGES[change]
    before = platform.containers()
    with change(platform):
        foreseen = way(platform, "test=True")
        assert platform.containers() == before
        done = way(platform)
    assert foreseen == done
    assert done.keys() == come
    assert words in str(done)
    assert way(platform).keys() == go


@pytest.fixture
def _spoilt(platform):
    """Files with mistakes that a compiled pillar hides."""
    text = (platform.pillar / "site.yaml").read_text()
    site = text.replace(f"public_port: {platform.port}", "public_port: 22:22")
    with (
        platform.changed("pillar/site.yaml", site),
        platform.changed("pillar/secrets/cache.sls", IN_CLEAR),
    ):
        yield


@pytest.mark.usefixtures("_spoilt")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_mistake_that_a_compiled_pillar_hides_is_refused(platform, command):
    before = platform.containers()
    program, *arguments = command
    done = getattr(platform, program)(*arguments, check=False)
    assert done.returncode != 0
    assert platform.containers() == before
    assert "public_port: YAML reads 22:22 as another number" in done.stdout
    assert "cache.password: is not encrypted" in done.stdout
    assert "hidden-in-clear" not in done.stdout + done.stderr
