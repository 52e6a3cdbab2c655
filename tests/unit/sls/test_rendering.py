"""
Every SLS file under every kind of pillar, with Salt's own compiler.
"""

import pathlib

import llm_catalogue
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def _names(folder):
    """Return the names of the SLS files under a folder, as `state.apply` takes them."""
    paths = (path.relative_to(REPOSITORY / folder) for path in (REPOSITORY / folder).rglob("*.sls"))
    names = (path.with_suffix("").as_posix().replace("/", ".") for path in paths)
    return sorted(name.removesuffix(".init") for name in names if name != "top")


STATES = [name for name in _names("salt") if not name.startswith("orch.")]
ORCHESTRATIONS = [f"orch.{name}" for name in _names("orch")]
ROLES = {
    "node1": ["cache", "model-proxy", "rate-limiter"],
    "node2": ["head", "tail"],
}


def _of(host, pillar):
    """Return the pillar of one of its hosts, or of the master."""
    hosts = pillar["site"]["hosts"]
    pillar |= {"host": host, "roles": hosts[host]["roles"] if host in hosts else []}
    if not pillar["roles"]:
        pillar.pop("secrets")
    return {"llm": pillar}


def _environment(name):
    return lambda pillar: pillar(name)


def _two_hosts(pillar):
    found = pillar("production")
    found["site"]["hosts"] = {
        name: {"address": f"10.0.0.{number}", "roles": roles}
        for number, (name, roles) in enumerate(ROLES.items(), 1)
    }
    return found


def _idle_host(pillar):
    found = pillar("dev")
    found["site"]["hosts"]["node1"]["address"] = "10.0.0.1"
    found["site"]["hosts"]["node2"] = {"address": "10.0.0.2", "roles": []}
    return found


def _own_models(pillar):
    found = pillar("dev")
    found["site"]["models"] = {
        "qwen": {"url": "https://example.org/qwen.gguf", "sha256": "ab" * 32, "context": 4096},
        "mine": {"path": "/srv/mine.gguf", "sha256": "cd" * 32},
        "gpt": {
            "provider": "openai",
            "model": "gpt-4o-mini",
            "secret": "providers.openai",
            "fallbacks": ["qwen"],
        },
    }
    found["secrets"] = found["secrets"] | {"providers": {"openai": "canary-provider"}}
    found["services"]["model-proxy"]["image"] = "vllm/vllm-openai@sha256:" + "ef" * 32
    return found


SOUND = {
    "dev": (_environment("dev"), "node1"),
    "staging": (_environment("staging"), "node1"),
    "production": (_environment("production"), "node1"),
    "first of two hosts": (_two_hosts, "node1"),
    "second of two hosts": (_two_hosts, "node2"),
    "a host that carries nothing": (_idle_host, "node2"),
    "own models and image": (_own_models, "node1"),
}


@pytest.fixture(scope="module", params=SOUND.values(), ids=SOUND)
def sound(request, compiler, compile_pillar):
    """The compiler of a host whose pillar is sound, and that pillar."""
    pillar, host = request.param
    pillar = _of(host, pillar(compile_pillar))
    return compiler(host, pillar), pillar["llm"]


def test_every_sls_compiles_alone(sound):
    compiler, pillar = sound
    assert llm_catalogue.problems(pillar, host=pillar["host"]) == []
    errors = {name: compiler.sls(name)[0] for name in STATES}
    assert {name: found for name, found in errors.items() if found} == {}


@pytest.mark.parametrize(
    ("truth", "function"), [("running", "llm_container"), ("healthy", "llm_health")]
)
def test_top_has_what_the_host_carries(sound, truth, function):
    compiler, pillar = sound
    errors, states = compiler.top()
    assert errors == []
    every = {name for name, service in pillar["services"].items() if service.get("every_host")}
    found = {
        each["name"]
        for each in states
        if each["__id__"] == f"{each['name']} is {truth}" and each["state"] == function
    }
    assert found == every | set(pillar["roles"])


def test_models_are_brought_where_a_service_reads_them(sound):
    compiler, pillar = sound
    models = pillar["site"]["models"].items()
    files = {name for name, model in models if "sha256" in model}
    for sls in ("cache.running", "head.running", "model-proxy.running", "models"):
        _, states = compiler.sls(sls)
        found = {each["name"] for each in states if each["state"] == "llm_model"}
        reads = sls in ("model-proxy.running", "models") and "model-proxy" in pillar["roles"]
        assert found == (files if reads else set())


def test_ingress_waits_for_a_kernel_that_hands_connections_on(sound):
    errors, states = sound[0].sls("ingress.running")
    assert errors == []
    (setting,) = (each["__id__"] for each in states if each["state"] == "sysctl")
    (ingress,) = (each for each in states if each["__id__"] == "ingress is running")
    assert {"sysctl": setting} in ingress["require"]


def test_ids_are_sentences(sound):
    _, states = sound[0].top()
    assert [each["__id__"] for each in states if " " not in each["__id__"]] == []


