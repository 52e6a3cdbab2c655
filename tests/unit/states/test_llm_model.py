from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_model as llm_model_module
from _states import llm_model as llm_model_state

SHA256 = "AB" * 32
URL = "https://example.org/qwen.gguf"


@pytest.fixture
def llm_model(configure_loader, testmode):
    salt = {}
    for function in ("bring", "checksum", "need", "note", "remove"):
        salt[f"llm_model.{function}"] = create_autospec(getattr(llm_model_module, function))
    salt["llm_model.list"] = create_autospec(llm_model_module.list_, return_value=["a", "qwen"])
    salt["llm_model.need"].return_value = {"source": URL, "size": 3 << 30, "free": 9 << 30}
    salt["llm_model.checksum"].return_value = None
    return configure_loader(llm_model_state, salt=salt, test=testmode)


def test_present_that_is_here(llm_model, testmode):
    llm_model.__salt__["llm_model.checksum"].return_value = SHA256.lower()
    ret = llm_model.present("qwen", sha256=SHA256, url=URL)
    comment = "Model qwen is here"
    assert ret == {"name": "qwen", "result": True, "changes": {}, "comment": comment}
    assert not llm_model.__salt__["llm_model.bring"].called
    assert llm_model.__salt__["llm_model.note"].called is not testmode


@pytest.mark.parametrize("old", [None, "cd" * 32])
def test_present_that_is_not_here(llm_model, testmode, old):
    llm_model.__salt__["llm_model.checksum"].return_value = old
    ret = llm_model.present("qwen", sha256=SHA256, url=URL)
    assert ret["changes"] == {"qwen": {"old": old, "new": SHA256.lower()}}
    assert ret["result"] is (None if testmode else True)
    bring = llm_model.__salt__["llm_model.bring"]
    if testmode:
        assert ret["comment"] == f"Would bring model qwen here: 3g from {URL}"
        assert not bring.called
    else:
        assert ret["comment"] == "Model qwen was brought here"
        bring.assert_called_once_with("qwen", SHA256, url=URL, path=None)


@pytest.mark.parametrize(
    ("size", "words"), [(None, "an unknown size from"), (0, "nothing to copy from")]
)
def test_present_of_no_size(llm_model, testmode, size, words):
    llm_model.__salt__["llm_model.need"].return_value["size"] = size
    ret = llm_model.present("qwen", sha256=SHA256, url=URL)
    assert ret["result"] is (None if testmode else True)
    assert (words in ret["comment"]) is testmode


@pytest.mark.parametrize("function", ["checksum", "need", "bring"])
def test_present_that_cannot_be(llm_model, function):
    function = llm_model.__salt__[f"llm_model.{function}"]
    function.side_effect = CommandExecutionError("404 Not Found")
    for each in ("need", "bring"):
        llm_model.__salt__[f"llm_model.{each}"].side_effect = function.side_effect
    ret = llm_model.present("qwen", sha256=SHA256, url=URL)
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, "404 Not Found")


def test_present_without_room_is_foretold(llm_model, testmode):
    llm_model.__salt__["llm_model.need"].return_value["free"] = 1 << 30
    ret = llm_model.present("qwen", sha256=SHA256, url=URL)
    if testmode:
        assert ret["result"] is False
        assert ret["comment"] == f"Model qwen from {URL} needs 3g, 1g are free"


def test_absent(llm_model, testmode):
    ret = llm_model.absent("qwen")
    assert ret["changes"] == {"qwen": {"old": "present", "new": None}}
    assert ret["result"] is (None if testmode else True)
    assert ret["comment"] == ("Would remove qwen" if testmode else "Removed qwen")
    assert llm_model.__salt__["llm_model.remove"].called is not testmode


def test_absent_that_is_not_here(llm_model):
    ret = llm_model.absent("b")
    assert (ret["result"], ret["changes"], ret["comment"]) == (True, {}, "Model b is not here")


def test_pruned(llm_model, testmode):
    ret = llm_model.pruned("No others", keep=["qwen", "c"])
    assert ret["changes"] == {"a": {"old": "present", "new": None}}
    assert ret["result"] is (None if testmode else True)
    removed = llm_model.__salt__["llm_model.remove"]
    assert [call.args for call in removed.call_args_list] == ([] if testmode else [("a",)])


def test_pruned_of_nothing(llm_model):
    ret = llm_model.pruned("No others", keep=["qwen", "a"])
    assert (ret["result"], ret["changes"]) == (True, {})
