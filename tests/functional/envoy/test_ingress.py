"""
What comes into a host: from the world to tail, and from the meshes of other hosts.
"""

import contextlib
import json
import pathlib
import time

import httpx
import llm_catalogue
import pytest

from tests.functional.envoy.conftest import HEAD, TAIL
from tests.support import certificates, upstream
from tests.support.envoy import Envoy, free_ports


def test_address_of_a_client_is_known_to_tail(edge):
    transport = httpx.HTTPTransport(local_address="127.9.9.9", verify=edge.trust)
    with edge.client(transport=transport) as client:
        answer = client.post("/v1/completions", json={})
    assert edge.logged(answer.headers["x-request-id"])["address"] == "127.9.9.9"


def test_tail_that_wants_no_more_is_asked_no_more(edge):
    edge.tail.admin("POST", "/healthcheck/fail")
    edge.ingress.healthy("tail", 0)
    with pytest.raises(httpx.HTTPError):
        edge.ask()
    edge.tail.admin("POST", "/healthcheck/ok")
    edge.ingress.healthy("tail", 1)
    assert edge.ask().status_code == 200


@pytest.mark.parametrize("keep_alive", [True, False])
def test_tail_is_replaced_without_a_failed_request(edge, keep_alive):
    number = 2 + keep_alive
    new = edge.envoy("tail", number, f"127.0.0.{number}").start()
    old = edge.tail
    try:
        with edge.load(keep_alive) as load:
            time.sleep(0.5)
            edge.route("tail", [f"127.0.0.{number}"])
            assert edge.leave(old, routed=True) == 0
            old.stop()
            time.sleep(0.5)
        assert load.count > 20
        assert not load.failures
    finally:
        if not old.process:
            old.start()
        edge.route("tail", ["127.0.0.1"])
        new.stop()


@pytest.fixture
def hosts(compile_pillar, tmp_path):
    """A function that starts the mesh of node1, and ingress and head of node2."""
    with contextlib.ExitStack() as stack:
        yield lambda **more: Hosts(compile_pillar(), tmp_path, stack, **more)


class Hosts:
    """
    Two hosts: tail on node1 asks head on node2, and on node1 if that has one too.
    """

    def __init__(self, pillar, folder, stack, roles=("tail",), bearer="mesh.node1.llm"):
        head, ingress = free_ports(2)
        pillar["services"]["head"]["port"] = head
        pillar["site"] |= {
            "hosts": {
                "node1": {"address": "127.0.0.1", "roles": list(roles)},
                "node2": {"address": "127.0.0.2", "roles": ["head"]},
            },
            "hosts_port": ingress,
            "network": {"name": "llm-network", "subnet": "127.30.0.0/20"},
        }
        authority = certificates.Authority()
        authority.issue(folder / "mesh-tls", bearer)
        authority.issue(folder / "ingress-tls", "ingress.node2.llm")
        places = {"node1": "127.31.0.80", "node2": HEAD}
        self.envoys = {}
        for host, name in (("node2", "ingress"), ("node1", "mesh")):
            platform = llm_catalogue.platform(pillar, host)
            endpoints = folder / host / "endpoints"
            endpoints.mkdir(parents=True)
            for service in platform["services"]:
                here = service == "head" and "head" in platform["roles"]
                text = assignment(service, [places[host]] if here else [], head)
                (endpoints / f"{service}.yaml").write_text(text)
            address = platform["site"]["hosts"][host]["address"]
            envoy = Envoy(
                name,
                platform,
                {},
                folder / host / name,
                endpoints,
                folder / f"{name}-tls",
                {"address: 0.0.0.0": f"address: {address}"},
            )
            stack.callback(envoy.stop)
            self.envoys[name] = envoy
        self.heads = {}
        for host, address in places.items():
            if host == "node2" or "head" in roles:
                self.heads[host] = upstream.Upstream(address, head)
                stack.callback(self.heads[host].stop)
        self.envoys["ingress"].start()
        self.mesh = self.envoys["mesh"].start()
        transport = httpx.HTTPTransport(local_address=TAIL)
        self.client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{head}", transport=transport, timeout=10)
        )


def assignment(service, addresses, port):
    """Return the text of an endpoint file."""
    entries = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
        for address in addresses
    ]
    resource = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": service,
        "endpoints": [{"lb_endpoints": entries}] if entries else [],
    }
    return json.dumps({"resources": [resource]})


def test_service_of_another_host_is_reached(hosts):
    found = hosts()
    found.mesh.healthy("head-elsewhere", 1)
    assert found.client.post("/v1/completions", json={}).status_code == 200
    assert len(found.heads["node2"].requests) == 1


@pytest.mark.parametrize(
    ("roles", "bearer"),
    [
        (("tail",), "mesh.node3.llm"),
        (("tail",), "tail.node1.llm"),
        (("model-proxy",), "mesh.node1.llm"),
    ],
    ids=["other host", "other service", "host that has nobody who needs it"],
)
def test_who_may_not_ask_another_host_is_refused(hosts, roles, bearer):
    found = hosts(roles=roles, bearer=bearer)
    failed = "cluster.head-elsewhere.health_check.failure"
    found.mesh.until(lambda: found.mesh.stat(failed) > 1)
    assert found.client.post("/v1/completions", json={}).status_code == 503
    assert not found.heads["node2"].requests


def test_own_replicas_are_asked_first_and_others_when_they_are_sick(hosts):
    found = hosts(roles=("tail", "head"))
    found.mesh.healthy("head", 1)
    found.mesh.healthy("head-elsewhere", 1)
    for _ in range(5):
        assert found.client.post("/v1/completions", json={}).status_code == 200
    assert [len(found.heads[host].requests) for host in ("node1", "node2")] == [5, 0]
    found.heads["node1"].sick = True
    found.mesh.healthy("head", 0)
    for _ in range(5):
        assert found.client.post("/v1/completions", json={}).status_code == 200
    assert [len(found.heads[host].requests) for host in ("node1", "node2")] == [5, 5]


@pytest.fixture
def migrating():
    """Let the kernel hand connections that nobody has taken yet to another listener of the port."""
    # It stays: a platform that is tested beside this one wants it too.
    pathlib.Path("/proc/sys/net/ipv4/tcp_migrate_req").write_text("1")


@pytest.mark.parametrize("keep_alive", [True, False])
def test_ingress_hands_its_port_over_without_a_failed_request(edge, migrating, keep_alive):
    old, new = edge.ingress, edge.envoy("ingress", 2 + keep_alive)
    with edge.load(keep_alive) as load:
        time.sleep(0.5)
        edge.ingress = new.start()
        new.healthy("tail", 1)
        assert edge.leave(old, routed=False) == 0
        old.stop()
        time.sleep(0.5)
    assert load.count > 20
    assert not load.failures
