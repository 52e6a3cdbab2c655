import base64
import datetime
import itertools
import json
import threading
import time
from unittest.mock import create_autospec

import llm_check
import llm_completion
import llm_diagnosis
import llm_engine
import llm_probe
import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import llm_config, llm_deploy, llm_files, llm_mesh
from _modules import llm_health as llm_health_module

UP_FOR_LONG = "2020-01-01T00:00:00.123456789Z"
RUNNING = {"container": "running"}


def now():
    return datetime.datetime.now(datetime.UTC).isoformat()


def found(started=UP_FOR_LONG, status="running", service="head", **more):
    """What the engine says of a container."""
    return {
        "Id": "abc",
        "RestartCount": 0,
        "State": {"Status": status, "StartedAt": started, "OOMKilled": False, "ExitCode": 0},
        "Config": {"Labels": {"llm.service": service}},
        "NetworkSettings": {"Networks": {"llm-network": {"IPAddress": "172.30.0.80"}}},
        "Mounts": [{"Destination": "/run/llm", "Source": "/var/lib/llm/services/head/run/x"}],
        "HostConfig": {"Memory": 32 << 20},
    } | more


@pytest.fixture
def engine(monkeypatch):
    engine = create_autospec(llm_engine.Engine, instance=True)
    engine.inspect.return_value = found()
    engine.logs.return_value = ["it began", "password \x1b[31mcanary-head-key" + 500 * "x"]
    monkeypatch.setattr(llm_health_module, "_engine", lambda: engine)
    return engine


@pytest.fixture
def inspect(engine):
    return engine.inspect


@pytest.fixture
def fate(monkeypatch):
    fate = create_autospec(llm_diagnosis.fate, return_value=None)
    monkeypatch.setattr(llm_diagnosis, "fate", fate)
    return fate


@pytest.fixture
def probes(monkeypatch):
    probes = {}
    for name in ("http", "tcp", "redis", "grpc"):
        probe = create_autospec(getattr(llm_probe, name))
        probe.return_value = {"ok": True, "answer": "200"}
        probes[name] = probe
        monkeypatch.setitem(llm_check.PROTOCOLS, name, probe)
    return probes


@pytest.fixture
def http(probes):
    return probes["http"]


@pytest.fixture
def container_list():
    return ["llm-head-1-g1"]


def replica_of(name):
    return int(name.split("-")[2])


@pytest.fixture
def mesh():
    """The Envoys of this host, which find every replica healthy."""
    mesh = create_autospec(llm_mesh)
    mesh.refused.return_value = []
    mesh.unhealthy.return_value = {}
    return mesh


@pytest.fixture
def files():
    files = create_autospec(llm_files)
    files.take_back.return_value = []
    return files


@pytest.fixture
def llm_health(configure_loader, platform, engine, fate, probes, container_list, mesh, files):
    return configure_loader(
        llm_health_module,
        salt={
            "llm_config.service": create_autospec(
                llm_config.service, side_effect=platform["services"].get
            ),
            "llm_config.secret": create_autospec(llm_config.secret, return_value="canary"),
            "llm_container.list": lambda service: [
                {"name": name, "replica": replica_of(name)} for name in container_list
            ],
            "llm_mesh.wait": mesh.wait,
            "llm_mesh.unhealthy": mesh.unhealthy,
            "llm_mesh.refused": mesh.refused,
            "llm_files.approve": files.approve,
            "llm_files.take_back": files.take_back,
            "llm_image.reference": lambda image: f"llm/{image}:abc",
            "llm_deploy.tell": create_autospec(llm_deploy.tell),
        },
    )


def test_check_of_a_canary_is_that_of_its_service(llm_health, inspect, http):
    inspect.return_value = found(service="head-canary")
    llm_health.wait({"http": "/health"}, container="llm-head-canary-1-g1", min_healthy=0)
    assert http.call_args.args[0] == "http://172.30.0.80:4000/health"


