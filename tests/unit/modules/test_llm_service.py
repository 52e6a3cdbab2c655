from unittest.mock import create_autospec, patch

import llm_catalogue
import llm_spec
import pytest
from salt.exceptions import CommandExecutionError

from _modules import (
    llm_config,
    llm_container,
    llm_deploy,
    llm_files,
    llm_health,
    llm_mesh,
    llm_watch,
)
from _modules import llm_service as llm_service_module

CARRIED = ["mesh", "ingress", "cache", "model-proxy", "head", "rate-limiter", "tail"]
MIB = 1024**2


@pytest.fixture
def pending():
    """The files that are not on this host as they should be."""
    return {}


@pytest.fixture
def refused():
    """What was taken back, by service."""
    return {}


@pytest.fixture
def llm_service(configure_loader, platform, pending, refused):
    def digests(name):
        files = platform["services"][name]["files"]
        return {
            "files": dict.fromkeys(files, "digest"),
            "secrets": {},
            "directory": f"/var/lib/llm/services/{name}/config/digest" if files else None,
        }

    return configure_loader(
        llm_service_module,
        salt={
            "llm_config.platform": lambda: platform,
            "llm_image.reference": lambda image: f"llm/{image}:tag",
            "llm_files.digests": digests,
            "llm_files.pending": lambda name: pending,
            "llm_deploy.refused": create_autospec(llm_deploy.refused, side_effect=refused.get),
            "llm_config.carried": lambda: CARRIED,
            "llm_watch.notes": create_autospec(llm_watch.notes, return_value={"head": "given up"}),
        },
    )


def test_specs_are_one_per_replica(llm_service, platform):
    platform["services"]["head"]["replicas"] = 3
    assert [spec["replica"] for spec in llm_service.specs("head")] == [1, 2, 3]


def test_specs_hold_what_the_catalogue_says(llm_service, platform):
    (spec,) = llm_service.specs("head")
    head = platform["services"]["head"]
    assert spec["image"] == "llm/head:tag"
    assert spec["user"] == "10005:10005"
    assert (spec["memory"], spec["cpus"]) == (head["memory"], head["cpus"])
    assert spec["network"] == "llm-network"
    assert spec["addresses"] == "172.30.0.80/28"
    assert spec["health"]["check"] == head["health"]
    assert spec["routed"] is True


@pytest.mark.parametrize(
    ("name", "models", "model"),
    [
        ("head", {"gpt": {"provider": "openai"}, "tiny": {}}, "gpt"),
        ("model-proxy", {"gpt": {"provider": "openai"}, "tiny": {}}, "tiny"),
        ("model-proxy", {"gpt": {"provider": "openai"}}, None),
        ("rate-limiter", {"tiny": {}}, None),
    ],
)
def test_specs_name_a_model_that_the_service_has(llm_service, platform, name, models, model):
    platform["site"]["models"] = {each: {"sha256": "0"} | of for each, of in models.items()}
    (spec,) = llm_service.specs(name)
    assert spec["smoke_test"] == (model and {"secret": f"{name}.key", "model": model})
    assert llm_spec.completed(spec)["smoke_test"] == spec["smoke_test"]


def test_specs_mount_only_what_a_service_uses(llm_service):
    (cache,) = llm_service.specs("cache")
    assert [mount["target"] for mount in cache["mounts"]] == ["/etc/llm"]
    assert cache["volumes"] == {"llm-cache-data": "/data"}
    (tail,) = llm_service.specs("tail")
    targets = {mount["target"]: mount["read_only"] for mount in tail["mounts"]}
    assert targets == {
        "/etc/llm": True,
        "/etc/llm-live": True,
        "/etc/llm-tls": True,
        "/etc/llm-trust": True,
        "/run/llm": False,
    }


def test_specs_name_the_files_that_were_changed_by_hand(llm_service, pending):
    assert llm_service.specs("tail")[0]["edited"] == []
    pending |= {"bootstrap.yaml": "change", "listeners.yaml": "change"}
    assert llm_service.specs("tail")[0]["edited"] == ["bootstrap.yaml"]


