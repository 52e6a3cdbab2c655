from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_files as llm_files_module
from _states import llm_files as llm_files_state


@pytest.fixture
def module():
    return create_autospec(llm_files_module)


@pytest.fixture
def llm_files(configure_loader, module, testmode):
    names = ("pending", "write", "removable", "remove")
    salt = {f"llm_files.{name}": getattr(module, name) for name in names}
    return configure_loader(llm_files_state, salt=salt, test=testmode)


def test_present_is_already_true(llm_files, module):
    module.pending.return_value = {}
    ret = llm_files.present("head")
    assert (ret["result"], ret["changes"]) == (True, {})
    module.write.assert_not_called()


def test_present_writes_what_is_pending(llm_files, module, testmode):
    module.pending.return_value = {"config.yaml": "create"}
    ret = llm_files.present("head")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"config.yaml": "create"}
    assert module.write.called is not testmode


def test_present_explains_a_failure(llm_files, module):
    module.pending.side_effect = CommandExecutionError("salt://x: 'y' is undefined")
    ret = llm_files.present("head")
    assert (ret["result"], ret["comment"]) == (False, "salt://x: 'y' is undefined")


def test_absent_is_already_true(llm_files, module):
    module.removable.return_value = []
    ret = llm_files.absent("head")
    assert (ret["result"], ret["changes"]) == (True, {})
    module.remove.assert_not_called()


def test_absent_removes_the_files(llm_files, module, testmode):
    module.removable.return_value = ["/llm/head/config", "/llm/head/live"]
    ret = llm_files.absent("head")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"removed": ["/llm/head/config", "/llm/head/live"]}
    assert module.remove.called is not testmode
