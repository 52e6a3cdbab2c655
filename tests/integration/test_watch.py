"""
What is done to containers between deploys is put back by the minion itself.
"""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import time

import httpx
import openai
import pytest

from tests.support.faults import completion
from tests.support.operator import until
from tests.support.platform import docker

_wait_for = functools.partial(until, seconds=90)


@pytest.fixture(scope="module", autouse=True)
def _watched(platform):
    """Let the watch do its work, which nothing else here expects."""
    platform.run("llm.maintenance", "node1", "end=True")
    yield
    platform.run("llm.maintenance", "node1", "reason=tests do things by hand", "hours=24")


def _inspected(name):
    """Return what the engine says of a container, nothing when there is none."""
    with contextlib.suppress(subprocess.CalledProcessError):
        return json.loads(docker("inspect", name))[0]
    return {}


def _runs(name):
    return _inspected(name).get("State", {}).get("Status") == "running"


@pytest.fixture
def history(platform):
    """A function that returns what has come to the history since the test began."""
    path = platform.root / "history.jsonl"

    def entries():
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []

    before = len(entries())
    return lambda: entries()[before:]


def test_all_that_was_done_by_hand_is_put_back_as_it_was_deployed(platform, client, history):
    """An edit of the pillar that nobody has deployed stays where it is."""
    before = platform.containers()
    services = ("cache", "model-proxy", "rate-limiter", "tail", "mesh")
    names = {service: platform.container(service) for service in services}
    removed, limited = _inspected(names["rate-limiter"]), _inspected(names["mesh"])
    with platform.service_changed("rate-limiter", pids=300):
        docker("kill", names["tail"])
        docker("rm", "-f", names["rate-limiter"])
        docker("pause", names["cache"])
        docker("rename", names["model-proxy"], f"{platform.name}-other")
        docker("update", "--cpus", "0.4", "--restart", "no", names["mesh"])
        done = {"tail": "start", "rate-limiter": "create", "cache": "resume"}
        done |= {"model-proxy": "rename", "mesh": "update"}
        _wait_for(
            lambda: {each["service"]: each["do"] for each in history()}.items() >= done.items()
        )
    made = _inspected(platform.container("rate-limiter"))
    for label in ("llm.spec", "llm.parts", "llm.rollout"):
        assert made["Config"]["Labels"][label] == removed["Config"]["Labels"][label]
    assert made["Image"] == removed["Image"]
    assert _limits(_inspected(names["mesh"])) == _limits(limited)
    _wait_for(lambda: _is_served(client))
    assert {each["result"] for each in history()} == {"done"}
    after = platform.containers()
    others = before.keys() - {names["rate-limiter"]}
    assert {name: after[name][0] for name in others} == {name: before[name][0] for name in others}
    assert not after[names["cache"]][2]
    assert platform.apply() == {}


def _limits(found):
    return found["HostConfig"]["NanoCpus"], found["HostConfig"]["RestartPolicy"]["Name"]


def _is_served(client):
    try:
        return completion(client)
    except (openai.OpenAIError, httpx.HTTPError):
        return False


def test_nothing_is_done_during_a_state_run(platform, tmp_path, history):
    """What happens meanwhile is looked at afterwards."""
    begun, hold, script = (tmp_path / name for name in ("begun", "hold", "script"))
    hold.touch()
    script.write_text(f"touch {begun}; while test -e {hold}; do sleep 0.2; done")
    arguments = ["state.single", "cmd.run", f"sh {script}"]
    name = platform.container("model-proxy")
    run = subprocess.Popen(
        platform.command("salt-call", platform.minion.config_dir, arguments),
        cwd=platform.folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(begun.exists)
        docker("kill", name)
        time.sleep(4)
        assert not _runs(name)
    finally:
        hold.unlink()
    assert run.wait(timeout=120) == 0
    (entry,) = _wait_for(history)
    assert (entry["seen"], entry["result"]) == ("it was killed", "done")
    assert _runs(name)


def test_what_is_in_maintenance_is_left_alone(platform, history):
    name = platform.container("cache")
    platform.run("llm.maintenance", "cache", "reason=a closer look", "hours=1")
    try:
        docker("kill", name)
        (entry,) = _wait_for(history)
        assert (entry["container"], entry["seen"]) == (name, "it was killed")
        assert entry["do"] == "left alone"
        assert entry["result"].endswith(": a closer look")
        assert "a closer look" in platform.run("llm.status", check=False).stdout
        assert not _runs(name)
    finally:
        platform.run("llm.maintenance", "cache", "end=True")
    _wait_for(lambda: [each["result"] for each in history()][1:] == ["done"])
    assert _runs(name)


def _killed(pid):
    """Kill the process of a container, where there is one; return whether there was."""
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def test_a_crash_loop_is_told_once_and_left_to_the_engine(platform, history):
    name = platform.container("rate-limiter")
    before = _inspected(name)
    first = before["RestartCount"]
    for number in range(1, 9):  # some more than it takes: the watch may have looked late
        _wait_for(lambda: _killed(_inspected(name)["State"]["Pid"]))
        _wait_for(lambda number=number: _inspected(name)["RestartCount"] >= first + number)
        _wait_for(lambda: _runs(name))
    _wait_for(lambda: [each for each in history() if each["container"] == name])
    shown = json.loads(platform.run("llm.history", "--out=json").stdout)
    assert shown["silent"] == []
    loops = [each for each in shown["history"] if each["seen"].startswith("crash loop: ")]
    (entry,) = loops
    assert (entry["host"], entry["container"], entry["do"]) == ("node1", name, "nothing")
    assert re.search(r"exit code 137, .*restarts \d", entry["seen"])
    assert entry["log"]
    assert [each for each in history() if each["do"] not in ("nothing", "route")] == []
    table = platform.run("llm.history").stdout
    assert name in table
    assert "crash loop" in table
    assert _inspected(name)["Id"] == before["Id"]
