"""
The project's GPG keyring, in which the secrets of the pillar are encrypted.
"""

import logging
import os
import re

OWNER = "LLM platform secrets"
# A key without a passphrase, or the master could not start alone. ECC: ready in an instant.
_NEW_KEY = {
    "name_real": OWNER,
    "name_comment": "",
    "name_email": "llm@localhost",
    "key_type": "EDDSA",
    "key_curve": "ed25519",
    "subkey_type": "ECDH",
    "subkey_curve": "cv25519",
    "expire_date": 0,
    "no_protection": True,
}


class KeyringError(Exception):
    """
    A message that this keyring cannot decrypt, or not to the letter.
    """


class Keyring:
    """
    A folder of GPG keys.
    """

    def __init__(self, folder):
        self.folder = folder
        self._gpg = None

    @property
    def gpg(self):
        """
        The program, ready for this folder.
        """
        if self._gpg is None:
            import gnupg

            # What gpg says is told in our words; its own log has nothing to add.
            logging.getLogger("gnupg").setLevel(logging.CRITICAL)
            self._gpg = gnupg.GPG(gnupghome=self.folder)
            self._gpg.encoding = "utf-8"
        return self._gpg

    def fingerprint(self):
        """
        Return the fingerprint of the key, or ``None`` where there is none.
        """
        if not os.path.isdir(self.folder):
            return None
        keys = self.gpg.list_keys(secret=True)
        return keys[0]["fingerprint"] if keys else None

    def create(self):
        """
        Make the folder (0700) and a key where missing; return the key's fingerprint.

        Raises ``KeyringError`` with gpg's own words.
        """
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)
        if fingerprint := self.fingerprint():
            return fingerprint
        made = self.gpg.gen_key(self.gpg.gen_key_input(**_NEW_KEY))
        if not made.fingerprint:
            raise KeyringError(f"gpg made no key in {self.folder}: {_last_words(made)}")
        return made.fingerprint

    def encrypt(self, value):
        """
        Return ``value`` as an armoured message for this keyring's own key.
        """
        recipient = self.create()
        message = self.gpg.encrypt(value, recipient, always_trust=True, armor=True)
        if not message.ok:
            raise KeyringError(f"gpg encrypted nothing: {_last_words(message)}")
        return str(message)

    def decrypt(self, message):
        """
        Return the value of an armoured message.

        Raises ``KeyringError`` when any part of it is not as it was encrypted (Salt's own
        renderer takes what gpg prints before it finds that out) or it is for another key.
        """
        if not re.search(r"^-----BEGIN PGP MESSAGE-----$", message, re.MULTILINE):
            raise KeyringError("is still encrypted: its BEGIN PGP MESSAGE line is damaged")
        if not re.search(r"^-----END PGP MESSAGE-----$", message, re.MULTILINE):
            raise KeyringError("is cut off: its END PGP MESSAGE line is missing")
        if not os.path.isdir(self.folder):
            raise KeyringError(f"is encrypted; there is no keyring in {self.folder}")
        clear = self.gpg.decrypt(message)
        if clear.ok and clear.returncode == 0:
            return str(clear)
        status = clear.stderr or ""
        recipients = sorted(set(re.findall(r"^\[GNUPG:\] ENC_TO (\w+)", status, re.MULTILINE)))
        if recipients and re.search(r"^\[GNUPG:\] NO_SECKEY", status, re.MULTILINE):
            mine = ", ".join(self._encryption_keys()) or "none"
            raise KeyringError(f"is encrypted for key {', '.join(recipients)}; ours is {mine}")
        if recipients:
            raise KeyringError("is damaged or was tampered with: gpg does not vouch for it")
        raise KeyringError("is no message that gpg can read")

    def _encryption_keys(self):
        if not os.path.isdir(self.folder):
            return []
        keys = self.gpg.list_keys(secret=True)
        return [sub[0] for key in keys for sub in key["subkeys"]]


def _last_words(result):
    lines = [line for line in (result.stderr or "").splitlines() if not line.startswith("[GNUPG:]")]
    return lines[-1] if lines else "it said nothing"
