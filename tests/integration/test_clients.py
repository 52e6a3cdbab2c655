"""
What clients and scripts meet: the API through the official client, and the operator's commands.
"""

import json
import random
import re
import signal
import subprocess
import threading
import time

import httpx
import openai
import pytest
import yaml

from tests.support.operator import gateway, set_secret, site_changed, until
from tests.support.platform import docker
from tests.support.upstream import Upstream

pytestmark = [pytest.mark.docker, pytest.mark.slow]

LIMIT = 2
CONFIGURED = "rate-limiter.configured,tail.configured"


def asked(text="", **more):
    """Return a request that was not yet made."""
    content = f"{text} {random.random()}"
    question = [{"role": "user", "content": content}]
    return {"model": "tiny", "max_tokens": 8, "messages": question, **more}


@pytest.fixture(scope="module")
def names():
    """The names of two clients: one with a limit of its own, one that may ask as it likes."""
    return {kind: f"{kind}-{random.randrange(10**6)}" for kind in ("few", "many")}


@pytest.fixture(scope="module")
def clients(platform, names):
    """Those two clients, added while the platform runs."""
    wanted = {names["few"]: {"requests": LIMIT, "unit": "hour"}}
    wanted |= {names["many"]: {"requests": 1000000}}
    before = platform.containers()
    with site_changed(platform, clients={"default": {}, **wanted}):
        for name in wanted:
            set_secret(platform, f"clients.{name}", f"sk-of-{name}")
        platform.salt("*", "state.apply", CONFIGURED)
        assert platform.containers() == before
        found = {kind: platform.client(name) for kind, name in names.items()}
        until(lambda: _is_known(found["many"]))
        yield found
    platform.salt("*", "state.apply", CONFIGURED)
    until(lambda: not _is_known(found["many"]))
    for each in found.values():
        each.close()


def _is_known(client):
    try:
        return bool(client.models.list().data)
    except openai.RateLimitError:
        return True
    except openai.AuthenticationError:
        return False


@pytest.fixture(scope="module")
def client(clients):
    """The client without a limit that matters."""
    return clients["many"]


@pytest.fixture(scope="module")
def http(client):
    """The same, for requests that the official client would not make."""
    with httpx.Client(
        base_url=str(client.base_url).removesuffix("v1/"),
        verify=client._client._transport._pool._ssl_context,
        headers={"Authorization": f"Bearer {client.api_key}"},
        timeout=60,
    ) as http:
        yield http


@pytest.fixture(scope="module")
def elsewhere(platform):
    """A server that no client may have anything sent to."""
    server = Upstream(gateway(platform), 0)
    server.mode = "fail"
    server.url = "http://{}:{}/v1".format(*server.server.server_address)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def hosted(platform, clients, elsewhere):
    """A hosted provider's model, whose provider fails unless told otherwise."""
    model = {"provider": "openai", "model": "gpt-x", "secret": "providers.dead"}
    model |= {"api_base": elsewhere.url, "fallbacks": ["tiny"]}
    with site_changed(platform, models={"tiny": {"generated": True}, "hosted": model}):
        set_secret(platform, "providers.dead", "sk-dead-provider")
        platform.salt("*", "state.apply", "head")
        yield "hosted"
    platform.salt("*", "state.apply", "head")


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_chat_completion(client):
    answer = client.chat.completions.create(**asked())
    assert answer.model == "tiny"
    assert answer.choices[0].message.content
    assert 0 < answer.usage.completion_tokens <= 8


def test_streamed_chat_completion(client):
    *events, last = client.chat.completions.create(
        **asked(max_tokens=400, stream=True, stream_options={"include_usage": True})
    )
    pieces = [event for event in events if event.choices and event.choices[0].delta.content]
    assert len(pieces) > 10
    assert last.usage.completion_tokens > 10


def test_completion_and_its_stream(client):
    asked = {"model": "tiny", "max_tokens": 8}
    prompt = f"once {random.random()}"
    answer = client.completions.create(prompt=prompt, **asked)
    assert answer.choices[0].text
    stream = client.completions.create(prompt=f"{prompt} upon", stream=True, **asked)
    assert "".join(event.choices[0].text or "" for event in stream if event.choices)


def test_embeddings(client):
    answer = client.embeddings.create(model="tiny", input=["one", "something else"])
    first, second = (each.embedding for each in answer.data)
    assert len(first) == len(second) > 10
    assert first != second


def test_same_request_is_answered_from_the_cache(client):
    same = asked("again")
    first = client.chat.completions.create(**same)
    until(lambda: client.chat.completions.create(**same).id == first.id, 10)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer sk-wrong", "sk-wrong"])
