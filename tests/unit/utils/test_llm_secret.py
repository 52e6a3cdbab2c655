import stat

import llm_catalogue
import llm_keyring
import llm_review
import llm_secret
import pytest
import yaml
from llm_secret import SecretError

from tests.unit.utils.test_llm_keyring import tampered


@pytest.fixture
def services(pillar):
    return {
        name: llm_catalogue.merged(pillar["defaults"], service)
        for name, service in pillar["services"].items()
    }


@pytest.fixture
def generated(pillar_root, keyring, services, pillar):
    """A pillar with every secret that the platform needs."""
    llm_secret.generate(pillar_root, keyring, services, pillar["site"])
    return pillar_root


def reviewed(pillar_root, keyring):
    """Return what is said of the pillar and its secrets."""
    return llm_review.problems(pillar_root, keyring=keyring)


def test_generate_makes_all_that_services_and_clients_need(generated, keyring):
    assert llm_secret.names(generated) == [
        "cache.password",
        "clients.default",
        "clients.verify",
        "head.key",
        "model-proxy.key",
    ]
    assert llm_secret.value(generated, keyring, "clients.default").startswith("sk-")
    assert reviewed(generated, keyring) == []


def test_generate_writes_a_file_for_a_group_without_secrets(generated):
    document = yaml.safe_load((generated / "secrets" / "providers.sls").read_text())
    assert document == {"llm": {"secrets": {"providers": {}}}}


def test_generate_keeps_what_is_there(generated, keyring, services, pillar):
    before = {path.name: path.read_text() for path in (generated / "secrets").iterdir()}
    assert llm_secret.generate(generated, keyring, services, pillar["site"]) == ([], [])
    assert before == {path.name: path.read_text() for path in (generated / "secrets").iterdir()}


def test_generate_names_what_only_a_provider_can_give(pillar_root, keyring, services, pillar):
    pillar["site"]["models"]["gpt"] = {
        "provider": "openai",
        "model": "x",
        "secret": "providers.openai",
    }
    _, missing = llm_secret.generate(pillar_root, keyring, services, pillar["site"])
    assert missing == ["providers.openai"]


def test_generate_makes_no_value_twice(generated, keyring):
    names = llm_secret.names(generated)
    assert len({llm_secret.value(generated, keyring, name) for name in names}) == len(names)


def test_put_writes_for_the_owner_alone_and_nothing_in_clear(generated, keyring):
    llm_secret.put(generated, keyring, "providers.openai", "canary")
    for path in (generated / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "canary" not in path.read_text()
    assert {path.suffix for path in (generated / "secrets").iterdir()} == {".sls"}


def test_put_leaves_the_others_of_its_group(generated, keyring):
    default = llm_secret.value(generated, keyring, "clients.default")
    llm_secret.put(generated, keyring, "clients.batch", "canary")
    assert llm_secret.value(generated, keyring, "clients.default") == default
    assert llm_secret.value(generated, keyring, "clients.batch") == "canary"


@pytest.mark.parametrize("value", ["canary\n", "canary\r\n", "canary"])
def test_put_takes_off_the_newline_of_echo(generated, keyring, value):
    llm_secret.put(generated, keyring, "providers.openai", value)
    assert llm_secret.value(generated, keyring, "providers.openai") == "canary"


@pytest.mark.parametrize("name", ["on", "yes", "null", "007", "1e3"])
def test_put_takes_names_that_yaml_reads_as_something_else(generated, keyring, name):
    llm_secret.put(generated, keyring, f"clients.{name}", "canary")
    assert llm_secret.value(generated, keyring, f"clients.{name}") == "canary"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("canary\n\n", "ends with a newline"),
        (" canary", "has spaces at its ends"),
        ("canary\ncanary", "has more than one line"),
        ("CHANGEME", "is the example value"),
        ("<your key>", "is the example value"),
        (llm_catalogue.MASK, "is Salt's own mask"),
        ("-----BEGIN PGP MESSAGE-----", "is still encrypted"),
    ],
)
def test_put_refuses_a_value(generated, keyring, value, expected):
    with pytest.raises(SecretError, match=expected) as error:
        llm_secret.put(generated, keyring, "providers.openai", value)
    assert "canary" not in str(error.value)
    assert "providers.openai" not in llm_secret.names(generated)


@pytest.mark.parametrize(
    "name", ["", "openai", "a.b.c", "../x.y", "Providers.x", "providers.", "a/b.c"]
)
def test_put_refuses_a_name(generated, keyring, name):
    with pytest.raises(SecretError, match="is no name of a secret"):
        llm_secret.put(generated, keyring, name, "canary")


