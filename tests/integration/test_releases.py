"""
Releases as an operator makes them: recorded, one at a time, taken back when they fail.
"""

import json
import os
import re
import signal

import pytest

from tests.support.faults import completion
from tests.support.operator import (
    deploy_twice_at_once,
    release,
    set_secret,
    site_changed,
    start,
    until,
    wait_for_another,
)
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]

SICK = {"command": ["sleep", "600"], "healthy_deadline": "6s", "progress_deadline": "12s"}
SLOW = {"min_healthy": "4s", "healthy_deadline": "60s"}  # long enough to be hit in mid-replace


@pytest.fixture(autouse=True)
def _as_it_was(platform, client):
    """After each test the pillar's own platform serves, and nobody has the lock."""
    yield
    done = platform.run("llm.deploy", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert completion(client)


def running(platform, service):
    """Return the name of the container that serves."""
    return platform.container(service)


def test_deploy_with_nothing_to_do_is_no_release(platform):
    before = json.loads(platform.run("llm.releases", "--out=json").stdout)
    containers = platform.containers()
    done = platform.run("llm.deploy")
    assert "Nothing to do: all is as declared" in done.stdout
    assert json.loads(platform.run("llm.releases", "--out=json").stdout) == before
    assert platform.containers() == containers


def test_deploy_is_recorded(platform):
    with platform.service_changed("rate-limiter", pids=301):
        record = release(platform)
        assert (record["result"], record["stable"], record["what"]) == ("done", True, "deploy")
        name = running(platform, "rate-limiter")
        assert record["changes"] == {"node1": {name: ["pids 256 → 301"]}}
        assert record["hosts"]["node1"]["rate-limiter"]["1"]["container"] == name
        shown = platform.run("llm.release", str(record["number"])).stdout
        assert "is stable after" in shown
        assert "pids 256 → 301" in shown
        table = platform.run("llm.releases", "lines=1").stdout
        assert "rate-limiter" in table
        assert "done, stable" in table


def test_deploy_tells_all_the_time_what_it_is_at(platform):
    with platform.service_changed("rate-limiter", pids=302, **SLOW):
        done = platform.run("llm.deploy")
    assert "node1: head and rate-limiter are healthy: done" in done.stderr
    assert "replace: " in done.stderr
    assert "waits " in done.stderr
    times = [float(line.split(" s ")[0]) for line in done.stderr.splitlines() if " s  " in line]
    assert times == sorted(times)


def test_release_that_fails_is_taken_back(platform, client):
    """A later tier fails: what an earlier one has switched goes back, by a start."""
    old, tail = running(platform, "rate-limiter"), running(platform, "tail")
    with (
        platform.service_changed("rate-limiter", pids=303),
        platform.service_changed("tail", **SICK),
    ):
        record = release(platform, code=4)
        assert record["result"] == "taken back"
        assert any("tail is not healthy" in line for line in record["why"])
        assert running(platform, "rate-limiter") == old
        assert running(platform, "tail") == tail
        assert completion(client)
        # No other way of applying brings the same again; another wish is carried out.
        assert platform.apply("rate-limiter") == {}
        with platform.service_changed("rate-limiter", pids=304):
            platform.apply("rate-limiter")
            assert running(platform, "rate-limiter") != old
            assert completion(client)


def test_release_with_a_new_password_is_taken_back(platform, client):
    """What uses it can start only when the cache has its old one again."""
    known = platform.containers().keys()
    with site_changed(platform), platform.service_changed("tail", **SICK):
        set_secret(platform, "cache.password", "of-a-release-that-fails")
        release(platform, code=4)
        assert platform.containers().keys() == known
        assert completion(client)


def test_bare_orchestration_takes_back_what_fails(platform, client):
    old = running(platform, "rate-limiter")
    with (
        platform.service_changed("rate-limiter", pids=305),
        platform.service_changed("tail", **SICK),
    ):
        done = platform.deploy(check=False)
    assert done.returncode == 1
    assert "was taken back: what served before serves again" in done.stdout
    assert running(platform, "rate-limiter") == old
    assert completion(client)


def test_live_files_go_back_with_the_rest(platform, client):
    path = platform.root / "services/rate-limiter/live/limits.yaml"
    before = path.read_text()
    limits = {"clients": {"default": {"requests": 77777}}}
    site = (platform.pillar / "site.yaml").read_text()
    try:
        platform.change_site(**limits)
        with platform.service_changed("tail", **SICK):
            release(platform, code=4)
            assert path.read_text() == before
            assert platform.apply("rate-limiter") == {}
    finally:
        (platform.pillar / "site.yaml").write_text(site)


def test_refused_release_changes_nothing(platform):
    before = platform.containers()
    with platform.service_changed("head", memory="900g"):
        said = release(platform, code=1)
    assert "memory" in "\n".join(said["why"])
    assert said["result"] == "refused"
    with platform.service_changed("head", memory="900"):
        assert "memory" in "\n".join(release(platform, code=1)["problems"])
    assert platform.containers() == before


def test_rollback_and_forward_again(platform, client):
    first = running(platform, "rate-limiter")
    found = json.loads(platform.run("llm.releases", "--out=json").stdout)["releases"]
    number = next(str(each["number"]) for each in found if each["stable"])
    with platform.service_changed("rate-limiter", pids=306):
        release(platform)
        second = running(platform, "rate-limiter")
        record = release(platform, number, command="llm.rollback")
        assert record["what"] == f"rollback to {number}"
        assert running(platform, "rate-limiter") == first
        assert completion(client)
        # It does not come again of itself; a deploy brings it, which is what the plan says.
        assert platform.apply("rate-limiter") == {}
        planned = platform.run("llm.plan", check=False)
        assert planned.returncode == 2, planned.stdout
        assert "its spec is wanted again, pids 256 → 306" in " ".join(planned.stdout.split())
        done = platform.run("llm.deploy")
        assert "plan: 1 to replace, 6 unchanged" in done.stderr
        assert "The world has moved" not in done.stdout + done.stderr
        assert running(platform, "rate-limiter") == second
        assert completion(client)
        _refused_without(platform, first, number)
        assert "no release 99999 to go to" in release(
            platform, "99999", command="llm.rollback", code=1
        )["error"]  # fmt: skip


def _refused_without(platform, name, number):
    """Remove the container ``name`` that is kept: no rollback to its release switches anything."""
    before = platform.containers()
    docker("rm", name)
    record = release(platform, number, command="llm.rollback", code=1)
    assert (record["result"], record["changes"]) == ("refused", {})
    assert "node1: Replica 1 of rate-limiter cannot go back" in "\n".join(record["why"])
    assert platform.containers() == before


def test_lock_by_hand(platform):
    platform.run("llm.lock", "an audit")
    try:
        said = release(platform, code=3)
        assert "an audit of " in said["error"]
        assert said["holder"]["by_hand"] is True
        assert platform.deploy(check=False).returncode == 1
    finally:
        assert "Freed: an audit" in platform.run("llm.unlock").stdout
    release(platform)


def test_two_deploys_at_once(platform, client):
    for pids in (307, 309):
        with platform.service_changed("rate-limiter", pids=pids, **SLOW):
            deploy_twice_at_once(platform)
        assert platform.services().count("rate-limiter") == 1
        assert completion(client)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_interrupted_deploy_goes_back(platform, client, number):
    known, old = platform.containers(), running(platform, "rate-limiter")
    with platform.service_changed("rate-limiter", pids=308 + number, **SLOW):
        process = start(platform, "llm.deploy")
        wait_for_another(platform, "rate-limiter", known)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 4, said
        assert "what served before serves again" in said
        assert "Traceback" not in said
        assert running(platform, "rate-limiter") == old
        assert completion(client)
        assert "Nobody had it" in platform.run("llm.unlock").stdout


def test_killed_deploy_is_gone_on_with(platform, client):
    known = platform.containers()
    with platform.service_changed("rate-limiter", pids=340, **SLOW):
        process = start(platform, "llm.deploy")
        wait_for_another(platform, "rate-limiter", known)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        (last,) = json.loads(platform.run("llm.releases", "lines=1", "--out=json").stdout)[
            "releases"
        ]
        assert (last["result"], last["why"]) == ("interrupted", ["its process was killed"])
        release(platform)
        assert running(platform, "rate-limiter") not in known
        assert completion(client)
        assert len(docker("ps", "-q", "--filter", f"label=llm.site={platform.name}").split()) == 7


def test_job_of_an_older_deploy_changes_nothing(platform):
    """It was queued behind another run, and wakes up with the minion that was killed."""
    before, other = platform.containers(), ("state.single", "cmd.run", "sleep 300")
    old = ("state.apply", "rate-limiter", "queue=True", 'pillar={"llm_deploy": 1}')
    with platform.service_changed("rate-limiter", pids=341):
        platform.salt("--async", "node1", *other)
        until(lambda: "cmd.run" in platform.salt("node1", "saltutil.is_running", "state.*").stdout)
        said = platform.salt("--async", "node1", *old).stdout
        job = re.search(r"job ID: (\d+)", said)[1]
        until(lambda: "1 queued run that may start at any time" in preflight(platform))
        platform.kill_minion()
        until(lambda: "Result: False" in platform.run("jobs.lookup_jid", job).stdout)
        assert "changes nothing" in platform.run("jobs.lookup_jid", job).stdout
        assert "queued" not in preflight(platform)
        assert platform.containers() == before


def preflight(platform):
    """Return what the host lacks for a deploy."""
    return platform.call("llm_preflight.check").stdout
