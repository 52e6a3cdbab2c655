from unittest.mock import call, create_autospec

import pytest
from llm_engine import NoAnswer
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import llm_container as llm_container_module
from _modules import llm_deploy, llm_service, llm_watch
from _states import llm_container as llm_container_state

CHANGES = {"llm-head-1-g1": ["create: there is none"]}
NOTHING = {"operations": [], "changes": {}, "missing": [], "conflicts": [], "notes": []}
PLAN = NOTHING | {"operations": [{"do": "create"}], "changes": CHANGES}
DONE = {"changes": CHANGES, "errors": []}
FUNCTIONS = ("plan", "removal", "execute", "digest", "tidy")
MOVED = "The world has moved since the plan; planned again"


@pytest.fixture
def llm_container(configure_loader, testmode):
    salt = {
        f"llm_container.{name}": create_autospec(getattr(llm_container_module, name))
        for name in FUNCTIONS
    }
    salt["llm_deploy.tell"] = create_autospec(llm_deploy.tell)
    salt["llm_watch.wait"] = create_autospec(llm_watch.wait)
    salt["llm_watch.remember"] = create_autospec(llm_watch.remember)
    salt["llm_service.specs"] = create_autospec(llm_service.specs, return_value=[{"service": "h"}])
    return configure_loader(llm_container_state, salt=salt, test=testmode)


@pytest.fixture
def plan(llm_container):
    return llm_container.__salt__["llm_container.plan"]


@pytest.fixture
def removal(llm_container):
    return llm_container.__salt__["llm_container.removal"]


@pytest.fixture
def execute(llm_container):
    return llm_container.__salt__["llm_container.execute"]


def test_running_when_it_is(llm_container, plan, execute, testmode):
    plan.return_value = NOTHING
    comment = "head is running"
    ret = {"name": "head", "result": True, "changes": {}, "comment": comment}
    assert llm_container.running("head") == ret
    assert not execute.called
    assert llm_container.__salt__["llm_container.tidy"].called is not testmode
    llm_container.__salt__["llm_watch.wait"].assert_called_once_with()
    remember = llm_container.__salt__["llm_watch.remember"]
    assert remember.call_args_list == ([] if testmode else [call("head", changed=False)])


def test_running_changes_what_is_not(llm_container, plan, execute, testmode):
    plan.return_value = PLAN
    execute.return_value = DONE
    ret = llm_container.running("head")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == CHANGES
    assert execute.called is not testmode


def test_running_shows_what_was_done_when_the_rest_failed(llm_container, plan, execute, testmode):
    plan.return_value = PLAN
    execute.return_value = {"changes": {}, "errors": ["head is not healthy", "nor is tail"]}
    ret = llm_container.running("head")
    assert ret["result"] is (None if testmode else False)
    if not testmode:
        assert ret["changes"] == {}
        assert ret["comment"] == "head is not healthy\nnor is tail"


def test_running_without_what_it_needs(llm_container, plan, execute, testmode):
    plan.return_value = PLAN | {"missing": ["image x is not on this host"]}
    ret = llm_container.running("head")
    assert ret["result"] is (None if testmode else False)
    assert ret["changes"] == (CHANGES if testmode else {})
    assert "image x is not on this host" in ret["comment"]
    assert not execute.called


def test_running_with_a_conflict(llm_container, plan, execute):
    plan.return_value = PLAN | {"conflicts": ["Container x is not ours"]}
    ret = llm_container.running("head")
    assert ret == {
        "name": "head",
        "result": False,
        "changes": {},
        "comment": "Container x is not ours",
    }
    assert not execute.called


@pytest.mark.parametrize(
    ("announced", "moved"),
    [
        ({}, False),
        ({"node1": {"tail": "other"}}, False),
        ({"node1": {"head": "now"}}, False),
        ({"node2": {"head": "other"}}, False),
        ({"node1": {"head": "other"}}, True),
    ],
)
@pytest.mark.parametrize("found", [NOTHING, PLAN, PLAN | {"conflicts": ["x is not ours"]}])
def test_running_says_when_the_plan_is_not_the_announced_one(
    llm_container, plan, execute, testmode, found, announced, moved
):
    """It acts on the plan that it made itself, whatever was announced."""
    llm_container.__pillar__["llm_announced"] = announced
    llm_container.__salt__["llm_container.digest"].return_value = "now"
    plan.return_value = found
    execute.return_value = DONE
    ret = llm_container.running("head")
    assert ret["comment"].endswith(f"\n{MOVED}") is moved
    assert llm_container.__salt__["llm_deploy.tell"].called is moved
    assert execute.called is (found is PLAN and not testmode)


@pytest.mark.parametrize("error", [CommandExecutionError, SaltInvocationError])
def test_running_explains_errors(llm_container, plan, error):
    plan.side_effect = error("no engine")
    ret = llm_container.running("head")
    assert ret == {"name": "head", "result": False, "changes": {}, "comment": "no engine"}


@pytest.mark.parametrize(
    ("arguments", "specs"),
    [
        ({}, [{"service": "h"}]),
        ({"__id__": "a", "__sls__": "b"}, [{"service": "h"}]),
        ({"image": "x"}, [{"service": "head", "image": "x"}]),
        ({"spec": {"image": "x"}}, [{"service": "head", "image": "x"}]),
        (
            {"memory": "1g", "spec": [{"image": "x", "replica": 1}, {"image": "x", "replica": 2}]},
            [
                {"service": "head", "memory": "1g", "image": "x", "replica": 1},
                {"service": "head", "memory": "1g", "image": "x", "replica": 2},
            ],
        ),
        (
            {"image": "x", "containers": {"a1": {"memory": "1g"}, "a2": None}},
            [
                {"service": "a1", "image": "x", "memory": "1g"},
                {"service": "a2", "image": "x"},
            ],
        ),
    ],
)
def test_running_takes_every_form_of_a_spec(llm_container, plan, arguments, specs):
    plan.return_value = NOTHING
    assert llm_container.running("head", **arguments)["result"] is True
    plan.assert_called_once_with(specs)


def test_running_refuses_a_list_of_containers(llm_container):
    ret = llm_container.running("head", containers=["a"])
    assert ret["result"] is False
    assert ret["comment"] == "head: containers: expected a mapping of name to spec"


def test_absent_when_it_is(llm_container, removal, execute):
    removal.return_value = NOTHING
    ret = {"name": "head", "result": True, "changes": {}, "comment": "head is absent"}
    assert llm_container.absent("head") == ret
    assert not execute.called


def test_absent_removes(llm_container, removal, execute, testmode):
    changes = {"llm-head-1-g1": ["remove: it is not wanted"]}
    removal.return_value = PLAN | {"changes": changes}
    execute.return_value = {"changes": changes, "errors": []}
    ret = llm_container.absent("head", volumes=True)
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == changes
    removal.assert_called_once_with("head", volumes=True)
    assert execute.called is not testmode


def test_absent_and_running_while_the_engine_does_not_answer(
    llm_container, plan, removal, testmode
):
    plan.side_effect = removal.side_effect = NoAnswer("no engine")
    for ret in (llm_container.running("head"), llm_container.absent("head")):
        assert ret["result"] is (None if testmode else False)
        assert ret["changes"] == {}
        assert "no engine" in ret["comment"]


def test_absent_explains_errors(llm_container, removal):
    removal.side_effect = CommandExecutionError("no engine")
    assert llm_container.absent("head")["comment"] == "no engine"
