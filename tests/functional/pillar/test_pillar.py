import re

import llm_catalogue
import llm_secret
import pytest
import yaml


@pytest.fixture
def edit(pillar_root):
    """A function that changes ``site.yaml`` by a function of its document."""

    def edit_(change):
        path = pillar_root / "site.yaml"
        site = yaml.safe_load(path.read_text())
        change(site)
        path.write_text(yaml.safe_dump(site, sort_keys=False))

    return edit_


def test_pillar_of_a_host(compiled):
    pillar = compiled("node1")
    assert "_errors" not in pillar
    assert llm_catalogue.problems(pillar["llm"], host="node1") == []
    assert pillar["llm"]["host"] == "node1"
    assert "head" in pillar["llm"]["roles"]
    assert set(pillar["llm"]["secrets"]) == {"cache", "clients", "head", "model-proxy", "providers"}


def test_pillar_holds_secrets_to_the_letter(compiled, pillar_root, keyring):
    expected = llm_secret.value(pillar_root, keyring, "cache.password")
    assert compiled("node1")["llm"]["secrets"]["cache"]["password"] == expected


@pytest.mark.parametrize("minion", ["node2", "Node1", "node1.example.com", "node1_master", "*", ""])
def test_pillar_of_anyone_else_has_no_secret(compiled, minion):
    pillar = compiled(minion)
    assert "_errors" not in pillar
    assert "secrets" not in pillar["llm"]
    assert pillar["llm"]["roles"] == []


def test_pillar_believes_no_grain(compiled):
    forged = {
        "id": "node1",
        "host": "node1",
        "roles": ["cache", "head"],
        "llm": {"roles": ["cache"]},
    }
    assert "secrets" not in compiled("node2", grains=forged)["llm"]


def test_pillar_of_the_master_is_sound(compiled):
    assert llm_catalogue.problems(compiled("node1_master")["llm"], host="node1_master") == []


def test_pillar_of_an_unknown_minion_is_refused(compiled):
    found = llm_catalogue.problems(compiled("node7")["llm"], host="node7")
    assert [problem.text() for problem in found] == [
        'pillar/site.yaml: hosts.node7: unknown host "node7"; did you mean "node1"?'
    ]


def test_pillar_gives_each_host_the_secrets_of_its_services_alone(compiled, edit):
    edit(
        lambda site: site.update(
            hosts={
                "node1": {"address": "10.0.0.1", "roles": ["cache", "rate-limiter", "model-proxy"]},
                "node2": {"address": "10.0.0.2", "roles": ["tail", "head"]},
                "node3": {"address": "10.0.0.3", "roles": []},
            }
        )
    )
    assert set(compiled("node1")["llm"]["secrets"]) == {"cache", "model-proxy"}
    expected = {"cache", "head", "model-proxy", "providers", "clients"}
    assert set(compiled("node2")["llm"]["secrets"]) == expected
    assert "secrets" not in compiled("node3")["llm"]
    for host in ("node1", "node2", "node3"):
        assert llm_catalogue.problems(compiled(host)["llm"], host=host) == []


@pytest.mark.parametrize("environment", ["dev", "staging", "production"])
def test_pillar_of_each_environment(compiled, edit, environment):
    edit(lambda site: site.update(environment=environment))
    assert llm_catalogue.problems(compiled("node1")["llm"], host="node1") == []


@pytest.fixture
def override(pillar_root):
    """A function that lays something upon the environment's file."""

    def override_(change):
        path = pillar_root / "environments" / "dev.sls"
        environment = yaml.safe_load(path.read_text())
        change(environment["llm"])
        path.write_text(yaml.safe_dump(environment))

    return override_


def _policies(compiled):
    return compiled("node1")["x509_signing_policies"]


def test_environment_gives_a_service_secrets(compiled, override, edit):
    edit(lambda site: site["hosts"].update(node2={"address": "10.0.0.2", "roles": ["cache"]}))
    override(lambda llm: llm["services"]["cache"].update(secrets=["cache.password", "head.key"]))
    assert set(compiled("node2")["llm"]["secrets"]) == {"cache", "head"}


def test_environment_has_a_service_run_everywhere(compiled, override, edit):
    edit(lambda site: site["hosts"].update(node2={"address": "10.0.0.2", "roles": []}))
    override(lambda llm: llm["services"]["cache"].update(every_host=True))
    assert set(compiled("node2")["llm"]["secrets"]) == {"cache"}


def test_environment_gives_a_service_a_certificate(compiled, override):
    override(lambda llm: llm["services"]["head"].update(certificate="internal"))
    assert compiled("node1")["llm"]["names"]["head"] == ["DNS:head.node1.llm"]
    assert "node1-head" in _policies(compiled)


def test_environment_takes_a_certificate_away(compiled, override):
    override(lambda llm: llm["services"]["mesh"].update(certificate=""))
    assert "mesh" not in compiled("node1")["llm"]["names"]
    assert "node1-mesh" not in _policies(compiled)


def test_environment_adds_a_service(compiled, override, edit):
    service = {"image": "cache", "version": "8.1", "slot": 9, "port": 6400, "user": 10009}
    service |= {"secrets": ["head.key"], "certificate": "internal", "health": {"tcp": True}}
    edit(lambda site: site["hosts"].update(node2={"address": "10.0.0.2", "roles": ["second"]}))
    override(lambda llm: llm["services"].update(second=service))
    pillar = compiled("node2")["llm"]
    assert set(pillar["secrets"]) == {"head"}
    assert pillar["names"]["second"] == ["DNS:second.node2.llm"]
    assert "node2-second" in _policies(compiled)


def test_environment_says_one_thing_of_certificates_alone(compiled, override):
    override(lambda llm: llm.update(certificates={"renew_days": 20}))
    pillar = compiled("node1")
    assert "_errors" not in pillar
    policies = pillar["x509_signing_policies"].values()
    days = {key: each[key] for policy in policies for each in policy for key in each}
    assert days["days_valid"] == 90


def test_check_of_a_sound_pillar(reviewed):
    assert reviewed() == []


def test_check_of_jinja_that_names_what_is_not_there(reviewed, pillar_root, caplog):
    path = pillar_root / "environments" / "dev.sls"
    path.write_text(path.read_text() + "\n  canary: {{ nothing_of_the_kind }}\n")
    line = path.read_text().count("\n")
    found = reviewed()
    expected = rf"pillar/environments/dev.sls:{line}: .*nothing_of_the_kind"
    assert any(re.match(expected, text) for text in found), found
    assert "canary" not in caplog.text + "".join(found)


def test_check_of_jinja_that_makes_something_wrong(reviewed, pillar_root):
    path = pillar_root / "environments" / "dev.sls"
    path.write_text(path.read_text().replace("log_level: info", "log_level: {{ 'inf' ~ 'x' }}"))
    found = reviewed()
    assert len(found) == 1
    assert re.match(r'pillar/services.sls:\d+: log_level: found "infx"', found[0])


def test_check_of_a_secret_that_jinja_names(reviewed, pillar_root):
    path = pillar_root / "secrets" / "cache.sls"
    path.write_text("#!jinja|yaml|gpg\nllm: {secrets: {cache: {password: {{ 'CHANGE' }}ME }}}\n")
    found = reviewed()
    assert len(found) == 1
    assert "cache.password: is the example value" in found[0]