@pytest.mark.parametrize(
    ("check", "probe", "address", "arguments"),
    [
        ({"http": "/health"}, "http", "http://172.30.0.80:4000/health", {}),
        ({"http": "/health", "port": 1}, "http", "http://172.30.0.80:1/health", {}),
        ({"http": "/x", "status": 204}, "http", "http://172.30.0.80:4000/x", {"status": 204}),
        ({"http": "/x", "json": {"a": 1}}, "http", "http://172.30.0.80:4000/x", {"json": {"a": 1}}),
        (
            {"http": "/ready", "socket": "admin.sock"},
            "http",
            "http://localhost/ready",
            {"socket": "/var/lib/llm/services/head/run/x/admin.sock"},
        ),
        ({"http": "http://a/b"}, "http", "http://a/b", {}),
        ({"tcp": 6379}, "tcp", "172.30.0.80:6379", {}),
        ({"tcp": True}, "tcp", "172.30.0.80:4000", {}),
        ({"tcp": True, "port": 1}, "tcp", "172.30.0.80:1", {}),
        ({"tcp": "10.0.0.1:6379"}, "tcp", "10.0.0.1:6379", {}),
        (
            {"redis": "cache.password"},
            "redis",
            "172.30.0.80:4000",
            {"password": "canary"},
        ),
        ({"grpc": ""}, "grpc", "172.30.0.80:4000", {"service": ""}),
        ({"grpc": "ledger", "port": 5}, "grpc", "172.30.0.80:5", {"service": "ledger"}),
    ],
)
def test_probe_of_a_container_asks_its_address(
    llm_health, probes, check, probe, address, arguments
):
    assert llm_health.probe(check, container="llm-head-1-g1")["ok"]
    probes[probe].assert_called_once_with(address, timeout=3, **arguments)


def test_probe_on_the_hosts_network_asks_this_host(llm_health, inspect, http):
    networks = {"Networks": {"host": {"IPAddress": ""}}}
    inspect.return_value = found(NetworkSettings=networks)
    llm_health.probe({"http": "/ready"}, container="x")
    http.assert_called_once_with("http://127.0.0.1:4000/ready", timeout=3)


@pytest.mark.parametrize(
    ("state", "ok", "answer"),
    [
        ({"Status": "running"}, True, "running"),
        ({"Status": "paused"}, False, "paused"),
        ({"Status": "exited"}, False, "exited"),
        ({"Status": "running", "Health": {"Status": "starting"}}, False, "running, starting"),
        ({"Status": "running", "Health": {"Status": "unhealthy"}}, False, "running, unhealthy"),
        ({"Status": "running", "Health": {"Status": "healthy"}}, True, "running, healthy"),
    ],
)
def test_probe_of_the_containers_own_state(llm_health, inspect, state, ok, answer):
    inspect.return_value = found(State=state)
    assert llm_health.probe(RUNNING, container="x") == {"ok": ok, "answer": answer}


def test_probe_of_a_missing_container_is_an_answer(llm_health, inspect):
    inspect.side_effect = llm_engine.NotFound("no such container", 404)
    answer = llm_health.probe(RUNNING, container="x")
    assert answer == {"ok": False, "answer": "there is no such container"}


@pytest.mark.parametrize(
    ("check", "container", "message"),
    [
        ({"smtp": 25}, None, "a check needs one of http, tcp, redis, grpc, container"),
        (RUNNING, None, "asks for a container"),
    ],
)
def test_probe_refuses(llm_health, check, container, message):
    with pytest.raises(SaltInvocationError, match=message):
        llm_health.probe(check, container=container)


def test_probe_reads_the_password_from_a_file(llm_health, probes, tmp_path):
    (tmp_path / "password").write_text("open\n")
    llm_health.probe({"redis": "a:1", "password_file": str(tmp_path / "password")})
    probes["redis"].assert_called_once_with("a:1", password="open", timeout=3)


def test_probe_without_the_password_file_says_so(llm_health):
    with pytest.raises(CommandExecutionError, match="/nowhere: No such file"):
        llm_health.probe({"redis": "a:1", "password_file": "/nowhere"})


