"""
Every service is replaced in its turn while clients ask: none of them notices.
"""

import http.client
import itertools
import json
import ssl
import threading
import time
import urllib.parse
import uuid

import pytest
import yaml

from tests.support.load import WORKERS, Load
from tests.support.operator import gateway, unlimited_client, until
from tests.support.platform import docker
from tests.support.upstream import Upstream

pytestmark = [pytest.mark.docker, pytest.mark.slow]

RATE = 15  # requests per second


@pytest.fixture(scope="module")
def settings(platform):
    """The settings of a client that may ask as often as it likes."""
    with unlimited_client(platform, RATE) as found:
        yield found


class Model(Upstream):
    """
    A server in place of model-proxy. An answer that is to come ``slowly`` goes on until it is
    ``over``.
    """

    def __init__(self, address, port):
        self.over, self.sent = threading.Event(), 0
        super().__init__(address, port)

    def goes_on(self, number, body):
        """Return whether there is a further chunk."""
        if "slowly" not in body:
            return number < 5
        going = not self.over.is_set()
        self.sent += going
        return going

    def pause(self, body):
        """Take some time after each chunk."""
        self.over.wait(0.2) if "slowly" in body else time.sleep(0.01)


@pytest.fixture(scope="module")
def model(platform):
    """A model whose answers take as long as a test wants."""
    services = yaml.safe_load((platform.pillar / "services.sls").read_text())["llm"]["services"]
    model = Model(gateway(platform), services["model-proxy"]["port"])
    platform.call("llm_mesh.route", "model-proxy", json.dumps([gateway(platform)]))
    yield model
    platform.apply("model-proxy.running")
    model.stop()


class Answer(threading.Thread):
    """
    A streamed answer that comes slowly to ``client``; ``pieces`` are those that have come.
    """

    def __init__(self, client):
        super().__init__()
        self.client, self.pieces, self.started = client, [], threading.Event()

    def run(self):
        message = {"role": "user", "content": f"slowly {uuid.uuid4().hex}"}
        asked = {"model": "tiny", "messages": [message], "stream": True}
        with self.client:  # or its connection is there until it was idle for long enough
            for event in self.client.chat.completions.create(**asked):
                self.pieces += [each.delta.content for each in event.choices if each.delta.content]
                self.started.set()


