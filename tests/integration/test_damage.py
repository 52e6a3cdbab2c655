"""
What deploys rely on is damaged, gone or taken: each says so, or makes it good, and leaves alone
what is well.
"""

import contextlib
import json

import pytest

from tests.support.faults import completion, taken_address
from tests.support.operator import release
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _converges(platform, client):
    """After each fault a deploy makes it good, and then there is nothing left to do."""
    services = platform.services()
    yield
    release(platform)
    assert platform.run("llm.plan").returncode == 0
    assert platform.services() == services
    assert completion(client)


def test_records_that_are_damaged(platform, client):
    """A deploy says which and what to do, before it changes anything, and then it works."""
    before = platform.containers()
    records = ("deploy.json", "refused.json", "salt/lock.json", "salt/releases/000000.json")
    with platform.service_changed("rate-limiter", pids=411):
        for path in (platform.root / each for each in records):
            path.write_text("{")
            said = json.dumps(release(platform, code=1))
            assert f"{path} is damaged: " in said
            assert "; remove it" in said
            assert "Traceback" not in said
            path.unlink()
            assert platform.containers() == before
            assert completion(client)
        with contextlib.suppress(AssertionError):  # the lock has lost the last number
            release(platform)
        release(platform)
        assert completion(client)


def test_images_that_were_removed(platform, client):
    """The one that runs is built again at need; what is parked goes with its image."""
    name = platform.container("rate-limiter")
    with platform.service_changed("rate-limiter", pids=412):
        release(platform)
        image = docker("inspect", "-f", "{{.Image}}", name)
        before = platform.containers()
        docker("rmi", "-f", image)
        release(platform)
        assert platform.containers() == before
        assert completion(client)


def test_network_that_was_removed(platform, client):
    network = f"{platform.name}-network"
    form = "{{range .Containers}}{{println .Name}}{{end}}"
    for name in docker("network", "inspect", "-f", form, network).split():
        docker("network", "disconnect", "-f", network, name)
    docker("network", "rm", network)
    ingress = platform.containers()[platform.container("ingress")]
    release(platform)
    assert platform.containers()[platform.container("ingress")] == ingress
    assert completion(client)


def test_address_that_another_container_has_taken(platform, client):
    """It even answers like the one that is dead, and yet is not taken for it."""
    before, name = platform.containers(), platform.container("rate-limiter")
    with taken_address(name, f"{platform.name}-network") as other:
        status = json.loads(platform.run("llm.status", "--out=json", check=False).stdout)
        assert status["node1"]["rate-limiter"]["healthy"] == 0
        assert completion(client)
        said = release(platform)
        now = platform.container("rate-limiter")
        assert said["changes"]["node1"][now] == ["x"]
        assert now != name
        assert completion(client)
        assert docker("inspect", "-f", "{{.State.Status}}", other) == "running"
    after = platform.containers()
    assert {each: after[each] for each in after if each != now} == {
        each: before[each] for each in before if each != name
    }


def test_cache_that_is_full(platform, client):
    """The least used goes; clients get answers, and so does who asks how it does."""
    before, name = platform.containers(), platform.container("cache")
    program = (
        'export REDISCLI_AUTH=$(sed -n \'s/.*">\\([^"]*\\)".*/\\1/p\' /etc/llm/valkey.conf);'
        "valkey-benchmark -a $REDISCLI_AUTH -q -t set -d 500000 -r 400 -n 400 >/dev/null;"
        "valkey-cli info stats; seq -f key:%012g 0 399 | xargs valkey-cli unlink"
    )
    said = docker("exec", name, "sh", "-c", program)
    (evicted,) = [int(line.split(":")[1]) for line in said.splitlines() if "evicted_keys" in line]
    assert evicted > 0
    for _ in range(3):
        assert completion(client)
    assert platform.run("llm.status").returncode == 0
    assert platform.containers() == before
