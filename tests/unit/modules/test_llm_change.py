from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

from _modules import (
    llm_certificate,
    llm_config,
    llm_container,
    llm_docker,
    llm_files,
    llm_image,
    llm_mesh,
    llm_model,
    llm_network,
    llm_preflight,
    llm_service,
    llm_watch,
)
from _modules import llm_change as llm_change_module

CARRIED = ["mesh", "head", "tail"]
TIERS = [["mesh"], ["head"], ["tail"]]
NOTHING = {"operations": [], "changes": {}, "missing": [], "conflicts": []}
REPLACE = {
    "do": "replace",
    "replica": 1,
    "container": "llm-head-1-g2",
    "old": "llm-head-1-g1",
    "strategy": "start-first",
    "tight": [],
    "causes": ["memory 1g → 2g"],
    "steps": [],
    "lane": "head",
}
REMOVE = REPLACE | {"do": "remove", "container": "llm-old-1-g1", "causes": ["it is not wanted"]}
ANSWERS = {  # of a host on which all is as declared
    llm_certificate: {"flaws": [], "authority_flaws": []},
    llm_config: {"tiers": TIERS, "carried": CARRIED},
    llm_container: {"services": CARRIED, "digest": "d", "removal": NOTHING},
    llm_docker: {"missing": []},
    llm_files: {"pending": {}, "folder": "/var/lib/llm/services/old"},
    llm_image: {"pending": {"build": [], "pull": []}},
    llm_mesh: {"services": ["head", "tail"], "endpoints": ["a"], "serving": ["a"]},
    llm_model: {"checksum": "ab"},
    llm_network: {"overlaps": []},
    llm_preflight: {"check": []},
    llm_service: {"outside": []},
    llm_watch: {"maintenance": {}},
}


@pytest.fixture
def folders():
    """The folders that are on this host."""
    return {"/var/lib/llm/services", "/var/lib/llm/models"}


@pytest.fixture
def llm_change(configure_loader, platform, folders):
    salt = {
        f"{module.__virtualname__ if hasattr(module, '__virtualname__') else 'llm_docker'}.{name}":
        create_autospec(getattr(module, name), return_value=answer)
        for module, answers in ANSWERS.items()
        for name, answer in answers.items()
    }  # fmt: skip
    services, network = platform["services"], platform["site"]["network"]
    found = {"ours": True, "subnets": [network["subnet"]]}
    salt |= {
        "llm_config.platform": lambda: platform,
        "llm_config.service": lambda name: services[name],
        "llm_container.list": lambda name: [
            {"name": f"llm-{name}-1-g1", "replica": 1, "state": "running"}
        ],
        "llm_container.plan": create_autospec(llm_container.plan, return_value=NOTHING),
        "llm_image.reference": lambda image: f"llm/{image}:tag",
        "llm_model.need": create_autospec(llm_model.need),
        "llm_network.find": create_autospec(llm_network.find, return_value=found),
        "llm_service.specs": create_autospec(
            llm_service.specs,
            side_effect=lambda name, anew: [
                {"service": name, "replica": replica + 1}
                for replica in range(services[name]["replicas"])
            ],
        ),
        "file.directory_exists": folders.__contains__,
    }
    return configure_loader(llm_change_module, salt=salt)


def planned(llm_change, name, plan):
    """Let the plan of one service be ``plan``."""
    llm_change.__salt__["llm_container.plan"].side_effect = lambda specs, engine_expected: (
        plan if specs[0]["service"] == name else NOTHING
    )


def test_foreseen_of_nothing_to_do(llm_change):
    found = llm_change.foreseen()
    assert (found["preparations"], found["problems"]) == ([], [])
    assert found["services"]["head"] == {
        "tier": 2,
        "actions": [{"action": "none", "replica": 1, "container": "llm-head-1-g1", "causes": []}],
        "traffic": {"effect": "none", "seconds": 0},
        "seconds": 0,
        "files": {},
        "live_files": {},
        "certificate": [],
        "routes": False,
        "maintenance": None,
        "digest": "d",
    }
    assert list(found["services"]) == CARRIED