def test_specs_hold_the_checksums_of_the_models_that_a_service_reads(llm_service, pillar):
    own = {"path": "/srv/own.gguf", "sha256": 64 * "a"}
    pillar["site"]["models"] |= {"org/own": own, "gpt": {"provider": "openai", "model": "gpt"}}
    pillar["services"]["model-proxy"]["files"] = []
    platform = llm_catalogue.platform(pillar, "node1")
    llm_service.__salt__["llm_config.platform"] = lambda: platform
    llm_service.__salt__["llm_files.digests"] = lambda name: {
        "files": {}, "secrets": {}, "directory": None
    }  # fmt: skip
    assert llm_service.specs("model-proxy")[0]["files"] == {"org%2Fown.gguf": 64 * "a"}
    assert llm_service.specs("head")[0]["files"] == {}


def test_a_command_takes_the_log_level(llm_service, platform):
    platform["log_level"] = "warning"
    (tail,) = llm_service.specs("tail")
    assert tail["command"][-2:] == ["--log-level", "warning"]


def test_the_mesh_bears_the_names_of_all_services(llm_service, platform):
    (mesh,) = llm_service.specs("mesh")
    assert mesh["aliases"] == sorted(platform["services"])
    assert mesh["routed"] is False


def test_the_ingress_is_on_the_network_of_its_host(llm_service):
    (ingress,) = llm_service.specs("ingress")
    assert (ingress["network"], ingress["addresses"], ingress["aliases"]) == ("host", None, [])


def test_specs_of_what_was_taken_back_name_what_serves_instead(llm_service, platform, refused):
    platform["services"]["head"]["replicas"] = 3
    specs = llm_service.specs("head")
    wishes = {str(each["replica"]): llm_spec.wish(llm_spec.completed(each)) for each in specs}
    digests = {"1": "v1:old", "2": "v1:older", "3": None}
    refused["head"] = {"why": "so it is", "wishes": wishes, "digests": digests, "files": {}}
    found = llm_service.specs("head")
    assert [each["replica"] for each in found] == [1, 2]
    assert [each["pinned"] for each in found] == [
        {"digest": "v1:old", "why": "so it is"},
        {"digest": "v1:older", "why": "so it is"},
    ]
    assert llm_service.specs("head", anew=True) == specs
    platform["services"]["head"]["memory"] *= 2
    assert llm_service.specs("head") == [each | {"memory": 2 * each["memory"]} for each in specs]


def test_status_counts_replicas_and_not_containers(llm_service, platform):
    """As an interrupted replacement leaves it: two containers of one replica, none of the other."""
    platform["services"]["head"]["replicas"] = 2
    kept = {"replica": 1, "state": "running", "image": "llm/head:tag", "restarts": 0}
    kept |= {"version": "1"}
    names = ("llm-head-1-g1", "llm-head-1-g2")
    use = dict.fromkeys(("memory", "memory_limit", "cpus", "cpus_limit"), 1)
    llm_service.__salt__ |= {
        "llm_config.carried": lambda: ["head"],
        "llm_container.stats": lambda: dict.fromkeys(names, use),
        "llm_container.list": lambda service: [
            kept | {"name": name, "started_at": f"2026-01-0{day}"}
            for day, name in enumerate(names, 1)
        ],
        "llm_health.ask": lambda name: dict.fromkeys(names, {"ok": True, "answer": "200"}),
    }
    found = llm_service.status()["head"]
    assert (found["wanted"], found["running"], found["healthy"]) == (2, 1, 1)
    assert (found["memory"], found["since"]) == (2, "2026-01-02")


def test_specs_say_how_much_room_there_is(llm_service, platform):
    (spec,) = llm_service.specs("head")
    services = platform["services"]
    assert spec["room"] == llm_service.room("head")
    assert spec["room"]["taken"] == {
        name: services[name]["memory"] for name in ("mesh", "ingress", "cache", "model-proxy")
    }
    assert (spec["when_tight"], spec["version"]) == ("refuse", services["head"]["version"])


