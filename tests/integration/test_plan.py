"""
What `salt-run llm.plan` foresees is what a deploy does, and to look changes nothing.
"""

import contextlib
import json
import os
import signal

import llm_outlook
import psutil
import pytest

from tests.support.faults import completion, events_of
from tests.support.operator import set_secret
from tests.support.platform import docker

ALL = {"mesh", "ingress", "cache", "model-proxy", "head", "rate-limiter", "tail"}


def _plan(platform, *arguments):
    """Return the exit code of a plan, and what it says; nothing is touched meanwhile."""
    before = _files(platform)
    with events_of(platform) as events:
        done = platform.run("llm.plan", "--out=json", *arguments, check=False)
    assert events == []
    assert _files(platform) == before
    assert "canary-" not in done.stdout
    return done.returncode, json.loads(done.stdout)


WATCHED = ("troubles.json", "history.jsonl", "watch.lock")


def _files(platform):
    """Return the size and time of every file of the platform, without Salt's and the watch's."""
    found = {}
    for folder, folders, files in os.walk(platform.root):
        if folder == str(platform.root):
            folders.remove("salt")
        for name in files:
            path = os.path.join(folder, name)
            if name.endswith((".sock", ".log")) or "/run/" in path or name in WATCHED:
                continue
            found[path] = (os.stat(path).st_size, os.stat(path).st_mtime_ns)
    return found


def _actions(data):
    """Return each action of a plan that changes something: service, action and causes."""
    return {
        (name, action["action"], *action["causes"])
        for name, service in data["hosts"]["node1"]["services"].items()
        for action in service["actions"]
        if action["action"] != "none"
    }


def _deployed(platform, data):
    """
    Deploy what ``data`` foresees; return the names of the services of which a container came or
    went. No announced plan was another by the time, and nothing is left to do.
    """
    before = platform.containers()
    pillar = json.dumps({"llm_announced": llm_outlook.announcement(data["hosts"])})
    done = platform.call("state.apply", f"pillar={pillar}", "--out=json")
    assert "The world has moved" not in done.stdout
    after = platform.containers()
    code, left = _plan(platform)
    assert code == 0, (left["problems"], _actions(left))
    changed = before.items() ^ after.items()
    return {name.removeprefix(f"{platform.name}-").rsplit("-", 2)[0] for name, _ in changed}


@pytest.fixture(autouse=True)
def _as_before(platform, client):
    """After each test the platform is as it was, and answers; before, nothing is parked."""
    exited = ["--filter", f"label=llm.site={platform.name}", "--filter", "status=exited"]
    if parked := docker("ps", "-aq", *exited).split():
        docker("rm", *parked)
    yield
    platform.apply()
    assert completion(client)


def test_nothing_to_do(platform):
    code, data = _plan(platform)
    assert (code, data["problems"], data["summary"]["changes"]) == (0, [], False)
    services = data["hosts"]["node1"]["services"]
    assert services.keys() == ALL
    assert services["cache"]["actions"] == [
        {
            "action": "none",
            "replica": 1,
            "container": platform.container("cache"),
            "causes": [],
        }
    ]
    done = platform.run("llm.plan")
    assert done.stdout.strip() == "Nothing to do"


