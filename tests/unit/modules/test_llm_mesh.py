import http.server
import json
import os
import pathlib
import socketserver
import threading
from unittest.mock import create_autospec, patch

import llm_catalogue
import llm_envoy
import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_config, llm_container
from _modules import llm_mesh as llm_mesh_module


@pytest.fixture
def containers():
    """What `llm_container.list` says of head."""
    return []


@pytest.fixture
def llm_mesh(configure_loader, pillar, tmp_path, containers):
    pillar["site"]["root"] = str(tmp_path / "llm")
    pillar["services"]["model-proxy"]["health"]["port"] = 8089
    platform = llm_catalogue.platform(pillar, "node1")
    salt = {
        "llm_config.platform": create_autospec(llm_config.platform, return_value=platform),
        "llm_config.service": create_autospec(
            llm_config.service, side_effect=platform["services"].get
        ),
        "llm_container.list": create_autospec(llm_container.list_, return_value=containers),
    }
    return configure_loader(llm_mesh_module, salt=salt)


@pytest.fixture
def folder(tmp_path):
    """Where the endpoint files lie."""
    return tmp_path / "llm/endpoints"


def test_services_are_those_that_an_envoy_leads_to(llm_mesh):
    assert llm_mesh.services() == [
        "cache", "head", "head-canary", "model-proxy", "model-proxy-canary",
        "rate-limiter", "rate-limiter-canary", "tail",
    ]  # fmt: skip


def test_route_of_a_canary_is_like_that_of_its_service(llm_mesh, folder):
    llm_mesh.route("head-canary", ["172.30.0.81"])
    (resource,) = json.loads((folder / "head-canary.yaml").read_text())["resources"]
    assert resource["cluster_name"] == "head-canary"
    (entry,) = resource["endpoints"][0]["lb_endpoints"]
    assert entry["endpoint"]["address"]["socket_address"]["port_value"] == 4000
    llm_mesh.close("head-canary")
    assert llm_mesh.endpoints("head-canary") == []


def test_route_writes_what_an_envoy_reads(llm_mesh, folder):
    assert llm_mesh.route("model-proxy", ["172.30.0.65", "172.30.0.64"]) is True
    found = json.loads((folder / "model-proxy.yaml").read_text())
    (resource,) = found["resources"]
    assert resource["cluster_name"] == "model-proxy"
    assert resource["endpoints"][0]["lb_endpoints"][0] == {
        "endpoint": {
            "address": {"socket_address": {"address": "172.30.0.64", "port_value": 8080}},
            "health_check_config": {"port_value": 8089},
        }
    }
    assert llm_mesh.endpoints("model-proxy") == ["172.30.0.64", "172.30.0.65"]


def test_close_sends_no_more_requests(llm_mesh):
    llm_mesh.route("head", ["172.30.0.80"])
    llm_mesh.close("head")
    assert llm_mesh.endpoints("head") == []


def test_close_leaves_nothing_of_what_the_catalogue_does_not_know(llm_mesh, folder):
    llm_mesh.route("head", ["172.30.0.80"])
    (folder / "head.yaml").rename(folder / "old.yaml")
    llm_mesh.close("old")
    llm_mesh.close("old")
    assert list(folder.iterdir()) == []


def test_route_changes_nothing_twice(llm_mesh, folder):
    llm_mesh.route("head", ["172.30.0.80"])
    before = (folder / "head.yaml").stat()
    assert llm_mesh.route("head", ["172.30.0.80", "172.30.0.80"]) is False
    assert (folder / "head.yaml").stat() == before


def test_route_lets_every_envoy_read_and_leaves_nothing_behind(llm_mesh, folder):
    (folder.parent).mkdir(mode=0o711)
    folder.mkdir()
    (folder / ".head.new").write_text("from an interrupted run")
    llm_mesh.route("head", [])
    assert [path.name for path in folder.iterdir()] == ["head.yaml"]
    assert (folder / "head.yaml").stat().st_mode & 0o777 == 0o444


def test_route_on_a_full_disk(llm_mesh, folder, monkeypatch):
    llm_mesh.route("head", ["172.30.0.80"])
    full = create_autospec(pathlib.Path.write_text, side_effect=OSError(28, "No space left"))
    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(CommandExecutionError, match=r"head\.yaml: No space left"):
        llm_mesh.route("head", [])
    assert llm_mesh.endpoints("head") == ["172.30.0.80"]


def test_route_makes_a_folder_that_envoy_can_enter(llm_mesh, folder):
    old = os.umask(0o077)
    try:
        llm_mesh.route("head", [])
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert folder.parent.stat().st_mode & 0o777 == 0o711