@pytest.mark.parametrize(("left", "concerned"), [("head", ["head"]), ("node1", CARRIED)])
def test_foreseen_says_what_is_in_maintenance(llm_change, left, concerned):
    entry = {"reason": "a look", "until": 1_800_000_000}
    llm_change.__salt__["llm_watch.maintenance"].return_value = {left: entry}
    said = f"maintenance of {left} until 2027-01-15T08:00:00+00:00: a look"
    services = llm_change.foreseen()["services"]
    assert {name: each["maintenance"] for name, each in services.items()} == dict.fromkeys(
        CARRIED
    ) | dict.fromkeys(concerned, said)


def test_foreseen_is_the_plan_that_is_carried_out(llm_change):
    planned(llm_change, "head", NOTHING | {"operations": [REPLACE]})
    (action,) = llm_change.foreseen()["services"]["head"]["actions"]
    assert (action["action"], action["causes"]) == ("replace", ["memory 1g → 2g"])
    llm_change.__salt__["llm_container.digest"].assert_any_call(NOTHING | {"operations": [REPLACE]})


def test_foreseen_is_what_a_deploy_does_with_what_was_taken_back(llm_change):
    llm_change.foreseen("head")
    for function in ("llm_service.specs", "llm_files.pending"):
        llm_change.__salt__[function].assert_called_once_with("head", anew=True)


@pytest.mark.parametrize(
    ("services", "named"),
    [("head", {"head"}), (["tail", "head"], {"head", "tail"}), ("old", {"old"}), ("nix", set())],
)
def test_foreseen_of_some_services(llm_change, services, named):
    llm_change.__salt__["llm_service.outside"].return_value = ["old"]
    assert llm_change.foreseen(services)["services"].keys() == named


def test_foreseen_of_what_is_outside(llm_change):
    llm_change.__salt__["llm_service.outside"].return_value = ["old"]
    llm_change.__salt__["llm_container.removal"].return_value = NOTHING | {"operations": [REMOVE]}
    old = llm_change.foreseen()["services"]["old"]
    assert old["tier"] is None
    assert old["actions"][0]["action"] == "remove"
    assert old["traffic"]["effect"] == "ends"
    assert old["files"] == {"/var/lib/llm/services/old": "remove"}


def test_foreseen_tells_live_files_from_those_read_at_the_start(llm_change):
    pending = {"bootstrap.yaml": "change", "listeners.yaml": "create"}
    llm_change.__salt__["llm_files.pending"].side_effect = lambda name, anew: (
        pending if name == "tail" else {}
    )
    tail = llm_change.foreseen()["services"]["tail"]
    assert tail["files"] == {"bootstrap.yaml": "change"}
    assert tail["live_files"] == {"listeners.yaml": "create"}


def test_foreseen_of_requests_that_go_elsewhere(llm_change):
    llm_change.__salt__["llm_mesh.endpoints"].return_value = ["b"]
    services = llm_change.foreseen()["services"]
    assert {name: found["routes"] for name, found in services.items()} == {
        "mesh": False, "head": True, "tail": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "answer", "expected"),
    [
        (
            "llm_network.find",
            None,
            {"what": "network", "name": "llm-network", "do": "create", "causes": ["there is none"]},
        ),
        (
            "llm_certificate.authority_flaws",
            ["there is none"],
            {"what": "authority", "name": "llm", "do": "make", "causes": ["there is none"]},
        ),
        (
            "llm_image.pending",
            {"build": ["llm/head:tag"], "pull": []},
            {"what": "image", "name": "head 1.106.2", "do": "build", "causes": ["for head"]},
        ),
        (
            "llm_image.pending",
            {"build": ["llm/envoy:tag"], "pull": []},
            {"what": "image", "name": "envoy 1.40.0", "do": "build", "causes": ["for mesh, tail"]},
        ),
    ],
)
def test_foreseen_names_what_is_prepared(llm_change, function, answer, expected):
    llm_change.__salt__[function].return_value = answer
    found = llm_change.foreseen()
    assert (found["preparations"], found["problems"]) == ([expected], [])