def test_no_answer_without_a_key_that_is_known(http, authorization):
    headers = {"Authorization": authorization}
    answer = http.post("v1/chat/completions", json=asked(), headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_client_above_its_limit(clients):
    for _ in range(LIMIT):
        clients["few"].chat.completions.create(**asked())
    with pytest.raises(openai.RateLimitError) as refused:
        clients["few"].chat.completions.create(**asked())
    headers = refused.value.response.headers
    assert refused.value.code == "rate_limit_exceeded"
    assert headers["x-ratelimit-limit"].startswith(str(LIMIT))
    assert headers["x-ratelimit-remaining"] == "0"
    assert 0 < int(headers["retry-after"]) <= 3600
    assert clients["many"].models.list().data


def test_limit_outlives_the_rate_limiter(platform, clients):
    """What clients have asked for is counted in the cache."""
    with pytest.raises(openai.RateLimitError):
        [clients["few"].chat.completions.create(**asked()) for _ in range(LIMIT + 1)]
    docker("restart", platform.container("rate-limiter"))
    until(lambda: _is_counted(clients["many"]))
    with pytest.raises(openai.RateLimitError):
        clients["few"].chat.completions.create(**asked())


def _is_counted(client):
    """Return whether the rate limiter answers; without it requests pass uncounted."""
    return "x-ratelimit-remaining" in client.models.with_raw_response.list().headers


def test_request_that_is_too_large(client):
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**asked("x" * 4200000))
    assert refused.value.status_code == 413
    assert refused.value.code == "request_too_large"


def test_model_that_there_is_not(client):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.chat.completions.create(**asked(model="large"))
    assert "model=large" in refused.value.message
    assert refused.value.body["type"] == "invalid_request_error"


