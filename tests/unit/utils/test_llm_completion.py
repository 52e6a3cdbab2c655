"""
`llm_completion` against a server of this process, which answers as the platform does.
"""

import datetime
import http.server
import ipaddress
import json
import socket
import ssl
import threading
import time

import llm_completion
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from salt.exceptions import CommandExecutionError

KEY = "canary-client-default"
ENVOY = {"x-envoy-upstream-service-time": "40"}
MESH = ENVOY | {"server-timing": "cache;dur=1, head;dur=30"}
COMPLETION = {
    "choices": [{"message": {"content": "word"}}],
    "usage": {"completion_tokens": 8},
    "timings": {"prompt_ms": 2.0, "predicted_ms": 3.0},
}


def events(*pieces, end="data: [DONE]\n\n"):
    chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": a comment\n\n", *lines]) + end


def error(message):
    return {"error": {"message": message, "type": "x"}}


class Platform(http.server.BaseHTTPRequestHandler):
    """Answers with ``plain`` or ``streamed``: status, headers, body."""

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, dict(self.headers), request))
        status, headers, body = server.streamed if request.get("stream") else server.plain
        time.sleep(server.delay)
        if status is None:  # as an ingress without a tail
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def platform_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Platform)
    server.plain, server.streamed = (200, MESH, COMPLETION), (200, MESH, events("a", "b"))
    server.asked, server.delay = [], 0
    server.handle_error = lambda *args: None  # whoever asked has gone
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def verify(server, **more):
    return llm_completion.verify(server.url, "tiny", KEY, **more)


def test_verify(platform_server):
    platform_server.delay = 0.05
    found = verify(platform_server)
    hops = found.pop("hops")
    assert found.pop("first_token") >= 0.05
    total = found.pop("total")
    assert found == {"model": "tiny", "tokens": 8}
    assert {hop: hops[hop] for hop in ("mesh", "head", "model-proxy")} == {
        "mesh": 0.01,
        "head": 0.025,
        "model-proxy": 0.005,
    }
    assert sum(hops.values()) == pytest.approx(total, abs=1e-5)


def test_verify_asks_as_a_client_does(platform_server):
    verify(platform_server, server_name="llm.internal")
    verify(platform_server)
    paths, headers, requests = zip(*platform_server.asked, strict=True)
    assert set(paths) == {"/v1/chat/completions"}
    assert {each["Authorization"] for each in headers} == {f"Bearer {KEY}"}
    assert headers[0]["Host"] == "llm.internal"
    questions = {request["messages"][0]["content"] for request in requests}
    assert len(questions) == 4  # none that the cache has an answer to


@pytest.mark.parametrize(
    ("headers", "timings", "hops"),
    [
        ({}, None, ["tail"]),
        (ENVOY, None, ["tail", "mesh"]),
        (MESH, None, ["tail", "mesh", "head"]),
        (MESH, {"prompt_ms": None, "predicted_ms": 1}, ["tail", "mesh", "head"]),
        (MESH | {"server-timing": "head"}, None, ["tail", "mesh"]),
        (MESH | {"server-timing": "head;dur=x"}, None, ["tail", "mesh"]),
    ],
)
def test_verify_tells_of_the_hops_that_tell_of_themselves(platform_server, headers, timings, hops):
    platform_server.plain = (200, headers, COMPLETION | {"timings": timings})
    assert list(verify(platform_server)["hops"]) == hops


@pytest.mark.parametrize("kind", ["plain", "streamed"])
def test_verify_tells_a_key_that_is_refused_from_other_failures(platform_server, kind):
    setattr(platform_server, kind, (401, {}, error("wrong key")))
    with pytest.raises(llm_completion.KeyRefused):
        verify(platform_server)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, error("wrong key")), "tail refuses the client's API key"),
        ((429, {"retry-after": "7"}, error("x")), "rate-limiter: .* above its limit, again in 7 s"),
        ((404, {}, error("no such url")), "tail refuses the request: 404 no such url"),
        ((503, {}, error("not now")), "tail cannot reach mesh: 503 not now"),
        ((503, ENVOY, error("not now")), "mesh cannot reach head: 503 not now"),
        ((400, MESH, error("no model")), "head refuses the request for tiny: 400 no model"),
        ((500, MESH, error("a\n b")), "head gets no answer from tiny: 500 a b"),
        ((502, MESH, "<html>"), "head gets no answer from tiny: 502 <html>"),
        ((502, MESH, error(f"key {KEY}")), r"502 key \[redacted\]$"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "streamed"])
