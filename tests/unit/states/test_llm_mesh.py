from unittest.mock import create_autospec

import pytest
from llm_engine import NoAnswer
from salt.exceptions import CommandExecutionError

from _modules import llm_mesh as llm_mesh_module
from _states import llm_mesh as llm_mesh_state


@pytest.fixture
def mesh():
    """The execution module: head is routed to .80, where it runs."""
    mesh = create_autospec(llm_mesh_module)
    mesh.endpoints.return_value = ["172.30.0.80"]
    mesh.serving.return_value = ["172.30.0.80"]
    mesh.said.side_effect = lambda name, addresses: mesh.endpoints(name) == addresses
    return mesh


@pytest.fixture
def operations():
    """What is to be done with containers."""
    return []


@pytest.fixture
def llm_mesh(configure_loader, mesh, operations, testmode):
    names = ("endpoints", "said", "serving", "route")
    salt = {f"llm_mesh.{name}": getattr(mesh, name) for name in names}
    salt["llm_service.specs"] = lambda name: []
    salt["llm_container.plan"] = lambda specs: {"operations": operations}
    return configure_loader(llm_mesh_state, salt=salt, test=testmode)


def test_routed_already(llm_mesh, mesh):
    assert llm_mesh.routed("head") == {
        "name": "head",
        "result": True,
        "changes": {},
        "comment": "Requests for head go to 172.30.0.80",
    }
    assert not mesh.route.called


@pytest.mark.parametrize(
    ("old", "new", "listed"),
    [
        (["172.30.0.80"], ["172.30.0.81"], "172.30.0.81"),
        (None, [], "no replica"),
        (["172.30.0.80"], [], "no replica"),
        ([], ["172.30.0.80", "172.30.0.81"], "172.30.0.80, 172.30.0.81"),
    ],
)
def test_routed_elsewhere(llm_mesh, mesh, testmode, old, new, listed):
    mesh.endpoints.return_value, mesh.serving.return_value = old, new
    ret = llm_mesh.routed("head")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"head": {"old": old, "new": new}}
    verb = "would go" if testmode else "now go"
    assert ret["comment"] == f"Requests for head {verb} to {listed}"
    assert mesh.route.called is not testmode


def test_routed_follows_containers_that_would_change(llm_mesh, mesh, operations, testmode):
    mesh.serving.return_value = []
    operations.append("start")
    ret = llm_mesh.routed("head")
    assert ret["result"] is True
    assert bool(ret["changes"]) is not testmode


def test_routed_with_other_ports(llm_mesh, mesh, testmode):
    mesh.said.side_effect = None
    mesh.said.return_value = False
    ret = llm_mesh.routed("head")
    assert ret["changes"] == {"head": {"old": "other ports", "new": ["172.30.0.80"]}}
    assert mesh.route.called is not testmode


def test_routed_when_the_engine_does_not_answer(llm_mesh, mesh, testmode):
    mesh.serving.side_effect = NoAnswer("the engine does not answer")
    ret = llm_mesh.routed("head")
    assert ret["result"] is (None if testmode else False)
    assert ret["changes"] == {}
    assert "the engine does not answer" in ret["comment"]
    assert not mesh.route.called


def test_routed_when_the_new_replica_does_not_get_healthy(llm_mesh, mesh, testmode):
    mesh.serving.return_value = ["172.30.0.81"]
    mesh.route.side_effect = CommandExecutionError("not yet healthy")
    ret = llm_mesh.routed("head")
    assert ret["result"] is (None if testmode else False)


def test_known_already(llm_mesh, mesh):
    ret = llm_mesh.known("all", ["head", "tail"])
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not mesh.route.called


def test_known_from_now_on(llm_mesh, mesh, testmode):
    mesh.serving.side_effect = CommandExecutionError("no engine yet")
    mesh.endpoints.side_effect = {"head": [], "tail": None}.get
    ret = llm_mesh.known("all", ["head", "tail"])
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"tail": {"old": None, "new": []}}
    verb = "Would make" if testmode else "Made"
    assert ret["comment"] == f"{verb} a file for tail"
    assert mesh.route.mock_calls == ([] if testmode else [(("tail", []),)])


def test_known_again_after_a_loss(llm_mesh, mesh, testmode):
    mesh.endpoints.return_value = None
    ret = llm_mesh.known("all", ["head"])
    assert ret["changes"] == {"head": {"old": None, "new": ["172.30.0.80"]}}
    assert mesh.route.called is not testmode


def test_known_on_a_full_disk(llm_mesh, mesh, testmode):
    mesh.endpoints.return_value = None
    mesh.route.side_effect = CommandExecutionError("head.yaml: No space left on device")
    ret = llm_mesh.known("all", ["head"])
    assert ret["result"] is (None if testmode else False)
    if not testmode:
        assert ret["comment"] == "head.yaml: No space left on device"


@pytest.mark.parametrize("old", [None, []])
def test_unrouted_already(llm_mesh, mesh, old):
    mesh.endpoints.return_value = old
    ret = llm_mesh.unrouted("head")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not mesh.route.called


def test_unrouted_from_now_on(llm_mesh, mesh, testmode):
    ret = llm_mesh.unrouted("head")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"head": {"old": ["172.30.0.80"], "new": []}}
    assert mesh.route.mock_calls == ([] if testmode else [(("head", []),)])


def test_unrouted_explains_a_failure(llm_mesh, mesh):
    mesh.endpoints.side_effect = CommandExecutionError("head.yaml is not what was written")
    ret = llm_mesh.unrouted("head")
    assert (ret["result"], ret["comment"]) == (False, "head.yaml is not what was written")
