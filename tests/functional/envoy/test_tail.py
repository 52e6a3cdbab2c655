"""
What a client meets at tail, through ingress and in front of the mesh.
"""

import json
import socket
import ssl
import time

import openai
import pytest

from tests.functional.envoy.conftest import SECRETS, headers_of


def error_of(answer):
    """Return the code of an error in OpenAI's shape, and check that shape."""
    assert answer.headers["content-type"].startswith("application/json")
    body = json.loads(answer.text)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["code"]


@pytest.fixture
def openai_client(edge):
    with edge.client(None) as transport:
        yield openai.OpenAI(
            api_key="canary-1",
            base_url=f"{transport.base_url}/v1",
            http_client=transport,
            max_retries=0,
        )


def test_head_gets_its_own_key_and_the_name_of_the_client(edge):
    headers = headers_of(edge.ask())
    assert headers["authorization"] == "Bearer canary-head-key"
    assert headers["x-llm-client"] == "first"
    assert headers_of(edge.ask(key="canary-2"))["x-llm-client"] == "second"


@pytest.mark.parametrize("key", [None, "wrong", "canary-head-key", ""])
def test_wrong_key_is_refused(edge, key):
    headers = {"x-llm-client": "first"}
    answer = edge.ask(key=key, headers=headers)
    assert answer.status_code == 401
    assert error_of(answer) == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not edge.head.requests


def test_client_cannot_pass_what_only_tail_says(edge):
    headers = {
        "x-llm-client": "second",
        "x-litellm-api-key": "stolen",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
    }
    found = headers_of(edge.ask(headers=headers))
    assert found["x-llm-client"] == "first"
    assert not {name for name in found if name.startswith(("x-litellm", "x-envoy-retry"))}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/models/../../key/info"),
        ("GET", "/v1/models/..%2F..%2Fkey/info"),
        ("GET", "/v1/models/%2e%2e/%2e%2e/key/info"),
        ("GET", "/v1/modelsx"),
        ("GET", "/v1/model/info"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/metrics"),
        ("GET", "/health/readiness"),
        ("POST", "/key/generate"),
        ("POST", "/v1/chat/completions/x"),
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/tiny"),
    ],
)
def test_only_the_api_is_let_through(edge, method, path):
    with socket_request(edge, method, path) as answer:
        assert answer.startswith(b"HTTP/1.1 404")
        assert b'"code":"unknown_url"' in answer
    assert not edge.head.requests


class socket_request:  # noqa: N801
    """One request as it is written, for HTTP clients mend what they are given."""

    def __init__(self, edge, method, path):
        context = ssl.create_default_context(cafile=edge.folder / "tls/tail/ca.pem")
        raw = socket.create_connection(("127.0.0.1", edge.ports["public"]))
        self.socket = context.wrap_socket(raw, server_hostname="localhost")
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += ["Authorization: Bearer canary-1", "Content-Length: 0", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())

    def __enter__(self):
        answer = b""
        while more := self.socket.recv(65536):
            answer += more
        return answer

    def __exit__(self, *given):
        self.socket.close()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/models/org%2Ftiny"])
def test_models_are_listed(edge, path):
    assert edge.ask(path, method="GET").status_code == 200


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings"])
def test_completions_are_made(edge, path):
    assert edge.ask(f"/v1/{path}").status_code == 200


def test_health_needs_no_key(edge):
    assert edge.ask("/health", key=None, method="GET").status_code == 200
    assert not edge.head.requests


def test_answer_tells_time_and_request_but_not_what_is_inside(edge):
    found = edge.ask().headers
    assert "server" not in found
    hidden = ("x-litellm", "llm_provider", "x-envoy-attempt-count")
    assert not [name for name in found if name.startswith(hidden)]
    assert found["x-content-type-options"] == "nosniff"
    assert int(found["x-envoy-upstream-service-time"]) >= 0
    assert found["server-timing"].startswith("head;dur=")
    assert found["x-request-id"]


def test_tokens_arrive_as_they_are_made(edge, openai_client):
    stream = openai_client.chat.completions.create(model="tiny", messages=[], stream=True)
    times = [time.monotonic() for chunk in stream if chunk.choices[0].delta.content]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.5, "made over 0.8 s, they would come at once from a buffer"


def test_stream_may_take_longer_than_one_try(edge, openai_client):
    edge.head.chunks, edge.head.delay = 4, 0.5
    stream = openai_client.chat.completions.create(model="tiny", messages=[], stream=True)
    assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) == 4


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("megabytes", [1.5, 20])
def test_large_request_is_refused(edge, chunked, megabytes):
    body = b"x" * int(megabytes * 1024 * 1024)
    answer = edge.ask(content=iter([body]) if chunked else body)
    assert answer.status_code == 413
    assert error_of(answer) == "request_too_large"
    assert not edge.head.requests


def test_request_just_within_the_limit_passes(edge):
    content = json.dumps({"model": "tiny", "prompt": "x" * 1040000})
    answer = edge.ask(content=content, headers={"Content-Type": "application/json"})
    assert json.loads(answer.text)["bytes"] == len(content)