def test_probe_without_a_socket_folder_refuses(llm_health, inspect):
    inspect.return_value = found(Mounts=[])
    with pytest.raises(SaltInvocationError, match="no folder at /run/llm"):
        llm_health.probe({"http": "/", "socket": "admin.sock"}, container="x")


def test_probe_without_a_port_refuses(llm_health, inspect):
    inspect.return_value = found(Config={"Labels": None})
    with pytest.raises(SaltInvocationError, match="needs a port"):
        llm_health.probe({"http": "/"}, container="x")


def test_wait_for_what_has_been_up_for_long_asks_once(llm_health, http):
    start = time.monotonic()
    assert llm_health.wait({"http": "/"}, container="x", min_healthy=30) == "200"
    assert time.monotonic() - start < 0.1
    assert http.call_count == 1


def test_wait_for_what_has_just_started_takes_min_healthy(llm_health, inspect, http):
    inspect.return_value = found(started=now())
    start = time.monotonic()
    llm_health.wait({"http": "/"}, container="x", min_healthy=0.5)
    assert 0.45 < time.monotonic() - start < 0.8
    assert http.call_count >= 4


@pytest.mark.parametrize("hours", [-1, 1])
def test_wait_while_the_clock_jumps(llm_health, inspect, http, monkeypatch, hours):
    """It is well for as long as it must be, and no deadline is over because of that."""
    clock, good = time.time, {"ok": True, "answer": "200"}

    def answer(*_, **__):
        monkeypatch.setattr(time, "time", lambda: clock() + hours * 3600)
        return good

    inspect.return_value = found(started=now())
    http.side_effect = lambda *_, **__: answer() if http.call_count > 1 else good
    start = time.monotonic()
    assert llm_health.wait({"http": "/"}, container="x", min_healthy=0.5) == "200"
    assert time.monotonic() - start > 0.45
    assert time.time() - clock() == pytest.approx(hours * 3600, abs=1)


def test_wait_starts_anew_with_each_flip(llm_health, http):
    bad = {"ok": False, "answer": "503"}
    good = {"ok": True, "answer": "200"}
    http.side_effect = itertools.cycle([good, good, bad])
    with pytest.raises(CommandExecutionError, match=r"not well for 0.5 s on end within 1.5 s"):
        llm_health.wait({"http": "http://a/b"}, min_healthy=0.5, healthy_deadline=1.5)


def test_wait_starts_anew_when_the_container_is_another(llm_health, inspect):
    first = found(started=now())
    inspect.side_effect = itertools.chain(
        [first, first, first], itertools.repeat(first | {"Id": "other"})
    )
    start = time.monotonic()
    llm_health.wait({"http": "/"}, container="x", min_healthy=0.4)
    assert time.monotonic() - start > 0.55


def test_wait_ends_at_the_deadline_with_all_that_is_known(llm_health, http):
    http.return_value = {"ok": False, "answer": "503 with canary-head-key"}
    start = time.monotonic()
    with pytest.raises(CommandExecutionError) as raised:
        llm_health.wait({"http": "/x"}, container="llm-head-1-g1", healthy_deadline=0.5)
    assert 0.45 < time.monotonic() - start < 1
    assert str(raised.value).splitlines() == [
        "head is not healthy: it was not well for 2 s on end within 0.5 s",
        "  container: llm-head-1-g1 (running, restarts 0)",
        "  check: GET http://172.30.0.80:4000/x",
        "  last answer: 503 with [redacted]",
        "  last log lines:",
        "    it began",
        "    password [redacted]" + 377 * "x" + "...",
    ]


SMOKE_TEST = {"secret": "head.key", "model": "tiny"}


@pytest.fixture
def completion(monkeypatch):
    """What asks for a completion; it gets one."""
    monkeypatch.setattr(llm_health_module, "PAUSE", 0)
    ask = create_autospec(llm_completion.ask)
    monkeypatch.setattr(llm_completion, "ask", ask)
    return ask