def test_changes_are_foreseen_and_carried_out(platform, client):
    """A limit, a secret and a live file at once: each is foreseen, and nothing else happens."""
    secrets = platform.pillar / "secrets" / "cache.sls"
    live = "salt/rate-limiter/files/live/limits.yaml.jinja"
    text = (platform.folder / live).read_text()
    with contextlib.ExitStack() as stack:
        stack.enter_context(platform.changed(secrets, secrets.read_text()))
        stack.enter_context(platform.changed(live, f"{text}# another\n"))
        stack.enter_context(platform.service_changed("tail", memory="272m"))
        set_secret(platform, "cache.password", "canary-of-a-plan")
        code, data = _plan(platform)
        assert code == 2, data["problems"]
        assert _actions(data) == {
            ("cache", "replace", "secret cache.password changed"),
            ("head", "replace", "secret cache.password changed"),
            ("rate-limiter", "replace", "secret cache.password changed"),
            ("tail", "replace", "file bootstrap.yaml changed", "memory 256m → 272m"),
        }
        services = data["hosts"]["node1"]["services"]
        assert services["rate-limiter"]["live_files"] == {"limits.yaml": "change"}
        assert services["cache"]["traffic"] == {"effect": "gap", "seconds": 70}
        assert services["tail"]["traffic"] == {"effect": "none", "seconds": 0}
        assert data["summary"]["actions"] == {"replace": 4, "none": 3}
        assert _plan(platform, "services=mesh,ingress")[0] == 0
        shown = platform.run("llm.plan", check=False)
        assert shown.returncode == 2
        last = shown.stdout.strip().splitlines()[-1]
        assert last.startswith("4 to replace, 3 unchanged; cache has a gap of at most 70 s; ")
        changed = _deployed(platform, data)
        assert changed == {"cache", "head", "rate-limiter", "tail"}
        assert completion(client)


def test_a_replica_more_and_a_live_file_alone(platform):
    live = "salt/tail/files/live/listeners.yaml.jinja"
    text = (platform.folder / live).read_text()
    with (
        platform.changed(live, f"{text}\n# another\n"),
        platform.service_changed("rate-limiter", replicas=2),
    ):
        code, data = _plan(platform)
        assert code == 2, data["problems"]
        assert _actions(data) == {("rate-limiter", "create", "there is none")}
        tail = data["hosts"]["node1"]["services"]["tail"]
        assert tail["live_files"] == {"listeners.yaml": "change"}
        assert [each["action"] for each in tail["actions"]] == ["none"]
        assert _deployed(platform, data) == {"rate-limiter"}
    code, data = _plan(platform)
    assert code == 2, data["problems"]
    assert _actions(data) == {("rate-limiter", "park", "only 1 wanted")}
    assert _deployed(platform, data) == {"rate-limiter"}


def test_a_world_that_has_moved_since(platform):
    """Somebody stops a container after the plan: the deploy says so, and mends that as well."""
    with platform.service_changed("rate-limiter", memory="144m"):
        _, data = _plan(platform)
        digest = data["hosts"]["node1"]["services"]["rate-limiter"]["digest"]
        pillar = json.dumps({"llm_announced": {"node1": {"rate-limiter": digest}}})
        docker("stop", "-t", "1", platform.container("rate-limiter"))
        docker("rm", *docker("ps", "-aq", "--filter", f"label=llm.site={platform.name}",
                             "--filter", "label=llm.service=rate-limiter").split())  # fmt: skip
        done = platform.call("state.apply", "rate-limiter", f"pillar={pillar}")
    assert "The world has moved since the plan; planned again" in done.stdout
    assert platform.container("rate-limiter")


def test_a_mistake_in_the_pillar(platform):
    with platform.service_changed("head", memry="1g"):
        code, data = _plan(platform)
        shown = platform.run("llm.plan", check=False)
    assert (code, data["sound"]) == (1, False)
    assert 'did you mean "memory"?' in data["problems"][0]
    assert shown.returncode == 1
    assert shown.stdout.strip().endswith("1 mistake")


def test_a_service_that_nobody_knows(platform):
    done = platform.run("llm.plan", "services=haed", check=False)
    assert done.returncode == 1
    assert done.stdout.strip() == 'unknown service "haed"; did you mean "head"?'


def test_a_host_that_does_not_answer(platform):
    parent = psutil.Process(platform.minion.pid)
    processes = [parent, *parent.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        code, data = _plan(platform)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGCONT)
    assert code == 1
    assert data["silent"] == ["node1"]
    assert data["problems"] == ["node1: no answer"]
    assert data["hosts"] == {}
