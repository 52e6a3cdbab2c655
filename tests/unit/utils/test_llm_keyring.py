import base64
import os
import stat
import subprocess
import textwrap

import llm_keyring
import pytest
from llm_keyring import Keyring, KeyringError


def armoured(raw):
    """Return the bytes of a message as GPG writes them."""
    lines = textwrap.wrap(base64.b64encode(raw).decode(), 64)
    return "\n".join(["-----BEGIN PGP MESSAGE-----", "", *lines, "-----END PGP MESSAGE-----", ""])


def unarmoured(message):
    """Return the bytes of an armoured message."""
    lines = [line for line in message.splitlines() if line and line[0] not in "-="]
    return bytearray(base64.b64decode("".join(lines)))


def tampered(message):
    """Return a message with one bit of its content turned over."""
    raw = unarmoured(message)
    raw[-25] ^= 1
    return armoured(raw)


def test_create_makes_a_folder_for_its_owner_alone(keyring):
    assert stat.S_IMODE(os.stat(keyring.folder).st_mode) == 0o700


def test_create_makes_one_key_that_needs_no_passphrase(keyring):
    assert keyring.create() == keyring.fingerprint() == keyring.create()
    assert len(keyring.gpg.list_keys(secret=True)) == 1


def test_fingerprint_of_no_keyring(tmp_path):
    assert Keyring(str(tmp_path / "none")).fingerprint() is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("value", ["short one", "sk-é ü\"'{{ x }} $(id) ; -- #", "a" * 5000])
def test_decrypt_returns_what_was_encrypted(keyring, value):
    message = keyring.encrypt(value)
    assert value not in message
    assert keyring.decrypt(message) == value


@pytest.mark.parametrize(
    ("spoiled", "expected"),
    [
        (tampered, "damaged or was tampered with"),
        (
            lambda message: message.replace("BEGIN PGP", "BEGN PGP"),
            "BEGIN PGP MESSAGE line is damaged",
        ),
        (lambda message: message[:150], "END PGP MESSAGE line is missing"),
        (lambda message: armoured(unarmoured(message)[:-30]), "damaged or was tampered with"),
        (lambda message: armoured(b"nothing of the kind"), "no message that gpg can read"),
        (lambda message: armoured(b""), "no message that gpg can read"),
    ],
    ids=("tampered", "begin", "cut", "short", "nonsense", "empty"),
)
def test_decrypt_refuses(keyring, spoiled, expected):
    with pytest.raises(KeyringError, match=expected) as error:
        keyring.decrypt(spoiled(keyring.encrypt("canary")))
    assert "canary" not in str(error.value)


def test_decrypt_names_both_keys_when_it_has_not_the_right_one(keyring, other_keyring):
    theirs = other_keyring.gpg.list_keys(secret=True)[0]["subkeys"][0][0]
    ours = keyring.gpg.list_keys(secret=True)[0]["subkeys"][0][0]
    with pytest.raises(KeyringError, match=f"is encrypted for key {theirs}; ours is {ours}"):
        keyring.decrypt(other_keyring.encrypt("canary"))


def test_decrypt_without_a_keyring(keyring, tmp_path):
    with pytest.raises(KeyringError, match="there is no keyring in"):
        Keyring(str(tmp_path / "none")).decrypt(keyring.encrypt("canary"))


def test_create_says_why_there_is_no_key(tmp_path, monkeypatch):
    monkeypatch.setitem(llm_keyring._NEW_KEY, "key_curve", "no-such-curve")
    folder = str(tmp_path / "new")
    with pytest.raises(KeyringError, match="gpg made no key in"):
        Keyring(folder).create()
    subprocess.run(["gpgconf", "--homedir", folder, "--kill", "gpg-agent"], check=True)