@pytest.fixture(scope="module", params=["dev", "two hosts"])
def master(request, compiler, compile_pillar):
    """The compiler of an orchestration, whose minion id is the master's."""
    pillar = compile_pillar("dev") if request.param == "dev" else _two_hosts(compile_pillar)
    return compiler("node1_master", _of("node1_master", pillar))


@pytest.mark.parametrize("name", ORCHESTRATIONS)
def test_orchestration_takes_step_after_step(master, name):
    errors, steps = master.sls(name)
    assert errors == []
    steps = [step for step in steps if step["__sls__"] != "checked"]
    if any("onfail" in step for step in steps):
        # What goes back waits for the end of all, and comes when it is not reached.
        *steps, back = steps
        assert [next(iter(each.values())) for each in back["onfail"]] == [steps[-1]["__id__"]]
    needs = [[next(iter(need.values())) for need in step.get("require", ())] for step in steps]
    ids = [step["__id__"] for step in steps]
    assert needs == [[], *([each] for each in ids[:-1])]
    assert [
        step for step in steps if "batch" in step or "queue" in step or "failhard" in step
    ] == []
    assert all(isinstance(step["tgt"], list) for step in steps if step["state"] == "salt")


CANARY = {"service": "head", "weight": 10, "window": 5}


def test_deploy_of_chosen_services_leaves_the_others(compiler, compile_pillar):
    pillar = _of("node1_master", compile_pillar("dev")) | {"llm_services": ["tail", "cache"]}
    errors, steps = compiler("node1_master", pillar).sls("orch.deploy")
    assert errors == []
    names = [name for step in steps if step["state"] == "salt" for name in step["sls"]]
    assert names[-4:] == ["cache.running", "cache.healthy", "tail.running", "tail.healthy"]


def test_canary_is_proved_before_its_service_is_deployed(compiler, compile_pillar):
    given = {"llm_services": ["head"], "llm_canary": CANARY}
    pillar = _of("node1_master", compile_pillar("dev")) | given
    errors, steps = compiler("node1_master", pillar).sls("orch.deploy")
    assert errors == []
    ids = [step["__id__"] for step in steps]
    first = ids.index("A canary of head runs")
    assert ids[first : first + 4] == [
        "A canary of head runs",
        "The canary of head is compared with what serves",
        "head is healthy",
        "The canary of head is gone",
    ]
    assert steps[first]["pillar"]["llm_canary"] == CANARY
    for name in ("running", "absent"):
        pillar = _of("node1", compile_pillar("dev")) | {"llm_canary": CANARY}
        errors, states = compiler("node1", pillar).sls(f"canary.{name}")
        assert errors == []
        (state,) = [each for each in states if each["state"] == "llm_canary"]
        assert (state["name"], state["fun"]) == ("head", name)


INVALID = {
    "a wrong port": lambda pillar: pillar["site"].update(public_port=84430),
    "no network": lambda pillar: pillar["site"].pop("network"),
    "no site": lambda pillar: pillar.pop("site"),
    "no services": lambda pillar: pillar.pop("services"),
    "a cycle": lambda pillar: pillar["services"]["cache"].update(needs=["head"]),
    "nothing": lambda pillar: pillar.clear(),
}


@pytest.fixture(scope="module", params=INVALID.values(), ids=INVALID)
def invalid(request, compile_pillar):
    """A pillar with a mistake."""
    pillar = compile_pillar()
    request.param(pillar)
    return {"llm": pillar}


@pytest.fixture(scope="module")
def misled(compiler, invalid):
    """The compiler of a host with that pillar."""
    return compiler("node1", invalid)


def test_every_sls_of_an_invalid_pillar_says_so_and_no_more(misled):
    # What the engine is, no pillar tells; what is absent, the name of the service tells.
    names = [name for name in STATES if not name.startswith("docker") and ".absent" not in name]
    for name in [*names, "canary.absent", "docker", "docker.network"]:
        errors, states = misled.sls(name)
        assert errors == []
        assert [each["__id__"] for each in states] == ["The configuration is valid"]


def test_top_of_an_invalid_pillar_says_so_and_no_more(misled):
    errors, states = misled.top()
    assert errors == []
    assert [each["__id__"] for each in states] == ["The configuration is valid"]


@pytest.mark.parametrize("name", ["orch.deploy", "orch.rollback", "orch.teardown"])
def test_orchestration_of_what_it_does_not_take_says_so_and_no_more(compiler, compile_pillar, name):
    pillar = _of("node1_master", compile_pillar("dev")) | {"sevices": ["head"]}
    errors, steps = compiler("node1_master", pillar).sls(name)
    assert errors == []
    assert [each["state"] for each in steps] == ["llm_config"]


@pytest.mark.parametrize("name", ["orch.deploy", "orch.rollback", "orch.teardown"])
def test_orchestration_of_an_invalid_pillar_says_so_and_no_more(compiler, invalid, name):
    errors, steps = compiler("node1_master", invalid).sls(name)
    assert errors == []
    assert [each["state"] for each in steps] == ["llm_config"]
