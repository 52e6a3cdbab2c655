"""
Runs that are killed half-way leave something that the next run makes good: nothing twice, nothing
left over, and the clients notice nothing.
"""

import json
import signal
import subprocess
import time

import pytest

from tests.support import invariants
from tests.support.faults import completion

DELAY = {"min_healthy": "4s", "healthy_deadline": "60s"}  # long enough to be hit in mid-replace


@pytest.fixture(autouse=True)
def _one_of_each(platform, client):
    """After each test, only what belongs there is there."""
    before = platform.services()
    yield
    platform.apply("cache.running,rate-limiter.running")
    assert completion(client)
    assert platform.services() == before
    invariants.nothing_is_left_over(platform)


def _started(platform, program, *arguments):
    """Start one of Salt's programs in a process group of its own."""
    daemon = {"salt-run": platform.master, "salt-call": platform.minion}[program]
    return subprocess.Popen(
        platform.command(program, daemon.config_dir, arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _wait_for_event(platform, service, action, since, timeout=120):
    """Return once a container of ``service`` has had the event ``action``."""
    command = [
        "docker", "events", "--since", f"{since:.6f}", "--filter", f"event={action}",
        "--filter", f"label=llm.site={platform.name}", "--filter", f"label=llm.service={service}",
    ]  # fmt: skip
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = time.monotonic() + timeout
    try:
        line = watch.stdout.readline()
        assert line, f"no {action} within {time.monotonic() - timer + timeout:.0f} s"
    finally:
        watch.kill()
        watch.wait()
        watch.stdout.close()


def _end(process, number):
    """
    Send a signal to a process; return its exit code and what it said. One of Salt's own that says
    that it exits, and does not, is killed, as its user would do.
    """
    process.send_signal(number)
    try:
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        assert "Exiting gracefully" in said
    return process.returncode, said


def _idle(platform, timeout=90):
    """Return once the minion does nothing any more: what a killed command began goes on."""
    deadline = time.monotonic() + timeout
    while True:
        jobs = json.loads(platform.salt("node1", "saltutil.running", "--out=json").stdout)
        if not [job for job in jobs["node1"] if job["fun"].startswith("state.")]:
            return
        assert time.monotonic() < deadline, jobs
        time.sleep(0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_deploy_whose_command_is_ended(platform, client, number):
    """The host goes on with what it was told; until it has, a second deploy is refused."""
    since, old = time.time(), platform.container("rate-limiter")
    with platform.service_changed("rate-limiter", pids=300 + number, **DELAY):
        process = _started(platform, "salt-run", "state.orchestrate", "orch.deploy")
        _wait_for_event(platform, "rate-limiter", "start", since)
        code, _ = _end(process, number)
        assert code != 0
        assert completion(client)
        again = platform.deploy(check=False)
        if again.returncode:
            assert 'The function "state.sls" is running as PID' in again.stdout
        _idle(platform)
        platform.deploy()
        assert platform.apply("rate-limiter") == {}
        assert platform.container("rate-limiter") != old
        assert completion(client)


MOMENTS = [  # (service, event): a container is made, but not yet started, and so on
    ("rate-limiter", "create"),
    ("rate-limiter", "start"),
    ("rate-limiter", "update"),
    ("rate-limiter", "die"),
    ("cache", "die"),
]


@pytest.mark.parametrize("moment", MOMENTS, ids="-".join)
def test_a_run_that_is_killed_at_a_moment(platform, client, moment):
    service, action = moment
    since, old = time.time(), platform.container(service)
    with platform.service_changed(service, pids=340 + MOMENTS.index(moment), min_healthy="1s"):
        process = _started(platform, "salt-call", "state.apply", f"{service}.running")
        _wait_for_event(platform, service, action, since)
        code, _ = _end(process, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert completion(client)
        platform.apply(f"{service}.running")
        assert platform.apply(service) == {}
        assert platform.container(service) != old
        invariants.nothing_is_left_over(platform)