def test_wait_with_a_smoke_test_asks_the_container_itself(llm_health, completion):
    llm_health.wait({"http": "/x"}, "llm-head-1-g1", healthy_deadline=9, smoke_test=SMOKE_TEST)
    completion.assert_called_once_with(
        "http://172.30.0.80:4000/v1", "tiny", "canary", "head", timeout=pytest.approx(9, abs=1)
    )


def test_wait_with_a_smoke_test_that_succeeds_at_last(llm_health, completion):
    completion.side_effect = [CommandExecutionError("head answers 503"), None]
    llm_health.wait({"http": "/x"}, container="llm-head-1-g1", smoke_test=SMOKE_TEST)
    assert completion.call_count == 2


def test_wait_with_a_smoke_test_that_fails(llm_health, completion):
    completion.side_effect = CommandExecutionError("head refuses the request for tiny: 500")
    with pytest.raises(CommandExecutionError) as raised:
        llm_health.wait({"http": "/x"}, container="llm-head-1-g1", smoke_test=SMOKE_TEST)
    assert completion.call_count == 3
    assert str(raised.value).splitlines()[:3] == [
        "head is not healthy: it gives no completion: head refuses the request for tiny: 500",
        "  container: llm-head-1-g1 (running, restarts 0)",
        "  check: GET http://172.30.0.80:4000/x",
    ]


def test_wait_without_health_asks_for_no_completion(llm_health, completion, http):
    http.return_value = {"ok": False, "answer": "503"}
    with pytest.raises(CommandExecutionError):
        llm_health.wait(
            {"http": "/x"}, "llm-head-1-g1", healthy_deadline=0.1, smoke_test=SMOKE_TEST
        )
    completion.assert_not_called()


def test_wait_for_the_dead_ends_at_once(llm_health, fate, http):
    fate.return_value = "it has exited: exit code 3"
    start = time.monotonic()
    with pytest.raises(CommandExecutionError, match="head is not healthy: it has exited"):
        llm_health.wait({"http": "/"}, container="x")
    assert time.monotonic() - start < 0.1
    assert not http.called


def test_wait_outlives_an_engine_that_restarts(llm_health, inspect):
    away = CommandExecutionError("the engine does not answer")
    inspect.side_effect = itertools.chain([away, away], itertools.repeat(found(started=now())))
    assert llm_health.wait({"http": "/"}, container="x", min_healthy=0.1) == "200"


def test_wait_for_asks_every_replica_side_by_side(llm_health, container_list, http, inspect):
    container_list.append("llm-head-2-g1")
    inspect.return_value = found(started=now())
    both = threading.Barrier(2, timeout=5)

    def answer(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            both.wait()
        return {"ok": True, "answer": "200"}

    http.side_effect = answer
    llm_health.__salt__["llm_config.service"]("head")["min_healthy"] = 0.05
    assert llm_health.wait_for("head") == {"llm-head-1-g1": "200", "llm-head-2-g1": "200"}


def test_wait_for_ends_with_the_first_replica_that_fails(llm_health, container_list, inspect, fate):
    container_list.append("llm-head-2-g1")
    fate.side_effect = lambda engine, found, before: found["Fate"] if before else None
    fates = {"llm-head-1-g1": None, "llm-head-2-g1": "it has exited: exit code 3"}
    inspect.side_effect = lambda name: found(started=now(), Fate=fates[name])
    llm_health.__salt__["llm_config.service"]("head")["min_healthy"] = 20
    start = time.monotonic()
    with pytest.raises(CommandExecutionError, match=r"(?s)exited.*llm-head-2-g1"):
        llm_health.wait_for("head")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "0 of 1 replicas are on this host$"),
        (llm_engine.NotFound("", 404), "on this host, and its image llm/head:abc is missing"),
    ],
)
def test_wait_for_missing_containers_ends_at_once(
    llm_health, container_list, engine, image, message
):
    container_list.clear()
    engine.image.side_effect = image
    with pytest.raises(CommandExecutionError, match=message):
        llm_health.wait_for("head")


