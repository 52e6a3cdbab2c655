import collections
import json
import pathlib
from unittest.mock import create_autospec

import llm_engine
import psutil
import pytest
from salt.exceptions import CommandExecutionError
from salt.utils.state import job_queue_dir, state_queue_dir

from _modules import llm_config, llm_container, llm_model, llm_service
from _modules import llm_preflight as llm_preflight_module

GIB = 1 << 30
CARRIED = ["mesh", "ingress", "cache", "model-proxy", "head", "rate-limiter", "tail"]
INGRESS = "a" * 64
OTHER = "b" * 64
Memory = collections.namedtuple("Memory", "total available")
Disk = collections.namedtuple("Disk", "free")
Address = collections.namedtuple("Address", "ip port")
Connection = collections.namedtuple("Connection", "laddr status pid")


def container(name, identifier=OTHER, service=None, state="running", ports=()):
    """What the engine's list says of a container."""
    labels = {"llm.site": "llm", "llm.service": service} if service else None
    published = [{"PublicPort": port, "Type": "tcp"} for port in ports]
    return {
        "Id": identifier,
        "Names": [f"/{name}"],
        "Labels": labels,
        "State": state,
        "Ports": published,
    }


def listening(port, pid):
    return Connection(Address("0.0.0.0", port), psutil.CONN_LISTEN, pid)


@pytest.fixture
def info():
    """What the engine says of itself."""
    return {
        "ServerVersion": "20.10.24+dfsg1",
        "OSType": "linux",
        "MemoryLimit": True,
        "CpuCfsQuota": True,
        "PidsLimit": True,
        "NCPU": 2,
        "DockerRootDir": "/var/lib/docker",
        "Runtimes": {"runc": {}},
    }


@pytest.fixture
def images():
    return []


@pytest.fixture
def engine(monkeypatch, info, images):
    answers = {"/info": info, "/images/json": images}
    engine = create_autospec(llm_engine.Engine, instance=True)
    engine.request.side_effect = lambda method, path, **_: json.dumps(answers[path]).encode()
    engine.containers.return_value = []
    monkeypatch.setattr(llm_preflight_module, "_engine", lambda: engine)
    return engine


@pytest.fixture
def host(monkeypatch):
    """What this host has; a test changes it."""
    host = {"memory": Memory(16 * GIB, 12 * GIB), "free": 50 * GIB, "listening": [], "gpus": []}
    host |= {"room": {}, "plans": {}}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: host["memory"])
    monkeypatch.setattr(psutil, "net_connections", lambda kind: host["listening"])
    module = llm_preflight_module
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Disk(host["free"]))
    monkeypatch.setattr(module.shutil, "which", lambda program: None)
    glob = module.glob.glob
    nvidia = "/dev/nvidia[0-9]*"
    monkeypatch.setattr(module.glob, "glob", lambda p: host["gpus"] if p == nvidia else glob(p))
    return host


@pytest.fixture
def llm_preflight(configure_loader, platform, engine, host):
    salt = {
        "llm_config.platform": create_autospec(llm_config.platform, return_value=platform),
        "llm_config.carried": create_autospec(llm_config.carried, return_value=CARRIED),
        "llm_model.checksum": create_autospec(llm_model.checksum, return_value=None),
        "llm_model.need": create_autospec(llm_model.need, return_value={"size": 3 * GIB}),
        "llm_service.room": create_autospec(llm_service.room, side_effect=host["room"].get),
        "llm_service.specs": create_autospec(llm_service.specs, side_effect=lambda name: [name]),
        "llm_container.plan": create_autospec(
            llm_container.plan, side_effect=lambda specs: host["plans"][specs[0]]
        ),
    }
    return configure_loader(llm_preflight_module, salt=salt)


def test_check_of_a_fit_host_finds_nothing(llm_preflight):
    assert llm_preflight.check() == []


def test_check_names_all_problems_at_once(llm_preflight, host, platform, info):
    host |= {"memory": Memory(1 * GIB, GIB), "free": GIB}
    platform["services"]["head"] |= {"cpus": 9, "devices": ["/dev/nix"], "gpus": 1}
    info["PidsLimit"] = False
    problems = llm_preflight.check()
    what = [problem.split(": ")[1] for problem in problems]
    assert what == ["engine", "memory", "CPU", "CPU", "disk", "device", "GPU", "GPU"]
    for problem in problems:
        assert problem.startswith("node1: ")
        assert ", needed " in problem
        assert "; " in problem
        assert "\n" not in problem


