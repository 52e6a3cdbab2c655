"""
Every secret has a value that occurs nowhere else; after everything that operators do, none is found
where it does not belong.
"""

import base64
import json
import stat
import subprocess
import time
import urllib.parse
from pathlib import Path

import openai
import pytest

from tests.support.canaries import Search, canary
from tests.support.operator import gateway, set_secret, site_changed
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]

SECRETS = ("cache.password", "head.key", "model-proxy.key", "clients.default", "providers.dead")
# What reads one of them at its start, by secret; a client's key is read while tail runs.
CONCERNED = {"cache", "model-proxy", "head", "rate-limiter"}
HEAD = ("-I", "llm:roles:head", "state.apply", "head")


class Run:
    """
    Everything that was done, and what there was to see of it.
    """

    def __init__(self, platform):
        self.platform = platform
        self.canaries = {name: canary(number) for number, name in enumerate(SECRETS)}
        self.search = Search(self.canaries)
        self.output = {}
        self.replaced = {}

    def did(self, name, done):
        """Keep what a command printed; return it."""
        self.output[name] = done.stdout + done.stderr
        return done

    def services(self):
        """Return the running containers by service."""
        prefix = f"{self.platform.name}-"
        return {
            name.removeprefix(prefix).rsplit("-", 2)[0]: found
            for name, found in self.platform.containers().items()
        }


def _template(platform, broken):
    path = "salt/head/files/config.yaml.jinja"
    text = (platform.folder / path).read_text()
    return platform.changed(path, text.replace("router_settings:", broken))


@pytest.fixture(scope="module")
def run(platform, tmp_path_factory):
    """All secrets rotated and deployed, a dry run, failed deploys, and every command to look."""
    run = Run(platform)
    model = {"provider": "openai", "model": "gpt-x", "secret": "providers.dead"}
    model |= {"api_base": f"http://{gateway(platform)}:9/v1", "fallbacks": ["tiny"]}
    models = {"tiny": {"generated": True}, "hosted": model}
    events = tmp_path_factory.mktemp("events") / "events"
    command = platform.command("salt-run", platform.master.config_dir, ["state.event"])
    run.old_client = platform.client()
    with (
        events.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file) as listener,
        site_changed(platform, models=models),
    ):
        try:
            with run.search.processes() as run.processes:
                for name, value in run.canaries.items():
                    run.output[f"set {name}"] = set_secret(platform, name, value)
                _deploy(run)
                _look(run)
            time.sleep(1)
        finally:
            listener.terminate()
        run.events = events
        run.new_client = platform.client()
        yield run
        run.old_client.close()
        run.new_client.close()
    platform.salt("*", "state.apply")


def _deploy(run):
    platform = run.platform
    before = run.services()
    dry = run.did("dry run", platform.deploy("test=True", check=False))
    assert dry.returncode == 0, run.output["dry run"]
    assert run.services() == before
    run.did("deploy", platform.deploy())
    after = run.services()
    run.replaced = {service for service in after if after[service] != before.get(service)}
    run.did("highstate", platform.call("state.apply", "test=True", "-l", "debug"))
    with _template(platform, "    api_key: [\nrouter_settings:"):
        done = run.did("settings that cannot be read", platform.salt(*HEAD, check=False))
        assert done.returncode == 1
    with _template(platform, "{{ secrets['cache.passwort'] }}\nrouter_settings:"):
        done = run.did("a template that cannot be rendered", platform.deploy(check=False))
        assert done.returncode == 1
    spoilt = f"#!jinja|yaml|gpg\n# {run.canaries['cache.password']}\nllm: {{{{ typo }}}}\n"
    with platform.changed("pillar/secrets/cache.sls", spoilt):
        for name, apply in (("by the master", platform.salt), ("by the minion", platform.call)):
            target = ("*",) if apply == platform.salt else ("--local",)
            done = run.did(f"a pillar spoilt, {name}", apply(*target, "state.apply", check=False))
            assert done.returncode != 0
        done = run.did("llm.check of a pillar spoilt", platform.run("llm.check", check=False))
        assert "pillar/secrets/cache.sls:3: " in done.stdout
    assert run.services() == after


def _look(run):
    platform = run.platform
    for command in ("llm.status", "llm.check", "llm.secret list", "llm.logs head lines=500"):
        run.did(command, platform.run(*command.split()))
    for function in ("llm_config.platform", "pillar.items"):
        run.did(function, platform.salt("*", function))
    platform.run("llm.client")  # shows a key, and that is why it is here


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_search_finds_what_it_looks_for(before):
    value = canary(0)
    search = Search({"a": value, "b": canary(1)})
    text = f"{before}{value} and more"
    encoded = base64.b64encode(text.encode())
    for content in (text, encoded, urllib.parse.quote(text), f"{before}{value}"[:25]):
        assert search.named(content) == ["a"]


