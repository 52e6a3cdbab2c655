"""
The states of the container engine, in apply and in test mode.
"""

from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_docker as llm_docker_module
from _states import llm_docker


@pytest.fixture
def functions():
    """The module's functions, on a host where an engine answers."""
    found = {
        f"llm_docker.{name}": create_autospec(getattr(llm_docker_module, name))
        for name in ("answers", "missing", "install", "start")
    }
    found["llm_docker.answers"].return_value = True
    found["llm_docker.missing"].return_value = []
    return found


@pytest.fixture
def state(configure_loader, functions, testmode):
    """The state module, in apply and in test mode."""
    return configure_loader(llm_docker, salt=functions, test=testmode)


def test_installed_where_an_engine_is(state, functions):
    ret = state.installed("engine")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not functions["llm_docker.install"].called


def test_installed_where_none_is(state, functions, testmode):
    functions["llm_docker.missing"].return_value = ["docker.io", "iptables"]
    ret = state.installed("engine")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"installed": ["docker.io", "iptables"]}
    assert functions["llm_docker.install"].called is not testmode


def test_running_where_an_engine_answers(state, functions):
    ret = state.running("engine")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not functions["llm_docker.start"].called


def test_running_where_none_answers(state, functions, testmode):
    functions["llm_docker.answers"].return_value = False
    ret = state.running("engine", timeout=5)
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"engine": {"old": "stopped", "new": "running"}}
    assert functions["llm_docker.start"].called is not testmode


@pytest.mark.parametrize("testmode", [False], indirect=True)
@pytest.mark.parametrize(("function", "broken"), [("installed", "install"), ("running", "start")])
def test_error_is_the_comment(state, functions, function, broken):
    functions["llm_docker.missing"].return_value = ["docker.io"]
    functions["llm_docker.answers"].return_value = False
    functions[f"llm_docker.{broken}"].side_effect = CommandExecutionError("no mirror")
    ret = getattr(state, function)("engine")
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, "no mirror")
