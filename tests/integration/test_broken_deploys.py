"""
Deploys that cannot succeed: the clients notice nothing, the message says what is wrong, nothing
else is touched, and the next deploy makes it good.
"""

import contextlib
import re
import shutil
import time
from pathlib import Path

import openai
import pytest
import yaml

from tests.support.faults import completion, foreign_container, port_taken, small_disk
from tests.support.platform import docker


@pytest.fixture(autouse=True)
def _sound(platform, client):
    """Before and after, the platform answers and runs as it shall."""
    yield
    assert completion(client)


def _refused(platform, *arguments, stopped=None):
    """
    Return what a run says that has to fail and to leave every container as it is, but for the one
    of the service ``stopped``, which cannot run beside a new one and was started again.
    """
    before = platform.containers()
    done = platform.call("state.apply", *arguments, check=False)
    assert done.returncode != 0, done.stdout
    after = platform.containers()
    started = {name for name in after if after[name] != before.get(name)}
    assert started == ({platform.container(stopped)} if stopped else set())
    assert {name: of[0] for name, of in after.items()} == {
        name: of[0] for name, of in before.items()
    }
    return done.stdout


def _converges(platform, sls):
    """A run makes good what the fault has left, and a further one changes nothing."""
    platform.apply(sls)
    assert platform.apply(sls) == {}


@contextlib.contextmanager
def _spoilt(platform, path, text):
    """Have ``text`` at the end of a template for a while."""
    path = f"salt/{path}"
    with platform.changed(path, (platform.folder / path).read_text() + text):
        yield


BROKEN = {
    "cache": ("valkey.conf", "nonsense yes\n", "Bad directive"),
    "model-proxy": ("server.yaml", "]\n", "server.yaml"),
    "rate-limiter": ("settings.env", "GRPC_PORT=nonsense\n", "nonsense"),
    "head": ("config.yaml", "]\n", "config.yaml"),
    "tail": ("bootstrap.yaml", "nonsense: true\n", "nonsense"),
    "mesh": ("bootstrap.yaml", "nonsense: true\n", "nonsense"),
    "ingress": ("bootstrap.yaml", "nonsense: true\n", "nonsense"),
}


@pytest.mark.parametrize("service", BROKEN)
def test_a_configuration_that_the_service_refuses(platform, client, service):
    file, text, words = BROKEN[service]
    with _spoilt(platform, f"{service}/files/{file}.jinja", f"\n{text}"):
        stopped = "cache" if service == "cache" else None  # it holds a volume
        said = _refused(platform, f"{service}.running", stopped=stopped)
        assert completion(client)
    assert re.search(r"it (has exited|crashes and is started again): exit code [1-9]", said)
    assert words in said.partition("last log lines:")[2]
    assert f"It was taken back: {platform.container(service)} serves as before" in said
    assert platform.apply(f"{service}.running") == {}


LIVE = {
    "tail": "listeners.yaml",
    "mesh": "clusters.yaml",
    "ingress": "listeners.yaml",
}


@pytest.mark.parametrize("service", LIVE)
def test_a_live_configuration_that_the_service_refuses(platform, client, service):
    with _spoilt(platform, f"{service}/files/live/{LIVE[service]}.jinja", "\n]\n"):
        said = _refused(platform, service)
        assert completion(client)
        docker("restart", platform.container(service))
        _answers_again(client)
    words = f"{service} is not healthy: it refuses {LIVE[service]}; put back as before: "
    assert words + LIVE[service] in said
    assert "illegal flow end" in said.partition("last log lines:")[2]
    assert platform.apply(service) == {}


