from unittest.mock import create_autospec

import pytest
from llm_engine import NoAnswer
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import llm_config
from _modules import llm_health as llm_health_module
from _states import llm_health as llm_health_state

YES = {"ok": True, "answer": "200"}
NO = {"ok": False, "answer": "connection refused"}


@pytest.fixture
def llm_health(configure_loader, platform, testmode):
    service = create_autospec(llm_config.service, side_effect=platform["services"].get)
    salt = {"llm_config.service": service}
    for function in ("well", "probe", "wait", "wait_for"):
        spec = create_autospec(getattr(llm_health_module, function))
        salt[f"llm_health.{function}"] = spec
    return configure_loader(llm_health_state, salt=salt, test=testmode)


GATES = [
    ("http", {"url": "http://a"}, {"http": "http://a", "status": 200}, None),
    (
        "http",
        {"url": "http://a", "socket": "/s", "json": {"a": 1}, "container": "c"},
        {"http": "http://a", "status": 200, "socket": "/s", "json": {"a": 1}},
        "c",
    ),
    ("tcp", {"address": "a:1"}, {"tcp": "a:1"}, None),
    ("redis", {"address": "a:1"}, {"redis": "a:1"}, None),
    ("redis", {"address": "a:1", "secret": "b"}, {"redis": "a:1", "secret": "b"}, None),
    (
        "redis",
        {"address": "a:1", "password_file": "/b"},
        {"redis": "a:1", "password_file": "/b"},
        None,
    ),
    ("grpc", {"address": "a:1"}, {"grpc": "a:1", "service": ""}, None),
    ("container", {}, {"container": "running"}, "gate"),
]


@pytest.mark.parametrize(("gate", "arguments", "check", "container"), GATES)
def test_gate_of_the_well(llm_health, testmode, gate, arguments, check, container):
    llm_health.__salt__["llm_health.probe"].return_value = YES
    ret = getattr(llm_health, gate)("gate", **arguments)
    assert ret == {"name": "gate", "result": True, "changes": {}, "comment": "gate is healthy"}
    wait = llm_health.__salt__["llm_health.wait"]
    if testmode:
        llm_health.__salt__["llm_health.probe"].assert_called_once_with(check, container=container)
        assert not wait.called
    else:
        times = {"min_healthy": 2, "healthy_deadline": 60}
        wait.assert_called_once_with(check, container=container, **times)


@pytest.mark.parametrize(("gate", "arguments"), [case[:2] for case in GATES])
def test_gate_of_the_unwell(llm_health, testmode, gate, arguments):
    llm_health.__salt__["llm_health.probe"].return_value = NO
    llm_health.__salt__["llm_health.wait"].side_effect = CommandExecutionError("refused")
    ret = getattr(llm_health, gate)("gate", healthy_deadline=7, **arguments)
    assert ret["changes"] == {}
    assert ret["result"] is (None if testmode else False)
    waits = "gate is not healthy; would wait up to 7 s"
    assert ret["comment"] == (waits if testmode else "refused")
    assert llm_health.__salt__["llm_health.wait"].called is not testmode


@pytest.mark.parametrize("error", [CommandExecutionError, SaltInvocationError])
def test_gate_that_cannot_be_asked_fails(llm_health, error):
    for function in ("probe", "wait", "well", "wait_for"):
        llm_health.__salt__[f"llm_health.{function}"].side_effect = error("the check needs a port")
    for ret in (llm_health.tcp("gate", address="nowhere"), llm_health.healthy("head")):
        assert ret["result"] is False
        assert ret["comment"] == "the check needs a port"


def test_gate_while_the_engine_does_not_answer(llm_health, testmode):
    for function in ("probe", "wait", "well", "wait_for"):
        llm_health.__salt__[f"llm_health.{function}"].side_effect = NoAnswer("no engine")
    for ret in (llm_health.container("registry"), llm_health.healthy("head")):
        assert ret["result"] is (None if testmode else False)
        assert "no engine" in ret["comment"]


@pytest.mark.parametrize("well", [True, False])
def test_healthy(llm_health, testmode, well):
    llm_health.__salt__["llm_health.well"].return_value = well
    if not well:
        llm_health.__salt__["llm_health.wait_for"].side_effect = CommandExecutionError("refused")
    ret = llm_health.healthy("head")
    assert ret["changes"] == {}
    if well:
        assert (ret["result"], ret["comment"]) == (True, "head is healthy")
    elif testmode:
        comment = "head is not healthy; would wait up to 400 s"
        assert (ret["result"], ret["comment"]) == (None, comment)
    else:
        assert (ret["result"], ret["comment"]) == (False, "refused")
    assert llm_health.__salt__["llm_health.wait_for"].called is not testmode
