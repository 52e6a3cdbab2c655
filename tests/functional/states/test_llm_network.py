import pytest

pytestmark = pytest.mark.docker


def present(site, test=False, subnet=None, name=None):
    return site.state(
        "llm_network.present", name or site.network, test=test, subnet=subnet or site.subnet
    )


def named(site):
    names = [each["Name"] for each in site.engine.networks()]
    return [name for name in names if name.startswith(site.name)]


def test_present_creates_it(site):
    with site.silence():
        foretold = present(site, test=True)
    assert foretold["result"] is None
    ret = present(site)
    assert ret["result"] is True
    assert (
        ret["changes"] == foretold["changes"] == {site.network: {"old": None, "new": site.subnet}}
    )
    with site.silence():
        assert present(site)["changes"] == {}
    assert site.engine.network(site.network)["Labels"] == {"llm.site": site.name}


def test_present_never_changes_a_subnet(site, network):
    ret = present(site, subnet="10.214.0.0/24")
    assert ret["result"] is False
    assert f"{network} has {site.subnet} instead of 10.214.0.0/24" in ret["comment"]
    assert site.call("llm_network.find", network)["subnets"] == [site.subnet]


@pytest.mark.parametrize("test", [False, True])
def test_present_refuses_an_overlap(site, network, test):
    ret = present(site, test=test, name=f"{site.name}-other")
    assert ret["result"] is False
    assert f"overlaps with network {network} ({site.subnet})" in ret["comment"]
    assert named(site) == [network]


def test_present_refuses_the_subnet_of_a_route(site):
    with open("/proc/net/route") as routes:
        if not any(line.split()[7] == "0000FFFF" for line in routes.readlines()[1:]):
            pytest.skip("no route to a /16 on this machine")
    ret = present(site, subnet="172.16.0.0/12")
    assert ret["result"] is False
    assert "overlaps with" in ret["comment"]
    assert named(site) == []


def test_present_leaves_a_foreign_network_alone(site):
    site.engine.create_network({"Name": site.network})
    ret = present(site)
    assert ret["result"] is False
    assert "is not ours" in ret["comment"]
    ret = site.state("llm_network.absent", site.network)
    assert ret["result"] is True
    assert ret["changes"] == {}
    assert named(site) == [site.network]


def test_absent_removes_it(site, network):
    with site.silence():
        foretold = site.state("llm_network.absent", network, test=True)
    ret = site.state("llm_network.absent", network)
    assert ret["result"] is True
    assert ret["changes"] == foretold["changes"] == {network: {"old": site.subnet, "new": None}}
    assert named(site) == []
    assert site.state("llm_network.absent", network)["changes"] == {}


def test_absent_of_one_in_use(site, network, image):
    spec = {"image": image, "network": network, "stop_timeout": 1}
    assert site.state("llm_container.running", "web", **spec)["result"] is True
    ret = site.state("llm_network.absent", network)
    assert ret["result"] is False
    assert ret["comment"] == f"Network {network} is in use by {site.name}-web-1-g1"
    assert named(site) == [network]
