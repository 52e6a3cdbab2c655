from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_service as llm_service_module
from _states import llm_service as llm_service_state

FUNCTIONS = ("outside", "withdrawal", "prune")


@pytest.fixture
def module():
    module = create_autospec(llm_service_module)
    module.withdrawal.side_effect = lambda name: {f"llm-{name}-1-g1": ["remove: it is not wanted"]}
    module.prune.return_value = module.withdrawal("old") | module.withdrawal("older")
    return module


@pytest.fixture
def llm_service(configure_loader, module, testmode):
    salt = {f"llm_service.{name}": getattr(module, name) for name in FUNCTIONS}
    return configure_loader(llm_service_state, salt=salt, test=testmode)


def test_pruned_is_already_true(llm_service, module):
    module.outside.return_value = []
    ret = llm_service.pruned("nothing else")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert ret["comment"] == "No other services are here"
    assert not module.prune.called


def test_pruned_removes_what_is_outside(llm_service, module, testmode):
    module.outside.return_value = ["old", "older"]
    ret = llm_service.pruned("nothing else")
    assert ret["result"] is (None if testmode else True)
    assert list(ret["changes"]) == ["llm-old-1-g1", "llm-older-1-g1"]
    assert ret["comment"] == f"{'Would remove' if testmode else 'Removed'} old, older"
    assert module.prune.called is not testmode


def test_pruned_explains_a_failure(llm_service, module):
    module.outside.side_effect = CommandExecutionError("no engine")
    ret = llm_service.pruned("nothing else")
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, "no engine")
