"""
What somebody has changed by hand is seen, foreseen in test mode, and mended at the next run.
"""

import contextlib
import re
from pathlib import Path

import pytest

from tests.support.faults import completion, events_of
from tests.support.platform import docker

FAULTS = {  # by hand: what is said of the container
    "stopped": (["stop", "-t", "1"], "start: it had stopped (exit code "),
    "killed": (["kill"], "start: it was killed"),
    "removed": (["rm", "-f"], "-g"),  # made, or a parked one started: as it comes
    "paused": (["pause"], "resume: it was paused"),
    "limits": (
        ["update", "--memory=200m", "--memory-swap=200m", "--cpus=0.3", "--pids-limit=99"],
        "update: memory 200m → 128m, swap 200m → 128m, cpus 0.3 → 0.5, pids 99 → 256",
    ),
    "restart-policy": (["update", "--restart", "no"], "restart policy no → always"),
    "cpu-shares": (["update", "--cpu-shares", "99"], "CPU shares set by hand"),
    "renamed": (["rename"], "rename: it was called "),
    "disconnected": (["network", "disconnect", "-f"], "not connected to network "),
    "reconnected": (["network", "connect"], "its address on network "),
}


@contextlib.contextmanager
def _mended(platform):
    """When the test fails, what it did by hand is made good for the others."""
    try:
        yield
    except BaseException:
        platform.apply("rate-limiter")
        raise


def _mends(platform, sls="rate-limiter"):
    """
    Return the changes of a run that mends what is wrong. It changes nothing but that, a dry run
    before touches nothing and says the same, and a further one finds nothing.
    """
    with events_of(platform) as events:
        foreseen = platform.apply(sls, "test=True")
    assert events == []
    done = platform.apply(sls)
    # What waits for the service cannot know that it will be well.
    assert {each: foreseen[each] for each in done} == done
    assert all(each.endswith("is healthy") for each in foreseen.keys() - done.keys())
    with events_of(platform) as events:
        assert platform.apply(sls) == {}
    assert events == []
    return done


@pytest.mark.parametrize("fault", FAULTS)
def test_a_container_that_was_changed_by_hand(platform, client, fault):
    command, words = FAULTS[fault]
    before = platform.containers()
    name = platform.container("rate-limiter")
    arguments = {
        "renamed": [name, f"{platform.name}-other"],
        "disconnected": [f"{platform.name}-network", name],
        "reconnected": [f"{platform.name}-network", name],
    }
    with _mended(platform):
        if fault == "reconnected":
            docker("network", "disconnect", "-f", *arguments[fault])
        docker(*command, *arguments.get(fault, [name]))
        assert completion(client)
        done = _mends(platform)
    assert words in str(done["rate-limiter is running"])
    after = platform.containers()
    others = {each: before[each] for each in before if "rate-limiter" not in each}
    assert {each: after[each] for each in after if "rate-limiter" not in each} == others
    if fault in ("stopped", "killed"):
        assert {each: after[each][0] for each in after} == {
            each: before[each][0] for each in before
        }
    elif fault not in ("removed", "cpu-shares", "disconnected", "reconnected"):
        assert after == before
    assert platform.container("rate-limiter")
    assert completion(client)


def test_files_that_were_changed_by_hand(platform, client):
    """One that is read at the start, one that is read again, and where requests go."""
    name = platform.container("rate-limiter")
    services = platform.root / "services" / "rate-limiter"
    settings = Path(_mounted(name, "/etc/llm")) / "settings.env"
    with _mended(platform):
        settings.write_text(settings.read_text() + "BACKEND_TYPE=memory\n")
        (services / "live" / "limits.yaml").unlink()
        (platform.root / "endpoints" / "rate-limiter.yaml").unlink()
        assert completion(client)
        done = _mends(platform)
    assert done.pop("rate-limiter is configured") == {
        "settings.env": "change",
        "limits.yaml": "create",
    }
    assert "settings.env was changed by hand" in str(done.pop("rate-limiter is running"))
    assert "There is a file for the replicas of each service" in done
    assert platform.container("rate-limiter") != name
    assert "BACKEND_TYPE=memory" not in settings.read_text()


def _mounted(container, target):
    """Return the folder of the host that a container has at ``target``."""
    mounts = f'{{{{range .Mounts}}}}{{{{if eq .Destination "{target}"}}}}{{{{.Source}}}}'
    return docker("inspect", "-f", mounts + "{{end}}{{end}}", container)


def test_everything_at_once(platform, client):
    """A whole deploy after a bad day; the containers that nobody touched stay."""
    before = platform.containers()
    services = ["cache", "model-proxy", "rate-limiter", "tail", "mesh"]
    names = {service: platform.container(service) for service in services}
    docker("stop", "-t", "1", names["cache"])
    docker("kill", names["tail"])
    docker("rm", "-f", names["rate-limiter"])
    docker("rename", names["model-proxy"], f"{platform.name}-other")
    docker("update", "--cpus", "0.4", names["mesh"])
    said = platform.deploy().stdout
    assert all(re.search(rf"\b{hop} \d+\.\d", said) for hop in ("tail", "mesh", "head"))
    assert completion(client)
    after = platform.containers()
    new = platform.container("rate-limiter")
    started = {name for name in after if after[name] != before.get(name)}
    assert started == {names["cache"], names["tail"], new}
    assert after.keys() - {new} == before.keys() - {names["rate-limiter"]}
    assert all(after[name][0] == before[name][0] for name in after.keys() - {new})
    assert platform.apply() == {}