RESERVED = [
    {"api_base": "{url}"},
    {"base_url": "{url}"},
    {"api_key": "sk-mine"},
    {"user_config": {"model_list": []}},
    {"model_list": [{"model_name": "tiny", "litellm_params": {"api_base": "{url}"}}]},
    {"fallbacks": [{"model": "tiny", "api_base": "{url}"}]},
    {"litellm_params": {"api_base": "{url}"}},
    {"extra_body": {"api_base": "{url}"}},
    {"extra_headers": {"Host": "elsewhere"}},
    {"metadata": {"api_base": "{url}"}},
    {"langfuse_host": "{url}", "success_callback": ["langfuse"]},
    {"custom_llm_provider": "azure"},
    {"mock_response": "what everybody then gets from the cache"},
    {"num_retries": 50},
]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings"])
@pytest.mark.parametrize("more", RESERVED, ids=lambda more: next(iter(more)))
def test_client_cannot_say_what_an_administrator_does(http, elsewhere, path, more):
    more = json.loads(json.dumps(more).replace("{url}", elsewhere.url))
    elsewhere.requests.clear()
    for kind in ("application/json", "text/plain"):
        body = json.dumps(asked(prompt="x", input="x") | more)
        answer = http.post(f"v1/{path}", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unknown_parameter"
    assert not elsewhere.requests


def test_client_cannot_say_it_in_other_places_either(http, elsewhere):
    elsewhere.requests.clear()
    headers = {"x-litellm-api-base": elsewhere.url, "x-litellm-timeout": "0.001"}
    headers |= {"api-key": "sk-mine", "x-api-key": "sk-mine"}
    said = "mock_response=mocked&model=large&api_base=" + elsewhere.url
    answer = http.post(f"v1/chat/completions?{said}", json=asked(), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] != "mocked"
    answer = http.post("v1/chat/completions", data=asked(api_base=elsewhere.url))
    assert answer.json()["error"]["code"] == "invalid_json"
    assert not elsewhere.requests


@pytest.mark.parametrize("path", ["key/generate", "model/new", "config/update", "v1/mcp/server"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_head_is_not_administered_from_outside(http, method, path):
    answer = http.request(method, path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


def test_tokens_come_as_they_are_made(client, hosted, elsewhere):
    """A provider that makes no token before the client has the one before: nobody keeps any."""
    elsewhere.mode, elsewhere.heard = "well", threading.Semaphore(0)
    try:
        stream = client.chat.completions.create(**asked(model=hosted, stream=True))
        pieces = []
        for event in stream:
            if event.choices and (piece := event.choices[0].delta.content):
                pieces.append(piece)
                elsewhere.heard.release()
    finally:
        elsewhere.mode, elsewhere.heard = "fail", None
    assert pieces == [f"{number} " for number in range(elsewhere.chunks)]


def test_provider_that_fails_is_asked_again_and_then_stood_in_for(
    platform, client, hosted, elsewhere
):
    catalogue = yaml.safe_load((platform.pillar / "services.sls").read_text())
    attempts = 1 + catalogue["llm"]["requests"]["retries"]
    assert [model.id for model in client.models.list()] == ["hosted", "tiny"]
    elsewhere.requests.clear()
    answer = client.chat.completions.create(**asked(model=hosted))
    assert answer.choices[0].message.content
    assert len(elsewhere.requests) == attempts
    stream = client.chat.completions.create(**asked(model=hosted, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in stream if event.choices)
    assert len(elsewhere.requests) == 2 * attempts
    assert {each["headers"]["authorization"] for each in elsewhere.requests} == {
        "Bearer sk-dead-provider"
    }


def test_errors_of_a_service(platform, client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**asked(model="unheard-of"))
    found = json.loads(platform.run("llm.logs", "head", "errors=True", "--out=json").stdout)
    lines = found[platform.container("head")]
    assert any("unheard-of" in line for line in lines)
    assert not any('"level": "INFO"' in line for line in lines)


def test_settings_of_a_client(platform):
    done = platform.run("llm.client", "--out=json")
    assert list(json.loads(done.stdout)) == ["base_url", "ca_file", "api_key"]
    found = platform.run("llm.client").stdout
    assert json.loads(done.stdout)["api_key"] in found


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["llm.client", "nobody"], 'unknown client "nobody"; there are verify, default'),
        (["llm.logs", "nothing"], 'unknown service "nothing"; there are mesh, '),
        (["llm.secret", "set", "clients.nobody"], 'nothing needs a secret "clients.nobody"'),
        (["llm.verify", "model=large"], "model=large"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line_and_by_the_exit_code(platform, command, said):
    done = platform.run(*command, check=False)
    assert done.returncode == 1
    assert said in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_status(platform):
    done = platform.run("llm.status", "--out=json")
    services = json.loads(done.stdout)["node1"]
    assert len(services) == 7
    for found in services.values():
        assert found["healthy"] == found["wanted"] == 1
        assert 0 <= found["memory"] < found["memory_limit"]  # 0: the engine counts none here
        assert found["image"]
        assert found["version"]
        assert found["since"]
        assert found["cpus_limit"] > 0
    shown = platform.run("llm.status").stdout
    assert len(re.findall(r"(?<![\d.])1 of 1\b", shown)) == 7  # and not 0.01 of 1 CPU
    assert "node1" in shown


def test_status_of_a_service_that_is_not_well(platform):
    container = platform.container("rate-limiter")
    docker("pause", container)
    try:
        done = platform.run("llm.status", "--out=json", check=False)
    finally:
        docker("unpause", container)
    assert done.returncode == 1
    assert json.loads(done.stdout)["node1"]["rate-limiter"]["healthy"] == 0
    until(lambda: platform.run("llm.status", check=False).returncode == 0)


def test_logs(platform, client, http):
    request_id = http.post("v1/chat/completions", json=asked("secret plan")).headers["x-request-id"]
    until(lambda: request_id in docker("logs", platform.container("tail")))
    done = platform.run("llm.logs", "tail", "lines=20", "--out=json")
    ((name, lines),) = json.loads(done.stdout).items()
    assert name == platform.container("tail")
    assert len(lines) <= 20
    (line,) = (json.loads(line) for line in lines if request_id in line)
    assert (line["status"], line["model"]) == (200, "tiny")
    assert "secret plan" not in done.stdout
    assert client.api_key not in done.stdout
    assert request_id in platform.run("llm.logs", "tail", "lines=20").stdout


def test_logs_that_are_followed(platform, http):
    command = platform.command("salt-run", platform.master.config_dir, ["llm.logs", "tail"])
    following = subprocess.Popen(
        [*command, "follow=True", "lines=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=platform.folder,
    )  # fmt: skip
    try:
        following.stdout.readline()
        made, shown = [], []
        for _ in range(8):
            answer = http.post("v1/chat/completions", json=asked())
            made.append(answer.headers["x-request-id"])
            time.sleep(0.3)
        for line in iter(following.stdout.readline, ""):
            shown.append(line)
            if made[-1] in line:
                break
        time.sleep(2)  # for what would come again
    finally:
        following.send_signal(signal.SIGINT)
        rest = following.communicate(timeout=20)[0]
    assert "Traceback" not in rest
    shown += rest.splitlines()
    assert [sum(each in line for line in shown) for each in made] == [1] * len(made)


def test_verify_names_the_hops(platform):
    done = platform.run("state.orchestrate", "orch.verify")
    (said,) = [line for line in done.stdout.splitlines() if "answered in" in line]
    assert all(re.search(rf"\b{hop} \d+\.\d", said) for hop in ("tail", "mesh", "head"))


def test_verify_while_a_hop_does_not_answer(platform):
    container = platform.container("tail")
    docker("pause", container)
    try:
        done = platform.run("state.orchestrate", "orch.verify", check=False)
    finally:
        docker("unpause", container)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    until(lambda: platform.run("llm.verify", check=False).returncode == 0)
