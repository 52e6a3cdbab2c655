from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_preflight as llm_preflight_module
from _states import llm_preflight as llm_preflight_state


@pytest.fixture
def check():
    return create_autospec(llm_preflight_module.check, return_value=[])


@pytest.fixture
def llm_preflight(configure_loader, check, testmode):
    return configure_loader(llm_preflight_state, salt={"llm_preflight.check": check}, test=testmode)


@pytest.mark.parametrize("expected", [True, False])
def test_ready(llm_preflight, check, expected):
    ret = llm_preflight.ready("a host", engine_expected=expected)
    assert ret["result"] is True
    assert ret["changes"] == {}
    check.assert_called_once_with(engine_expected=expected)


def test_ready_with_problems(llm_preflight, check):
    check.return_value = ["node1: memory: too little", "node1: disk: full"]
    ret = llm_preflight.ready("a host")
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert ret["comment"].splitlines() == check.return_value


def test_ready_without_a_sound_pillar(llm_preflight, check):
    check.side_effect = CommandExecutionError("the pillar is not sound")
    ret = llm_preflight.ready("a host")
    assert (ret["result"], ret["comment"]) == (False, "the pillar is not sound")
