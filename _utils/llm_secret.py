"""
The files of ``pillar/secrets``: one for each group, each value encrypted on its own.
"""

import os
import re
import secrets
import tempfile

import yaml
from llm_catalogue import secret_flaw, secret_names, wanted_secrets
from llm_keyring import KeyringError

RENDERER = "#!yaml|gpg"
_RENDERER_LINE = re.compile(r"#!\s*(jinja\s*\|\s*)?yaml\s*\|\s*gpg\s*")
_NAME = re.compile(r"([a-z][a-z0-9-]*)\.([\w-]+)")
_HEADER = f"""{RENDERER}
# Encrypted for the keyring of this installation. To change one: salt-run llm.secret set <name>
llm:
  secrets:
"""


class SecretError(Exception):
    """
    A secret that cannot be stored, or a file of secrets that cannot be read. Names no value.
    """


def path(pillar_root, group):
    """
    Return the path of the file that holds a group of secrets.
    """
    return os.path.join(pillar_root, "secrets", f"{group}.sls")


def stored(pillar_root):
    """
    Return what the files hold, as encrypted as it is there: a mapping of groups to mappings.

    Raises ``SecretError`` when a file is not of this shape.
    """
    folder = os.path.join(pillar_root, "secrets")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    groups = [name.removesuffix(".sls") for name in names if name.endswith(".sls")]
    return {group: _load(pillar_root, group) for group in groups}


def _load(pillar_root, group):
    file = path(pillar_root, group)
    if not os.path.exists(file):
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            document = yaml.safe_load(stream)
        values = document["llm"]["secrets"][group]
        return dict(values or {})
    except (yaml.YAMLError, UnicodeError, TypeError, KeyError, ValueError):
        shape = f"llm: {{secrets: {{{group}: {{name: value}}}}}}"
        raise SecretError(f"{file} cannot be read; expected {shape}") from None


def store(pillar_root, group, messages):
    """
    Write the file of a group, whole or not at all, for its owner alone.

    messages
        The encrypted value of each name.
    """
    lines = [_HEADER, f"    {_key(group)}:"]
    lines.append("\n" if messages else " {}\n")
    for name, message in sorted(messages.items()):
        lines.append(f"      {_key(name)}: |\n")
        lines.extend(f"        {line}".rstrip() + "\n" for line in message.strip().splitlines())
    folder = os.path.join(pillar_root, "secrets")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{group}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path(pillar_root, group))
    except BaseException:
        os.unlink(temporary)
        raise


def _key(name):
    return name if yaml.safe_load(name) == name else f'"{name}"'


def names(pillar_root):
    """
    Return the names of all secrets that are stored, sorted.
    """
    return secret_names(stored(pillar_root))


def put(pillar_root, keyring, name, value):
    """
    Encrypt one secret and store it; the others of its group stay as they are.

    name
        ``<group>.<name>``, such as ``providers.openai``.
    value
        What to keep; one newline at its end does not belong to it.

    Raises ``SecretError`` when the name or the value is unfit.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise SecretError(f'"{name}" is no name of a secret; expected <group>.<name>')
    value = value.removesuffix("\n").removesuffix("\r")
    if flaw := secret_flaw(value):
        raise SecretError(f"the value for {name} {flaw}")
    group, key = match.groups()
    messages = _load(pillar_root, group)
    messages[key] = keyring.encrypt(value)
    store(pillar_root, group, messages)


def generate(pillar_root, keyring, services, site):
    """
    Store a random value for each secret that the services and clients need and that is not
    there, and a file for each group, which may be empty.

    Returns the names of those made and of those that only their provider can give, as two lists.
    """
    groups = {name.split(".")[0] for service in services.values() for name in service["secrets"]}
    there = set(names(pillar_root))
    missing = [name for name in wanted_secrets(services, site, services) if name not in there]
    given = [name for name in missing if name.startswith("providers.")]
    made = [name for name in missing if name not in given]
    keyring.create()
    for group in sorted(groups):
        if not os.path.exists(path(pillar_root, group)):
            store(pillar_root, group, {})
    for name in made:
        renew(pillar_root, keyring, name)
    return made, given


def renew(pillar_root, keyring, name):
    """
    Store a new random value; keys look like those that the clients of this API are used to.

    Raises ``SecretError`` for a key that only its provider can give.
    """
    if name.startswith("providers."):
        raise SecretError(f"only its provider can give {name}; salt-run llm.secret set {name}")
    random = secrets.token_urlsafe(32)
    put(pillar_root, keyring, name, random if name.endswith(".password") else f"sk-{random}")


def value(pillar_root, keyring, name):
    """
    Return the value of one secret.

    Raises ``SecretError`` when it is missing or cannot be decrypted.
    """
    group, _, key = name.partition(".")
    message = _load(pillar_root, group).get(key)
    if message is None:
        raise SecretError(f"{name} is missing; salt-run llm.secret set {name}")
    if flaw := flaw_of(keyring, message):
        raise SecretError(f"{name} {flaw}; salt-run llm.secret set {name}")
    return keyring.decrypt(message)


def flaw_of(keyring, message):
    """
    Return what is wrong with a value as it is stored, or an empty string. Never the value.
    """
    if not isinstance(message, str) or "PGP" not in message:
        flaw = secret_flaw(message)
        return "is not encrypted" if flaw in ("", "has more than one line") else flaw
    try:
        return secret_flaw(keyring.decrypt(message))
    except KeyringError as err:
        return str(err)


def renderer_flaw(text):
    """
    Return what is wrong with the first line of a file of secrets, or an empty string.
    """
    first = text.split("\n", 1)[0]
    if _RENDERER_LINE.fullmatch(first) or "PGP" not in text:
        return ""
    if first.startswith("#!"):
        return f"the values are still encrypted: found {first[:40]}; expected {RENDERER}"
    return f"the values are still encrypted: expected {RENDERER} as the first line"