def test_check_without_an_engine(llm_preflight, engine):
    engine.request.side_effect = CommandExecutionError("the engine does not answer")
    (problem,) = llm_preflight.check()
    assert problem.startswith("node1: engine: found the engine does not answer, needed an engine")
    assert llm_preflight.check(engine_expected=False) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ServerVersion", "19.03.15", "found version 19.03.15, needed 20.10 or later"),
        ("OSType", "windows", "found one for windows, needed one for linux"),
        ("MemoryLimit", False, "no support for memory limits"),
        ("CpuCfsQuota", False, "no support for CPU limits"),
        ("PidsLimit", False, "no support for pids limits"),
    ],
)
def test_check_of_an_unfit_engine(llm_preflight, info, key, value, words):
    info[key] = value
    (problem,) = llm_preflight.check()
    assert words in problem


@pytest.mark.parametrize("version", ["20.10.24+dfsg1", "26.1.5", "100.0"])
def test_check_of_a_fit_engine(llm_preflight, info, version):
    info["ServerVersion"] = version
    assert llm_preflight.check() == []


def test_check_of_a_host_with_too_little_memory(llm_preflight, host, platform):
    platform["services"]["head"] |= {"memory": 8 * GIB, "replicas": 2}
    (problem,) = llm_preflight.check()
    assert "memory: found 16g in all, needed 17.8g for its services' limits" in problem
    assert "256m in reserve" in problem


def test_check_of_a_host_whose_memory_is_taken(llm_preflight, host):
    host["memory"] = Memory(16 * GIB, 1 * GIB)
    (problem,) = llm_preflight.check()
    assert "found 1g available, needed 2.75g for containers that do not run yet" in problem


def test_check_of_a_host_whose_memory_we_take_ourselves(llm_preflight, host, engine):
    host["memory"] = Memory(16 * GIB, 1 * GIB)
    engine.containers.return_value = [container(name, service=name) for name in CARRIED]
    assert llm_preflight.check() == []


def test_check_counts_the_replicas_that_are_to_come(llm_preflight, host, engine, platform):
    host["memory"] = Memory(16 * GIB, 1 * GIB)
    platform["services"]["head"]["replicas"] = 2
    engine.containers.return_value = [container(name, service=name) for name in CARRIED]
    engine.containers.return_value.append(container("old", service="head", state="exited"))
    (problem,) = llm_preflight.check()
    assert "needed 1g for containers that do not run yet" in problem


def test_check_of_a_limit_larger_than_the_host(llm_preflight, platform):
    platform["services"]["head"]["cpus"] = 3
    (problem,) = llm_preflight.check()
    assert "CPU: found 2, needed 3 for one container of head" in problem


def test_check_of_all_cpu_limits(llm_preflight, platform):
    platform["preflight"]["cpu_overcommit"] = 1.0
    (problem,) = llm_preflight.check()
    assert "found 2 (with cpu_overcommit 1: 2), needed 5 for its services' limits" in problem


def test_check_of_a_full_disk(llm_preflight, host):
    host["free"] = 5 * GIB
    (problem,) = llm_preflight.check()
    assert "disk: found 5g free for /var/lib/docker and /var/lib/llm, needed 6g" in problem


