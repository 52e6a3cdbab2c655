"""
`llm_probe` against real servers, in this process where that will do.
"""

import concurrent.futures
import contextlib
import http.server
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time

import grpc
import llm_probe
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from salt.exceptions import SaltInvocationError


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = {
            "/health": (200, json.dumps({"status": "ok", "parts": {"a": 1, "b": [2]}})),
            "/text": (200, "fine"),
            "/broken": (503, "no\n healthy   upstream"),
            "/empty": (204, ""),
            "/moved": (302, ""),
        }.get(self.path, (200, ""))
        if self.path == "/slow":
            time.sleep(0.5)
        with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
            self.send_response(status)
            if self.path == "/moved":
                self.send_header("Location", "/health")
            self.end_headers()
            self.wfile.write(body.encode())

    def log_message(self, *args):
        pass

    def address_string(self):
        return "somebody"


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pages():
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def unix_pages(tmp_path):
    path = str(tmp_path / "admin.sock")
    with serving(UnixServer(path, Pages)):
        yield path


@pytest.fixture
def nobody():
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


HTTP = [
    ("/health", {}, True, "200"),
    ("/text", {}, True, "200"),
    ("/empty", {"status": 204}, True, "204"),
    ("/moved", {"status": 302}, True, "302"),
    ("/moved", {}, False, "302 Found"),
    ("/broken", {}, False, "503 Service Unavailable: no healthy upstream"),
    ("/health", {"status": 204}, False, '200 OK: {"status": "ok", "parts": {"a": 1, "b": [2]}}'),
    ("/health", {"json": {"status": "ok"}}, True, "200"),
    ("/health", {"json": {"parts": {"a": 1}}}, True, "200"),
    ("/health", {"json": {"parts": {"b": [2]}}}, True, "200"),
    ("/health", {"json": {"status": "no"}}, False, "200, but status is 'ok' and not 'no'"),
    ("/health", {"json": {"parts": {"c": 1}}}, False, "200, but c is missing from parts"),
    ("/health", {"json": {"status": {"c": 1}}}, False, "200, but status is no JSON mapping"),
    ("/text", {"json": {"status": "ok"}}, False, "200, but the body is no JSON mapping"),
    ("/slow", {"timeout": 0.2}, False, "no answer within 0.2 s"),
]


@pytest.mark.parametrize(("path", "arguments", "ok", "answer"), HTTP)
def test_http(pages, path, arguments, ok, answer):
    assert llm_probe.http(pages + path, **arguments) == {"ok": ok, "answer": answer}


@pytest.mark.parametrize(("path", "arguments", "ok", "answer"), HTTP)
def test_http_through_a_unix_socket(unix_pages, path, arguments, ok, answer):
    answered = llm_probe.http(f"http://localhost{path}", socket=unix_pages, **arguments)
    assert answered == {"ok": ok, "answer": answer}


@pytest.mark.parametrize(
    ("url", "socket_", "answer"),
    [
        ("http://{nobody}/", None, "connection refused"),
        ("http://localhost/", "/nowhere/admin.sock", "no such file or directory"),
        ("https://{pages}/health", None, "ssl"),
        ("http://no.such.host.invalid/", None, "name"),
    ],
)
def test_http_that_does_not_answer(pages, nobody, url, socket_, answer):
    url = url.format(nobody=nobody, pages=pages.removeprefix("http://"))
    answered = llm_probe.http(url, socket=socket_)
    assert answered["ok"] is False
    assert answer in answered["answer"]


def test_tcp(pages, nobody):
    address = pages.removeprefix("http://")
    assert llm_probe.tcp(address) == {"ok": True, "answer": "connected"}
    assert llm_probe.tcp(nobody) == {"ok": False, "answer": "connection refused"}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "a:70000"])
def test_tcp_refuses_what_is_no_address(address):
    with pytest.raises(SaltInvocationError, match="expected <host>:<port>"):
        llm_probe.tcp(address)


class Redis(socketserver.StreamRequestHandler):
    """As much of the protocol as a health check needs."""

    password = None

    def handle(self):
        trusted = self.password is None
        while words := self.read():
            if words[0] == "AUTH" and self.password is None:
                reply = "-ERR AUTH <password> called without any password configured"
            elif words[0] == "AUTH":
                trusted = words[1] == self.password
                reply = "+OK" if trusted else "-WRONGPASS invalid username-password pair"
            else:
                reply = "+PONG" if trusted else "-NOAUTH Authentication required."
            self.wfile.write(f"{reply}\r\n".encode())

    def read(self):
        count = self.rfile.readline()[1:]
        return [self.word() for _ in range(int(count or 0))]

    def word(self):
        length = int(self.rfile.readline()[1:])
        return self.rfile.read(length + 2)[:-2].decode()


@pytest.fixture
def redis_with():
    """A function that starts a Redis with a password and returns its address."""
    with contextlib.ExitStack() as stack:

        def start(password):
            handler = type("Handler", (Redis,), {"password": password})
            server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
            stack.enter_context(serving(server))
            return f"127.0.0.1:{server.server_address[1]}"

        yield start


PASSWORD = "se same\r\n"


@pytest.mark.parametrize(
    ("real", "password", "ok", "answer"),
    [
        (None, None, True, "PONG"),
        (PASSWORD, PASSWORD, True, "PONG"),
        ("other", PASSWORD, False, "WRONGPASS invalid username-password pair"),
        ("other", None, False, "NOAUTH Authentication required."),
        (None, PASSWORD, False, "ERR AUTH <password> called without any password"),
    ],
)
def test_redis(redis_with, real, password, ok, answer):
    answered = llm_probe.redis(redis_with(real), password=password)
    assert answered["ok"] is ok
    assert answered["answer"].startswith(answer)


@pytest.mark.parametrize(
    ("said", "answer"),
    [(b"", "connection closed by the server"), (b"HTTP/1.1 400\r\n", "protocol error")],
)
def test_redis_that_is_none(said, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def say():
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(said)
            connection.close()

        threading.Thread(target=say, daemon=True).start()
        answered = llm_probe.redis(f"127.0.0.1:{server.getsockname()[1]}")
    assert answered["ok"] is False
    assert answer in answered["answer"]


@pytest.fixture
def ledger():
    """A gRPC server that serves ``ledger`` and not ``archive``."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("ledger", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("archive", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    ("service", "ok", "answer"),
    [
        ("", True, "SERVING"),
        ("ledger", True, "SERVING"),
        ("archive", False, "NOT_SERVING"),
        ("other", False, "NOT_FOUND: "),
    ],
)
def test_grpc(ledger, service, ok, answer):
    answered = llm_probe.grpc(ledger, service)
    assert answered["ok"] is ok
    assert answered["answer"].startswith(answer)


def test_grpc_that_does_not_answer(nobody):
    answered = llm_probe.grpc(nobody, timeout=1)
    assert answered["ok"] is False
    assert answered["answer"].startswith("UNAVAILABLE: ")
    assert "refused" in answered["answer"]


@pytest.mark.parametrize(
    ("probe", "forbidden"),
    [
        ("tcp('{}')", ["urllib3.contrib", "hiredis", "grpc", "tenacity", "httpx", "redis"]),
        ("http('http://{}/health')", ["hiredis", "grpc", "tenacity", "httpx", "docker"]),
    ],
)
def test_probe_imports_no_more_than_it_needs(pages, repository, probe, forbidden):
    code = f"""
import sys
sys.path.append("_utils")
import llm_probe
assert llm_probe.{probe.format(pages.removeprefix("http://"))}["ok"]
print([name for name in {forbidden!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
