from unittest.mock import create_autospec

import pytest
from llm_engine import NoAnswer
from salt.exceptions import CommandExecutionError

from _modules import llm_image as llm_image_module
from _states import llm_image as llm_image_state

OWN = "vllm@sha256:1"


@pytest.fixture
def llm_image(configure_loader, testmode):
    names = ("pending", "build", "list_", "remove")
    salt = {
        f"llm_image.{name.rstrip('_')}": create_autospec(getattr(llm_image_module, name))
        for name in names
    }
    salt["llm_image.pending"].return_value = {"build": [], "pull": []}
    salt["llm_image.list"].return_value = []
    return configure_loader(llm_image_state, salt=salt, test=testmode)


def test_built_when_all_are_here(llm_image):
    ret = llm_image.built("all", ["head"])
    assert ret == {"name": "all", "result": True, "changes": {}, "comment": "All images are here"}
    assert not llm_image.__salt__["llm_image.build"].called


def test_built_makes_what_is_lacking(llm_image, testmode):
    lacking = {"build": ["llm/head:1", "llm/cache:2"], "pull": [OWN]}
    llm_image.__salt__["llm_image.pending"].return_value = lacking
    ret = llm_image.built("all", ["head", "cache", OWN])
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {
        "llm/head:1": {"old": None, "new": "built"},
        "llm/cache:2": {"old": None, "new": "built"},
        OWN: {"old": None, "new": "pulled"},
    }
    assert llm_image.__salt__["llm_image.build"].called is not testmode
    if testmode:
        assert ret["comment"] == f"would build llm/head:1, llm/cache:2; would pull {OWN}"


def test_built_takes_its_name_for_the_image(llm_image):
    llm_image.built("head")
    llm_image.__salt__["llm_image.pending"].assert_called_once_with(["head"])


def test_built_says_why_it_failed(llm_image, testmode):
    llm_image.__salt__["llm_image.pending"].return_value = {"build": ["llm/head:1"], "pull": []}
    llm_image.__salt__["llm_image.build"].side_effect = CommandExecutionError("last line")
    ret = llm_image.built("head")
    assert ret["result"] is (None if testmode else False)
    assert testmode or (ret["comment"] == "last line" and ret["changes"] == {})


def test_built_of_an_unknown_image(llm_image):
    llm_image.__salt__["llm_image.pending"].side_effect = CommandExecutionError('no image "x"')
    ret = llm_image.built("x")
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, 'no image "x"')


def test_built_while_the_engine_does_not_answer(llm_image, testmode):
    llm_image.__salt__["llm_image.pending"].side_effect = NoAnswer("no engine")
    ret = llm_image.built("head")
    assert (ret["result"], ret["changes"]) == (None if testmode else False, {})
    assert "no engine" in ret["comment"]


def test_absent_when_there_are_none(llm_image):
    ret = llm_image.absent("gone")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not llm_image.__salt__["llm_image.remove"].called


def test_absent_removes_them(llm_image, testmode):
    llm_image.__salt__["llm_image.list"].return_value = ["llm/head:1"]
    ret = llm_image.absent("gone")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"llm/head:1": {"old": "present", "new": None}}
    assert llm_image.__salt__["llm_image.remove"].called is not testmode


def test_absent_when_one_is_in_use(llm_image, testmode):
    llm_image.__salt__["llm_image.list"].return_value = ["llm/head:1"]
    llm_image.__salt__["llm_image.remove"].side_effect = CommandExecutionError("in use")
    ret = llm_image.absent("gone")
    assert ret["result"] is (None if testmode else False)
    assert testmode or ret["comment"] == "in use"
