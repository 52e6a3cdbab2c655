"""
What a deploy runs on fails while it runs: its own process, minions, the master. The clients notice
nothing, the end is told for what it is, and the next deploy makes it good.
"""

import json
import time

import pytest

from tests.support.faults import completion, frozen
from tests.support.operator import release, start, wait_for_another

pytestmark = [pytest.mark.docker, pytest.mark.slow]

SLOW = {"min_healthy": "4s", "healthy_deadline": "60s"}  # long enough to be hit in mid-replace


@pytest.fixture(autouse=True)
def _converges(platform, client):
    """After each fault a deploy makes it good, and then there is nothing left to do."""
    before = platform.services()
    yield
    release(platform)
    assert platform.run("llm.plan").returncode == 0
    assert platform.services() == before
    assert completion(client)


def test_minion_that_is_stopped(platform, client):
    before = platform.containers()
    platform.minion.terminate()
    try:
        with platform.service_changed("rate-limiter", pids=401):
            said = release(platform, code=1)
        assert completion(client)
    finally:
        platform.minion.start()
    assert said["result"] == "refused"
    assert said["why"] == ["node1 does not answer: is its minion running?"]
    assert platform.containers() == before


def test_minion_that_is_frozen_before(platform):
    """Once it wakes up it hears of a deploy that is over."""
    before = platform.containers()
    with platform.service_changed("rate-limiter", pids=402):
        with frozen(platform.minion.pid):
            said = release(platform, code=1)
        number = said["number"]
        until(lambda: known(platform)["number"] == number)
        time.sleep(2)  # what came late has its chance
        assert known(platform)["state"] == "refused"
        assert said["why"] == ["node1 does not answer: is its minion running?"]
        assert platform.containers() == before


def test_minion_that_is_frozen_in_mid_deploy(platform, client):
    """Nobody knows what it does; when it wakes up, what served before serves again."""
    before, old = platform.containers(), platform.container("rate-limiter")
    with platform.service_changed("rate-limiter", pids=403, **SLOW):
        process = start(platform, "llm.deploy")
        wait_for_another(platform, "rate-limiter", before)
        with frozen(platform.minion.pid):
            said, _ = process.communicate(timeout=200)
            assert completion(client)
        assert process.returncode == 6, said
        assert "node1 does not answer: nobody knows what serves there" in said
        assert "Traceback" not in said
        until(lambda: platform.containers().keys() == before.keys(), 120)
        assert platform.container("rate-limiter") == old
        assert completion(client)
        # What is to be does not come of itself, but by the next deploy.
        assert platform.apply("rate-limiter") == {}
        release(platform)
        assert platform.container("rate-limiter") != old


def test_minion_that_is_killed_in_mid_deploy(platform, client):
    before, old = platform.containers(), platform.container("rate-limiter")
    with platform.service_changed("rate-limiter", pids=404, **SLOW):
        process = start(platform, "llm.deploy")
        wait_for_another(platform, "rate-limiter", before)
        platform.kill_minion()
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 4, said
        assert "what served before serves again" in said
        assert platform.container("rate-limiter") == old
        assert platform.containers().keys() == before.keys()
        assert completion(client)


def test_master_that_is_started_again_in_mid_deploy(platform, client):
    before, old = platform.containers(), platform.container("rate-limiter")
    with platform.service_changed("rate-limiter", pids=405, **SLOW):
        process = start(platform, "llm.deploy")
        wait_for_another(platform, "rate-limiter", before)
        platform.master.terminate()
        time.sleep(3)
        assert completion(client)
        platform.master.start()
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 4, said
        assert "what served before serves again" in said
        assert "Traceback" not in said
        assert platform.container("rate-limiter") == old
        assert completion(client)


def known(platform):
    """Return what the host knows of the last deploy."""
    return json.loads((platform.root / "deploy.json").read_text())


def until(holds, seconds=60):
    """Return once ``holds()``."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