@pytest.mark.parametrize("text", ["", "- a", "llm: [", "llm: {secrets: {other: {}}}"])
def test_put_refuses_to_write_over_a_file_that_it_cannot_read(generated, keyring, text):
    path = generated / "secrets" / "providers.sls"
    path.write_text(text)
    with pytest.raises(SecretError, match="cannot be read; expected llm: {secrets: {providers:"):
        llm_secret.put(generated, keyring, "providers.openai", "canary")
    assert path.read_text() == text


def test_value_of_a_missing_secret(generated, keyring):
    with pytest.raises(
        SecretError, match="clients.x is missing; salt-run llm.secret set clients.x"
    ):
        llm_secret.value(generated, keyring, "clients.x")


@pytest.fixture
def spoil(generated, keyring):
    """A function that puts a text in the place of the file of the cache's password."""
    path = generated / "secrets" / "cache.sls"

    def spoil_(change):
        path.write_text(change(path.read_text()))
        return reviewed(generated, keyring)

    return spoil_


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda text: text.split("\n", 1)[1],
            ":1: the values are still encrypted: expected #!yaml|gpg",
        ),
        (
            lambda text: text.replace("#!yaml|gpg", "#!gpg|jinja|yaml"),
            ":1: the values are still encrypted: found #!gpg|jinja|yaml; expected #!yaml|gpg",
        ),
        (
            lambda text: text.replace("BEGIN PGP", "BEGIN PG"),
            ":6: cache.password: is still encrypted: its BEGIN PGP MESSAGE line is damaged",
        ),
        (
            lambda text: text[: text.index("-----END")] + "\n",
            ":6: cache.password: is cut off: its END PGP MESSAGE line is missing",
        ),
    ],
    ids=("no renderer", "wrong order", "damaged line", "cut off"),
)
def test_problems_of_an_encrypted_file(spoil, change, expected):
    found = spoil(change)
    assert len(found) == 1
    assert f"pillar/secrets/cache.sls{expected}" in found[0]


def spoiled_message(text, change):
    """Return the text of a file of secrets with another message in it."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if "BEGIN PGP" in line)
    message = change("\n".join(line.strip() for line in lines[start:]))
    return "\n".join([*lines[:start], *(f"        {line}" for line in message.splitlines()), ""])


def test_problems_of_a_message_that_was_tampered_with(spoil):
    found = spoil(lambda text: spoiled_message(text, tampered))
    assert len(found) == 1
    assert "cache.sls:6: cache.password: is damaged or was tampered with" in found[0]


def test_problems_of_a_message_for_someone_else(spoil, other_keyring):
    found = spoil(lambda text: spoiled_message(text, lambda _: other_keyring.encrypt("canary")))
    assert len(found) == 1
    assert "cache.sls:6: cache.password: is encrypted for key " in found[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("canary", "is not encrypted"),
        ("", "is empty"),
        ("null", "is empty"),
        ("CHANGEME", "is the example value"),
        ("{a: canary}", "is not a string"),
        ("12", "is not a string"),
        ('"**********"', "is Salt's own mask"),
    ],
)
def test_problems_of_a_value_in_clear(spoil, value, expected):
    found = spoil(lambda _: f"#!yaml|gpg\nllm:\n  secrets:\n    cache:\n      password: {value}\n")
    assert found == [
        f"pillar/secrets/cache.sls:5: cache.password: {expected}"
        + (" in place of a value" if "mask" in expected else "")
        + "; salt-run llm.secret set cache.password"
    ]


@pytest.mark.parametrize("value", ["", "CHANGEME", "canary\n", " canary"])
def test_problems_of_a_bad_value_that_is_encrypted(spoil, keyring, value):
    found = spoil(lambda text: spoiled_message(text, lambda _: keyring.encrypt(value)))
    assert len(found) == 1
    assert "canary" not in found[0]


def test_problems_of_a_missing_secret(spoil):
    found = spoil(lambda _: "#!yaml|gpg\nllm: {secrets: {cache: {}}}\n")
    expected = "cache.password: is missing; salt-run llm.secret set cache.password"
    assert found == [f"pillar/secrets/cache.sls: {expected}"]


def test_problems_of_a_missing_file(generated, keyring):
    (generated / "secrets" / "cache.sls").unlink()
    expected = "pillar/secrets/cache.sls: no such file; salt-run llm.secret generate"
    assert reviewed(generated, keyring) == [expected]


def test_problems_of_another_group_than_the_file_says(spoil):
    found = spoil(lambda text: text.replace("    cache:", "    cash:"))
    assert any("cache.sls: found another shape; expected llm:" in line for line in found)


def test_problems_without_a_keyring_says_so_for_each(generated, tmp_path):
    found = reviewed(generated, llm_keyring.Keyring(str(tmp_path / "none")))
    assert len(found) == 5
    assert all("there is no keyring in" in line for line in found)
