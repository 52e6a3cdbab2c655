"""
The base image where it can be made from one mirror alone, which speaks TLS under an authority that
only the host knows.
"""

import http.server
import os
import ssl
import threading
import urllib.error
import urllib.request
from unittest.mock import create_autospec

import llm_builder
import llm_mirror
import llm_recipe
import pytest
import salt.utils.network
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_image as llm_image_module
from tests.support.certificates import Authority

pytestmark = [pytest.mark.docker, pytest.mark.slow]

NAME = f"llm-test-{os.getpid()}"


class Relay(http.server.BaseHTTPRequestHandler):
    """Passes on what the machine's own mirrors have; ``asked`` is what it was asked for."""

    protocol_version = "HTTP/1.1"
    asked, upstream = [], {}

    def do_GET(self):
        self.asked.append(self.path)
        archive, _, path = self.path[1:].partition("/")
        try:
            with urllib.request.urlopen(f"{self.upstream[archive]}/{path}") as answer:
                body = answer.read()
        except urllib.error.HTTPError as err:
            self.send_error(err.code)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def mirror(engine, tmp_path, monkeypatch):
    """The host's mirror, as the builds see it; a list of what it was asked for."""
    address = salt.utils.network.interface_ip("docker0")  # an engine may not tell its gateway
    Authority().issue(tmp_path, address)
    monkeypatch.setattr(Relay, "asked", [])
    monkeypatch.setattr(
        Relay, "upstream", dict(zip(("debian", "debian-security"), llm_mirror.apt(), strict=True))
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = http.server.ThreadingHTTPServer((address, 0), Relay)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"https://{address}:{server.server_port}"
    found = {
        "apt": (f"{url}/debian", f"{url}/debian-security"),
        "authorities": (tmp_path / "ca.pem").read_bytes(),
    }
    for name, value in found.items():
        function = create_autospec(getattr(llm_mirror, name), return_value=value)
        monkeypatch.setattr(llm_mirror, name, function)
    yield Relay.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(repository):
    """The base image under a name of the test's own."""
    folder = repository / "salt/images/base"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return llm_recipe.Recipe(f"{NAME}-base", files | {"certificates/README": b""})


@pytest.fixture
def origin(builder, recipe, tmp_path, monkeypatch):
    """What the base stands on, with lists of its own that lead nowhere."""
    with LoaderModuleMock({llm_image_module: {"__opts__": {"cachedir": str(tmp_path)}}}):
        origin = llm_image_module._origin(builder, recipe)
    monkeypatch.setattr(llm_builder, "LABEL", NAME)
    line = "deb http://127.0.0.1:9/debian trixie main"
    lists = "/etc/apt/sources.list /etc/apt/sources.list.d/own.list"
    dockerfile = f"FROM {origin}\nRUN echo '{line}' | tee {lists}\n"
    spoilt = llm_recipe.Recipe(f"{NAME}-origin", {"Dockerfile": dockerfile.encode()})
    builder.build(spoilt.reference, spoilt.context(), {}, NAME)
    yield spoilt.reference
    builder.remove_image(spoilt.reference)


def test_base_is_made_from_the_hosts_mirror_alone(builder, recipe, origin, mirror):
    llm_image_module._build_one(builder, recipe, {"ORIGIN": origin})
    builder.remove_image(recipe.reference)
    assert any("/ca-certificates_" in path for path in mirror)