def test_version_is_that_of_the_content(llm_mesh, folder):
    versions = []
    for addresses in (["172.30.0.80"], [], ["172.30.0.80"]):
        llm_mesh.route("head", addresses)
        versions.append(json.loads((folder / "head.yaml").read_text())["version_info"])
    assert versions[0] == versions[2] != versions[1]


def test_endpoints_never_said(llm_mesh):
    assert llm_mesh.endpoints("head") is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "7", '{"resources": [{"endpoints": [1]}]}'])
def test_route_writes_a_file_anew_that_is_broken(llm_mesh, folder, text):
    llm_mesh.route("head", ["172.30.0.80"])
    (folder / "head.yaml").unlink()
    (folder / "head.yaml").write_text(text)
    assert llm_mesh.endpoints("head") is None
    assert llm_mesh.said("head", ["172.30.0.80"]) is False
    assert llm_mesh.route("head", ["172.30.0.80"]) is True
    assert llm_mesh.endpoints("head") == ["172.30.0.80"]


def test_route_writes_a_file_anew_whose_ports_are_others(llm_mesh, platform, folder):
    llm_mesh.route("head", ["172.30.0.80"])
    assert llm_mesh.said("head", ["172.30.0.80"]) is True
    llm_mesh.__salt__["llm_config.service"]("head")["health"]["port"] = 4001
    assert llm_mesh.said("head", ["172.30.0.80"]) is False
    assert llm_mesh.route("head", ["172.30.0.80"]) is True
    assert '"port_value": 4001' in (folder / "head.yaml").read_text()


def container(replica, generation, address, state="running"):
    return {"replica": replica, "generation": generation, "address": address, "state": state}


@pytest.mark.parametrize(
    ("found", "addresses"),
    [
        ([], []),
        ([container(1, 1, "172.30.0.80"), container(2, 1, "172.30.0.81")], ["80", "81"]),
        ([container(1, 1, "172.30.0.80"), container(1, 2, "172.30.0.81")], ["81"]),
        ([container(1, 2, "172.30.0.81"), container(1, 1, "172.30.0.80")], ["81"]),
        ([container(1, 1, "172.30.0.80"), container(1, 2, "172.30.0.81", "exited")], ["80"]),
        ([container(1, 1, "172.30.0.80", "restarting")], []),
        ([container(1, 1, "")], []),
    ],
)
def test_serving(llm_mesh, containers, found, addresses):
    containers.extend(found)
    assert llm_mesh.serving("head") == [f"172.30.0.{last}" for last in addresses]