def test_rotation_replaces_what_reads_the_secret_and_nothing_else(run):
    assert run.replaced == CONCERNED
    said = run.output["deploy"]
    for secret in ("cache.password", "head.key", "model-proxy.key"):
        assert f"secret {secret}" in said


def test_old_key_is_refused_and_the_new_one_works(run):
    with pytest.raises(openai.AuthenticationError):
        run.old_client.models.list()
    question = [{"role": "user", "content": "hello"}]
    answer = run.new_client.chat.completions.create(model="hosted", messages=question)
    assert answer.choices[0].message.content


def test_no_command_shows_one(run):
    found = {name: run.search.named(text) for name, text in run.output.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_event_bus_has_none(run):
    text = run.events.read_bytes()
    assert b"salt/run/" in text
    assert b"salt/job/" in text
    assert run.search.named(text) == []


def test_job_cache_has_none(run):
    jobs = Path(run.platform.master.config["cachedir"], "jobs")
    assert any(jobs.rglob("return.p"))
    assert run.search.below(jobs) == {}


def test_logs_of_the_daemons_have_none(run):
    for daemon in (run.platform.master, run.platform.minion):
        assert run.search.named(Path(daemon.config["log_file"]).read_bytes()) == []


def test_what_the_engine_tells_has_none(run):
    label = f"label=llm.site={run.platform.name}"
    containers = docker("ps", "-aq", "--filter", label).split()
    images = {image["Image"] for image in json.loads(docker("inspect", *containers))}
    told = {
        "containers": docker("inspect", *containers),
        "volumes": docker("volume", "inspect", *docker("volume", "ls", "-q", "-f", label).split()),
        "networks": docker("network", "inspect", *docker("network", "ls", "-qf", label).split()),
        "images": docker("image", "inspect", *images),
        "history": "".join(docker("history", "--no-trunc", image) for image in images),
    }
    for container in containers:
        done = subprocess.run(["docker", "logs", container], capture_output=True, check=True)
        told[container] = done.stdout + done.stderr
    found = {name: run.search.named(text) for name, text in told.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_processes_had_none(run):
    assert {"salt-run", "salt", "salt-call"} <= run.processes.programs
    assert run.processes.found == {}


def test_processes_are_seen_while_they_run(run):
    environment = {"KEY": run.canaries["head.key"]}
    with (
        run.search.processes() as seen,
        subprocess.Popen(["sleep", "60"], env=environment) as process,
    ):
        deadline = time.monotonic() + 30
        while not seen.found and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
    assert list(seen.found.values()) == [["head.key"]]


def test_layers_have_none(run):
    """What the containers wrote, and each layer of the images that they are made of."""
    label = f"label=llm.site={run.platform.name}"
    containers = json.loads(docker("inspect", *docker("ps", "-aq", "--filter", label).split()))
    images = json.loads(docker("inspect", *{found["Image"] for found in containers}))
    layers = set()
    for found in containers + images:
        data = found["GraphDriver"]["Data"]
        layers |= {data["UpperDir"], *data.get("LowerDir", "").split(":")} - {""}
    assert len(layers) > len(containers)
    assert {layer: names for layer in layers if (names := run.search.below(layer))} == {}


def test_file_server_has_none(run):
    files = run.platform.call("cp.list_master", "--out=json").stdout
    files = json.loads(files)["local"]
    assert "head/files/config.yaml.jinja" in files
    assert not [file for file in files if "pillar" in file.split("/") or file.endswith(".key")]
    root = run.platform.folder / "salt"
    assert run.search.below(root) == {}
    assert run.search.named("".join((root / file).read_text() for file in files)) == []
    shown = run.platform.call("cp.get_file_str", "salt://../pillar/secrets/cache.sls", "--out=json")
    assert json.loads(shown.stdout)["local"] in (False, "")


def test_pillar_has_them_encrypted_alone(run):
    assert run.search.below(run.platform.pillar) == {}


def _is_private(path):
    return not stat.S_IMODE(path.stat().st_mode) & 0o077


def test_files_that_must_hold_them_are_their_readers_alone(run):
    root = run.platform.root
    found = run.search.below(root)
    assert {name for names in found.values() for name in names} == set(SECRETS)
    assert not (root / "services").stat().st_mode & 0o077
    assert not (root / "deploys").stat().st_mode & 0o077
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        if path.is_relative_to(root / "deploys"):  # kept for going back
            continue
        assert path.is_relative_to(root / "services")
        assert path.stat().st_uid == path.parent.stat().st_uid or path.parent.name == "live"


def test_caches_of_salt_are_private(run):
    for daemon in (run.platform.master, run.platform.minion):
        found = run.search.below(daemon.config["cachedir"])
        assert [path for path in found if not _is_private(path)] == []
