"""
The services in their own images, with the platform's configuration and without its Envoys.
"""

import json
import re
import shutil
import time

import grpc
import httpx
import openai
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .conftest import SECRETS

pytestmark = [pytest.mark.docker, pytest.mark.slow]

PROMPT = "canary-prompt"
GPT = {
    "provider": "openai",
    "model": "gpt-4o-mini",
    "secret": "providers.openai",
    "api_base": "http://127.0.0.1:9/v1",
    "fallbacks": ["tiny"],
}


@pytest.fixture(scope="module")
def cache(start):
    service = start("cache")
    service.client = redis.Redis(service.address, password=SECRETS["cache.password"])
    service.until(service.client.ping)
    return service


@pytest.fixture(scope="module")
def model_proxy(start):
    service = start("model-proxy")
    service.url = f"http://{service.address}:8080"
    service.until(lambda: httpx.get(f"{service.url}/health").json() == {"status": "ok"})
    return service


@pytest.fixture(scope="module")
def head(start, cache, model_proxy):
    service = start("head", models={"tiny": {"generated": True}, "gpt": GPT}, log_level="debug")
    service.url = f"http://{service.address}:4000"
    service.until(lambda: httpx.get(f"{service.url}/health/readiness").status_code == 200, 120)
    return service


@pytest.fixture(scope="module")
def rate_limiter(start, cache):
    service = start("rate-limiter")
    service.channel = grpc.insecure_channel(f"{service.address}:8081")
    service.until(lambda: is_serving(service))
    return service


