from unittest.mock import create_autospec, patch

import llm_spec
import pytest

from _modules import llm_config, llm_container, llm_health
from _modules import llm_service as llm_service_module


@pytest.fixture
def pending():
    """The files that are not on this host as they should be."""
    return {}


@pytest.fixture
def llm_service(configure_loader, platform, pending):
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


def _container(version, state="running"):
    found = {"name": f"llm-head-{version}", "version": version, "state": state, "restarts": 0}
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