@pytest.mark.parametrize(("free", "problems"), [(1 * GIB, 0), (GIB // 2, 1)])
def test_check_of_the_disk_is_milder_once_images_are_there(
    llm_preflight, host, images, platform, free, problems
):
    host["free"] = free
    platform["services"]["head"]["image"] = "registry/head@sha256:abc"
    for image in ("envoy", "cache", "model-proxy", "rate-limiter"):
        images.append({"Labels": {"llm.image": image}, "RepoTags": None, "RepoDigests": None})
    own = ["registry/head@sha256:abc"]
    images.append({"Labels": None, "RepoTags": ["<none>:<none>"], "RepoDigests": own})
    assert len(llm_preflight.check()) == problems
    images.pop()
    assert len(llm_preflight.check()) == 1


def running(service, memory):
    parts = json.dumps({"memory": memory})
    found = container(f"llm-{service}-1-g1", service=service)
    return found | {"Labels": found["Labels"] | {"llm.parts": parts}}


REPLACED = {"operations": [{"tight": ["memory lacks 1g for both at once"]}]}
KEPT = {"operations": []}
REFUSED = (
    "node1: memory: found 1g too little, needed room for two generations of head; lower limits in "
    "pillar/environments, or let it be stopped first (when_tight: stop-first)"
)


@pytest.mark.parametrize(
    ("plan", "knobs", "memory", "problems"),
    [
        pytest.param(REPLACED, {}, 3, [REFUSED], id="replaced"),
        pytest.param(KEPT, {}, 3, [], id="kept"),
        pytest.param(REPLACED, {"when_tight": "stop-first"}, 3, [], id="may-be-stopped"),
        pytest.param(REPLACED, {"strategy": "stop-first"}, 3, [], id="is-stopped"),
        pytest.param(REPLACED, {}, 4, [], id="room"),
    ],
)
def test_check_of_the_room_for_two_generations(
    llm_preflight, platform, engine, host, plan, knobs, memory, problems
):
    platform["services"]["head"] |= {"memory": GIB} | knobs
    engine.containers.return_value = [running("head", GIB), running("cache", 2 * GIB)]
    host["room"] |= {"head": {"memory": memory * GIB, "taken": {}}}
    host["room"] |= {"cache": {"memory": memory * GIB, "taken": {}}}
    host["plans"] |= {"head": plan}
    assert llm_preflight.check() == problems


def test_check_asks_for_no_plan_of_what_does_not_run_yet(llm_preflight, host):
    assert llm_preflight.check() == []
    assert not llm_preflight.__salt__["llm_container.plan"].called


@pytest.fixture
def qwen(platform):
    """A model of site.yaml that is a file."""
    model = {"path": "/srv/qwen.gguf", "sha256": 64 * "a", "file": "qwen.gguf"}
    platform["site"]["models"]["qwen"] = model
    return model


def test_check_of_room_for_models(llm_preflight, host, qwen):
    host["free"] = 8 * GIB
    (problem,) = llm_preflight.check()
    assert "disk: found 8g free for /var/lib/docker and /var/lib/llm" in problem
    assert ", needed 6g and 3g for models; " in problem
    llm_preflight.__salt__["llm_model.need"].assert_called_once_with("qwen", path="/srv/qwen.gguf")


def test_check_of_models_that_are_here_already(llm_preflight, host, qwen):
    host["free"] = 8 * GIB
    llm_preflight.__salt__["llm_model.checksum"].return_value = qwen["sha256"]
    assert llm_preflight.check() == []
    assert not llm_preflight.__salt__["llm_model.need"].called


def test_check_of_models_on_a_host_that_reads_none(llm_preflight, platform, qwen):
    platform["services"]["model-proxy"]["models"] = False
    assert llm_preflight.check() == []
    assert not llm_preflight.__salt__["llm_model.need"].called


def test_check_of_a_model_that_cannot_be_had(llm_preflight, qwen):
    words = "source file /srv/qwen.gguf missing on host node1"
    llm_preflight.__salt__["llm_model.need"].side_effect = CommandExecutionError(words)
    (problem,) = llm_preflight.check()
    assert problem.startswith(f"node1: model qwen: found {words}, needed its file; put it there")


def test_check_of_a_model_whose_size_nobody_knows(llm_preflight, qwen):
    llm_preflight.__salt__["llm_model.need"].return_value = {"size": None}
    assert llm_preflight.check() == []


def test_check_of_the_users_own_certificate(llm_preflight, platform, tmp_path):
    (tmp_path / "key.pem").touch()
    own = {"certificate": f"{tmp_path}/cert.pem", "key": f"{tmp_path}/key.pem"}
    platform["site"]["public_certificate"] = own
    (problem,) = llm_preflight.check()
    missing = f"source file {tmp_path}/cert.pem missing on host node1"
    assert problem.startswith(f"node1: certificate: found {missing}, needed it; put it there")
    platform["services"]["tail"]["certificate"] = "internal"
    assert llm_preflight.check() == []


@pytest.fixture
def process(monkeypatch, tmp_path):
    """A function that sets who process 42 is."""

    def be(groups, exe="/usr/sbin/nginx", name="nginx"):
        folder = tmp_path / "42"
        folder.mkdir()
        (folder / "cgroup").write_text(groups)
        monkeypatch.setattr(llm_preflight_module, "PROC", str(tmp_path))
        found = create_autospec(psutil.Process, instance=True)
        found.exe.return_value = exe
        found.name.return_value = name
        monkeypatch.setattr(psutil, "Process", lambda pid: found)

    return be


@pytest.mark.parametrize("port", [8443, 15443])
def test_check_of_a_port_that_a_process_holds(llm_preflight, host, process, port):
    process("0::/system.slice/nginx.service")
    host["listening"] = [listening(port, 42), listening(80, 43)]
    (problem,) = llm_preflight.check()
    assert f"port {port}: found it held by process 42 (nginx, /usr/sbin/nginx)" in problem
    assert "_port in pillar/site.yaml" in problem


def test_check_of_a_port_that_a_container_holds(llm_preflight, host, process, engine):
    process(f"12:memory:/docker/{OTHER}\n")
    engine.containers.return_value = [container("squatter")]
    host["listening"] = [listening(8443, 42)]
    (problem,) = llm_preflight.check()
    assert "found it held by container squatter, needed it for the ingress" in problem


def test_check_of_a_port_that_a_container_publishes(llm_preflight, host, process, engine):
    process("0::/", exe="/usr/bin/docker-proxy", name="docker-proxy")
    engine.containers.return_value = [container("squatter", ports=[8443, 80])]
    host["listening"] = [listening(8443, 42)]
    (problem,) = llm_preflight.check()
    assert "found it held by container squatter, needed" in problem
    host["listening"] = []
    (problem,) = llm_preflight.check()
    assert "found it held by container squatter, needed" in problem


def test_check_of_a_port_that_our_ingress_holds(llm_preflight, host, process, engine):
    process(f"0::/system.slice/docker-{INGRESS}.scope")
    engine.containers.return_value = [container("llm-ingress-1-g1", INGRESS, service="ingress")]
    host["listening"] = [listening(8443, 42), listening(15443, 42)]
    assert llm_preflight.check() == []


def test_check_of_a_port_that_another_sites_ingress_holds(llm_preflight, host, process, engine):
    process(f"0::/system.slice/docker-{INGRESS}.scope")
    other = container("own-ingress-1-g1", INGRESS, service="ingress")
    other["Labels"]["llm.site"] = "own"
    engine.containers.return_value = [other]
    host["listening"] = [listening(8443, 42)]
    (problem,) = llm_preflight.check()
    assert "held by container own-ingress-1-g1" in problem


def test_check_of_a_port_that_somebody_unseen_holds(llm_preflight, host):
    host["listening"] = [listening(8443, None)]
    (problem,) = llm_preflight.check()
    assert "held by a process that cannot be seen" in problem


@pytest.mark.parametrize(
    ("gpus", "there", "problems"),
    [(1, [], 1), (2, ["/dev/nvidia0"], 1), ("all", [], 1), ("all", ["/dev/nvidia0"], 0)],
)
def test_check_of_gpus(llm_preflight, host, info, platform, gpus, there, problems):
    info["Runtimes"]["nvidia"] = {}
    host["gpus"] = there
    platform["services"]["model-proxy"]["gpus"] = gpus
    found = llm_preflight.check()
    assert len(found) == problems
    for problem in found:
        assert f"GPU: found {len(there)}, needed {gpus} for model-proxy" in problem


def test_check_of_gpus_without_their_runtime(llm_preflight, host, platform):
    host["gpus"] = ["/dev/nvidia0"]
    platform["services"]["model-proxy"]["gpus"] = 1
    (problem,) = llm_preflight.check()
    assert "found no runtime for containers, needed one for model-proxy" in problem


@pytest.mark.parametrize(("device", "problems"), [("/dev/null", 0), ("/dev/nix", 1)])
def test_check_of_devices(llm_preflight, platform, device, problems):
    platform["services"]["model-proxy"]["devices"] = [device]
    assert len(llm_preflight.check()) == problems


@pytest.mark.parametrize("folder", [state_queue_dir, job_queue_dir])
def test_check_of_left_over_queued_runs(llm_preflight, folder):
    queue = pathlib.Path(folder(llm_preflight.__opts__))
    queue.mkdir(parents=True)
    (queue / "running_1_2.p").touch()
    assert llm_preflight.check() == []
    (queue / "queued_1_2.p").touch()
    (problem,) = llm_preflight.check()
    assert "queue: found 1 queued run that may start at any time, needed none" in problem
    assert problem.endswith(f"; remove: rm {queue}/queued_1_2.p")
