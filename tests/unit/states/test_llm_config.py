from unittest.mock import create_autospec

import pytest

from _modules import llm_config as llm_config_module
from _states import llm_config as llm_config_state


@pytest.fixture
def check():
    return create_autospec(llm_config_module.check, return_value=[])


@pytest.fixture
def llm_config(configure_loader, check, testmode):
    return configure_loader(llm_config_state, salt={"llm_config.check": check}, test=testmode)


def test_checked_is_true_of_a_sound_pillar(llm_config):
    ret = llm_config.checked("The configuration is sound")
    assert ret["result"] is True
    assert ret["changes"] == {}


def test_checked_asks_for_what_an_orchestration_takes(llm_config, check):
    llm_config.checked("The pillar is sound", keys=["llm_release"])
    check.assert_called_once_with(["llm_release"])


def test_checked_fails_with_every_mistake(llm_config, check):
    check.return_value = ["pillar/site.yaml: a: wrong", "pillar/site.yaml: b: wrong"]
    ret = llm_config.checked("The configuration is sound")
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert ret["comment"].splitlines() == check.return_value


@pytest.mark.parametrize(
    ("answer", "checked", "result", "comment"),
    [
        ({"retcode": 0, "problems": []}, [], True, "The pillar is sound"),
        ({"retcode": 1, "problems": ["one", "two"]}, [], False, "one\ntwo"),
        ({"retcode": 1, "error": "no keyring"}, [], False, "no keyring"),
        ({"retcode": 0, "problems": []}, ["three"], False, "three"),
    ],
)
def test_reviewed_tells_what_the_master_finds(
    configure_loader, testmode, check, answer, checked, result, comment
):
    check.return_value = checked
    salt = {"saltutil.runner": lambda name: answer, "llm_config.check": check}
    module = configure_loader(llm_config_state, salt=salt, test=testmode)
    ret = module.reviewed("The pillar is sound", keys=["llm_services"])
    check.assert_called_once_with(["llm_services"])
    assert (ret["result"], ret["changes"], ret["comment"]) == (result, {}, comment)
