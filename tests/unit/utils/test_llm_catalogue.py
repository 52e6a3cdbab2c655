import re

import llm_catalogue
import pytest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16m", 16 * 1024**2),
        ("1g", 1024**3),
        ("1.5g", 1536 * 1024**2),
        ("4k", 4096),
        ("1t", 1024**4),
    ],
)
def test_size(text, expected):
    assert llm_catalogue.size(text) == expected


@pytest.mark.parametrize(
    "text", [512, 1.5, True, None, "", "512", "1gb", "1G", " 1g", "-1g", "1,5g", []]
)
def test_size_of_anything_else(text):
    with pytest.raises(ValueError, match=f"^{re.escape(str(text))}$"):
        llm_catalogue.size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5s", 5.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("250ms", 0.25),
        (7, 7.0),
        (0.5, 0.5),
        ("1.5s", 1.5),
    ],
)
def test_duration(text, expected):
    assert llm_catalogue.duration(text) == expected


@pytest.mark.parametrize("text", [True, None, "", "5", "5 s", "1d", "-1s", "1h30m", []])
def test_duration_of_anything_else(text):
    with pytest.raises(ValueError, match=f"^{re.escape(str(text))}$"):
        llm_catalogue.duration(text)


def test_merged_lays_mappings_upon_one_another_and_replaces_all_else():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    over = {"a": {"c": [3]}, "e": None}
    assert llm_catalogue.merged(base, over) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("sk-hQEMnoMessage", ""),
        ("any thing: with {{ }} \"quotes' and # more", ""),
        ("x", ""),
        (None, "is empty"),
        ("", "is empty"),
        (7, "is not a string"),
        (["x"], "is not a string"),
        ("x\n", "ends with a newline"),
        ("x\n ", "ends with a newline"),
        ("\tx", "has spaces at its ends"),
        ("x\ny", "has more than one line"),
        ("changeme", "is the example value"),
        ("CHANGE_ME_NOW", "is the example value"),
        ("**********", "is Salt's own mask in place of a value"),
        ("-----BEGIN PGP MESSAGE-----\n\nhQEMA", "is still encrypted"),
        ("hQEMA1234567890abcdefghij", "is still encrypted"),
        ("hF4DpxvABWin4T4SAQdAqBdbypQJ", "is still encrypted"),
        ("x\n-----END PGP MESSAGE-----", "is still encrypted"),
    ],
)
def test_secret_flaw(value, expected):
    assert llm_catalogue.secret_flaw(value) == expected


def test_secret_of_a_name_and_of_a_group():
    secrets = {"cache": {"password": "x"}, "providers": {}}
    assert llm_catalogue.secret(secrets, "cache.password") == "x"
    assert llm_catalogue.secret(secrets, "cache") == {"password": "x"}
    assert llm_catalogue.secret(secrets, "providers") == {}


@pytest.mark.parametrize("secrets", [None, {}, [], "text", {"cache": None}, {"cache": {}}])
def test_secret_that_is_not_there(secrets):
    assert llm_catalogue.secret(secrets, "cache.password") is None


def test_wanted_secrets_names_clients_and_providers(platform):
    services, site = platform["services"], platform["site"]
    site["clients"] = {"default": {}, "batch": {}}
    site["models"]["gpt"] = {"provider": "openai", "model": "x", "secret": "providers.openai"}
    assert llm_catalogue.wanted_secrets(services, site, ["tail"]) == [
        "clients.batch",
        "clients.default",
        "clients.verify",
        "head.key",
    ]
    assert "providers.openai" in llm_catalogue.wanted_secrets(services, site, ["head"])
    assert llm_catalogue.wanted_secrets(services, site, ["mesh"]) == []


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({}, []),
        ({"a": []}, []),
        ({"a": ["b"], "b": []}, []),
        ({"a": ["a"]}, ["a", "a"]),
        ({"a": ["b"], "b": ["a"]}, ["a", "b", "a"]),
        ({"a": ["d", "b"], "b": ["c"], "c": ["b"], "d": []}, ["b", "c", "b"]),
        ({"a": ["nobody"]}, []),
    ],
)
def test_cycle(needs, expected):
    assert llm_catalogue.cycle(needs) == expected


def test_tiers_leave_out_what_no_host_carries(platform):
    platform["site"]["hosts"]["node1"]["roles"] = ["cache", "head"]
    found = llm_catalogue.tiers(platform["services"], platform["site"])
    assert found == [["ingress", "mesh"], ["cache"], ["head"]]


def test_tiers_of_a_cycle(platform):
    platform["services"]["cache"]["needs"] = ["head"]
    with pytest.raises(ValueError, match="cache"):
        llm_catalogue.tiers(platform["services"], platform["site"])


def test_platform_gives_each_client_its_limits(pillar):
    pillar["site"]["clients"] = {"default": {}, "batch": {"requests": 600}}
    clients = llm_catalogue.platform(pillar, "node1")["site"]["clients"]
    assert clients == {
        "default": {"unit": "minute", "requests": 60},
        "batch": {"unit": "minute", "requests": 600},
        "verify": {"unit": "minute", "requests": 60},
    }


def test_client_that_proves_has_a_limit_to_itself(pillar):
    pillar["limits"] = {"unit": "day", "requests": 1}
    clients = llm_catalogue.platform(pillar, "node1")["site"]["clients"]
    assert clients["verify"] == {"unit": "minute", "requests": 60}
    pillar["site"]["clients"]["verify"] = {}
    clients = llm_catalogue.platform(pillar, "node1")["site"]["clients"]
    assert clients["verify"] == {"unit": "day", "requests": 1}


def test_platform_leaves_the_pillar_as_it_is(pillar, compile_pillar):
    llm_catalogue.platform(pillar, "node1")
    assert pillar == compile_pillar()