def is_serving(service):
    health = health_pb2_grpc.HealthStub(service.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def client(service, key="head.key"):
    base = f"{service.url}/v1"
    return openai.OpenAI(base_url=base, api_key=SECRETS[key], max_retries=0, timeout=60)


def messages(text):
    return [{"role": "user", "content": f"{PROMPT} {text} {time.time()}"}]


def test_cache_refuses_strangers_and_what_would_empty_it(cache):
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(cache.address).get("x")
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(cache.address, password="wrong").get("x")
    for command in ("FLUSHALL", "CONFIG GET *", "KEYS *", "SHUTDOWN"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            cache.client.execute_command(*command.split())


def test_cache_stays_below_its_limit(cache):
    assert cache.client.info("memory")["maxmemory"] == int(128 * 1024**2 * 0.6)
    assert cache.client.info("memory")["maxmemory_policy"] == "allkeys-lru"


@pytest.mark.parametrize("model_server", ["model_proxy", "two_models"])
def test_model_proxy_answers(model_server, request):
    service = request.getfixturevalue(model_server)
    api = client(service, "model-proxy.key")
    for model in [each.id for each in api.models.list()]:
        asked = {"model": model, "max_tokens": 8}
        answer = api.chat.completions.create(messages=messages("one"), **asked)
        assert answer.model == model
        assert answer.choices[0].message.content
        stream = api.chat.completions.create(messages=messages("two"), stream=True, **asked)
        assert len(list(stream)) >= 3
        assert api.completions.create(prompt="three", **asked).choices[0].text
        found = api.embeddings.create(model=model, input=["four", "five"], encoding_format="float")
        assert [len(each.embedding) for each in found.data] == [64, 64]


@pytest.mark.parametrize("model_server", ["model_proxy", "two_models"])
def test_model_proxy_refuses_a_wrong_key(model_server, request):
    service = request.getfixturevalue(model_server)
    api = openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        api.models.list()
    with pytest.raises(openai.AuthenticationError):
        api.chat.completions.create(model="tiny", messages=messages("one"))


@pytest.fixture(scope="module")
def two_models(start, model_proxy, tmp_path_factory):
    """A model-proxy of two models: the generated one, and a copy of it as a file."""
    folder = tmp_path_factory.mktemp("models")
    body = {"Image": model_proxy.engine.inspect(model_proxy.container)["Image"]}
    source = model_proxy.engine.create("llm-test-tiny", body)
    try:
        path = f"/containers/{source}/archive?path=/usr/share/llm/tiny.gguf"
        (folder / "tiny.tar").write_bytes(model_proxy.engine.request("GET", path))
    finally:
        model_proxy.engine.remove(source)
    shutil.unpack_archive(folder / "tiny.tar", folder)
    (folder / "tiny.gguf").rename(folder / "org%2Fsecond.gguf")
    folder.chmod(0o755)
    second = {"path": "/x", "sha256": 64 * "0", "context": 512}
    models = {"tiny": {"generated": True}, "org/second": second}
    service = start("model-proxy", models=models, mounts=[f"{folder}:/models:ro"])
    service.url = f"http://{service.address}:8080"
    service.until(lambda: httpx.get(f"{service.url}/health").json() == {"status": "ok"})
    return service


def test_model_proxy_of_two_names_its_models(two_models):
    api = client(two_models, "model-proxy.key")
    assert sorted(each.id for each in api.models.list()) == ["org/second", "tiny"]
    with pytest.raises(openai.NotFoundError, match="there are org/second, tiny"):
        api.chat.completions.create(model="third", messages=messages("one"))
    answer = httpx.post(f"{two_models.url}/v1/completions", content=b"[]")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400


def test_head_answers_each_way(head):
    api = client(head)
    assert sorted(each.id for each in api.models.list()) == ["gpt", "tiny"]
    asked = {"model": "tiny", "max_tokens": 8}
    assert api.chat.completions.create(messages=messages("one"), **asked).choices[0].message.content
    stream = api.chat.completions.create(messages=messages("two"), stream=True, **asked)
    assert "".join(each.choices[0].delta.content or "" for each in stream)
    assert api.completions.create(prompt="three", **asked).choices[0].text
    assert len(api.embeddings.create(model="tiny", input="four").data[0].embedding) == 64


def test_head_answers_from_the_cache(head, cache):
    asked = {"model": "tiny", "max_tokens": 20, "messages": messages("again")}
    before = cache.client.dbsize()
    first = client(head).chat.completions.create(**asked)
    cache.until(lambda: cache.client.dbsize() > before)
    second = client(head).chat.completions.create(**asked)
    assert second.id == first.id
    assert second.choices[0].message.content == first.choices[0].message.content


def test_head_falls_back(head):
    answer = client(head).chat.completions.create(model="gpt", messages=messages("x"), max_tokens=8)
    assert answer.choices[0].message.content


def test_head_answers_without_the_cache(head, cache):
    path = f"/containers/{cache.container}"
    cache.engine.request("POST", f"{path}/pause")
    try:
        start = time.monotonic()
        asked = {"model": "tiny", "max_tokens": 8, "messages": messages("alone")}
        assert client(head).chat.completions.create(**asked).choices[0].message.content
        assert time.monotonic() - start < 15
    finally:
        cache.engine.request("POST", f"{path}/unpause")


def test_head_refuses_a_wrong_key(head):
    answer = httpx.get(f"{head.url}/v1/models", headers={"Authorization": "Bearer sk-wrong"})
    assert answer.status_code in (400, 401)


def test_rate_limiter_is_healthy_and_reads_new_limits(rate_limiter):
    domain = {
        "domain": "llm",
        "descriptors": [{"entries": [{"key": "client", "value": "default"}]}],
    }

    def limit():
        answer = httpx.post(f"http://{rate_limiter.address}:8080/json", json=domain, timeout=5)
        return answer.json()["statuses"][0]["currentLimit"]

    assert limit() == {"requestsPerUnit": 60, "unit": "MINUTE"}
    live = rate_limiter.folder / "live_files" / "limits.yaml"
    text = live.read_text()
    assert "requests_per_unit: 60" in text
    fresh = live.with_name(".fresh")
    fresh.write_text(text.replace("requests_per_unit: 60", "requests_per_unit: 7"))
    fresh.chmod(0o444)
    fresh.replace(live)
    rate_limiter.until(lambda: limit()["requestsPerUnit"] == 7, 10)


def test_services_log_json_without_prompts_and_secrets(head, model_proxy, cache, rate_limiter):
    canaries = re.compile("canary|" + re.escape(PROMPT))
    for service in (head, model_proxy, cache, rate_limiter):
        found = [line for line in service.log().splitlines() if canaries.search(line)]
        assert found == [], service.name
        for path in ("cmdline", "environ"):
            assert not canaries.search(service.run("cat", f"/proc/1/{path}"))
    answers = [line for line in head.log().splitlines() if "POST /v1/chat/completions" in line]
    assert json.loads(answers[-1])["level"] == "INFO"
    assert "GET /health/readiness" not in head.log()


@pytest.mark.parametrize("name", ["head", "model_proxy", "two_models", "rate_limiter", "cache"])
def test_services_end_when_asked(name, request):
    service = request.getfixturevalue(name)
    start = time.monotonic()
    service.engine.stop(service.container, seconds=10)
    assert time.monotonic() - start < 9
    assert service.engine.inspect(service.container)["State"]["ExitCode"] in (0, 143)
