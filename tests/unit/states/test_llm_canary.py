from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_canary as llm_canary_module
from _states import llm_canary as llm_canary_state

FUNCTIONS = ("start", "running", "end", "watch")
FIGURES = {"requests": 30, "errors": 0, "quantile": "median", "time": 4.0}


@pytest.fixture
def llm_canary(configure_loader, testmode):
    salt = {
        f"llm_canary.{name}": create_autospec(getattr(llm_canary_module, name))
        for name in FUNCTIONS
    }
    return configure_loader(llm_canary_state, salt=salt, test=testmode)


@pytest.fixture
def called(llm_canary):
    """A function that returns one of the module's functions."""
    return lambda name: llm_canary.__salt__[f"llm_canary.{name}"]


def test_running(llm_canary, called, testmode):
    called("start").return_value = {"llm-head-canary-1-g1": ["create: there is none"]}
    ret = llm_canary.running("head", 10)
    assert ret["result"] is (None if testmode else True)
    assert bool(ret["changes"]) is not testmode
    assert "10 % of the requests for head" in ret["comment"]


def test_running_that_does_not_become_healthy(llm_canary, called, testmode):
    called("start").side_effect = CommandExecutionError("it has exited")
    ret = llm_canary.running("head", 10)
    assert ret["result"] is (None if testmode else False)
    assert testmode or ret["comment"] == "it has exited"


@pytest.mark.parametrize("there", [[], ["head"]])
def test_absent(llm_canary, called, testmode, there):
    called("running").return_value = there
    called("end").return_value = {"llm-head-canary-1-g1": ["remove: it is not wanted"]}
    ret = llm_canary.absent("head")
    assert ret["result"] is (None if testmode and there else True)
    assert bool(ret["changes"]) is bool(there and not testmode)
    assert called("end").call_count == bool(there and not testmode)


def test_absent_without_an_engine(llm_canary, called):
    called("running").side_effect = CommandExecutionError("no engine")
    ret = llm_canary.absent("head")
    assert (ret["result"], ret["comment"]) == (False, "no engine")


def test_proved(llm_canary, called, testmode):
    called("watch").return_value = {"old": FIGURES, "canary": FIGURES}
    ret = llm_canary.proved("head", ["node1"], window=5)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert called("watch").call_count == (not testmode)


def test_proved_of_a_canary_that_does_worse(llm_canary, called, testmode):
    called("watch").side_effect = CommandExecutionError("errors: found 9 of 10")
    ret = llm_canary.proved("head", ["node1"])
    assert ret["result"] is testmode
    assert testmode or ret["comment"] == "errors: found 9 of 10"