def _answers_again(client, seconds=60):
    """Return once clients get completions, within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert completion(client)
            return
        except openai.OpenAIError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


def test_a_template_that_cannot_be_rendered(platform):
    with _spoilt(platform, "head/files/config.yaml.jinja", "{{ service.nothing.at.all }}"):
        said = _refused(platform, "head.configured")
        assert "salt://head/files/config.yaml.jinja:" in said
        assert "has no attribute 'nothing'" in said
        assert "Traceback" not in said


LIMITER = "ratelimit /etc/llm/settings.env"


@pytest.mark.parametrize(
    ("service", "knobs", "words"),
    [
        pytest.param(
            "rate-limiter",
            {"command": ["sleep", "600"], "healthy_deadline": "4s", "min_healthy": "1s"},
            "it was not well for 1 s on end within 4 s",
            id="never-healthy",
        ),
        pytest.param(
            "rate-limiter",
            {
                "command": ["sh", "-c", f"{LIMITER} & sleep 1; kill -STOP $!; sleep 600"],
                "healthy_deadline": "9s",
                "min_healthy": "5s",
            },
            "it was not well for 5 s on end within 9 s",
            id="sick-after-a-second",
        ),
        pytest.param(
            "rate-limiter",
            {"command": ["sh", "-c", f"{LIMITER} & sleep 2; exit 3"], "min_healthy": "5s"},
            "it crashes and is started again: exit code 3",
            id="flapping",
        ),
        pytest.param(
            "head", {"memory": "64m"}, "killed: out of memory (limit 64m)", id="out-of-memory"
        ),
        pytest.param(
            "rate-limiter", {"command": ["nonsense"]}, "exec nonsense failed: No such file",
            id="no-such-program",
        ),
    ],
)  # fmt: skip
def test_a_container_that_does_not_become_healthy(platform, client, service, knobs, words):
    with platform.service_changed(service, **knobs):
        said = _refused(platform, f"{service}.running")
        assert completion(client)
    assert words in said
    assert f"It was taken back: {platform.container(service)} serves as before" in said
    assert platform.apply(f"{service}.running") == {}


def test_a_slow_start_within_its_deadline(platform, client):
    knobs = {"command": ["sh", "-c", f"sleep 4; exec {LIMITER}"], "healthy_deadline": "60s"}
    old = platform.container("rate-limiter")
    with platform.service_changed("rate-limiter", **knobs):
        assert list(platform.apply("rate-limiter.running")) == ["rate-limiter is running"]
        assert platform.container("rate-limiter") != old
        assert completion(client)
        assert platform.apply("rate-limiter.running") == {}
    _converges(platform, "rate-limiter.running")


def test_an_image_that_does_not_exist(platform, client):
    image = f"127.0.0.1:9/nothing@sha256:{'0' * 64}"
    before = platform.containers()
    with platform.service_changed("rate-limiter", image=image):
        done = platform.deploy(check=False)
        assert completion(client)
    assert done.returncode == 1
    assert re.search(rf"{image} cannot be pulled: .*connection refused", done.stdout)
    assert platform.containers() == before
    assert platform.apply("rate-limiter.running") == {}


def test_ports_that_are_taken(platform, client):
    image = docker("inspect", "-f", "{{.Image}}", platform.container("rate-limiter"))
    before = platform.containers()
    site = "pillar/site.yaml"
    found = yaml.safe_load((platform.folder / site).read_text())
    with (
        port_taken() as port,
        foreign_container(image, "-p", "80") as name,
    ):
        published = int(docker("port", name, "80").splitlines()[0].rpartition(":")[2])
        found |= {"public_port": port, "hosts_port": published}
        with platform.changed(site, yaml.safe_dump(found)):
            done = platform.deploy(check=False)
            assert completion(client)
    assert done.returncode == 1
    assert re.search(rf"port {port}: found it held by process \d+ \(", done.stdout)
    assert f"port {published}: found it held by container {name}, needed" in done.stdout
    assert platform.containers() == before
    _converges(platform, "ingress")


def test_a_port_that_is_taken_after_all(platform, client):
    """Without the preflight of a deploy; the ingress says what it met."""
    site = "pillar/site.yaml"
    found = yaml.safe_load((platform.folder / site).read_text())
    with port_taken() as port:
        with platform.changed(site, yaml.safe_dump(found | {"public_port": port})):
            said = _refused(platform, "ingress")
        assert completion(client)
    assert "ingress is not healthy: it refuses listeners.yaml" in said
    assert f"cannot bind '0.0.0.0:{port}': Address already in use" in said
    _converges(platform, "ingress")


def test_a_disk_that_is_full(platform, client):
    folder = platform.root / "services" / "rate-limiter" / "config"
    with (
        small_disk(folder, "64k"),
        _spoilt(platform, "rate-limiter/files/settings.env.jinja", "#" * 100_000),
    ):
        said = _refused(platform, "rate-limiter")
        assert completion(client)
    assert "No space left on device" in said
    assert str(folder) in said
    assert "Traceback" not in said
    assert platform.apply("rate-limiter") == {}


def test_a_model_for_which_there_is_no_room(platform, client, tmp_path):
    (tmp_path / "big.gguf").write_bytes(b"GGUF" + bytes(100_000))
    site = "pillar/site.yaml"
    found = yaml.safe_load((platform.folder / site).read_text())
    model = {"path": str(tmp_path / "big.gguf"), "sha256": "0" * 64}
    found["models"] = found["models"] | {"big": model}
    models = platform.root / "models"
    models.mkdir(exist_ok=True)
    with small_disk(models, "64k"), platform.changed(site, yaml.safe_dump(found)):
        said = _refused(platform, "models")
        assert completion(client)
    assert "big" in said
    assert "free" in said
    assert platform.apply("models") == {}


def test_an_engine_that_does_not_answer(platform, client, tmp_path):
    """The engine of this machine is left alone; the host looks for it where there is none."""
    shutil.copytree(platform.minion.config_dir, tmp_path / "conf")
    config = tmp_path / "conf" / "minion"
    config.write_text(config.read_text() + f"\ndocker.url: unix://{tmp_path}/nothing.sock\n")
    before = platform.containers()
    command = ("state.apply", "rate-limiter", "--retcode-passthrough")
    done = platform.called("salt-call", tmp_path / "conf", command, check=False)
    dry = platform.called("salt-call", tmp_path / "conf", (*command, "test=True"), check=False)
    assert dry.returncode == 0, dry.stdout
    assert "Can be told once the engine runs" in dry.stdout
    assert done.returncode != 0
    assert f"does not answer at {tmp_path}/nothing.sock: No such file or directory" in done.stdout
    assert "Traceback" not in done.stdout
    assert completion(client)
    assert platform.containers() == before
    assert platform.apply("rate-limiter") == {}


@contextlib.contextmanager
def _secrets(platform, group, change):
    """Have a secrets file changed, or away, for a while."""
    path = platform.pillar / "secrets" / f"{group}.sls"
    kept = path.read_text()
    if text := change(kept):
        path.write_text(text)
    else:
        path.unlink()
    try:
        yield
    finally:
        path.write_text(kept)


SECRETS = {
    "missing": (lambda text: None, "no such file; salt-run llm.secret generate", "secrets.cache"),
    "encrypted": (
        lambda text: text.partition("\n")[2],
        "still encrypted",
        "secrets/cache.sls",
    ),
}


@pytest.mark.parametrize("fault", SECRETS)
def test_a_secret_that_cannot_be_used(platform, client, fault):
    change, words, place = SECRETS[fault]
    before = platform.containers()
    with _secrets(platform, "cache", change):
        check = platform.run("llm.check", check=False)
        done = platform.deploy(check=False)
        said = _refused(platform)
        assert completion(client)
    assert (check.returncode, done.returncode) == (1, 1)
    assert words in check.stdout
    assert words in done.stdout
    assert place in said
    assert "Traceback" not in check.stdout + done.stdout + said
    assert platform.containers() == before
    assert platform.apply("cache") == {}


def test_a_password_that_was_changed_by_hand(platform, client):
    """The cache is given another password, which nobody else knows."""
    name = platform.container("cache")
    mounts = '{{range .Mounts}}{{if eq .Destination "/etc/llm"}}{{.Source}}{{end}}{{end}}'
    path = Path(docker("inspect", "-f", mounts, name)) / "valkey.conf"
    text = path.read_text()
    path.write_text(re.sub(r'">[^"]+"', '">changed-by-hand"', text))
    try:
        docker("restart", name)
        assert completion(client)
        assert platform.run("llm.status", check=False).returncode == 1
        before = platform.containers()
        foreseen = platform.apply("cache", "test=True")
        assert platform.containers() == before
        done = platform.apply("cache")
    except BaseException:
        path.write_text(text)
        platform.apply("cache")
        raise
    assert list(done) == ["cache is configured", "cache is running"]
    assert done.items() <= foreseen.items()
    assert "valkey.conf was changed by hand" in str(done)
    assert platform.apply("cache") == {}
    now = platform.containers()
    assert {each for each in before if each not in now} == {name}
    assert platform.run("llm.status").returncode == 0
