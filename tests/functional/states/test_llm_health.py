"""
Gates before real containers: well, slow, flapping, crashing, out of memory, missing.
"""

import contextlib
import http.server
import itertools
import threading
import time

import pytest

pytestmark = pytest.mark.docker

SERVE = 'mkdir -p /tmp/www && echo \'{"status": "ok"}\' > /tmp/www/health && '
SERVE += "exec httpd -f -p 8080 -h /tmp/www"
SECRET = "canary-sesame"
MISSING = f"registry.invalid/head@sha256:{64 * '0'}"


@pytest.fixture
def start(site, engine, image):
    """A function that starts a container which runs a shell script, and returns its name."""
    numbers = itertools.count(1)
    site.pillar["llm"]["secrets"] = {"cache": {"password": SECRET}}

    def start_(script, restart="always", memory=64 << 20):
        name = f"{site.name}-gate-{next(numbers)}"
        host = {"RestartPolicy": {"Name": restart}, "Memory": memory, "MemorySwap": memory}
        # A shell alone, as first process, would not obey SIGTERM.
        body = {"Image": image, "Cmd": ["sh", "-c", script], "HostConfig": host | {"Init": True}}
        engine.create(name, body)
        engine.start(name)
        return name

    return start_


@pytest.fixture
def gate(site):
    """A function that applies a state, having looked that test mode does not wait for it."""

    def gate_(function, name, **kwargs):
        began = time.monotonic()
        foretold = site.state(f"llm_health.{function}", name, test=True, **kwargs)
        assert time.monotonic() - began < 4
        assert foretold["changes"] == {}
        assert foretold["result"] in (None, True), foretold["comment"]
        began = time.monotonic()
        ret = site.state(f"llm_health.{function}", name, **kwargs)
        ret["seconds"] = time.monotonic() - began
        assert ret["changes"] == {}
        return ret

    return gate_


def http_gate(container, **more):
    """The arguments of a gate on a container that was started with SERVE."""
    return {"url": "/health", "json": {"status": "ok"}, "container": container} | more


@pytest.fixture
def address(engine):
    """A function that returns where a container is reached."""

    def address_(container, port=8080):
        networks = engine.inspect(container)["NetworkSettings"]["Networks"]
        return f"{networks['bridge']['IPAddress']}:{port}"

    return address_


def test_container_that_runs(start, gate):
    ret = gate("container", start("sleep 60"), min_healthy=0.5)
    assert ret["result"] is True
    assert ret["seconds"] > 0.3


def test_container_that_has_run_for_longer_is_not_waited_for(start, gate):
    name = start("sleep 60")
    time.sleep(3)
    ret = gate("container", name, min_healthy=3)
    assert ret["result"] is True
    assert ret["seconds"] < 2


def test_container_that_crashes_at_half_a_second(start, gate):
    name = start(f"echo password {SECRET}; sleep .5; exit 3")
    ret = gate("container", name, min_healthy=10, healthy_deadline=60)
    assert ret["result"] is False
    assert ret["seconds"] < 10
    lines = ret["comment"].splitlines()
    assert lines[0] == f"{name} is not healthy: it crashes and is started again: exit code 3"
    assert "exit code 3, restarts 1" in lines[1]
    assert "  check: the container runs" in lines
    assert "    password [redacted]" in lines
    assert SECRET not in ret["comment"]


@pytest.mark.slow
def test_container_that_crashes_at_eight_seconds(start, gate):
    ret = gate("container", start("sleep 8; exit 4"), min_healthy=10)
    assert ret["result"] is False
    assert 6 < ret["seconds"] < 30
    assert "it crashes and is started again: exit code 4" in ret["comment"]


def test_container_that_has_exited(start, gate):
    ret = gate("container", start("exit 5", restart="no"))
    assert ret["result"] is False
    assert ret["seconds"] < 10
    assert "it has exited: exit code 5" in ret["comment"]
    assert "(exited, exit code 5, restarts 0)" in ret["comment"]


@pytest.mark.parametrize("restart", ["always", "no"])
def test_container_that_runs_out_of_memory(start, gate, restart):
    fill = "sleep .3; x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done"
    ret = gate("container", start(f"exec sh -c '{fill}'", restart, 32 << 20), min_healthy=5)
    assert ret["result"] is False
    assert ret["seconds"] < 30
    assert "is not healthy: killed: out of memory (limit 32m)" in ret["comment"]
    assert "exit code 137, out of memory (limit 32m)" in ret["comment"]


def test_container_that_was_never_started(site, engine, image, gate):
    name = f"{site.name}-gate"
    engine.create(name, {"Image": image, "Cmd": ["/bin/nix"]})
    with contextlib.suppress(Exception):
        engine.start(name)
    ret = gate("container", name)
    assert ret["result"] is False
    assert ret["seconds"] < 10
    assert "it was not started: " in ret["comment"]
    assert "/bin/nix" in ret["comment"]


def test_container_that_is_missing(site, gate):
    ret = gate("container", f"{site.name}-nix")
    assert ret["result"] is False
    assert ret["seconds"] < 10
    assert ret["comment"].startswith(f"{site.name}-nix is not healthy: there is no such container")


def test_http_that_nobody_answers(gate):
    times = {"min_healthy": 0.1, "healthy_deadline": 0.3}
    ret = gate("http", "it answers", url="http://127.0.0.1:1/", **times)
    assert ret["result"] is False
    assert ret["comment"].splitlines() == [
        "GET http://127.0.0.1:1/ must give status 200 is not healthy: "
        "it was not well for 0.1 s on end within 0.3 s",
        "  check: GET http://127.0.0.1:1/ must give status 200",
        "  last answer: connection refused",
    ]


