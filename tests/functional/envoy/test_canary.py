"""
A canary takes its share of the requests, by the mesh's own figures, and costs none when it dies.
"""

import contextlib
import time
import types

import pytest

from _modules import llm_canary as llm_canary_module
from _modules import llm_mesh as llm_mesh_module
from tests.functional.envoy.conftest import OTHER_HEAD
from tests.support import upstream

REQUESTS = 200


@pytest.fixture
def llm_canary(edge):
    """The module, on the host of the edge."""
    canary = {"state": "running", "restarts": 0}
    with edge.module(llm_mesh_module) as mesh:
        admin = mesh.sockets("mesh")
    more = {"llm_container.list": lambda name: [canary], "llm_mesh.sockets": lambda envoy: admin}
    with edge.module(llm_canary_module, **more) as module:
        yield module


@pytest.fixture
def canary(edge, llm_canary):
    """A canary of head that takes half of its requests."""
    server = upstream.Upstream(OTHER_HEAD, edge.ports["head"])
    edge.route("head-canary", [OTHER_HEAD])
    edge.mesh.healthy("head-canary", 1)
    assert llm_canary.weigh("head", 50) == 1
    yield server
    llm_canary.weigh("head", 0)
    edge.route("head-canary", [])
    with contextlib.suppress(OSError):
        server.stop()


def counted(tail, number=REQUESTS):
    """Return how often each status came in answer to ``number`` requests."""
    found = types.SimpleNamespace(ok=0, failed=0)
    for _ in range(number):
        answer = tail.post("/v1/chat/completions", json={"model": "tiny"})
        found.ok += answer.status_code == 200
        found.failed += answer.status_code != 200
    return found


def test_canary_takes_its_share(edge, llm_canary, canary, tail):
    before = llm_canary.figures("head")
    assert counted(tail).failed == 0
    edge.mesh.until(  # times are added up every few seconds
        lambda: any(llm_canary.figures("head")["canary"]["times"].values())
    )
    found = llm_canary_module.llm_canary.since(before, llm_canary.figures("head"))
    assert found["canary"]["requests"] + found["old"]["requests"] == REQUESTS
    assert REQUESTS / 4 < found["canary"]["requests"] < REQUESTS * 3 / 4
    assert found["canary"]["errors"] == 0
    assert 0 < found["canary"]["time"] < 10_000


def test_errors_of_a_canary_are_its_own(llm_canary, canary, tail):
    before = llm_canary.figures("head")
    canary.mode = "fail"
    said = counted(tail)
    found = llm_canary_module.llm_canary.since(before, llm_canary.figures("head"))
    assert said.failed == found["canary"]["errors"] == found["canary"]["requests"] > 0
    assert found["old"]["errors"] == 0


def test_canary_that_dies_costs_no_request(edge, canary, tail):
    assert counted(tail, 20).failed == 0
    canary.stop()
    assert counted(tail, 50).failed == 0
    time.sleep(1)  # the health check has found it as well
    assert counted(tail, 50).failed == 0


def test_share_of_a_canary_that_is_not_there_goes_to_the_others(edge, canary, tail):
    edge.route("head-canary", [])
    assert counted(tail, 50).failed == 0
    assert edge.mesh.stat("cluster.head-canary.membership_total") == 0
