"""
All ways of applying end in the same place, and a second run of any of them changes nothing.
"""

import contextlib
import json
import uuid

import pytest

from tests.support.operator import set_secret
from tests.support.platform import changes


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
