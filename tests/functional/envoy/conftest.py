"""
The way of a request on loopback addresses: client → ingress → tail → mesh → head, with real Envoys
and small servers in place of the services.
"""

import contextlib
import json
import logging
import ssl
import threading
import time
import types
from unittest.mock import create_autospec, patch

import httpx
import llm_catalogue
import llm_engine
import pytest
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_drain
from _modules import llm_mesh as llm_mesh_module
from tests.support import certificates, upstream
from tests.support.envoy import Envoy, free_ports, render

logging.getLogger("httpx").setLevel(logging.WARNING)  # or each request under load is a line
NETWORK = "127.30.0.0/20"
HEAD, OTHER_HEAD, LIMITER, TAIL = "127.30.0.80", "127.30.0.81", "127.30.0.96", "127.30.0.112"
SECRETS = {"head.key": "canary-head-key", "clients": {"first": "canary-1", "second": "canary-2"}}
PORTS = ("public", "tail", "head", "rate-limiter", "model-proxy", "cache", "hosts")


class Edge:
    """
    Three Envoys, what is behind them, and ways to ask them.
    """

    def __init__(self, folder, pillar):
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.platform = self.written = self.make_platform(pillar)
        self.authority = certificates.Authority()
        for name in ("tail", "ingress", "mesh"):
            self.authority.issue(folder / "tls" / name, f"{name}.node1.llm", "localhost")
        self.trust = ssl.create_default_context(cafile=folder / "tls/tail/ca.pem")
        self.head = upstream.Upstream(HEAD, self.ports["head"])
        self.limiter = upstream.Limiter(LIMITER, self.ports["rate-limiter"])
        for name in self.services():
            self.route(name, [])
        self.route("head", [HEAD])
        self.route("rate-limiter", [LIMITER])
        self.route("tail", ["127.0.0.1"])
        self.mesh, self.tail, self.ingress = (
            self.envoy(name) for name in ("mesh", "tail", "ingress")
        )

    def make_platform(self, pillar):
        """Return the platform of this test, on its own addresses and ports."""
        pillar["site"]["public_port"] = self.ports["public"]
        pillar["site"]["hosts_port"] = self.ports["hosts"]
        pillar["site"]["network"]["subnet"] = NETWORK
        pillar["site"]["root"] = str(self.folder)
        pillar["site"]["clients"] = {"first": {}, "second": {}}
        pillar["requests"] |= {
            "timeout": "3s", "per_try_timeout": "1s", "max_bytes": "1m", "connection": "1s",
        }  # fmt: skip
        for name, service in pillar["services"].items():
            service["port"] = self.ports.get(name, service["port"])
        return llm_catalogue.platform(pillar, "node1")

    def envoy(self, name, number=1, address="127.0.0.1"):
        """Return a new Envoy of service ``name`` at ``address``, not yet started."""
        source = {"source_address": {"address": TAIL, "port_value": 0}}
        manager = f"cluster_manager: {json.dumps({'upstream_bind_config': source})}\n"
        replace = {"address: 0.0.0.0": f"address: {address}"}
        if name == "tail":
            replace |= {
                "address: head": "address: 127.0.0.1",
                "address: rate-limiter": "address: 127.0.0.1",
                "dynamic_resources:": manager + "dynamic_resources:",
            }
        return Envoy(
            name,
            self.platform,
            SECRETS,
            self.folder / "services" / name / "run" / f"llm-{name}-1-g{number}",
            self.folder / "endpoints",
            self.folder / "tls" / name,
            replace,
        )

    @contextlib.contextmanager
    def module(self, module, **more):
        """Have an execution module that finds this platform, and of ``more`` functions those."""
        salt = {
            "llm_config.platform": lambda: self.platform,
            "llm_config.service": lambda name: self.platform["services"][name],
        }
        with LoaderModuleMock({module: {"__salt__": salt | more}}):
            yield module

    def services(self):
        """Return what has an endpoint file."""
        with self.module(llm_mesh_module) as mesh:
            return mesh.services()

    def route(self, service, addresses):
        """Route ``service`` as the platform does."""
        with self.module(llm_mesh_module) as mesh:
            return mesh.route(service, addresses)

    @contextlib.contextmanager
    def tuned(self, mesh=None, requests=None):
        """Have other knobs of the catalogue in the mesh for a while; no Envoy is started again."""
        knobs = {"mesh": mesh or {}, "requests": requests or {}}
        platform = self.platform | {key: self.platform[key] | of for key, of in knobs.items()}
        try:
            self.write_mesh(platform)
            yield
        finally:
            self.write_mesh(self.platform)

    def write_mesh(self, platform):
        """Write the files of the mesh, and wait until it has taken what is new in them."""
        files = ("clusters.yaml", "listeners.yaml")
        written = [render("mesh", each, SECRETS) for each in (self.written, platform)]
        for file, kind in zip(files, ("cluster_manager.cds", "listener_manager.lds"), strict=True):
            if written[0][file] == written[1][file]:
                continue
            taken = self.mesh.stat(f"{kind}.update_success")
            self.mesh.move(file, written[1][file])
            self.mesh.until(
                lambda kind=kind, taken=taken: self.mesh.stat(f"{kind}.update_success") > taken
            )
        self.written = platform
        self.mesh.until(lambda: not self.mesh.stat("cluster_manager.warming_clusters"))

    def leave(self, envoy, routed):
        """Let ``envoy`` finish what it has begun, as the platform does before it stops it."""
        pid = envoy.process.pid
        engine = create_autospec(llm_engine.Engine, instance=True)
        engine.inspect.return_value = {
            "State": {"Pid": pid}, "NetworkSettings": {"Networks": {}},
        }  # fmt: skip
        salt = {"llm_mesh.health": lambda routing: {}}
        with (
            patch.object(llm_engine, "Engine", lambda path: engine),
            LoaderModuleMock({llm_drain: {"__salt__": salt, "__opts__": {}}}),
        ):
            return llm_drain.wait("it", 20, str(envoy.folder / "admin.sock"), routed)

    def start(self):
        """Start the Envoys and wait until they find everything well."""
        for envoy in (self.mesh, self.tail, self.ingress):
            envoy.start()
        self.mesh.healthy("head", 1)
        self.mesh.healthy("rate-limiter", 1)
        self.ingress.healthy("tail", 1)
        self.tail.until(lambda: self.tail.stat("cluster.head.membership_healthy") == 1)

    def reset(self):
        """Make everything well again."""
        self.head.reset()
        self.limiter.reset()

    def stop(self):
        """End all of it."""
        for envoy in (self.ingress, self.tail, self.mesh):
            envoy.stop()
        self.head.stop()
        self.limiter.stop()

    def client(self, key="canary-1", **more):
        """Return an HTTP client that comes from outside."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=f"https://localhost:{self.ports['public']}",
            verify=self.trust,
            headers=headers,
            timeout=10,
            trust_env=False,
            **more,
        )

    def ask(self, path="/v1/chat/completions", key="canary-1", method="POST", **more):
        """Ask once from outside, on a new connection."""
        if method == "POST" and "content" not in more:
            more.setdefault("json", {"model": "tiny", "messages": []})
        with self.client(key) as client:
            return client.request(method, path, **more)

    def inside(self, caller, service="head"):
        """Return an HTTP client for the mesh's ``service`` that comes from address ``caller``."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.ports[service]}",
            transport=httpx.HTTPTransport(local_address=caller),
            timeout=10,
            trust_env=False,
        )

    def logged(self, request_id):
        """Return the access log entry of one request."""
        found = []

        def there():
            found[:] = [line for line in self.tail.log() if line.get("request_id") == request_id]
            return found

        self.tail.until(there)
        return found[0]

    @contextlib.contextmanager
    def load(self, keep_alive=True):
        """Ask all the time, from several threads; give the list of what failed and the count."""
        result = types.SimpleNamespace(failures=[], count=0)
        done = threading.Event()

        def work():
            client = self.client()
            while not done.is_set():
                if not keep_alive:
                    client.close()
                    client = self.client()
                try:
                    answer = client.post("/v1/chat/completions", json={"model": "tiny"})
                    if answer.status_code != 200:
                        result.failures.append(answer.text)
                except httpx.HTTPError as err:
                    result.failures.append(repr(err))
                result.count += 1
                time.sleep(0.005)
            client.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield result
        finally:
            done.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def running_edge(tmp_path_factory, compile_pillar):
    """An edge that the tests of a module share."""
    edge = Edge(tmp_path_factory.mktemp("edge"), compile_pillar())
    try:
        edge.start()
        yield edge
    finally:
        edge.stop()


@pytest.fixture
def edge(running_edge):
    """The edge, with everything well."""
    running_edge.reset()
    yield running_edge
    running_edge.reset()


@pytest.fixture
def tail(edge):
    """A client at an address of tail, which needs head."""
    with edge.inside(TAIL) as client:
        yield client


@pytest.fixture
def other_head(edge):
    """A second replica of head, which requests may go to."""
    other = upstream.Upstream(OTHER_HEAD, edge.ports["head"])
    edge.route("head", [HEAD, OTHER_HEAD])
    edge.mesh.healthy("head", 2)
    yield other
    edge.route("head", [HEAD])
    edge.mesh.healthy("head", 1)
    other.stop()


def headers_of(answer):
    """Return the headers with which the head was asked, from its answer."""
    return json.loads(answer.text)["headers"]
