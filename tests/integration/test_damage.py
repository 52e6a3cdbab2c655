"""
What the platform rests on is damaged, gone, taken or full: a deploy says so or makes it good, and
leaves alone what is well.
"""

import json

import pytest

from tests.support.faults import completion, taken_address
from tests.support.operator import release
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]
LIMITER = "services=rate-limiter"


@pytest.fixture(autouse=True)
def _nothing_left_to_do(platform, client):
    """After each fault and the deploy that makes it good, all is as declared."""
    services = platform.services()
    yield
    assert platform.run("llm.plan").returncode == 0
    assert platform.services() == services
    assert completion(client)


def test_records_that_are_damaged(platform, client):
    """Which, and what to do, is said before anything changes; without them all works again."""
    before = platform.containers()
    with platform.service_changed("rate-limiter", pids=411):
        for name in ("salt/lock.json", "salt/releases/000000.json", "deploy.json"):
            path = platform.root / name
            path.write_text("{")
            try:
                said = json.dumps(release(platform, code=1))
            finally:
                path.unlink()
            assert f"{path} is damaged: " in said
            assert "; remove it" in said
            assert "Traceback" not in said
        assert platform.containers() == before
        assert completion(client)
    release(platform)


def test_network_that_was_removed(platform, client):
    """All that is on it comes again; what is not, stays."""
    network, ingress = f"{platform.name}-network", platform.container("ingress")
    before = platform.containers()[ingress]
    form = "{{range .Containers}}{{println .Name}}{{end}}"
    for name in docker("network", "inspect", "-f", form, network).split():
        docker("network", "disconnect", "-f", network, name)
    docker("network", "rm", network)
    release(platform)
    assert platform.containers()[ingress] == before
    assert completion(client)


def test_address_that_another_container_has_taken(platform, client):
    """It even answers like the one that is dead, and yet is not taken for it."""
    before, name = platform.containers(), platform.container("rate-limiter")
    with taken_address(name, f"{platform.name}-network") as other:
        status = json.loads(platform.run("llm.status", "--out=json", check=False).stdout)
        assert status["node1"]["rate-limiter"]["healthy"] == 0
        assert completion(client)
        done = release(platform)
        now = platform.container("rate-limiter")
        assert now != name
        assert done["changes"] == {"node1": {now: ["started: there was none"]}}
        assert docker("inspect", "-f", "{{.State.Status}}", other) == "running"
        assert completion(client)
    after = platform.containers()
    assert after.keys() - {now} == before.keys() - {name}
    assert {each: after[each] for each in after.keys() - {now}} == {
        each: before[each] for each in before.keys() - {name}
    }


@pytest.fixture
def own_image(platform):
    """The rate-limiter of the pillar has an image that nobody else has: the usual one, labelled."""
    usual = docker("inspect", "-f", "{{.Config.Image}}", platform.container("rate-limiter"))
    text = f"FROM {usual}\nLABEL llm.test={platform.name}\n"
    with platform.changed("salt/images/rate-limiter/Dockerfile", text):
        yield
    release(platform, LIMITER)


def test_image_that_was_removed(platform, client, own_image):
    """What was made of it runs on, and can be gone back to; it is built again once it is needed."""
    release(platform, LIMITER)
    before, name = platform.containers(), platform.container("rate-limiter")
    docker("stop", name)
    docker("rmi", "-f", docker("inspect", "-f", "{{.Image}}", name))  # in use, it would stay
    docker("start", name)
    assert completion(client)
    with platform.service_changed("rate-limiter", pids=412):
        done = release(platform, LIMITER)["changes"]["node1"]
        now = platform.container("rate-limiter")
        assert (done.keys(), "pids 256 → 412" in done[now]) == ({now}, True)
        assert completion(client)
        docker("rmi", "-f", docker("inspect", "-f", "{{.Config.Image}}", now))
        release(platform, command="llm.rollback")
    assert platform.container("rate-limiter") == name
    assert completion(client)
    after = platform.containers()
    assert {each: after[each] for each in after.keys() - {name}} == {
        each: before[each] for each in before.keys() - {name}
    }


def test_cache_that_is_full(platform, client):
    """The least used goes; clients get their answers, and so does who asks how it does."""
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