class Admin:
    """
    The admin interface of an Envoy. ``healthy`` holds the addresses that it found healthy;
    ``seen`` what the endpoint file said each time it was asked.
    """

    def __init__(self, root, envoy, llm_mesh):
        self.healthy, self.seen = set(), []
        folder = root / "services" / envoy / "run" / f"llm-{envoy}-1-g1"
        folder.mkdir(parents=True)
        admin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                addresses = llm_mesh.endpoints("head")
                admin.seen.append(addresses)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(admin.clusters(addresses)).encode())

            def address_string(self):
                return "unix"

            def log_message(self, *given):
                """Say nothing."""

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self.folder = os.open(folder, os.O_PATH)  # its path is too long for a socket
        self.server = Server(f"/proc/self/fd/{self.folder}/admin.sock", Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def clusters(self, addresses):
        hosts = [
            {
                "address": {"socket_address": {"address": address, "port_value": 4000}},
                "health_status": {"eds_health_status": "HEALTHY"}
                | ({} if address in self.healthy else {"failed_active_health_check": True}),
            }
            for address in addresses
        ]
        return {"cluster_statuses": [{"name": "head", "host_statuses": hosts}]}

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        os.close(self.folder)


@pytest.fixture
def admin(llm_mesh):
    root = llm_mesh._path("head").parent.parent
    llm_mesh.route("head", ["172.30.0.80"])
    admin = Admin(root, "mesh", llm_mesh)
    yield admin
    admin.stop()


def test_health_is_what_the_envoys_say(llm_mesh, admin):
    assert llm_mesh.health() == {
        "llm-mesh-1-g1": {"head": {"172.30.0.80": "failed_active_health_check"}}
    }
    admin.healthy.add("172.30.0.80")
    assert llm_mesh.health() == {"llm-mesh-1-g1": {"head": {"172.30.0.80": "healthy"}}}


def test_sockets_are_those_of_an_envoy(llm_mesh, admin):
    (socket,) = llm_mesh.sockets("mesh")
    assert socket.endswith("/services/mesh/run/llm-mesh-1-g1/admin.sock")
    assert llm_mesh.sockets("ingress") == llm_mesh.sockets("head") == []


def test_health_of_those_that_ask_the_mesh_by_name(llm_mesh, admin):
    root = llm_mesh._path("head").parent.parent
    tail = Admin(root, "tail", llm_mesh)
    tail.healthy.add("172.30.0.80")
    try:
        assert llm_mesh.health().keys() == {"llm-mesh-1-g1"}
        found = llm_mesh.health(routing=False)
    finally:
        tail.stop()
    assert found.keys() == {"llm-mesh-1-g1", "llm-tail-1-g1"}
    assert found["llm-tail-1-g1"] == {"head": {"172.30.0.80": "healthy"}}


def test_unhealthy_is_asked_anew_only_while_something_is(llm_mesh, admin):
    assert llm_mesh.unhealthy("head") == {"llm-mesh-1-g1": {"172.30.0.80"}}
    admin.healthy.add("172.30.0.80")
    assert llm_mesh.unhealthy("head") == {}
    assert llm_mesh.unhealthy("head") == {}
    assert len(admin.seen) == 2


def test_unhealthy_is_asked_anew_after_a_route(llm_mesh, admin):
    admin.healthy.add("172.30.0.80")
    assert llm_mesh.unhealthy("head") == {}
    llm_mesh.route("head", [])
    llm_mesh.route("head", ["172.30.0.80"])
    admin.healthy.clear()
    assert llm_mesh.unhealthy("head") == {"llm-mesh-1-g1": {"172.30.0.80"}}


@pytest.mark.parametrize("service", ["mesh", "cache"])
def test_unhealthy_of_what_no_envoy_routes(llm_mesh, admin, service):
    assert llm_mesh.unhealthy(service) == {}
    assert not admin.seen


def test_wait_until_every_envoy_finds_it_healthy(llm_mesh, admin):
    threading.Timer(0.2, lambda: admin.healthy.add("172.30.0.80")).start()
    llm_mesh.wait("head")
    assert len(admin.seen) > 2
    assert llm_mesh.unhealthy("head") == {}


def test_wait_for_what_does_not_get_healthy(llm_mesh, admin):
    with pytest.raises(CommandExecutionError, match=r"after 0.2 s: llm-mesh-1-g1: 172.30.0.80"):
        llm_mesh.wait("head", timeout=0.2)


def test_health_without_an_envoy(llm_mesh):
    assert llm_mesh.health() == {}


def test_health_passes_over_an_envoy_that_has_ended(llm_mesh, admin):
    admin.server.server_close()
    assert llm_mesh.health() == {}


def test_route_lets_the_old_serve_until_the_new_are_found_healthy(llm_mesh, admin):
    threading.Timer(0.2, lambda: admin.healthy.add("172.30.0.81")).start()
    assert llm_mesh.route("head", ["172.30.0.81"]) is True
    assert len(admin.seen) > 2
    assert all(seen == ["172.30.0.80", "172.30.0.81"] for seen in admin.seen)
    assert llm_mesh.endpoints("head") == ["172.30.0.81"]


def test_route_to_what_does_not_get_healthy(llm_mesh, admin):
    with pytest.raises(CommandExecutionError) as caught:
        llm_mesh.route("head", ["172.30.0.81"], timeout=0.2)
    assert str(caught.value) == (
        "not yet healthy for the Envoys of this host after 0.2 s: llm-mesh-1-g1: 172.30.0.81"
    )
    assert llm_mesh.endpoints("head") == ["172.30.0.80", "172.30.0.81"]


@pytest.mark.parametrize("addresses", [[], ["172.30.0.80", "172.30.0.81"]])
def test_route_waits_for_nobody_unless_replicas_are_exchanged(llm_mesh, admin, addresses):
    assert llm_mesh.route("head", addresses) is True
    assert not admin.seen


@pytest.mark.parametrize(
    ("taken", "failures", "expected"),
    [
        (2000, 0, []),  # milliseconds
        (2000, 1, []),  # an earlier one
        (999, 1, ["listeners.yaml"]),
        (999, 0, []),  # the clock was set back
    ],
)
def test_refused(llm_mesh, tmp_path, taken, failures, expected):
    for name in ("listeners.yaml", "certificate.yaml", "unknown.yaml"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1, 1))
    numbers = {
        "listener_manager.lds.update_time": taken,
        "listener_manager.lds.update_failure": 0,
        "listener_manager.lds.update_rejected": failures,
        "sds.certificate.update_time": 1000,
        "sds.certificate.update_failure": 3,
    }
    stats = [{"name": name, "value": value} for name, value in numbers.items()]
    answer = {"stats": [*stats, {"histograms": {}}]}
    with patch.object(llm_envoy, "asked", autospec=True, return_value=answer):
        assert llm_mesh.refused("admin.sock", tmp_path, timeout=0) == expected


def test_refused_without_an_envoy(llm_mesh, tmp_path):
    (tmp_path / "listeners.yaml").write_text("")
    assert llm_mesh.refused(tmp_path / "admin.sock", tmp_path) == []
