"""
The preflight on this very host: ports that somebody holds, a disk that is full, an engine.
"""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.docker


def free_port():
    with socket.create_server(("0.0.0.0", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def ports(site, compile_pillar):
    """The public port and the hosts' port of a site that fits this machine."""
    pillar = compile_pillar()
    public, hosts = free_port(), free_port()
    pillar["site"] |= {"name": site.name, "root": str(site.folder)}
    pillar["site"] |= {"public_port": public, "hosts_port": hosts}
    pillar["preflight"] |= {"cpu_overcommit": 100, "memory_reserve": "1m", "disk_free": "100m"}
    for service in pillar["services"].values():
        service |= {"memory": "16m", "cpus": 0.1}
    site.pillar = {"llm": pillar}
    (site.folder / "cache").mkdir(exist_ok=True)
    return public, hosts


@pytest.fixture
def ready(site, ports):
    """A function that applies the state, in test mode as well."""

    def ready_(**kwargs):
        foretold = site.state("llm_preflight.ready", "a host", test=True, **kwargs)
        with site.silence():
            ret = site.state("llm_preflight.ready", "a host", **kwargs)
        assert foretold == ret
        assert ret["changes"] == {}
        return ret

    return ready_


@pytest.fixture
def listener(site, engine, image):
    """A function that starts a container on the host's network that listens on a port."""

    def listen(name, port, labels=None):
        body = {"Image": image, "Cmd": ["httpd", "-f", "-p", str(port)], "Labels": labels or {}}
        engine.create(f"{site.name}-{name}", body | {"HostConfig": {"NetworkMode": "host"}})
        engine.start(f"{site.name}-{name}")
        wait_for(port)
        return f"{site.name}-{name}"

    return listen


def wait_for(port):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on port {port}")


def test_ready_on_this_host(ready):
    ret = ready()
    assert (ret["result"], ret["comment"]) == (True, "Nothing is missing")


def test_ready_is_quick(site, ports):
    site.state("llm_preflight.ready", "a host")
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert site.state("llm_preflight.ready", "a host")["result"] is True
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.15  # 0.03 s on a quiet machine


def test_ready_with_a_port_that_a_process_holds(ready, ports):
    code = "import socket, sys, time; s = socket.create_server(('0.0.0.0', int(sys.argv[1])));"
    code += "time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(ports[0]), "sesame"]) as squatter:
        try:
            wait_for(ports[0])
            ret = ready()
        finally:
            squatter.kill()
    assert ret["result"] is False
    program = os.path.realpath(sys.executable)
    assert f"port {ports[0]}: found it held by process {squatter.pid} (python" in ret["comment"]
    assert f", {program})" in ret["comment"]
    assert "sesame" not in ret["comment"]


def test_ready_with_a_port_that_a_container_holds(ready, ports, listener):
    name = listener("squatter", ports[1])
    ret = ready()
    assert ret["result"] is False
    assert f"port {ports[1]}: found it held by container {name}, needed" in ret["comment"]


def test_ready_with_a_port_that_a_container_publishes(ready, ports, site, engine, image):
    name = f"{site.name}-publisher"
    host = {"PortBindings": {"80/tcp": [{"HostPort": str(ports[0])}]}}
    body = {"Image": image, "ExposedPorts": {"80/tcp": {}}, "HostConfig": host}
    engine.create(name, body)
    engine.start(name)
    ret = ready()
    assert ret["result"] is False
    assert f"port {ports[0]}: found it held by container {name}, needed" in ret["comment"]


def test_ready_with_ports_that_our_ingress_holds(ready, ports, site, listener):
    labels = {"llm.site": site.name, "llm.service": "ingress"}
    for number, port in enumerate(ports):
        listener(f"ingress-{number}-g1", port, labels)
    assert ready()["result"] is True


def test_ready_with_a_full_disk(ready, site):
    small = pathlib.Path(site.pillar["llm"]["site"]["root"], "small")
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)], check=True)
    try:
        site.pillar["llm"]["site"]["root"] = str(small)
        ret = ready()
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert ret["result"] is False
    found = f"node1: disk: found 512k free for {small}, needed "
    # How much hangs on the images that this machine has already.
    assert re.match(rf"{re.escape(found)}[\d.]+[mg]; make room", ret["comment"])


def test_ready_without_an_engine(site, ports):
    site.opts = {"docker.url": "unix:///nowhere/docker.sock"}
    ret = site.state("llm_preflight.ready", "a host")
    assert ret["result"] is False
    assert "node1: engine: found " in ret["comment"]
    assert "/nowhere/docker.sock" in ret["comment"]
    assert site.state("llm_preflight.ready", "a host", engine_expected=False)["result"] is True


def test_ready_with_every_mistake_at_once(ready, site):
    site.pillar["llm"]["services"]["head"] |= {"memory": "1000g", "devices": ["/dev/nix"]}
    site.pillar["llm"]["preflight"]["cpu_overcommit"] = 0.01
    ret = ready()
    assert ret["result"] is False
    lines = [line.split(": ")[1] for line in ret["comment"].splitlines()]
    assert lines == ["memory", "CPU", "device"]