def test_wait_for_counts_replicas_and_not_containers(llm_health, container_list):
    container_list.append("llm-head-1-g2")
    llm_health.__salt__["llm_config.service"]("head")["replicas"] = 2
    with pytest.raises(CommandExecutionError, match="1 of 2 replicas are on this host"):
        llm_health.wait_for("head")


def test_wait_for_waits_for_the_envoys_too(llm_health, mesh, files):
    llm_health.wait_for("head")
    ((name,), arguments) = mesh.wait.call_args
    assert name == "head"
    assert 390 < arguments["timeout"] <= 400
    files.approve.assert_called_once_with("head")


def test_wait_for_what_an_envoy_does_not_find_healthy(llm_health, mesh, files):
    mesh.wait.side_effect = CommandExecutionError("not yet healthy for the Envoys: llm-mesh-1-g1")
    with pytest.raises(CommandExecutionError) as raised:
        llm_health.wait_for("head")
    said = str(raised.value).splitlines()
    assert said[0] == "head is not healthy: not yet healthy for the Envoys: llm-mesh-1-g1"
    assert "  last answer: 200" in said
    assert not files.approve.called


@pytest.mark.parametrize(
    ("back", "then"), [([], ""), (["listeners.yaml"], "; put back as before: listeners.yaml")]
)
def test_wait_for_an_envoy_that_refuses_its_files(llm_health, inspect, mesh, files, back, then):
    live = {"Destination": "/etc/llm-live", "Source": "/live"}
    inspect.return_value = found(Mounts=[*found()["Mounts"], live])
    llm_health.__salt__["llm_config.service"]("head")["health"] = {
        "http": "/ready",
        "socket": "admin.sock",
    }
    mesh.refused.return_value = ["listeners.yaml"]
    files.take_back.return_value = back
    with pytest.raises(CommandExecutionError, match=f"it refuses listeners.yaml{then}\n"):
        llm_health.wait_for("head")
    files.take_back.assert_called_once_with("head")
    assert not files.approve.called


@pytest.mark.parametrize(
    ("containers", "ok", "unhealthy", "well"),
    [
        (["llm-head-1-g1"], True, {}, True),
        (["llm-head-1-g1"], False, {}, False),
        (["llm-head-1-g1"], True, {"llm-mesh-1-g1": {"172.30.0.80"}}, False),
        ([], True, {}, False),
        (["llm-head-2-g1"], True, {}, False),
    ],
)
def test_well(llm_health, container_list, http, mesh, containers, ok, unhealthy, well):
    container_list[:] = containers
    http.return_value = {"ok": ok, "answer": "200"}
    mesh.unhealthy.return_value = unhealthy
    assert llm_health.well("head") is well
    assert not mesh.wait.called


def test_ask_asks_each_container_once(llm_health, container_list, http):
    container_list.append("llm-head-2-g1")
    answers = llm_health.ask("head")
    assert answers == dict.fromkeys(container_list, {"ok": True, "answer": "200"})
    assert http.call_count == 2


SECRET = 'se"same/ü+1'


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"{SECRET}{SECRET}",
        base64.b64encode(SECRET.encode()).decode(),
        json.dumps({"password": SECRET}),
        "redis://:se%22same%2F%C3%BC%2B1@cache:6379",
    ],
)
def test_redacted_hides_each_form(text):
    shown = llm_health_module.redacted(f"before {text} after", [SECRET, "", "same"])
    assert "same" not in shown
    assert "Iml" not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "[redacted]" in shown


def test_redacted_hides_the_lines_of_a_key():
    shown = llm_health_module.redacted("read MIIEowIBAAKCAQEA from", ["BEGIN\nMIIEowIBAAKCAQEA\n"])
    assert shown == "read [redacted] from"


def test_redacted_hides_the_longer_secret_first():
    assert llm_health_module.redacted("abcd1234", ["abcd", "abcd1234"]) == "[redacted]"