def test_room_is_the_memory_of_the_host_without_the_reserve(llm_service, platform, monkeypatch):
    pages = {"SC_PHYS_PAGES": 1000 * MIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(llm_service_module.os, "sysconf", pages.get)
    platform["services"]["mesh"] |= {"memory": 10 * MIB, "replicas": 2}
    platform["preflight"]["memory_reserve"] = 100 * MIB
    assert llm_service.room("ingress") == {"memory": 900 * MIB, "taken": {"mesh": 20 * MIB}}
    platform["preflight"]["memory_reserve"] = 2000 * MIB
    assert llm_service.room("mesh") == {"memory": 0, "taken": {}}


@pytest.fixture
def removal(llm_service, platform, tmp_path):
    """What is on the host, and what is done to it."""
    platform["site"]["root"] = str(tmp_path)
    done = {"changes": {}, "errors": []}
    plan = {"operations": [], "changes": {"llm-old-1-g1": ["remove: it is not wanted"]}}
    salt = {
        "llm_container.services": create_autospec(llm_container.services, return_value=["old"]),
        "llm_container.removal": create_autospec(llm_container.removal, return_value=plan),
        "llm_container.execute": create_autospec(llm_container.execute, return_value=done),
        "llm_files.folder": create_autospec(
            llm_files.folder, side_effect=lambda name: str(tmp_path / "services" / name)
        ),
        "llm_files.remove": create_autospec(llm_files.remove),
        "llm_mesh.close": create_autospec(llm_mesh.close),
    }
    llm_service.__salt__.update(salt)
    return salt


def test_outside_is_what_has_containers_or_files_and_is_not_carried(llm_service, removal, tmp_path):
    removal["llm_container.services"].return_value = ["head", "old"]
    for name in ("head", "older", ".unfinished-1"):
        (tmp_path / "services" / name).mkdir(parents=True)
    assert llm_service.outside() == ["old", "older"]


def test_outside_is_what_another_host_carries(llm_service, removal):
    removal["llm_container.services"].return_value = CARRIED
    llm_service.__salt__["llm_config.carried"] = lambda: CARRIED[:-1]
    assert llm_service.outside() == ["tail"]


def test_withdraw_removes_containers_and_files(llm_service, removal, tmp_path):
    folder = tmp_path / "services" / "old"
    folder.mkdir(parents=True)
    expected = {
        "llm-old-1-g1": ["remove: it is not wanted"],
        str(folder): ["remove: it is not wanted"],
    }
    assert llm_service.withdrawal("old") == expected
    assert not removal["llm_mesh.close"].called
    assert llm_service.withdraw("old") == expected
    removal["llm_mesh.close"].assert_called_once_with("old")
    plan = removal["llm_container.removal"].return_value
    removal["llm_container.execute"].assert_called_once_with(plan)
    removal["llm_files.remove"].assert_called_once_with("old")


def test_withdraw_keeps_the_files_of_what_is_left(llm_service, removal):
    done = {"changes": {}, "errors": ["llm-old-1-g1: it does not stop"]}
    removal["llm_container.execute"].return_value = done
    with pytest.raises(CommandExecutionError, match="it does not stop"):
        llm_service.withdraw("old")
    assert not removal["llm_files.remove"].called


def test_prune_removes_what_is_outside(llm_service, removal):
    removal["llm_container.services"].return_value = ["head", "head-canary", "old"]
    llm_service.prune()
    closed = [call.args for call in removal["llm_mesh.close"].call_args_list]
    assert closed == [("head-canary",), ("old",)]


def _container(version, state="running"):
    found = {"name": f"llm-head-{version}", "version": version, "state": state, "restarts": 0}
    found |= {"replica": 1}
    return found | {"image": "llm/head:1", "started_at": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("containers", "version"),
    [
        ([], None),
        ([_container(None)], None),  # made before versions were noted
        ([_container("1.0")], "1.0"),
        ([_container("1.0", "exited")], None),
        ([_container("2.0"), _container("1.0"), _container("2.0")], "1.0, 2.0"),
    ],
)
def test_status_shows_the_version_that_runs(llm_service, platform, containers, version):
    platform["services"]["head"]["version"] = "3.0"
    answers = {
        "llm_container.stats": create_autospec(llm_container.stats, return_value={}),
        "llm_container.list": create_autospec(llm_container.list_, return_value=containers),
        "llm_health.ask": create_autospec(llm_health.ask, return_value={}),
        "llm_config.carried": create_autospec(llm_config.carried, return_value=["head"]),
    }
    with patch.dict(llm_service.__salt__, answers):
        assert llm_service.status()["head"]["version"] == version


def test_a_version_is_no_part_of_what_makes_a_container(llm_service, platform):
    before = llm_service.specs("head")[0]
    platform["services"]["head"]["version"] = "3.0"
    after = llm_service.specs("head")[0]
    assert after["version"] == "3.0"
    assert llm_spec.wish(llm_spec.completed(before)) == llm_spec.wish(llm_spec.completed(after))