def test_verify_names_the_hop_that_refuses(platform_server, kind, answer, message):
    setattr(platform_server, kind, answer)
    with pytest.raises(CommandExecutionError, match=message):
        verify(platform_server)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>", "head answers, but no completion: 200 <html>"),
        ({}, "head answers, but no completion"),
        ([], "head answers, but no completion"),
        (COMPLETION | {"choices": []}, "head answers, but no completion"),
        (COMPLETION | {"usage": None}, "head answers, but no completion"),
        (COMPLETION | {"usage": {"completion_tokens": 0}}, "tiny answers without a word"),
        (COMPLETION | {"choices": [{"message": {"content": None}}]}, "tiny answers without"),
    ],
)
def test_verify_refuses_what_is_no_completion(platform_server, body, message):
    platform_server.plain = (200, MESH, body)
    with pytest.raises(CommandExecutionError, match=message):
        verify(platform_server)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (events("a", end=""), "ends a streamed answer before it is complete"),
        (events(), "tiny streams an answer without a word"),
        (events("a", end='data: {"error": {"message": "gone"}}\n\n'), "breaks .* off: .*gone"),
        (events("a", end="data: {\n\n"), "head streams no completion"),
        (events("a", end="data: []\n\n"), "head streams no completion"),
    ],
)
def test_verify_refuses_what_is_no_stream(platform_server, body, message):
    platform_server.streamed = (200, MESH, body)
    with pytest.raises(CommandExecutionError, match=message):
        verify(platform_server)


def ask(server, **more):
    return llm_completion.ask(server.url, "tiny", KEY, "model-proxy", **more)


def test_ask(platform_server):
    ask(platform_server)
    assert [request.get("stream") for _, _, request in platform_server.asked] == [None, True]
    assert {each["Authorization"] for _, each, _ in platform_server.asked} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("plain", (401, {}, error("wrong key")), "refuses the request for tiny: 401 wrong key"),
        ("streamed", (500, MESH, error("gone")), "refuses the request for tiny: 500 gone"),
        ("plain", (200, {}, "<html>"), "answers, but no completion: 200 <html>"),
        ("streamed", (200, {}, events("a", end="")), "ends a streamed answer before it"),
        ("plain", (None, {}, ""), "does not answer for tiny: Server disconnected"),
    ],
)
def test_ask_names_the_service(platform_server, kind, answer, message):
    setattr(platform_server, kind, answer)
    with pytest.raises(CommandExecutionError, match=f"^model-proxy {message}"):
        ask(platform_server)


def test_ask_of_a_silent_service(platform_server):
    platform_server.delay = 1
    with pytest.raises(CommandExecutionError, match="model-proxy does not answer for tiny: timed"):
        ask(platform_server, timeout=0.2)


def test_verify_where_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    with pytest.raises(CommandExecutionError, match=f"ingress does not listen at {url}: .*refused"):
        llm_completion.verify(url, "tiny", KEY)


def test_verify_where_the_connection_ends(platform_server):
    platform_server.plain = (None, {}, "")
    with pytest.raises(CommandExecutionError, match="ingress ends the connection"):
        verify(platform_server)


def test_verify_of_a_silent_platform(platform_server):
    platform_server.delay = 1
    with pytest.raises(CommandExecutionError, match=r"gives no answer within 0\.2 s"):
        verify(platform_server, timeout=0.2)


@pytest.fixture
def certificate(tmp_path):
    """Path of a certificate for llm.internal and 127.0.0.1, its own authority, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llm.internal")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    names = x509.SubjectAlternativeName([x509.DNSName("llm.internal"), address])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(pem))
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(secret)
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


@pytest.fixture
def tls_server(platform_server, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    platform_server.socket = context.wrap_socket(platform_server.socket, server_side=True)
    platform_server.url = platform_server.url.replace("http:", "https:")
    return platform_server


@pytest.mark.parametrize("name", [None, "llm.internal"])
def test_verify_through_tls(tls_server, certificate, name):
    assert verify(tls_server, ca_file=certificate[0], server_name=name)["tokens"] == 8


@pytest.mark.parametrize(
    ("ca_file", "name", "message"),
    [
        (False, None, "certificate that is not valid for .*: self.signed certificate"),
        (True, "other", "certificate that is not valid for .*: Hostname mismatch"),
    ],
)
def test_verify_of_a_wrong_certificate(tls_server, certificate, ca_file, name, message):
    with pytest.raises(CommandExecutionError, match=f"tail has a {message}"):
        verify(tls_server, ca_file=certificate[0] if ca_file else None, server_name=name)
