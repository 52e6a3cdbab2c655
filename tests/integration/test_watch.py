"""
What is done to containers between deploys is put back by the minion itself.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.support.faults import completion
from tests.support.platform import docker


@pytest.fixture(scope="module", autouse=True)
def _watched(platform):
    """Let the watch do its work, which nothing else here expects."""
    platform.run("llm.maintenance", "node1", "end=True")
    yield
    platform.run("llm.maintenance", "node1", "reason=tests do things by hand", "hours=24")


def wait_for(fact, seconds=60):
    """Return what ``fact`` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)
    return found


def inspected(name):
    """Return what the engine says of a container, nothing when there is none."""
    with contextlib.suppress(subprocess.CalledProcessError):
        return json.loads(docker("inspect", name))[0]
    return {}


def is_running(name):
    """Whether a container serves as it should, as far as the engine knows."""
    state = inspected(name).get("State", {})
    return state.get("Status") == "running"


def history(platform, since, **arguments):
    """Return what was found since an entry that was the last one."""
    words = [f"{key}={value}" for key, value in arguments.items()]
    found = json.loads(platform.run("llm.history", *words, "--out=json").stdout)["history"]
    return [each for each in found if each["time"] >= since]


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def test_all_that_was_done_by_hand_is_put_back_as_it_was_deployed(platform, client):
    """An edit of the pillar that nobody has deployed stays where it is."""
    since, before = now(), platform.containers()
    services = ("cache", "model-proxy", "rate-limiter", "tail", "mesh")
    names = {service: platform.container(service) for service in services}
    labels = inspected(names["rate-limiter"])["Config"]["Labels"]
    image = inspected(names["rate-limiter"])["Image"]
    limits = inspected(names["mesh"])["HostConfig"]
    with platform.service_changed("rate-limiter", pids=300):
        docker("kill", names["tail"])
        docker("rm", "-f", names["rate-limiter"])
        docker("pause", names["cache"])
        docker("rename", names["model-proxy"], f"{platform.name}-other")
        docker("update", "--cpus", "0.4", "--restart", "no", names["mesh"])
        wait_for(lambda: platform.containers().keys() >= before.keys() - {names["rate-limiter"]})
        new = wait_for(lambda: [n for n in platform.containers() if "rate-limiter" in n])[0]
        wait_for(lambda: not platform.containers()[names["cache"]][2])
        wait_for(lambda: _limits(names["mesh"]) == _limits(names["mesh"], limits))
    made = inspected(new)
    assert made["Config"]["Labels"]["llm.spec"] == labels["llm.spec"]
    assert json.loads(made["Config"]["Labels"]["llm.parts"]) == json.loads(labels["llm.parts"])
    assert made["Image"] == image
    wait_for(lambda: _answers(client))
    after = platform.containers()
    assert {name: after[name][0] for name in after.keys() - {new}} == {
        name: each[0] for name, each in before.items() if name != names["rate-limiter"]
    }
    seen = {(each["service"], each["do"]): each["result"] for each in history(platform, since)}
    assert set(seen.values()) == {"done"}
    assert seen.keys() >= {
        ("tail", "start"), ("rate-limiter", "create"), ("cache", "resume"),
        ("model-proxy", "rename"), ("mesh", "update"),
    }  # fmt: skip
    assert platform.apply() == {}


def _limits(name, found=None):
    found = found or inspected(name)["HostConfig"]
    return found["NanoCpus"], found["RestartPolicy"]["Name"]


def _answers(client):
    try:
        return completion(client)
    except Exception as err:  # noqa: BLE001
        print(err)
        return None


def test_nothing_is_done_during_a_state_run(platform, client):
    """What happens meanwhile is looked at afterwards."""
    name = platform.container("rate-limiter")
    run = subprocess.Popen(
        platform.command(
            "salt-call", platform.minion.config_dir, ["state.single", "cmd.run", "sleep 8"]
        ),
        cwd=platform.folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: "state.single" in platform.call("saltutil.running").stdout)
    docker("kill", name)
    time.sleep(3)
    assert run.poll() is None
    assert not is_running(name)
    assert run.wait(timeout=120) == 0
    wait_for(lambda: is_running(name))


def test_what_is_in_maintenance_is_left_alone(platform, client):
    since, name = now(), platform.container("rate-limiter")
    platform.run("llm.maintenance", "rate-limiter", "reason=a closer look", "hours=1")
    try:
        docker("kill", name)
        entry = wait_for(lambda: history(platform, since))[0]
        assert (entry["container"], entry["seen"]) == (name, "it was killed")
        assert entry["do"] == "left alone"
        assert entry["result"].endswith(": a closer look")
        assert "a closer look" in platform.run("llm.status", check=False).stdout
        assert "a closer look" in platform.run("llm.maintenance").stdout
        assert not is_running(name)
    finally:
        platform.run("llm.maintenance", "rate-limiter", "end=True")
    wait_for(lambda: is_running(name))


def test_a_crash_loop_is_told_once_and_left_to_the_engine(platform, client):
    since, name = now(), platform.container("rate-limiter")
    before = inspected(name)
    for number in range(1, 7):
        os.kill(inspected(name)["State"]["Pid"], signal.SIGKILL)
        wait_for(lambda number=number: inspected(name)["RestartCount"] >= number)
        wait_for(lambda: is_running(name))
    (entry,) = wait_for(lambda: history(platform, since))
    assert entry["container"] == name
    assert re.match(
        r"crash loop: (running|restarting), exit code 137, .*restarts [5-7]", entry["seen"]
    )
    assert entry["do"] == "nothing"
    assert entry["log"]
    assert "crash loop" in platform.run("llm.status", check=False).stdout
    table = platform.run("llm.history").stdout
    assert name in table
    assert "crash loop" in table
    assert inspected(name)["Id"] == before["Id"]