@pytest.mark.parametrize("body", [b"[" * 1000000, b'{"a":' * 200000, b'{"model":', b"\xff\xfe"])
def test_bodies_that_are_no_good_json_pass_and_harm_nothing(edge, body):
    answer = edge.ask(content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert edge.ask().status_code == 200


def test_limit_of_a_client(edge):
    edge.limiter.limit = 2
    first, second, third = (edge.ask() for _ in range(3))
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit"].startswith("2")
    assert [found.headers["x-ratelimit-remaining"] for found in (first, second)] == ["1", "0"]
    assert error_of(third) == "rate_limit_exceeded"
    assert third.headers["x-ratelimit-reset"] == "17"
    assert third.headers["retry-after"] == "17"
    assert edge.ask(key="canary-2").status_code == 200
    assert edge.limiter.asked == ["first", "first", "first", "second"]


def test_request_passes_when_the_rate_limiter_is_away(edge):
    edge.route("rate-limiter", [])
    try:
        assert edge.ask().status_code == 200
    finally:
        edge.route("rate-limiter", ["127.30.0.96"])
        edge.mesh.healthy("rate-limiter", 1)


def test_answer_that_takes_too_long(edge):
    edge.head.mode, edge.head.delay = "slow", 4
    started = time.monotonic()
    answer = edge.ask()
    assert answer.status_code == 504
    assert error_of(answer) == "timeout"
    assert 2.9 < time.monotonic() - started < 8
    assert len(edge.head.requests) == 1


def test_head_that_is_away(edge):
    edge.route("head", [])
    try:
        answer = edge.ask()
    finally:
        edge.route("head", ["127.30.0.80"])
        edge.mesh.healthy("head", 1)
    assert answer.status_code == 503
    assert error_of(answer) == "service_unavailable"
    assert "upstream" not in answer.text


def test_mesh_that_is_away(edge):
    edge.mesh.stop()
    try:
        answer = edge.ask()
        assert answer.status_code == 503
        assert error_of(answer) == "service_unavailable"
    finally:
        edge.mesh.start()
        edge.mesh.healthy("head", 1)
    edge.tail.until(lambda: edge.ask().status_code == 200)


def test_client_connects_anew_now_and_then(edge):
    with edge.client() as client:
        answers = []
        started = time.monotonic()
        while time.monotonic() - started < 2:  # a connection may last 1 s
            answers.append(client.get("/v1/models"))
            time.sleep(0.1)
    ends = [answer.headers.get("connection") == "close" for answer in answers]
    assert not ends[0]
    assert any(ends)
    assert {answer.status_code for answer in answers} == {200}


def test_error_of_the_head_passes_as_it_is(edge):
    edge.head.mode = "fail"
    answer = edge.ask()
    assert answer.status_code == 503
    assert json.loads(answer.text) == {"error": {"message": "failing"}}


def test_access_log_says_who_asked_what_model_how_it_went(edge):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "canary-prompt"}]}
    answer = edge.ask("/v1/chat/completions?q=canary-query", json=asked)
    line = edge.logged(answer.headers["x-request-id"])
    assert line["client"] == "first"
    assert line["model"] == "tiny"
    assert line["status"] == 200
    assert (line["method"], line["path"]) == ("POST", "/v1/chat/completions")
    assert line["address"] == "127.0.0.1"
    assert line["bytes_sent"] == len(answer.content)
    assert line["duration_ms"] >= line["upstream_ms"] >= line["first_byte_ms"] >= 0
    refused = edge.ask(key="canary-wrong")
    line = edge.logged(refused.headers["x-request-id"])
    assert (line["client"], line["status"]) == (None, 401)
    whole = (edge.tail.folder / "stdout").read_text() + (edge.tail.folder / "stderr").read_text()
    for secret in ("canary-1", "canary-wrong", "canary-head-key", "canary-prompt", "canary-query"):
        assert secret not in whole


def test_model_of_a_stream_is_logged_too(edge, openai_client):
    for _ in openai_client.chat.completions.create(model="tiny", messages=[], stream=True):
        pass
    edge.tail.until(lambda: edge.tail.log()[-1].get("model") == "tiny")
    line = edge.tail.log()[-1]
    assert line["upstream_ms"] > line["first_byte_ms"] + 500


def test_admin_shows_no_key(edge):
    dump = edge.tail.admin("GET", "/config_dump?include_eds")[1]
    assert "x-llm-client" in dump
    for secret in ("canary-1", "canary-2", "canary-head-key"):
        assert secret not in dump


def test_new_client_is_known_without_a_failed_request(edge):
    secrets = SECRETS | {"clients": SECRETS["clients"] | {"third": "canary-3"}}
    edge.head.chunks = 10
    try:
        with edge.client() as client, edge.load() as load:
            body = {"model": "tiny", "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                time.sleep(0.3)
                edge.tail.write(edge.platform, secrets)
                edge.tail.until(lambda: edge.ask(key="canary-3").status_code == 200)
                time.sleep(1)
                assert "[DONE]" in stream.read().decode()
        assert load.count > 20
        assert not load.failures
        edge.tail.write(edge.platform, SECRETS)
        edge.tail.until(lambda: edge.ask(key="canary-3").status_code == 401)
    finally:
        edge.tail.write(edge.platform, SECRETS)


def test_certificate_is_renewed_without_a_failed_handshake(edge):
    def serial():
        context = ssl.create_default_context(cafile=edge.folder / "tls/tail/ca.pem")
        raw = socket.create_connection(("127.0.0.1", edge.ports["public"]))
        with context.wrap_socket(raw, server_hostname="localhost") as secured:
            return int(secured.getpeercert()["serialNumber"], 16)

    with edge.load(keep_alive=False) as load:
        for _ in range(5):
            new = edge.authority.issue(edge.folder / "tls/tail", "tail.node1.llm", "localhost")
            edge.tail.until(lambda new=new: serial() == new)
            time.sleep(0.1)
    assert load.count > 20
    assert not load.failures


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize(
    ("least", "most", "works"),
    [
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, False),
    ],
)
def test_versions_of_tls(edge, least, most, works):
    context = ssl.create_default_context(cafile=edge.folder / "tls/tail/ca.pem")
    context.minimum_version, context.maximum_version = least, most
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", edge.ports["public"])) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="localhost") as secured:
                protocol = secured.selected_alpn_protocol()
        except OSError:
            protocol = None
    assert protocol == ("h2" if works else None)
