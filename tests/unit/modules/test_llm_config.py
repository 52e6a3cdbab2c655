import json
import os
from unittest.mock import patch

import llm_catalogue
import llm_review
import llm_secret
import pytest
from salt.exceptions import CommandExecutionError

from _modules import llm_config as llm_config_module


@pytest.fixture
def llm_config(configure_loader):
    return configure_loader(llm_config_module)


def test_check_finds_nothing_in_the_platform_as_it_is(llm_config):
    assert llm_config.check() == []


def test_check_lists_every_mistake(llm_config, pillar):
    pillar["services"]["head"]["restart_polcy"] = "always"
    pillar["site"]["hosts"]["node1"]["roles"][0] = "cach"
    found = llm_config.check()
    assert len(found) == 2
    assert (
        'pillar/site.yaml: hosts.node1.roles[0]: unknown service "cach"; did you mean' in found[1]
    )


@pytest.mark.parametrize(
    ("given", "keys", "found"),
    [
        ({"llm_services": ["head", "tail"]}, ["llm_services"], []),
        ({"theirs": 1}, [], []),
        (
            {"sevices": ["head"]},
            ["llm_services", "llm_what"],
            ['pillar: unknown key "sevices"; did you mean "llm_services"?'],
        ),
        (
            {"host": "node1"},
            ["llm_services", "llm_what"],
            ['pillar: unknown key "host"; there are llm_services, llm_what'],
        ),
        ({"model": "tiny"}, [], ['pillar: unknown key "model"; there are none']),
        (
            {"llm_services": ["haed"]},
            ["llm_services"],
            ['llm_services[0]: unknown service "haed"; did you mean "head"?'],
        ),
        (
            {"llm_services": "head"},
            ["llm_services"],
            ['llm_services: found "head"; expected a list'],
        ),
    ],
)
def test_check_lists_what_no_orchestration_takes(configure_loader, pillar, given, keys, found):
    llm_config = configure_loader(llm_config_module, pillar={"llm": pillar} | given)
    compiled = ({"llm": pillar, "theirs": 1}, [])
    with patch.object(llm_review, "compiler", autospec=True, return_value=lambda *_: compiled):
        assert llm_config.check(keys) == found
    assert llm_config.check() == []


def test_check_validates_the_same_pillar_once(llm_config):
    with patch.object(llm_catalogue, "problems", autospec=True, return_value=[]) as problems:
        assert llm_config.check() == []
        assert llm_config.check() == []
    problems.assert_called_once()


def test_check_validates_again_after_a_change(llm_config, pillar):
    assert llm_config.check() == []
    pillar["services"]["head"]["memory"] = 512
    assert len(llm_config.check()) == 1


@pytest.mark.parametrize("value", [None, "", "CHANGEME", llm_catalogue.MASK, "x\n"])
def test_check_validates_again_after_a_secret_went_bad(llm_config, pillar, value):
    assert llm_config.check() == []
    pillar["secrets"]["cache"]["password"] = value
    assert len(llm_config.check()) == 1


def test_check_keeps_no_verdict_on_a_bad_pillar(llm_config, pillar):
    pillar["log_level"] = "loud"
    assert len(llm_config.check()) == 1
    assert len(llm_config.check()) == 1


def test_check_knows_nothing_secret_of_the_verdict(llm_config, tmp_path):
    llm_config.check()
    assert "canary" not in (tmp_path / "llm_config.checked").read_text()


def test_check_reports_a_pillar_that_did_not_compile(configure_loader, pillar):
    errors = {"llm": pillar, "_errors": ["SLS 'x' failed\nllm: {secrets: canary}"]}
    found = configure_loader(llm_config_module, pillar=errors).check()
    assert found == ["pillar/x.sls: SLS 'x' failed"]


def test_check_tells_what_salt_keeps_in_the_masters_log(configure_loader, pillar):
    told = "Rendering SLS 'site' failed. Please see master log for details."
    found = configure_loader(llm_config_module, pillar={"llm": pillar, "_errors": [told]}).check()
    assert found == ["pillar/site.sls: Salt cannot render it; salt-run llm.check says why"]


@pytest.fixture
def here(configure_loader, pillar, pillar_root, repository, keyring):
    """The module on a host that has the files, with every secret that the platform needs."""
    merged = llm_catalogue.merged
    services = {name: merged(pillar["defaults"], own) for name, own in pillar["services"].items()}
    llm_secret.generate(pillar_root, keyring, services, pillar["site"])
    roots = {
        "pillar_roots": {"base": [str(pillar_root)]},
        "module_dirs": [str(repository)],
        "gpg_keydir": keyring.folder,
    }
    return lambda **more: configure_loader(llm_config_module, opts=roots, **more)


def test_check_finds_nothing_in_the_files_as_they_are(here):
    assert here().check() == []


def test_check_finds_in_the_files_what_the_compiled_pillar_hides(here, pillar_root):
    site, secrets = pillar_root / "site.yaml", pillar_root / "secrets" / "cache.sls"
    site.write_text(site.read_text().replace("public_port: 8443", "public_port: 22:22"))
    secrets.write_text("#!yaml|gpg\nllm: {secrets: {cache: {password: canary}}}\n")
    found = here().check()
    assert len(found) == 2
    assert found[0].startswith("pillar/secrets/cache.sls:2: cache.password: is not encrypted")
    assert "public_port: YAML reads 22:22 as another number" in found[1]


