from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_release as llm_release_module
from _states import llm_release as llm_release_state

FUNCTIONS = ("lock", "begin", "finish", "go_to", "obstacles", "take_back")
STEPS = {
    "salt_|-tail is healthy_|-x_|-state": {
        "__id__": "tail is healthy", "result": False, "comment": "tail is sick", "__run_num__": 1,
    },
}  # fmt: skip


@pytest.fixture
def llm_release(configure_loader, testmode, monkeypatch):
    salt = {
        f"llm_release.{name}": create_autospec(getattr(llm_release_module, name))
        for name in FUNCTIONS
    }
    monkeypatch.setattr(llm_release_state, "__running__", STEPS, raising=False)
    return configure_loader(llm_release_state, salt=salt, test=testmode)


@pytest.fixture
def called(llm_release):
    """A function that returns one of the module's functions."""
    return lambda name: llm_release.__salt__[f"llm_release.{name}"]


def test_locked(llm_release, called, testmode):
    assert llm_release.locked("nobody else", "teardown")["result"] is True
    called("lock").side_effect = CommandExecutionError("the platform is locked")
    assert llm_release.locked("nobody else", "teardown")["result"] is testmode


def test_begun(llm_release, called, testmode):
    ret = llm_release.begun("all take part", 7, "rollback to 5")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert called("begin").call_count == (not testmode)


def test_begun_by_somebody_else(llm_release, called, testmode):
    called("begin").side_effect = CommandExecutionError("the platform is locked")
    ret = llm_release.begun("all take part", 7)
    assert ret["result"] is testmode
    assert testmode or ret["comment"] == "the platform is locked"


@pytest.mark.parametrize("changes", [{}, {"node1": {"llm-tail-1-g2": ["…"]}}])
def test_recorded(llm_release, called, testmode, changes):
    called("finish").return_value = changes
    ret = llm_release.recorded("it is recorded", 7)
    assert ret["result"] is True
    assert ret["changes"] == ({"release": 7} if changes and not testmode else {})


def test_recorded_without_a_host(llm_release, called, testmode):
    called("finish").side_effect = CommandExecutionError("node1 does not say")
    assert llm_release.recorded("it is recorded", 7)["result"] is testmode


def test_returned(llm_release, called, testmode):
    called("go_to").return_value = {"node1": {"llm-tail-1-g1": ["…"]}}
    called("obstacles").return_value = []
    ret = llm_release.returned("5 serves", 7, 5)
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == ({"release": 5} if testmode else called("go_to").return_value)


def test_returned_that_cannot_be(llm_release, called, testmode):
    called("go_to").side_effect = CommandExecutionError("it is gone")
    called("obstacles").return_value = ["it is gone"]
    ret = llm_release.returned("5 serves", 7, 5)
    assert (ret["result"], ret["comment"]) == (False, "it is gone")
    assert called("go_to").called is not testmode


@pytest.mark.parametrize(
    ("done", "result", "words"),
    [
        ({"result": "taken back", "errors": []}, True, "Release 7 was taken back: what served"),
        ({"result": "refused", "errors": []}, True, "Nothing was changed"),
        ({"result": "not taken back", "errors": ["x"]}, False, "Release 7 was not taken back"),
        ({"result": "unknown", "errors": ["y"]}, False, "Nobody knows what serves on every host"),
    ],
)  # fmt: skip
def test_taken_back(llm_release, called, testmode, done, result, words):
    called("take_back").return_value = done | {"changes": {"node1": {}}}
    ret = llm_release.taken_back("it goes back", 7)
    if testmode:
        assert (ret["result"], ret["changes"]) == (True, {})
        called("take_back").assert_not_called()
        return
    assert ret["result"] is result
    assert ret["comment"].startswith(words)
    ((number, why), _) = called("take_back").call_args
    assert number == 7
    assert "tail is sick" in "\n".join(why)


def test_taken_back_while_another_deploys(llm_release, called, testmode):
    called("take_back").side_effect = CommandExecutionError("no pillar")
    assert llm_release.taken_back("it goes back", 7)["result"] is testmode
