from unittest.mock import create_autospec

import pytest
from llm_engine import NoAnswer
from salt.exceptions import CommandExecutionError

from _modules import llm_network as llm_network_module
from _states import llm_network as llm_network_state

SUBNET = "172.30.0.0/20"
OURS = {
    "name": "net",
    "id": "1",
    "subnets": [SUBNET],
    "ours": True,
    "containers": [],
}


@pytest.fixture
def llm_network(configure_loader, testmode):
    salt = {
        f"llm_network.{name}": create_autospec(getattr(llm_network_module, name))
        for name in ("find", "overlaps", "create", "remove")
    }
    salt["llm_network.find"].return_value = None
    salt["llm_network.overlaps"].return_value = []
    return configure_loader(llm_network_state, salt=salt, test=testmode)


def test_present_when_it_is(llm_network):
    llm_network.__salt__["llm_network.find"].return_value = OURS
    ret = {"name": "net", "result": True, "changes": {}, "comment": "Network net exists"}
    assert llm_network.present("net", SUBNET) == ret


def test_present_creates_it(llm_network, testmode):
    ret = llm_network.present("net", SUBNET)
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"net": {"old": None, "new": SUBNET}}
    assert llm_network.__salt__["llm_network.create"].called is not testmode


@pytest.mark.parametrize(
    ("found", "overlaps", "subnet", "said"),
    [
        (OURS | {"ours": False}, [], SUBNET, "Network net exists and is not ours"),
        (OURS, [], "172.31.0.0/20", "net has 172.30.0.0/20 instead of 172.31.0.0/20"),
        (None, ["network other (172.30.0.0/16)"], SUBNET, "overlaps with network other"),
        (None, [], "172.30.0.1/20", "expected a network such as"),
        (None, [], None, "expected a network such as"),
    ],
)
def test_present_refuses(llm_network, found, overlaps, subnet, said):
    llm_network.__salt__["llm_network.find"].return_value = found
    llm_network.__salt__["llm_network.overlaps"].return_value = overlaps
    ret = llm_network.present("net", subnet)
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert said in ret["comment"]
    assert not llm_network.__salt__["llm_network.create"].called


def test_present_explains_errors(llm_network, testmode):
    llm_network.__salt__["llm_network.create"].side_effect = CommandExecutionError("no engine")
    ret = llm_network.present("net", SUBNET)
    assert ret["result"] is (None if testmode else False)
    assert testmode or ret["comment"] == "no engine"


@pytest.mark.parametrize("verb", ["present", "absent"])
def test_while_the_engine_does_not_answer(llm_network, testmode, verb):
    llm_network.__salt__["llm_network.find"].side_effect = NoAnswer("no engine")
    arguments = [SUBNET] if verb == "present" else []
    ret = getattr(llm_network, verb)("net", *arguments)
    assert ret["result"] is (None if testmode else False)
    assert ret["changes"] == {}
    assert "no engine" in ret["comment"]


def test_absent_when_it_is(llm_network):
    ret = {"name": "net", "result": True, "changes": {}, "comment": "Network net is absent"}
    assert llm_network.absent("net") == ret


def test_absent_leaves_what_is_not_ours(llm_network):
    llm_network.__salt__["llm_network.find"].return_value = OURS | {"ours": False}
    ret = llm_network.absent("net")
    assert ret["result"] is True
    assert ret["changes"] == {}
    assert not llm_network.__salt__["llm_network.remove"].called


def test_absent_removes_it(llm_network, testmode):
    llm_network.__salt__["llm_network.find"].return_value = OURS
    ret = llm_network.absent("net")
    assert ret["result"] is (None if testmode else True)
    assert ret["changes"] == {"net": {"old": SUBNET, "new": None}}
    assert llm_network.__salt__["llm_network.remove"].called is not testmode


def test_absent_of_one_in_use(llm_network, testmode):
    llm_network.__salt__["llm_network.find"].return_value = OURS
    llm_network.__salt__["llm_network.remove"].side_effect = CommandExecutionError("in use by a")
    ret = llm_network.absent("net")
    assert ret["result"] is (None if testmode else False)
    assert testmode or ret["comment"] == "in use by a"
