"""
What the mesh does about a service that is slow, overloaded or dead; each knob of the catalogue at
work.
"""

import contextlib
import socket
import threading
import time

import pytest

from tests.functional.envoy.conftest import OTHER_HEAD, TAIL


def at_once(edge, number, method="POST"):
    """Ask ``number`` times side by side from tail's address; return the statuses, sorted."""
    statuses = []

    def ask():
        with edge.inside(TAIL) as client:
            statuses.append(client.request(method, "/v1/models").status_code)

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_number_of_tries(edge, tail, retries):
    edge.head.mode = "fail"
    with edge.tuned(requests={"retries": retries}, mesh={"failures": 1000}):
        tail.get("/v1/models")
    assert len(edge.head.requests) == retries + 1


def test_tries_are_some_time_apart_by_chance(edge, tail):
    edge.head.mode = "fail"
    limits = {"retries": 8, "backoff": 0.5, "max_backoff": 0.5, "timeout": 20}
    with edge.tuned(requests=limits, mesh={"failures": 1000}):
        tail.get("/v1/models")
    times = [asked["time"] for asked in edge.head.requests]
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(gaps) == 8
    assert max(gaps) - min(gaps) > 0.05


@pytest.mark.parametrize(
    ("method", "limits", "asked"),
    [
        ("GET", {"retries": 2, "per_try_timeout": 0.3, "timeout": 20}, 3),
        ("POST", {"retries": 2, "per_try_timeout": 0.3, "timeout": 1}, 1),
    ],
)
def test_one_try_has_its_limit_when_it_may_be_repeated(edge, tail, method, limits, asked):
    edge.head.mode, edge.head.delay = "slow", 3
    with edge.tuned(requests=limits):
        assert tail.request(method, "/v1/models").status_code == 504
    assert len(edge.head.requests) == asked


def test_no_more_tries_than_their_budget(edge):
    edge.head.mode = "fail"
    overflow = "cluster.head.upstream_rq_retry_overflow"
    before = edge.mesh.stat(overflow)
    with edge.tuned(mesh={"retry_budget": 0, "min_retries": 0, "failures": 1000}):
        assert at_once(edge, 5, "GET") == [503] * 5
    assert len(edge.head.requests) == 5
    assert edge.mesh.stat(overflow) == before + 5


@pytest.mark.parametrize(
    ("knobs", "most"),
    [
        ({"max_connections": 1, "max_pending": 1}, 4),  # a connection for each of two threads
        ({"max_requests": 1, "max_pending": 1}, 4),
    ],
    ids=["connections", "requests"],
)
def test_what_is_too_much_at_once_is_refused(edge, knobs, most):
    edge.head.mode, edge.head.delay = "slow", 0.5
    with edge.tuned(mesh=knobs, requests={"timeout": 20}):
        statuses = at_once(edge, 12)
    answered = statuses.count(200)
    assert 1 <= answered <= most
    assert statuses == [200] * answered + [503] * (12 - answered)
    assert len(edge.head.requests) == answered
    edge.mesh.until(lambda: "overflow" in edge.mesh.log()[-1]["cause"])
    assert at_once(edge, 12) == [200] * 12


def test_replica_is_left_out_after_so_many_failures(edge, tail, other_head):
    other_head.mode = "fail"
    active = "cluster.head.outlier_detection.ejections_active"
    with edge.tuned(mesh={"failures": 2, "ejection": 1}):
        edge.mesh.healthy("head", 2)
        for _ in range(30):
            tail.post("/v1/completions", json={})
        assert len(other_head.requests) < 8
        edge.mesh.until(lambda: edge.mesh.stat(active) == 0, 30)
        other_head.mode = "well"
        other_head.requests.clear()
        for _ in range(20):
            assert tail.post("/v1/completions", json={}).status_code == 200
        assert other_head.requests


def test_no_more_replicas_are_left_out_than_allowed(edge, tail, other_head):
    other_head.mode = "fail"
    with edge.tuned(mesh={"failures": 2, "max_ejected": 0}):
        edge.mesh.healthy("head", 2)
        for _ in range(30):
            tail.post("/v1/completions", json={})
        assert edge.mesh.stat("cluster.head.outlier_detection.ejections_active") == 0
    assert len(other_head.requests) > 5


def test_replica_that_takes_no_connection_in_time_is_passed_over(edge, tail, other_head):
    late = "cluster.head.upstream_cx_connect_timeout"
    before = edge.mesh.stat(late)
    with edge.tuned(mesh={"connect_timeout": 0.3, "check_interval": 60}, requests={"timeout": 20}):
        edge.mesh.healthy("head", 2)
        other_head.stop()
        with clogged(OTHER_HEAD, edge.ports["head"]):
            edge.mesh.until(
                lambda: (
                    tail.post("/v1/completions", json={}).status_code == 200
                    and edge.mesh.stat(late) > before
                )
            )


def test_all_that_wait_for_a_replica_that_is_gone_go_to_another(edge, other_head):
    """Nobody has begun to work on them, however many they are."""
    late = "cluster.head.upstream_cx_connect_timeout"
    before = edge.mesh.stat(late)
    with edge.tuned(mesh={"check_interval": 60}, requests={"timeout": 20}):
        edge.mesh.healthy("head", 2)
        other_head.stop()
        with clogged(OTHER_HEAD, edge.ports["head"]):
            assert at_once(edge, 60) == [200] * 60
    assert edge.mesh.stat(late) > before


@contextlib.contextmanager
def clogged(address, port):
    """Have a server that accepts nothing, and whose queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        time.sleep(0.2)
        yield
