"""
What is foreseen on the real engine: everything where nothing is, and nothing is touched.
"""

import socket

import pytest
import salt.config

pytestmark = pytest.mark.docker

SERVICES = {"mesh", "ingress", "cache", "model-proxy", "head", "rate-limiter", "tail"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def deployment(site, compile_pillar, repository):
    """A whole platform's pillar that this machine has room for."""
    pillar = compile_pillar()
    pillar["site"] |= {"name": site.name, "root": str(site.folder / "root")}
    pillar["site"] |= {"public_port": free_port(), "hosts_port": free_port()}
    pillar["site"]["network"] |= {"name": site.network, "subnet": "10.214.0.0/20"}
    pillar["preflight"] |= {"cpu_overcommit": 100, "memory_reserve": "1m", "disk_free": "1m"}
    for service in pillar["services"].values():
        service |= {"memory": "16m", "cpus": 0.1}
    names = {name: ["DNS:localhost"] for name in SERVICES}
    site.pillar = {"llm": pillar | {"names": names}}
    ours = ("module_dirs", "pillar", "grains", "test")  # what the site sets
    configuration = {
        "id": "node1",
        "file_client": "local",
        "file_roots": {"base": [str(repository / "salt")]},
        "root_dir": str(site.folder),
        "cachedir": str(site.folder / "cache"),
    }
    opts = salt.config.apply_minion_config(configuration, salt.config.DEFAULT_MINION_OPTS)
    site.opts = {key: value for key, value in opts.items() if key not in ours}
    (site.folder / "cache").mkdir()
    return site


@pytest.mark.parametrize("engine_there", [True, False])
def test_foreseen_of_a_bare_host_creates_everything_and_touches_nothing(deployment, engine_there):
    if not engine_there:
        deployment.opts["docker.url"] = f"unix://{deployment.folder}/nothing.sock"
    with deployment.silence():
        found = deployment.call("llm_change.foreseen")
    assert found["problems"] == []
    assert found["services"].keys() == SERVICES
    for name, service in found["services"].items():
        (action,) = service["actions"]
        assert (action["action"], action["replica"], action["causes"]) == (
            "create", 1, ["there is none"]
        )  # fmt: skip
        assert action["container"] == f"{deployment.name}-{name}-1-g1"
        assert service["traffic"]["effect"] == "starts"
        assert service["seconds"] > 0
    done = {each["what"] for each in found["preparations"]}
    assert {"network", "authority", "folder", "routes"} <= done
    assert ("engine" in done) is not engine_there
    assert not (deployment.folder / "root").exists()
    assert deployment.containers() == {}
    assert "canary-" not in str(found)


@pytest.fixture
def old(deployment, image):
    """Name of a container of a service that the catalogue does not know."""
    spec = {"image": image, "network": "none", "stop_timeout": 1, "command": ["sleep", "600"]}
    ret = deployment.state("llm_container.running", "old", **spec)
    assert ret["result"] is True, ret["comment"]
    return f"{deployment.name}-old-1-g1"


def test_pruned_removes_what_was_foreseen(deployment, old):
    with deployment.silence():
        found = deployment.call("llm_change.foreseen")["services"]["old"]
        foretold = deployment.state("llm_service.pruned", "nothing else", test=True)
    assert found["tier"] is None
    assert [(each["action"], each["container"]) for each in found["actions"]] == [("remove", old)]
    assert found["traffic"]["effect"] == "ends"
    assert foretold["result"] is None
    ret = deployment.state("llm_service.pruned", "nothing else")
    assert ret["result"] is True, ret["comment"]
    assert ret["changes"] == foretold["changes"] == {old: ["remove: it is not wanted"]}
    assert deployment.containers() == {}
    again = deployment.state("llm_service.pruned", "nothing else")
    assert (again["result"], again["changes"]) == (True, {})
