"""
What services meet when they call one another.
"""

import socket
import threading
import time

import httpx
import pytest

from tests.functional.envoy.conftest import HEAD, OTHER_HEAD, TAIL
from tests.support import upstream


@pytest.mark.parametrize("caller", [TAIL, "127.30.0.127"])
def test_who_needs_a_service_may_call_it(edge, caller):
    with edge.inside(caller) as client:
        assert client.post("/v1/completions", json={}).status_code == 200


@pytest.mark.parametrize(
    "caller", [HEAD, "127.30.0.111", "127.30.0.128", "127.30.0.1", "127.0.0.1"]
)
def test_who_does_not_need_a_service_may_not_call_it(edge, caller):
    refused = edge.mesh.stat("head.rbac.denied")
    with edge.inside(caller) as client, pytest.raises(httpx.HTTPError):
        client.post("/v1/completions", json={})
    assert not edge.head.requests
    edge.mesh.until(lambda: edge.mesh.stat("head.rbac.denied") == refused + 1)
    edge.mesh.until(lambda: [each.get("caller") for each in edge.mesh.log()[-1:]] == [caller])
    assert edge.mesh.log()[-1]["service"] == "head"
    assert edge.mesh.log()[-1]["cause"] == "not among those who need it"


@pytest.mark.parametrize("mode", ["reset", "fail", "slow"])
def test_what_is_not_safe_to_repeat_is_asked_once(edge, tail, mode):
    edge.head.mode, edge.head.delay = mode, 4
    assert tail.post("/v1/completions", json={}).status_code in (503, 504)
    assert len(edge.head.requests) == 1


@pytest.mark.parametrize("mode", ["reset", "fail"])
def test_what_changes_nothing_is_asked_again(edge, tail, mode):
    edge.head.mode = mode
    answer = tail.get("/v1/models")
    assert answer.status_code == 503
    assert len(edge.head.requests) == 3
    assert answer.headers["x-envoy-attempt-count"] == "3"


def test_replica_that_does_not_listen_is_passed_over(edge, tail, other_head):
    other_head.stop()
    for _ in range(30):
        assert tail.post("/v1/completions", json={}).status_code == 200
    assert len(edge.head.requests) == 30


def test_replica_that_says_it_is_sick_is_asked_no_more(edge, tail, other_head):
    other_head.sick = True
    edge.mesh.healthy("head", 1)
    for _ in range(20):
        tail.post("/v1/completions", json={})
    assert not other_head.requests
    other_head.sick = False
    edge.mesh.healthy("head", 2)
    for _ in range(20):
        tail.post("/v1/completions", json={})
    assert other_head.requests


def test_no_replica_is_asked_when_all_are_sick(edge, tail):
    edge.head.sick = True
    edge.mesh.healthy("head", 0)
    assert tail.get("/v1/models").status_code == 503
    assert not edge.head.requests
    edge.head.sick = False
    edge.mesh.healthy("head", 1)


def test_replica_that_only_fails_is_left_out_for_a_while(edge, tail, other_head):
    other_head.mode = "fail"
    ejected = "cluster.head.outlier_detection.ejections_active"
    for _ in range(40):
        tail.post("/v1/completions", json={})
    assert edge.mesh.stat(ejected) == 1
    assert len(other_head.requests) < 15
    edge.head.mode = "fail"
    for _ in range(40):
        tail.post("/v1/completions", json={})
    assert edge.mesh.stat(ejected) == 1, "the last one must stay"
    edge.mesh.until(lambda: edge.mesh.stat(ejected) == 0, 30)


def test_traffic_moves_to_a_new_replica_without_a_failed_request(edge):
    edge.head.mode = "slow"
    other = upstream.Upstream(OTHER_HEAD, edge.ports["head"])
    try:
        with edge.load() as load:
            for addresses in ([OTHER_HEAD], [HEAD], [OTHER_HEAD]):
                time.sleep(0.3)
                edge.route("head", addresses)
            time.sleep(0.5)  # what was under way is done
            before = len(edge.head.requests)
            time.sleep(0.5)
            assert len(edge.head.requests) == before
        assert load.count > 10
        assert not load.failures
    finally:
        edge.route("head", [HEAD])
        edge.mesh.healthy("head", 1)
        other.stop()


