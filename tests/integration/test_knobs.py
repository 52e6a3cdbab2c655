"""
What an operator changes by a command alone: which services are deployed, their versions, the number
of their replicas, what is kept.
"""

import json

import pytest
import yaml

from tests.support.faults import completion
from tests.support.operator import release
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]
ENVIRONMENT = "pillar/environments/dev.sls"


@pytest.fixture
def as_it_was(platform, client):
    """After the test the pillar's own platform serves."""
    text = (platform.folder / ENVIRONMENT).read_text()
    yield
    (platform.folder / ENVIRONMENT).write_text(text)
    platform.run("llm.deploy")
    assert completion(client)


def asked(platform, command, *arguments, code=0):
    """Return what a command answers."""
    return release(platform, *arguments, command=command, code=code)


def replicas(platform, service):
    """Return how many containers of a service run."""
    start = f"{platform.name}-{service}-"
    return len([name for name in platform.containers() if name.startswith(start)])


def test_scale_up_and_down(platform):
    before = (platform.folder / ENVIRONMENT).read_text()
    record = asked(platform, "llm.scale", "rate-limiter", "2")
    assert (record["what"], record["result"]) == ("scale rate-limiter to 2", "done")
    assert replicas(platform, "rate-limiter") == 2
    text = (platform.folder / ENVIRONMENT).read_text()
    assert text.startswith("# A laptop")
    services = yaml.safe_load(text)["llm"]["services"]
    assert services["rate-limiter"]["replicas"] == 2
    table = platform.run("llm.status").stdout
    assert "2 of 2" in table
    asked(platform, "llm.scale", "rate-limiter", "1")
    assert replicas(platform, "rate-limiter") == 1
    (platform.folder / ENVIRONMENT).write_text(before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llm.scale", "cache", "2"], "cache.replicas: found 2; expected 1"),
        (["llm.scale", "rate-limiter", "many"], 'replicas: found "many"; expected a whole number'),
        (["llm.scale", "haed", "2"], 'unknown service "haed"; did you mean "head"'),
        (["llm.deploy", "version=head"], 'version: found "head", expected SERVICE:VERSION'),
        (["llm.deploy", "services=haed"], 'unknown service "haed"'),
        (["llm.deploy", "version=head:1", "services=tail"], "version: head is not among services"),
        (["llm.canary", "cache"], "no canary of cache: the mesh has to speak HTTP or gRPC"),
        (["llm.prune", "keep=0"], "keep: found 0; expected at least 1"),
        (["llm.canary", "head", "weight=101"], "weight: found 101; expected at most 100"),
    ],
)
def test_what_cannot_be_asked_for(platform, arguments, words):
    before = (platform.containers(), (platform.folder / ENVIRONMENT).read_text())
    said = asked(platform, *arguments, code=1)
    assert words in said["error"]
    assert ENVIRONMENT not in said["error"]
    assert (platform.containers(), (platform.folder / ENVIRONMENT).read_text()) == before


@pytest.mark.parametrize(
    ("orchestration", "words"),
    [("orch.deploy", 'did you mean "llm_services"?'), ("orch.teardown", "there are none")],
)
def test_what_no_orchestration_takes(platform, orchestration, words):
    before = platform.containers()
    arguments = ("state.orchestrate", orchestration, 'pillar={"sevices": ["head"]}')
    done = platform.run(*arguments, check=False)
    assert done.returncode == 1, done.stdout
    assert f'pillar: unknown key "sevices"; {words}' in done.stdout
    assert "Total states run:     1" in done.stdout
    assert platform.containers() == before


def test_chosen_services_alone_are_deployed(platform, as_it_was):
    tail = platform.container("tail")
    with (
        platform.service_changed("rate-limiter", pids=350),
        platform.service_changed("tail", pids=350),
    ):
        done = platform.run("llm.deploy", "services=rate-limiter", "--out=json")
        assert "plan: 1 to replace" in done.stderr
        assert "The world has moved" not in done.stderr
        record = json.loads(done.stdout)
        assert record["what"] == "deploy rate-limiter"
        (changed,) = record["changes"]["node1"]
        assert changed == platform.container("rate-limiter")
        assert platform.container("tail") == tail


def test_version_that_cannot_be_built_is_taken_out_again(platform):
    before = (platform.containers(), (platform.folder / ENVIRONMENT).read_text())
    command = ("llm.deploy", "version=rate-limiter:9.9", "services=rate-limiter")
    done = platform.run(*command, check=False)
    assert done.returncode == 1, done.stdout
    assert "go.mod does not name version 9.9" in done.stdout
    assert f"{ENVIRONMENT} is as before" in done.stdout
    assert (platform.containers(), (platform.folder / ENVIRONMENT).read_text()) == before


def test_image_of_ones_own_is_pulled_by_its_digest(platform):
    said = asked(
        platform, "llm.deploy", f"version=rate-limiter:127.0.0.1:9/none@sha256:{'0' * 64}",
        "services=rate-limiter", code=1,
    )  # fmt: skip
    assert "cannot be pulled" in "\n".join(said["why"])


def test_prune_removes_what_nobody_goes_back_to(platform, as_it_was):
    parked = "status=exited"
    ours = ("ps", "-aq", "--filter", f"label=llm.site={platform.name}", "--filter", parked)
    label = ("--filter", f"label=llm.site={platform.name}")
    for pids in (351, 352):
        with platform.service_changed("rate-limiter", pids=pids):
            release(platform, "services=rate-limiter")
    release(platform, "services=rate-limiter")
    image = docker("inspect", "-f", "{{.Image}}", platform.container("rate-limiter"))
    docker("tag", image, "llm/rate-limiter:000000000000")
    docker("tag", image, "llm-test/not-ours:1")
    kept, volumes = docker(*ours).split(), docker("volume", "ls", "-q", *label)
    would = asked(platform, "llm.prune", "keep=1", "test=True")["hosts"]["node1"]
    assert docker(*ours).split() == kept
    before = platform.containers()
    found = asked(platform, "llm.prune", "keep=1")["hosts"]["node1"]
    assert found["containers"] == would["containers"]
    assert [name for name in found["containers"] if "rate-limiter" in name]
    assert platform.containers() == before
    assert docker("volume", "ls", "-q", *label) == volumes
    left = docker("ps", "-a", *label, "--filter", parked, "--format", "{{.Names}}").split()
    # What served in the last stable release before can be gone back to.
    assert [name for name in left if "rate-limiter" in name]
    assert "llm-test/not-ours:1" in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
    docker("rmi", "llm-test/not-ours:1")
    asked(platform, "llm.rollback")