def test_check_looks_into_files_that_nobody_changed_once(here):
    with patch.object(llm_review, "problems", autospec=True, return_value=[]) as problems:
        assert here().check() == here().check() == []
    problems.assert_called_once()


@pytest.mark.parametrize(
    ("file", "word", "other"),
    [("site.yaml", "environment:", "enviromnent:"), ("secrets/cache.sls", "password", "passwort")],
)
def test_check_looks_again_into_a_file_that_changed(here, pillar_root, file, word, other):
    assert here().check() == []
    path = pillar_root / file
    before = path.stat()
    path.write_text(path.read_text().replace(word, other))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert here().check() != []


def test_check_looks_again_when_a_file_is_gone(here, pillar_root):
    assert here().check() == []
    (pillar_root / "secrets" / "cache.sls").unlink()
    assert here().check() != []


@pytest.mark.parametrize("minion", ["Node1", "node1.example.com", "node11"])
def test_check_refuses_a_host_that_the_site_does_not_know(configure_loader, minion):
    found = configure_loader(llm_config_module, opts={"id": minion}).check()
    expected = f'unknown host "{minion}"; did you mean "node1"?'
    assert found == [f"pillar/site.yaml: hosts.{minion}: {expected}"]


def test_check_lets_the_master_pass(configure_loader, pillar):
    pillar["secrets"] = {}
    assert configure_loader(llm_config_module, opts={"id": "node1_master"}).check() == []


def test_platform_raises_with_every_mistake(llm_config, pillar):
    pillar["log_level"] = "loud"
    pillar["limits"]["requests"] = 0
    with pytest.raises(CommandExecutionError, match=r"(?s)limits.requests.*log_level"):
        llm_config.platform()


def test_platform_has_bytes_seconds_and_defaults(llm_config):
    head = llm_config.platform()["services"]["head"]
    assert head["memory"] == 1024**3
    assert head["healthy_deadline"] == 180.0
    assert head["strategy"] == "start-first"
    assert head["name"] == "head"
    assert head["log"] == {"max_size": 10 * 1024**2, "max_files": 3}


def test_platform_is_made_once_for_a_pillar(llm_config, compile_pillar):
    first = llm_config.platform()
    assert llm_config.platform() is first
    llm_config.__pillar__["llm"] = compile_pillar("production")
    assert llm_config.platform()["services"]["head"]["replicas"] == 2


def test_platform_holds_names_of_secrets_and_no_value(llm_config):
    platform = llm_config.platform()
    assert "cache.password" in platform["secrets"]
    assert "canary" not in str(platform)


def test_service_unknown(llm_config):
    with pytest.raises(CommandExecutionError, match='unknown service "hed"; there are cache'):
        llm_config.service("hed")


def test_tiers_follow_from_needs(llm_config):
    expected = [["ingress", "mesh"], ["cache", "model-proxy"], ["head", "rate-limiter"], ["tail"]]
    assert llm_config.tiers() == expected
    assert llm_config.carried() == [name for tier in expected for name in tier]


def test_carried_is_empty_on_the_master(configure_loader, pillar):
    assert configure_loader(llm_config_module, opts={"id": "node1_master"}).carried() == []


def test_hosts_of_each_service(llm_config, pillar):
    pillar["site"]["hosts"] = {
        "node1": {"address": "10.0.0.1", "roles": ["cache", "model-proxy", "head", "tail"]},
        "node2": {"address": "10.0.0.2", "roles": ["head", "rate-limiter"]},
    }
    assert llm_config.hosts("mesh") == ["node1", "node2"]
    assert llm_config.hosts("head") == ["node1", "node2"]
    assert llm_config.hosts("rate-limiter") == ["node2"]


def test_secret_returns_the_value(llm_config):
    assert llm_config.secret("cache.password") == "canary-cache-password"


def test_secret_group_holds_the_clients_of_the_site_alone(llm_config, pillar):
    pillar["secrets"]["clients"]["gone"] = "canary-client-gone"
    expected = {"default": "canary-client-default", "verify": "canary-client-verify"}
    assert llm_config.secret("clients") == expected
    assert llm_config.secret("providers") == {}


@pytest.mark.parametrize("value", [None, "", llm_catalogue.MASK, "-----BEGIN PGP MESSAGE-----"])
def test_secret_unfit(llm_config, pillar, value):
    pillar["secrets"]["cache"]["password"] = value
    with pytest.raises(CommandExecutionError, match=r"secret cache\.password is"):
        llm_config.secret("cache.password")


def test_secret_is_not_shown_on_a_command_line(llm_config):
    with pytest.raises(CommandExecutionError, match="not shown"):
        llm_config.secret("cache.password", __pub_fun="llm_config.secret", __pub_jid="1")


def test_assume_goes_by_what_was_deployed_whatever_the_pillar_says(llm_config, pillar):
    """After a journey through JSON, without secrets, and where the pillar is broken by now."""
    found = json.loads(json.dumps(llm_config.platform()))
    assert "canary" not in json.dumps(found)
    pillar["services"]["head"]["port"] = "broken"
    llm_config.assume(found)
    assert llm_config.platform() == found
    assert llm_config.service("head")["port"] == 4000
