"""
What a deploy hangs on fails while it runs: its own process, minions, the master, what it deploys.
Clients notice nothing, the end is told for what it is, and the next deploy makes it good.
"""

import datetime
import itertools
import json
import os
import re
import signal
import time

import pytest

from tests.support.faults import completion, frozen, own_clock
from tests.support.operator import release, start, until, wait_for_another
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]

PIDS = itertools.count(401)
SLOW = {"min_healthy": "4s", "healthy_deadline": "60s"}  # long enough to be hit in mid-replace
FAKE = """
import http.server, json, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"status": "ok"})
    def do_POST(self):
        time.sleep(SECONDS)
        self.answer({"what": "nonsense"})
    def answer(self, found):
        text = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture(scope="module", autouse=True)
def _as_it_was(platform):
    """At the end the pillar's own platform serves."""
    path = platform.pillar / "environments" / "dev.sls"
    with platform.changed(path, path.read_text()):
        yield
    release(platform)


@pytest.fixture(autouse=True)
def _converges(platform, client):
    """After each fault the next deploy makes it good, and then there is nothing left to do."""
    services = platform.services()
    yield
    release(platform)
    assert platform.run("llm.plan").returncode == 0
    assert platform.services() == services
    assert completion(client)


@pytest.fixture
def before(platform):
    """What runs while another rate-limiter is asked for, which takes some seconds."""
    platform.change_service("rate-limiter", pids=next(PIDS), **SLOW)
    return platform.containers()


def fake(seconds):
    """Return knobs of a model that is well, and that answers nonsense after so many seconds."""
    command = ["python", "-c", FAKE.replace("SECONDS", str(seconds))]
    return {"command": command, "smoke_test": ""}


def in_mid_deploy(platform, before):
    """Return a deploy that has come to where a new rate-limiter runs beside the old one."""
    process = start(platform, "llm.deploy")
    wait_for_another(platform, "rate-limiter", before)
    return process


def goes_back(platform, process, before, code=4):
    """The deploy ends with ``code``, and what served before serves as it did, alone."""
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    assert "what served before serves again" in said
    assert "Traceback" not in said
    assert platform.containers().keys() == before.keys()
    return said


def test_minion_that_is_frozen_before(platform, client, before):
    """As one that does not run; once it wakes up it hears of a deploy that is over."""
    with frozen(platform.minion.pid):
        said = release(platform, code=1)
        assert completion(client)
    assert said["result"] == "refused"
    assert said["why"] == ["node1 does not answer: is its minion running?"]
    hears(platform)
    until(lambda: known(platform)["number"] == said["number"] and not jobs(platform))
    assert known(platform)["state"] == "refused"
    assert platform.containers() == before


def test_minion_that_is_frozen_in_mid_deploy(platform, client, before):
    """Nobody knows what it does; once it wakes up it goes back, and clients do not notice."""
    process = in_mid_deploy(platform, before)
    with frozen(platform.minion.pid):
        said, _ = process.communicate(timeout=240)
        assert completion(client)
    hears(platform)
    assert process.returncode == 6, said
    assert "node1: no answer:" in said
    assert "node1 does not answer: nobody knows what serves there" in said
    assert "Traceback" not in said
    until(lambda: completion(client) and not jobs(platform))
    assert known(platform)["state"] == "unknown"
    assert platform.containers().keys() == before.keys()


def test_minion_that_is_killed_in_mid_deploy(platform, client, before):
    process = in_mid_deploy(platform, before)
    platform.kill_minion()
    goes_back(platform, process, before)
    assert completion(client)


def test_master_that_is_started_again_in_mid_deploy(platform, client, before):
    process = in_mid_deploy(platform, before)
    platform.master.terminate()
    assert completion(client)
    platform.master.start()
    goes_back(platform, process, before)
    assert completion(client)


def test_clock_of_a_host_that_jumps(platform, client, before, tmp_path):
    """What waits by it waits as long as it did; the next deploy wants the clock to be right."""
    old = platform.container("rate-limiter")
    with own_clock(platform, tmp_path / "clock") as ahead:
        process = in_mid_deploy(platform, before)
        time.sleep(1)  # it was asked for the first time
        ahead(3650)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert completion(client)
        done = platform.containers()
        (why,) = release(platform, code=1)["why"]
        assert re.fullmatch(
            r"node1: clock: found it 36\d\d s ahead of the master's, needed at most 30 s; "
            r"set the clock .*",
            why,
        )
        assert platform.containers() == done
        ahead(0)
    (new,) = done.keys() - before.keys()
    beside = moment(old, "FinishedAt") - moment(new, "StartedAt")
    assert beside.total_seconds() > 4, "it was not well for long enough"


def test_container_that_falls_sick_after_its_gate(platform, client, before):
    """It was well for long enough, and is not any more when the later tiers come."""
    platform.change_service("rate-limiter", healthy_deadline="15s")
    process = in_mid_deploy(platform, before)
    (new,) = platform.containers().keys() - before.keys()
    heard(process, "node1: tail is healthy: under way")
    docker("exec", new, "sh", "-c", "kill -STOP -1")
    said = goes_back(platform, process, before)
    assert "rate-limiter is not healthy: it was not well for 4 s on end within 15 s" in said
    assert completion(client)


def test_deploy_that_is_ended_before_it_changes_anything(platform, client, before):
    for moment, number, words in (
        ("plan: ", signal.SIGINT, "Interrupted: nothing was changed|it was interrupted"),
        ("node1: Every host has room for its services", signal.SIGTERM, "was refused"),
    ):
        process = start(platform, "llm.deploy")
        heard(process, moment)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 1, said
        assert re.search(words, said), said
        assert platform.containers() == before
        assert completion(client)


def test_deploy_that_is_ended_during_its_verification(platform, client):
    """By a signal it goes back; when it is killed, the next one goes back behind it."""
    before = platform.containers()
    with platform.service_changed("model-proxy", **fake(300)):
        process = start(platform, "llm.deploy")
        heard(process, "A client gets a completion: under way")
        os.kill(process.pid, signal.SIGTERM)
        goes_back(platform, process, before)
        assert completion(client)
        process = start(platform, "llm.deploy")
        heard(process, "A client gets a completion: under way")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    with platform.service_changed("model-proxy", **fake(0)):
        said = goes_back(platform, start(platform, "llm.deploy"), before)
    assert "A client gets a completion" in said
    assert completion(client)
    found = json.loads(platform.run("llm.releases", "lines=2", "--out=json").stdout)["releases"]
    assert [each["result"] for each in found] == ["taken back", "interrupted"]


def heard(process, text):
    """Return once ``process`` has said ``text``."""
    lines = []
    while not lines or text not in lines[-1]:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)


def hears(platform):
    """The host answers, without waiting for more than what it has missed."""
    platform.salt("node1", "test.ping", "--timeout=20")


def jobs(platform):
    """Return what the host is still at."""
    return json.loads(platform.salt("node1", "saltutil.running", "--out=json").stdout)["node1"]


def known(platform):
    """Return what the host knows of the last deploy."""
    return json.loads((platform.root / "deploy.json").read_text())


def moment(container, what):
    """Return when the engine says that ``what`` was of ``container``."""
    text = docker("inspect", "-f", f"{{{{.State.{what}}}}}", container)
    return datetime.datetime.fromisoformat(text)
