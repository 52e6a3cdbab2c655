"""
The Envoys take what the templates make of any sound pillar.
"""

import itertools

import llm_catalogue
import pytest
import yaml

from tests.support import certificates
from tests.support.envoy import Envoy, render

SECRETS = {
    "head.key": "key: \"with\" 'odd' #characters",
    "cache.password": "canary",
    "clients": {"default": "*odd: %key", "batch": "{{ odd }}"},
}
HOSTS = {
    "one": {"node1": ["cache", "model-proxy", "head", "rate-limiter", "tail"]},
    "two": {
        "node1": ["tail", "head", "rate-limiter"],
        "node2": ["cache", "model-proxy", "head", "tail"],
    },
    "edge apart": {"node1": ["cache", "model-proxy", "head", "rate-limiter"], "node2": ["tail"]},
}
CASES = list(itertools.product(("dev", "staging", "production"), HOSTS))


def platforms(pillar, hosts):
    """Return the platform as each of ``hosts`` sees it."""
    pillar["site"]["hosts"] = {
        host: {"address": f"10.0.0.{number}", "roles": roles}
        for number, (host, roles) in enumerate(HOSTS[hosts].items(), 1)
    }
    return [llm_catalogue.platform(pillar, host) for host in HOSTS[hosts]]


def canaries(platform):
    """Return the names under which canaries have their endpoint files."""
    return [f"{name}-canary" for name in llm_catalogue.canaries(platform["services"])]


@pytest.mark.parametrize(("environment", "hosts"), CASES)
def test_every_envoy_takes_its_files(environment, hosts, compile_pillar, tmp_path):
    certificates.Authority().issue(tmp_path / "tls", "localhost")
    (tmp_path / "endpoints").mkdir()
    for platform in platforms(compile_pillar(environment), hosts):
        for name in [*platform["services"], *canaries(platform)]:
            (tmp_path / f"endpoints/{name}.yaml").write_text("resources: []")
        for name in ("mesh", "ingress", "tail"):
            folder = tmp_path / platform["host"] / name
            envoy = Envoy(name, platform, SECRETS, folder, tmp_path / "endpoints", tmp_path / "tls")
            assert envoy.validate() == ""


@pytest.mark.parametrize("hosts", HOSTS)
def test_listeners_ask_only_for_clusters_that_exist(hosts, compile_pillar):
    for platform in platforms(compile_pillar(), hosts):
        for name in ("mesh", "ingress", "tail"):
            files = render(name, platform, SECRETS)
            clusters = {found["name"] for found in resources(files, "clusters")}
            assert asked_for(resources(files, "listeners")) <= clusters


def resources(files, kind):
    """Return the resources of a file."""
    return yaml.safe_load(files[f"{kind}.yaml"])["resources"]


def asked_for(found):
    """Return every value of a key that names a cluster."""
    if isinstance(found, list):
        return set().union(*map(asked_for, found))
    if not isinstance(found, dict):
        return set()
    names = {value for key, value in found.items() if key in ("cluster", "cluster_name")}
    return names.union(*map(asked_for, found.values()))


def policies_of(listener):
    """Return who may call, as policies of Envoy's."""
    return listener["filter_chains"][0]["filters"][0]["typed_config"]["rules"]["policies"]


def test_mesh_listens_for_what_is_needed_and_lets_only_callers_in(platform):
    listeners = resources(render("mesh", platform, {}), "listeners")
    assert {found["name"]: sorted(policies_of(found)) for found in listeners} == {
        "cache": ["head", "rate-limiter"],
        "model-proxy": ["head"],
        "head": ["tail"],
        "rate-limiter": ["tail"],
    }


@pytest.mark.parametrize(
    ("subnet", "slot", "address"),
    [
        ("172.30.0.0/20", 5, "172.30.0.80"),
        ("10.1.0.128/25", 7, "10.1.0.240"),
        ("10.255.240.0/20", 255, "10.255.255.240"),
    ],
)
def test_callers_come_from_the_block_of_their_slot(subnet, slot, address, pillar):
    pillar["site"]["network"]["subnet"] = subnet
    pillar["services"]["head"]["slot"] = slot
    files = render("mesh", llm_catalogue.platform(pillar, "node1"), {})
    listener = next(f for f in resources(files, "listeners") if f["name"] == "model-proxy")
    (principal,) = policies_of(listener)["head"]["principals"]
    assert principal["direct_remote_ip"] == {"address_prefix": address, "prefix_len": 28}


def test_ingress_listens_for_other_hosts_only_where_there_are_some(compile_pillar):
    names = {}
    for hosts in HOSTS:
        first = platforms(compile_pillar(), hosts)[0]
        files = render("ingress", first, {})
        names[hosts] = [found["name"] for found in resources(files, "listeners")]
    assert names == {
        "one": ["public"],
        "two": ["public", "hosts"],
        "edge apart": ["public", "hosts"],
    }


def test_secrets_stand_in_live_files_alone(platform):
    for name in ("mesh", "ingress", "tail"):
        files = render(name, platform, SECRETS)
        static = [files[file] for file in platform["services"][name]["files"]]
        assert "odd" not in "".join(static)
    files = render("tail", platform, SECRETS)
    (secret,) = yaml.safe_load(files["head-key.yaml"])["resources"]
    assert secret["generic_secret"]["secret"]["inline_string"] == SECRETS["head.key"]


def limit(unit, requests):
    """Return a limit as the rate limiter reads it."""
    return {"unit": unit, "requests_per_unit": requests}


def test_rate_limiter_counts_each_client(pillar):
    pillar["site"]["clients"] = {"default": {}, "batch": {"requests": 600, "unit": "hour"}}
    platform = llm_catalogue.platform(pillar, "node1")
    files = render("rate-limiter", platform, SECRETS)
    assert yaml.safe_load(files["limits.yaml"]) == {
        "domain": "llm",
        "descriptors": [
            {"key": "client", "value": "batch", "rate_limit": limit("hour", 600)},
            {"key": "client", "value": "default", "rate_limit": limit("minute", 60)},
            {"key": "client", "value": "verify", "rate_limit": limit("minute", 60)},
            {"key": "client", "rate_limit": limit("minute", 60)},
        ],
    }
    assert "REDIS_AUTH=canary\n" in files["settings.env"]