class Regular(threading.Thread):
    """
    A client that asks now and then, on two connections in turn, as long as its context lasts. Each
    is thus idle for 3 s, and taken for well if its last answer did not say that it ends.
    ``answers`` is how many there were, right or wrong; ``failures`` is what was wrong.
    """

    def __init__(self, settings):
        super().__init__()
        place = urllib.parse.urlsplit(settings["base_url"])
        context = ssl.create_default_context(cafile=settings["ca_file"])
        self.connections = [
            http.client.HTTPSConnection(place.netloc, context=context, timeout=60) for _ in range(2)
        ]
        self.path = f"{place.path}/models"
        self.headers = {"Authorization": f"Bearer {settings['api_key']}"}
        self.answers, self.failures, self.over = 0, [], threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *given):
        self.over.set()
        self.join()
        for connection in self.connections:
            connection.close()

    def run(self):
        for connection in itertools.cycle(self.connections):
            if self.over.wait(1.5):
                break
            self._ask(connection)
            self.answers += 1

    def _ask(self, connection):
        try:
            connection.request("GET", self.path, headers=self.headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                self.failures.append(answer.status)
        except (http.client.HTTPException, OSError) as err:
            self.failures.append(repr(err))
            connection.close()

    def flow(self):
        """Return once it has asked on each connection from now on."""
        so_far = self.answers
        until(lambda: self.answers > so_far + len(self.connections))


def change(platform, service, **knobs):
    """Change a service so that each of its containers has to be replaced."""
    platform.change_service(service, environment={"REPLACED": uuid.uuid4().hex}, **knobs)


def replace(platform, service, replicas=1):
    """Apply a service's state; only its containers are others then, and the old ones parked."""
    before = platform.containers()
    old = [platform.container(service, number + 1) for number in range(replicas)]
    platform.apply(f"{service}.running")
    after = platform.containers()
    new = [platform.container(service, number + 1) for number in range(replicas)]
    assert not set(old) & set(new)
    untouched = {name: before[name] for name in before if name not in old}
    assert {name: after[name] for name in after if name not in new} == untouched
    for name in old:
        state = "{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}"
        assert docker("inspect", "-f", state, name) == "exited no"


def end_when_left(platform, service, model):
    """End the slow answer a moment after the running container of ``service`` gets no more."""
    old = platform.container(service)
    mark = platform.root / "services" / service / "run" / old / "drained"
    endpoints = platform.root / "endpoints" / f"{service}.yaml"
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = f'"{docker("inspect", "-f", form, old)}"'

    def watch():
        while not (mark.exists() or (service == "head" and address not in endpoints.read_text())):
            time.sleep(0.1)
        time.sleep(3)
        model.over.set()

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("service", ["mesh", "ingress", "tail", "head"])
def test_answer_and_requests_on_the_way_survive(platform, settings, model, service):
    model.over.clear()
    model.sent = 0
    with Load(settings, RATE) as load:
        load.flow(RATE)
        answer = Answer(platform.client())
        answer.start()
        assert answer.started.wait(60)
        end_when_left(platform, service, model)
        change(platform, service)
        replace(platform, service)
        answer.join()
        load.flow(RATE * 2)
    assert "\n".join(str(outcome) for outcome in load.failures) == ""
    assert answer.pieces == [f"{number} " for number in range(model.sent)]
    assert len(answer.pieces) > 15, "it was over before"


def test_kept_connection_ends_with_an_answer(platform, settings):
    with Regular(settings) as client:
        for _ in range(2):
            client.flow()
            change(platform, "tail")
            replace(platform, "tail")
        client.flow()
    assert client.failures == []


@pytest.mark.parametrize("service", ["model-proxy", "cache"])
def test_no_request_fails(platform, settings, service):
    with Load(settings, RATE) as load:
        load.flow(RATE)
        change(platform, service)
        replace(platform, service)
        load.flow(RATE * 2)
    assert "\n".join(str(outcome) for outcome in load.failures) == ""


def test_replicas_are_replaced_one_after_another(platform, settings):
    with Load(settings, RATE) as load:
        load.flow(RATE)
        platform.change_service("rate-limiter", replicas=2)
        platform.apply("rate-limiter.running")
        change(platform, "rate-limiter")
        replace(platform, "rate-limiter", replicas=2)
        platform.change_service("rate-limiter", replicas=1)
        platform.apply("rate-limiter.running")
        load.flow(RATE * 2)
    assert "\n".join(str(outcome) for outcome in load.failures) == ""
    running = [name for name in platform.containers() if "-rate-limiter-" in name]
    assert running == [platform.container("rate-limiter")]


def test_replica_that_is_killed(platform, settings):
    """What it had begun is lost; who asks later notices nothing, and a deploy puts it back."""
    platform.change_service("head", replicas=2)
    platform.apply("head.running")
    before, name = platform.containers(), platform.container("head", 2)
    with Load(settings, RATE, max_tokens=100) as load:
        load.flow(RATE)
        docker("kill", name)
        killed = time.monotonic()
        load.flow(RATE * 2)
        assert name not in platform.containers()
        platform.run("llm.deploy", "services=head")
        load.flow(RATE)
    assert "\n".join(str(outcome) for outcome in load.since(killed) if outcome.flaw) == ""
    assert len(load.failures) <= WORKERS
    after = platform.containers()
    assert {each: after[each][0] for each in after} == {each: before[each][0] for each in before}
    platform.change_service("head", replicas=1)
    platform.apply("head.running")


# Well by its health check, and of no use: it answers every question with an error.
ERRORS = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code):
        body = b'{"status": "ok"}'
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200)
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(500)
    def log_message(self, *given):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
USELESS = {"command": ["python3", "-c", ERRORS]}


def test_version_that_gives_no_completion_never_serves(platform, settings):
    before = platform.containers()
    with platform.service_changed("model-proxy", **USELESS), Load(settings, RATE) as load:
        load.flow(RATE)
        done = platform.run("llm.deploy", "services=model-proxy", check=False)
        load.flow(RATE)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "model-proxy refuses the request for tiny: 500" in done.stdout
    assert platform.containers() == before
    assert "\n".join(str(outcome) for outcome in load.failures) == ""


def tried(platform, settings, *arguments, code):
    """Try a canary of model-proxy under load; return the record of the release, and the load."""
    arguments = ("llm.canary", "model-proxy", "weight=40", *arguments, "--out=json")
    with Load(settings, RATE) as load:
        load.flow(RATE)
        done = platform.run(*arguments, check=False)
        load.flow(RATE)
    assert done.returncode == code, done.stdout + done.stderr
    assert not [name for name in platform.containers() if "canary" in name]
    return json.loads(done.stdout), done.stderr, load


def test_canary_that_does_well_takes_over(platform, settings):
    old = platform.container("model-proxy")
    change(platform, "model-proxy")
    record, progress, load = tried(platform, settings, "window=6", "least=5", code=0)
    assert record["what"] == "canary of model-proxy"
    assert "model-proxy: the canary " in progress
    assert platform.container("model-proxy") != old
    assert "\n".join(str(outcome) for outcome in load.failures) == ""
    said = json.loads(platform.run("llm.canary", "model-proxy", "--out=json", check=False).stdout)
    assert said["error"].startswith("nothing to try: model-proxy runs as the pillar says")


def test_canary_that_does_worse_is_taken_back(platform, settings):
    before = platform.containers()
    with platform.service_changed("model-proxy", **USELESS, smoke_test=""):
        record, _, load = tried(platform, settings, "window=60", code=4)
    assert record["result"] == "taken back"
    assert "errors: found " in "\n".join(record["why"])
    assert platform.containers() == before
    # What head asked of the canary, it asks again: clients are served by those beside it.
    assert len(load.failures) <= sum(outcome.sent > 0 for outcome in load.outcomes) / 10