@pytest.mark.parametrize(
    ("delay", "deadline", "result"), [(0.7, 20, True), (20, 1.8, False)], ids=["within", "beyond"]
)
def test_http_of_a_slow_start(start, gate, address, delay, deadline, result):
    name = start(f"sleep {delay}; {SERVE}")
    times = {"min_healthy": 0.4, "healthy_deadline": deadline}
    url = f"http://{address(name)}/health"
    ret = gate("http", "it answers", **http_gate(name, url=url, **times))
    assert ret["result"] is result, ret["comment"]
    if not result:
        assert 1.7 < ret["seconds"] < 10
        assert "it was not well for 0.4 s on end within 1.8 s" in ret["comment"]
        assert f"check: GET {url}" in ret["comment"]
        assert "(running, restarts 0)" in ret["comment"]


def test_http_of_the_wrong_body(start, gate, address):
    name = start(SERVE)
    url = f"http://{address(name)}/health"
    more = {"url": url, "json": {"status": "ready"}, "healthy_deadline": 0.6}
    ret = gate("http", "it answers", **http_gate(name, **more))
    assert ret["result"] is False
    assert "last answer: 200, but status is 'ok' and not 'ready'" in ret["comment"]


@pytest.fixture
def flapping():
    """URL of a server whose every third answer is bad."""
    answers = itertools.cycle([200, 200, 503])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(next(answers))
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("min_healthy", [0.3, 1])
def test_http_that_flaps_at_every_third_probe(gate, flapping, min_healthy):
    ret = gate("http", "it answers", url=flapping, min_healthy=min_healthy, healthy_deadline=3)
    assert ret["result"] is False
    assert ret["seconds"] > 2.9
    assert f"it was not well for {min_healthy:g} s on end within 3 s" in ret["comment"]


def test_tcp(start, gate, address):
    name = start(SERVE)
    good, bad = address(name), address(name, 8081)
    assert gate("tcp", "it listens", address=good, container=name)["result"] is True
    ret = gate("tcp", "it listens", address=bad, container=name, healthy_deadline=0.3)
    assert ret["result"] is False
    assert f"check: connect to {bad}" in ret["comment"]


def test_redis_and_grpc_that_are_something_else(start, gate, address):
    name = start(SERVE)
    for function in ("redis", "grpc"):
        arguments = {"address": address(name), "container": name, "healthy_deadline": 0.5}
        ret = gate(function, "it answers", **arguments)
        assert ret["result"] is False
        assert "last answer: " in ret["comment"]


@pytest.fixture
def catalogue(site, engine, image, compile_pillar):
    """A function that starts replicas of service ``web`` of the catalogue."""
    pillar = compile_pillar()
    pillar["site"] |= {"name": site.name, "root": str(site.folder)}
    pillar["secrets"]["head"]["key"] = SECRET
    health = {"http": "/health", "port": 8080, "json": {"status": "ok"}}
    times = {"min_healthy": 0.5, "healthy_deadline": 3.0, "progress_deadline": 6.0}
    pillar["services"]["head"] |= {"health": health, "replicas": 2, "image": MISSING, **times}
    site.pillar = {"llm": pillar}
    (site.folder / "cache").mkdir()

    def start(*scripts):
        for replica, script in enumerate(scripts, 1):
            name = f"{site.name}-head-{replica}-g1"
            labels = {"site": site.name, "service": "head", "replica": f"{replica}"}
            labels |= {"generation": "1", "spec": "v1:0", "parts": "{}"}
            body = {"Image": image, "Cmd": ["sh", "-c", script]}
            body |= {"Labels": {f"llm.{key}": value for key, value in labels.items()}}
            engine.create(name, body | {"HostConfig": {"RestartPolicy": {"Name": "always"}}})
            engine.start(name)

    return start


def test_healthy(catalogue, gate):
    catalogue(SERVE, SERVE)
    ret = gate("healthy", "head")
    assert ret["result"] is True, ret["comment"]
    again = gate("healthy", "head")
    assert again["result"] is True
    assert again["seconds"] < 0.5  # less than min_healthy


def test_healthy_waits_for_replicas_side_by_side(catalogue, gate):
    catalogue(f"sleep 1; {SERVE}", f"sleep 1; {SERVE}")
    ret = gate("healthy", "head")
    assert ret["result"] is True, ret["comment"]
    assert 1 < ret["seconds"] < 10  # one after the other on a busy machine takes longer still


def test_healthy_with_a_replica_that_crashes(catalogue, gate, site):
    catalogue(SERVE, f"echo {SECRET}; sleep .3; exit 7")
    ret = gate("healthy", "head")
    assert ret["result"] is False
    assert "head is not healthy: it crashes and is started again: exit code 7" in ret["comment"]
    assert f"container: {site.name}-head-2-g1" in ret["comment"]
    assert ":8080/health must give JSON" in ret["comment"]
    assert SECRET not in ret["comment"]


def test_healthy_without_its_containers_and_image(catalogue, gate):
    catalogue(SERVE)
    ret = gate("healthy", "head")
    assert ret["result"] is False
    assert ret["seconds"] < 10
    text = "head is not healthy: 1 of 2 replicas are on this host"
    assert ret["comment"] == f"{text}, and its image {MISSING} is missing"
