import os
import socket
import threading
import time
from unittest.mock import create_autospec, patch

import llm_engine
import llm_envoy
import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_drain as llm_drain_module
from _modules import llm_mesh

CONNECTIONS = "listener.0.0.0.0_4000.downstream_cx_active"
STATS = {
    "http.admin.downstream_cx_active": 1,
    "http.admin.downstream_rq_active": 7,
    "http.head.downstream_cx_active": 9,
    "http.head.downstream_rq_active": 0,
    "http.rate-limiter.downstream_rq_active": 0,
    CONNECTIONS: 9,
    "listener.0.0.0.0_4000.worker_0.downstream_cx_active": 9,
    "listener.admin.downstream_cx_active": 1,
}


@pytest.fixture
def health():
    """How the Envoys of the host find what they know."""
    return {}


@pytest.fixture
def llm_drain(configure_loader, health):
    asked = create_autospec(llm_mesh.health, side_effect=lambda routing: health)
    module = configure_loader(llm_drain_module, salt={"llm_mesh.health": asked})
    state = {
        "State": {"Pid": 0},
        "NetworkSettings": {"Networks": {"llm-network": {"IPAddress": "172.30.0.16"}}},
    }
    engine = create_autospec(llm_engine.Engine, instance=True)
    engine.inspect.return_value = state
    with (
        patch.object(llm_engine, "Engine", lambda path: engine),
        patch.object(module, "_open", lambda pid, ports: 50 if ports == {4000} else 0),
        patch.multiple(module, QUIET=0.2, SETTLED=0.1, POLL=0.01),
    ):
        yield module


class Admin:
    """The administrative interface of an Envoy: its figures, and what it was told."""

    def __init__(self, path):
        self.path, self.stats, self.orders = path, dict(STATS), []

    def asked(self, admin, question):
        assert (admin, question.partition("?")[0]) == (str(self.path), "/stats")
        stats = [{"name": name, "value": value} for name, value in self.stats.items()]
        return {"stats": [*stats, {"histograms": {}}]}

    def told(self, admin, order):
        assert admin == self.path
        self.orders.append(order)
        return True


@pytest.fixture
def admin(tmp_path):
    admin = Admin(tmp_path / "admin.sock")
    admin.path.touch()
    with patch.multiple(llm_envoy, asked=admin.asked, told=admin.told):
        yield admin


def test_wait_for_an_envoy_that_nobody_is_connected_to(llm_drain, admin, tmp_path):
    admin.stats[CONNECTIONS] = 0
    assert llm_drain.wait("llm-tail-1-g1", admin=str(admin.path)) == 0
    assert admin.orders == ["/healthcheck/fail"]
    assert (tmp_path / "drained").exists()


def test_wait_for_an_envoy_that_is_found_by_name(llm_drain, admin, health):
    health["llm-tail-1-g1"] = {"head": {"172.30.0.16": "healthy", "172.30.0.17": "healthy"}}
    assert llm_drain.wait("llm-mesh-1-g1", admin=str(admin.path), routed=False) == 0
    assert admin.orders == ["/drain_listeners", "/healthcheck/fail"]


@pytest.mark.parametrize(
    ("name", "routed"), [("http.head.downstream_rq_active", False), (CONNECTIONS, True)]
)
def test_wait_lets_what_is_under_way_come_to_its_end(llm_drain, admin, name, routed):
    """Of the mesh that is a request, of tail also a connection on which none is."""
    admin.stats[name] = 3
    started = time.monotonic()
    threading.Timer(0.3, lambda: admin.stats.update({name: 0})).start()
    assert llm_drain.wait("llm-envoy-1-g1", admin=str(admin.path), routed=routed) == 0
    # Busy for 0.3 s, then quiet for 0.2 s from the last busy look on, a poll or two before.
    assert time.monotonic() - started >= 0.48


def test_wait_has_its_limit(llm_drain, admin):
    assert llm_drain.wait("llm-tail-1-g1", admin=str(admin.path), timeout=0.2) == 9


def test_wait_counts_connections_where_bytes_are_passed_on(llm_drain, admin):
    for name in list(admin.stats):
        if name.startswith("http.") and ".admin." not in name:
            del admin.stats[name]
    path = str(admin.path)
    assert llm_drain.wait("llm-ingress-1-g1", admin=path, timeout=0, routed=False) == 9


def test_wait_counts_no_connection_that_only_its_client_keeps(llm_drain, admin):
    with patch.object(llm_drain, "_open", lambda pid, ports: 0):
        assert llm_drain.wait("llm-tail-1-g1", admin=str(admin.path)) == 0


def test_open_are_connections_on_which_an_answer_may_come():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pairs = []
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", port))
            pairs.append((client, server.accept()[0]))
        assert llm_drain_module._open(os.getpid(), {port}) == 3
        assert llm_drain_module._open(os.getpid(), {1}) == 0
        pairs[0][0].shutdown(socket.SHUT_WR)  # it has asked, and waits
        pairs[1][1].shutdown(socket.SHUT_WR)  # it was answered, and takes no notice
        assert llm_drain_module._open(os.getpid(), {port}) == 2
        for end in sum(pairs, ()):
            end.close()
    assert llm_drain_module._open(2**22 + 1, {port}) == 0


def test_wait_tells_nothing_before_callers_know_another(llm_drain, admin, health, tmp_path):
    health["llm-tail-1-g1"] = {
        "head": {"172.30.0.16": "healthy", "172.30.0.17": "failed_active_hc"},
        "other": {"172.30.0.99": "healthy"},
    }
    with patch.object(llm_drain, "_succeeded", lambda of, wait=llm_drain._succeeded: wait(of, 0.1)):
        with pytest.raises(CommandExecutionError, match=r"healthy for llm-tail-1-g1 \(head\)$"):
            llm_drain.wait("llm-mesh-1-g1", admin=str(admin.path), routed=False)
        assert admin.orders == []
        assert not (tmp_path / "drained").exists()
        turn = threading.Timer(
            0.05, lambda: health["llm-tail-1-g1"]["head"].update({"172.30.0.17": "healthy"})
        )
        turn.start()
        llm_drain.wait("llm-mesh-1-g1", admin=str(admin.path), routed=False)
    assert admin.orders


def test_wait_for_an_envoy_that_has_ended(llm_drain, tmp_path):
    assert llm_drain.wait("llm-tail-1-g1", admin=str(tmp_path / "gone.sock")) == 0


def test_connections_are_those_to_what_listens(llm_drain, tmp_path):
    rest = "00000000:00000000 00:00000000 00000000 10005 0 4711"
    table = [
        "  sl  local_address rem_address   st",
        f"   0: 5000001E:0FA0 00000000:0000 0A {rest}",  # listens
        f"   1: 5000001E:0FA0 1000001E:C001 01 {rest}",  # asked by the mesh
        f"   2: 5000001E:0FA0 1000001E:C002 06 {rest}",  # over
        f"   3: 0100007F:0FA0 0100007F:C003 01 {rest}",  # asks itself
        f"   4: 5000001E:D431 1000001E:1F90 01 {rest}",  # asks others
    ]
    net = tmp_path / "7/net"
    net.mkdir(parents=True)
    (net / "tcp").write_text("\n".join(table))
    with patch.object(llm_drain.pathlib, "Path", lambda root, *parts: tmp_path.joinpath(*parts)):
        assert llm_drain._connections(7) == 1
        assert llm_drain._connections(8) == 0