def test_stream_arrives_whole_while_traffic_moves(edge):
    other = upstream.Upstream(OTHER_HEAD, edge.ports["head"])
    try:
        body = {"model": "tiny", "stream": True}
        with edge.client() as client, client.stream("POST", "/v1/completions", json=body) as stream:
            edge.route("head", [OTHER_HEAD])
            assert "[DONE]" in stream.read().decode()
    finally:
        edge.route("head", [HEAD])
        edge.mesh.healthy("head", 1)
        other.stop()


def test_mesh_is_left_when_its_last_answer_was_given(edge):
    edge.head.chunks, edge.head.delay = 12, 0.5
    body, left = {"model": "tiny", "stream": True}, []
    leaving = threading.Thread(target=lambda: left.append(edge.leave(edge.mesh, routed=False)))
    try:
        with (
            edge.tuned(requests={"timeout": 20}),
            edge.inside(TAIL) as client,
            client.stream("POST", "/v1/completions", json=body) as stream,
        ):
            pieces = stream.iter_text()
            found = next(pieces)
            leaving.start()
            for piece in pieces:
                found += piece
                assert not left or "[DONE]" in found
        leaving.join()
        assert found.count("delta") == 12
        assert "[DONE]" in found
        assert left == [0]
        with edge.inside(TAIL) as late, pytest.raises(httpx.ConnectError):
            late.get("/v1/models")
    finally:
        edge.mesh.stop()
        edge.mesh.start()
        edge.mesh.healthy("head", 1)
        edge.tail.healthy("head", 1)


def test_server_that_ends_idle_connections_costs_no_request(edge, tail):
    edge.mesh.until(lambda: edge.mesh.stat("cluster.head.upstream_cx_active") == 0)
    tail.post("/v1/completions", json={})
    assert edge.mesh.stat("cluster.head.upstream_cx_active") == 1
    started = time.monotonic()
    edge.mesh.until(lambda: edge.mesh.stat("cluster.head.upstream_cx_active") == 0)
    assert 2 < time.monotonic() - started < 4.9


def test_time_of_each_hop_is_told(edge, tail):
    edge.head.mode = "slow"
    answer = tail.post("/v1/completions", json={})
    assert 195 < int(answer.headers["x-envoy-upstream-service-time"]) < 3000
    name, _, milliseconds = answer.headers["server-timing"].partition(";dur=")
    assert name == "head"
    assert 195 < int(milliseconds) < 3000


def test_failed_request_is_logged_with_its_cause(edge, tail):
    edge.head.mode = "reset"
    answer = tail.post("/v1/completions", json={})
    edge.mesh.until(lambda: edge.mesh.log()[-1]["request_id"] == answer.headers["x-request-id"])
    line = edge.mesh.log()[-1]
    assert (line["service"], line["caller"], line["status"]) == ("head", TAIL, 503)
    assert line["replica"].startswith(HEAD)
    assert line["cause"].startswith("upstream_reset_before_response_started")


def talk(caller, port, text):
    """Say ``text`` and return the answer, or nothing if the connection is ended."""
    with socket.create_connection(("127.0.0.1", port), 5, (caller, 0)) as connection:
        connection.sendall(text)
        try:
            return connection.recv(1024)
        except ConnectionResetError:
            return b""


@pytest.fixture
def cache(edge):
    """A cache that requests may go to."""
    cache = upstream.Cache("127.30.0.48", edge.ports["cache"])
    yield cache
    edge.route("cache", [])
    cache.stop()


def test_cache_is_a_plain_connection_for_those_who_need_it(edge, cache):
    edge.route("cache", ["127.30.0.48"])
    edge.mesh.healthy("cache", 1)
    assert talk(HEAD, edge.ports["cache"], b"PING\r\n").startswith(b"-NOAUTH")
    assert talk(TAIL, edge.ports["cache"], b"PING\r\n") == b""


def test_cache_without_a_password_is_not_ours(edge, cache):
    cache.answer = b"+PONG\r\n"
    edge.route("cache", ["127.30.0.48"])
    time.sleep(1)
    assert edge.mesh.stat("cluster.cache.membership_healthy") == 0
    assert talk(HEAD, edge.ports["cache"], b"PING\r\n") == b""


def test_many_at_once_all_get_their_answer(edge):
    edge.head.mode = "slow"
    answers = []

    def ask():
        answers.append(edge.ask().status_code)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 50
