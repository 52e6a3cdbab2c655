from unittest.mock import create_autospec, patch

import llm_engine
import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_network as llm_network_module

ROUTES = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 010010AC 0003 0 0 0 00000000 0 0 0
eth0 000010AC 00000000 0001 0 0 0 0000FFFF 0 0 0
br-0123456789ab 00001EAC 00000000 0001 0 0 0 00F0FFFF 0 0 0
"""


def network(name, subnet=None, site=None, containers=()):
    return {
        "Name": name,
        "Id": "0123456789abcdef" if name == "ours" else "f" * 16,
        "IPAM": {"Config": [{"Subnet": subnet}] if subnet else None},
        "Labels": {"llm.site": site} if site else None,
        "Options": None,
        "Containers": {each: {"Name": each} for each in containers},
    }


@pytest.fixture
def engine():
    return create_autospec(llm_engine.Engine, instance=True)


@pytest.fixture
def llm_network(configure_loader, engine, tmp_path):
    routes = tmp_path / "route"
    routes.write_text(ROUTES)
    with (
        patch.object(llm_engine, "Engine", lambda path: engine),
        patch.object(llm_network_module, "ROUTES", str(routes)),
    ):
        yield configure_loader(llm_network_module)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (network("net", "172.30.0.0/20", "llm", ["b", "a"]), (True, ["a", "b"])),
        (network("net", "172.30.0.0/20", "another"), (False, [])),
        (network("net", "172.30.0.0/20"), (False, [])),
    ],
)
def test_find(llm_network, engine, there, found):
    engine.network.return_value = there
    result = llm_network.find("net")
    assert (result["ours"], result["containers"]) == found
    assert result["subnets"] == ["172.30.0.0/20"]


def test_find_nothing(llm_network, engine):
    engine.network.side_effect = llm_engine.NotFound("no such network", 404)
    assert llm_network.find("net") is None


def test_find_does_not_take_the_start_of_an_id(llm_network, engine):
    engine.network.return_value = network("another")
    assert llm_network.find("ffff") is None


@pytest.mark.parametrize(
    ("subnet", "name", "overlaps"),
    [
        ("10.0.0.0/24", None, []),
        ("172.30.4.0/24", None, ["network ours (172.30.0.0/20)"]),
        ("172.30.4.0/24", "ours", []),
        ("172.16.8.0/24", None, ["the host's route to 172.16.0.0/16 by eth0"]),
        (
            "172.16.0.0/12",
            None,
            ["network ours (172.30.0.0/20)", "the host's route to 172.16.0.0/16 by eth0"],
        ),
        ("fd00::/64", None, []),
    ],
)
def test_overlaps(llm_network, engine, subnet, name, overlaps):
    engine.networks.return_value = [network("ours", "172.30.0.0/20", "llm"), network("host")]
    assert llm_network.overlaps(subnet, name) == overlaps


def test_create_labels_it(llm_network, engine):
    engine.networks.return_value = []
    llm_network.create("net", "10.0.0.0/24")
    (body,) = engine.create_network.call_args.args
    assert body["Labels"] == {"llm.site": "llm"}
    assert body["IPAM"] == {"Config": [{"Subnet": "10.0.0.0/24"}]}


def test_create_refuses_an_overlap(llm_network, engine):
    engine.networks.return_value = [network("ours", "172.30.0.0/20")]
    with pytest.raises(CommandExecutionError, match="overlaps with network ours"):
        llm_network.create("net", "172.30.0.0/24")
    assert not engine.create_network.called


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (network("net", "10.0.0.0/24"), "is not ours"),
        (network("net", "10.0.0.0/24", "llm", ["a", "b"]), "is in use by a, b"),
    ],
)
def test_remove_refuses(llm_network, engine, there, said):
    engine.network.return_value = there
    with pytest.raises(CommandExecutionError, match=said):
        llm_network.remove("net")
    assert not engine.remove_network.called


def test_remove(llm_network, engine):
    engine.network.return_value = network("net", "10.0.0.0/24", "llm")
    assert llm_network.remove("net") is True
    engine.remove_network.assert_called_once_with("f" * 16)


def test_remove_nothing(llm_network, engine):
    engine.network.side_effect = llm_engine.NotFound("no such network", 404)
    assert llm_network.remove("net") is False
