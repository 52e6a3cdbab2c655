"""
Certificates: the platform's own authority, and what it signs for the services of each host.

Salt's ``x509_v2`` makes keys and certificates; here is decided when, and the files are moved into
place whole, so that a service never reads half of one. Each host makes its own keys. What a
certificate says is fixed by the signing policy ``<host>-<service>`` in the authority's pillar.
"""

import datetime
import ipaddress
import os
import pathlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_certificate"


def __virtual__():
    return __virtualname__


def authority_flaws():
    """
    Return what is wrong with the platform's authority on this host, one sentence each.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.authority_flaws
    """
    key, certificate = _authority_files()
    return _flaws(key, certificate)


def make_authority():
    """
    Make the authority's key where there is none, and a certificate for it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.make_authority
    """
    platform = __salt__["llm_config.platform"]()
    key, certificate = _authority_files()
    _make_folder(key.parent, 0o700)
    _make_folder(certificate.parent, 0o755)
    _make_key(key, keysize=384)
    text = __salt__["x509.create_certificate"](
        signing_private_key=str(key),
        CN=f"{platform['site']['name']} authority",
        basicConstraints="critical, CA:TRUE, pathlen:0",
        keyUsage="critical, cRLSign, keyCertSign",
        subjectKeyIdentifier="hash",
        days_valid=platform["certificates"]["authority_days"],
    )
    _move_into_place(certificate, text, 0o444)


def flaws(service):
    """
    Return what is wrong with the certificate of ``service`` on this host, one sentence each.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.flaws tail
    """
    key, certificate = _files(service)
    own = _own(service)
    if own:
        return _differing(own, {"key": key, "certificate": certificate})
    found = _flaws(key, certificate)
    if not found:
        found = _misnamed(service, certificate)
    if not found and not _signed(certificate, _authority_files()[1]):
        found = ["it is not the authority's"]
    return found


def renew(service):
    """
    Give ``service`` a certificate for its key, and a key where it has none; or what site.yaml
    names as ``public_certificate``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.renew tail

    Raises ``CommandExecutionError`` when the authority does not answer or refuses.
    """
    platform = __salt__["llm_config.platform"]()
    user = platform["services"][service]["user"]
    key, certificate = _files(service)
    for folder in (key.parents[2], key.parents[1]):
        _make_folder(folder, 0o700)
    _make_folder(key.parent, 0o500, user)
    if own := _own(service):
        _check_pair(*(pathlib.Path(own[part]) for part in ("key", "certificate")))
        _move_into_place(key, pathlib.Path(own["key"]).read_text(), 0o400, user)
        _move_into_place(certificate, pathlib.Path(own["certificate"]).read_text(), 0o444)
        return
    if key.exists() and not _is_key(key):
        key.unlink()
    _make_key(key, keysize=256, user=user)
    policy, authority = f"{platform['host']}-{service}", platform["site"]["authority"]
    if authority == platform["host"]:  # Salt applies a policy only where it asks another host
        signing = __salt__["x509.get_signing_policy"](policy)
    else:
        signing = {"ca_server": authority, "signing_policy": policy}
    text = __salt__["x509.create_certificate"](private_key=str(key), **signing)
    _move_into_place(certificate, text, 0o444)


def _root():
    return pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"])


def _authority_files():
    return _root() / "authority" / "ca.key", _root() / "trust" / "ca.pem"


def _files(service):
    folder = _root() / "services" / service / "tls"
    return folder / "key.pem", folder / "cert.pem"


def _own(service):
    """Return the user's own files for ``service``, or an empty mapping."""
    platform = __salt__["llm_config.platform"]()
    if platform["services"][service]["certificate"] != "public":
        return {}
    files = platform["site"]["public_certificate"]
    return {part: files[part] for part in ("key", "certificate") if part in files}


def _flaws(key, certificate):
    """Return what is wrong with a certificate of ours, or that it is time to renew it."""
    if not key.exists() or not certificate.exists():
        return ["there is none"]
    try:
        _check_pair(key, certificate)
    except CommandExecutionError as err:
        return [str(err)]
    renew_days = __salt__["llm_config.platform"]()["certificates"]["renew_days"]
    left = _loaded(certificate).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left <= datetime.timedelta(days=renew_days):
        return [f"it runs out in {max(0, left.days)} days"]
    return []


def _differing(own, files):
    """Return which of the user's own files are not yet in place."""
    missing = [path for path in own.values() if not os.path.exists(path)]
    if missing:
        return [f"{path} of site.yaml is not on this host" for path in missing]
    return [
        f"the {part} of site.yaml is another"
        for part, path in files.items()
        if not path.exists() or path.read_bytes() != pathlib.Path(own[part]).read_bytes()
    ]


def _misnamed(service, certificate):
    """Return whether the certificate bears other names than the pillar says."""
    wanted = set(__pillar__["llm"]["names"][service])
    extension = _loaded(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    found = {f"DNS:{name}" for name in extension.value.get_values_for_type(x509.DNSName)}
    found |= {f"IP:{address}" for address in extension.value.get_values_for_type(x509.IPAddress)}
    wanted = {_canonical(name) for name in wanted}
    if found == wanted:
        return []
    return [f"its names are {', '.join(sorted(found))}, not {', '.join(sorted(wanted))}"]


def _canonical(name):
    kind, _, value = name.partition(":")
    return f"IP:{ipaddress.ip_address(value)}" if kind == "IP" else name


def _signed(certificate, authority):
    """Return whether ``authority`` has signed ``certificate``, where the former is here to ask."""
    if not authority.exists():
        return True
    try:
        _loaded(certificate).verify_directly_issued_by(_loaded(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_pair(key, certificate):
    """Raise ``CommandExecutionError`` when the two do not belong together or cannot be read."""
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        if private.public_key() == _loaded(certificate).public_key():
            return
    except (ValueError, TypeError, OSError) as err:
        raise CommandExecutionError(f"key or certificate cannot be read: {err}") from None
    raise CommandExecutionError(f"the key {key} is not that of the certificate {certificate}")


def _loaded(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def _is_key(path):
    try:
        serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError):
        return False
    return True


def _make_key(path, keysize, user=0):
    if not path.exists():
        text = __salt__["x509.create_private_key"](algo="ec", keysize=keysize)
        _move_into_place(path, text, 0o400, user)


def _make_folder(path, mode, user=0):
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.chown(path, user, user)


def _move_into_place(path, text, mode, user=0):
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.chown(new, user, user)
    new.chmod(mode)
    new.replace(path)