def test_foreseen_names_the_files_that_an_envoy_starts_with(llm_change):
    llm_change.__salt__["llm_mesh.endpoints"].side_effect = {"head": None, "tail": ["a"]}.get
    (routes,) = llm_change.foreseen()["preparations"]
    assert (routes["what"], routes["name"], routes["do"]) == ("routes", "head", "create")


MODEL = {"url": "https://x/qwen.gguf", "sha256": "AB"}


@pytest.mark.parametrize(
    ("here", "size", "causes"),
    [
        ("ab", 5, None),
        (None, 5 << 30, ["it is not here", "5g from https://x/qwen.gguf"]),
        ("cd", None, ["it is another", "an unknown size from https://x/qwen.gguf"]),
    ],
)
def test_foreseen_of_models(llm_change, platform, here, size, causes):
    platform["site"]["models"] = {"qwen": MODEL, "tiny": {"generated": True}}
    llm_change.__salt__["llm_model.checksum"].return_value = here
    need = {"source": MODEL["url"], "size": size, "free": 9 << 30}
    llm_change.__salt__["llm_model.need"].return_value = need
    found = llm_change.foreseen()["preparations"]
    expected = {"what": "model", "name": "qwen", "do": "fetch", "causes": causes}
    assert found == ([expected] if causes else [])


def test_foreseen_of_a_model_that_does_not_fit(llm_change, platform):
    platform["site"]["models"] = {"qwen": MODEL}
    llm_change.__salt__["llm_model.checksum"].return_value = None
    need = {"source": MODEL["url"], "size": 2 << 30, "free": 1 << 30}
    llm_change.__salt__["llm_model.need"].return_value = need
    assert llm_change.foreseen()["problems"] == [
        "Model qwen from https://x/qwen.gguf needs 2g, 1g are free"
    ]


def test_foreseen_without_an_engine_creates_everything(llm_change, folders):
    folders.clear()
    salt = llm_change.__salt__
    for name in ("llm_container.services", "llm_network.find", "llm_image.pending"):
        salt[name].side_effect = CommandExecutionError("no engine")
    salt["llm_docker.missing"].return_value = ["docker.io"]
    found = llm_change.foreseen()
    assert found["problems"] == []
    assert [(each["what"], each["do"]) for each in found["preparations"]] == [
        ("engine", "install"),
        ("engine", "start"),
        ("network", "create"),
        ("image", "build"),
        ("image", "build"),
        ("folder", "create"),
    ]
    assert not salt["llm_service.outside"].called


def test_foreseen_of_an_engine_that_is_down_cannot_tell(llm_change):
    llm_change.__salt__["llm_container.services"].side_effect = CommandExecutionError("no engine")
    llm_change.__salt__["llm_network.find"].side_effect = CommandExecutionError("no engine")
    assert llm_change.foreseen()["problems"] == [
        "The container engine does not answer: what it runs cannot be told"
    ]


@pytest.mark.parametrize(
    ("function", "answer", "words"),
    [
        ("llm_preflight.check", ["node1: memory: found 1g"], "node1: memory: found 1g"),
        ("llm_network.find", {"ours": False, "subnets": []}, "Network llm-network is not as"),
        ("llm_files.pending", CommandExecutionError("salt://head: no"), "salt://head: no"),
        ("llm_container.plan", NOTHING | {"conflicts": ["not ours"]}, "not ours"),
    ],
)
def test_foreseen_tells_for_what_a_deploy_would_fail(llm_change, function, answer, words):
    mock = llm_change.__salt__[function]
    mock.side_effect = answer if isinstance(answer, Exception) else None
    mock.return_value = answer
    (problem,) = llm_change.foreseen()["problems"]
    assert problem.startswith(words)


def test_foreseen_of_a_subnet_that_overlaps(llm_change):
    llm_change.__salt__["llm_network.find"].return_value = None
    llm_change.__salt__["llm_network.overlaps"].return_value = ["network other (172.30.0.0/24)"]
    (problem,) = llm_change.foreseen()["problems"]
    assert problem == ("172.30.0.0/20 overlaps with network other (172.30.0.0/24): choose another")
