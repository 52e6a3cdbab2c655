"""
Certificates: the platform's own authority, and what it signs for the services of each host.

Salt's ``x509_v2`` makes keys and certificates; here is decided when, and the files are moved into
place whole, so that a service never reads half of one. Each host makes its own keys. What a
certificate says is fixed by the signing policy ``<host>-<service>`` in the authority's pillar.
"""

import contextlib
import datetime
import fcntl
import functools
import ipaddress
import logging
import os
import pathlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_certificate"
__func_alias__ = {"list_": "list"}  # list is a word of Python's

log = logging.getLogger(__name__)


def __virtual__():
    return __virtualname__


def list_():
    """
    Return the certificates of this host by service, and the authority's where this is its host:
    ``names``, ``expires`` and ``renews`` (when it is renewed by itself; ``None`` for the user's
    own), the times in UTC; ``None`` in place of one that is not there yet.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.list

    Raises ``CommandExecutionError`` when one cannot be read.
    """
    days = __salt__["llm_config.platform"]()["certificates"]["renew_days"]
    found = {}
    for name, path in _certificates().items():
        if not path.exists():
            found[name] = None
            continue
        expires = _loaded(path).not_valid_after_utc
        renews = None
        if name == "authority" or not _own(name):
            renews = (expires - datetime.timedelta(days=days)).isoformat()
        found[name] = {
            "names": sorted(_names(path)), "expires": expires.isoformat(), "renews": renews,
        }  # fmt: skip
    return found


def renew_due():
    """
    Renew the certificates of this host that run out within ``renew_days`` or are not valid yet,
    and return for each why: ``{"tail": ["it runs out in 9 days"]}``. Of the user's own, take over
    the renewed files. Does nothing else, and nothing at all during a state run, which does the
    same.

    Each minion calls it by itself, at its start and every few hours: ``schedule`` in the pillar.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.renew_due

    Raises ``CommandExecutionError`` with what could not be renewed, after all others are.
    """
    if __salt__["state.running"]() or __salt__["llm_config.check"]():
        return {}  # a state run does the same, and a pillar with mistakes is for a person
    renewed, failed = {}, []
    for name, path in _certificates().items():
        look, make = authority_flaws, make_authority
        if name != "authority":
            look, make = functools.partial(flaws, name), functools.partial(renew, name)
        try:
            if path.exists() and _due(path) and (found := look()):
                make()
                renewed[name] = found
                log.info("The certificate of %s was renewed: %s", name, "; ".join(found))
        except (CommandExecutionError, SaltInvocationError, OSError) as err:
            failed.append(f"{name}: {err}")
    if failed:
        raise CommandExecutionError("certificates are not renewed: " + "; ".join(failed))
    return renewed


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

    Raises ``CommandExecutionError`` with all that makes the user's own unfit.
    """
    key, certificate = _files(service)
    if own := _own(service):
        _check_own(**own)
        return _differing(own, {"key": key, "certificate": certificate})
    found = _flaws(key, certificate)
    if not found:
        found = _misnamed(service, certificate)
    if not found and not _signed(certificate, _authority_files()[1]):
        found = ["it is not the authority's"]
    return found


def warnings(service):
    """
    Return what the user must do about his own certificate for ``service``, one sentence each:
    nobody else can renew it. Of the platform's there is nothing to warn.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.warnings tail
    """
    own = _own(service)
    found = _expiring(own["certificate"]) if own else []
    return [f"{flaw}: renew {own['certificate']} of site.yaml" for flaw in found]


def renew(service):
    """
    Give ``service`` a certificate for its key, and a key where it has none; or what site.yaml
    names as ``public_certificate``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_certificate.renew tail

    Raises ``CommandExecutionError`` when the authority does not answer or refuses, or when the
    user's own is unfit.
    """
    platform = __salt__["llm_config.platform"]()
    user = platform["services"][service]["user"]
    key, certificate = _files(service)
    for folder in (key.parents[2], key.parents[1]):
        _make_folder(folder, 0o700)
    _make_folder(key.parent, 0o500, user)
    if own := _own(service):
        _check_own(**own)
        _move_into_place(key, own["key"].read_text(), 0o400, user)
        _move_into_place(certificate, own["certificate"].read_text(), 0o444)
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


def _certificates():
    """Return where the certificates of this host lie, by service and ``authority``."""
    platform = __salt__["llm_config.platform"]()
    found = {}
    if platform["host"] == platform["site"]["authority"]:
        found["authority"] = _authority_files()[1]
    for name in __salt__["llm_config.carried"]():
        if platform["services"][name]["certificate"]:
            found[name] = _files(name)[1]
    return found


def _own(service):
    """Return the user's own files for ``service``, or an empty mapping."""
    platform = __salt__["llm_config.platform"]()
    if platform["services"][service]["certificate"] != "public":
        return {}
    files = platform["site"]["public_certificate"]
    return {part: pathlib.Path(files[part]) for part in ("key", "certificate") if part in files}


def _flaws(key, certificate):
    """Return what is wrong with a certificate of ours, or that it is time to renew it."""
    if not key.exists() or not certificate.exists():
        return ["there is none"]
    return _unfit(key, certificate) or _expiring(certificate)


def _unfit(key, certificate):
    """Return why nobody can use the two at this time, one sentence each."""
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        loaded = _loaded(certificate)
        pair = private.public_key() == loaded.public_key()
    except (CommandExecutionError, UnsupportedAlgorithm, ValueError, TypeError, OSError) as err:
        return [f"key or certificate cannot be read: {err}"]
    found, now = [], datetime.datetime.now(datetime.UTC)
    if not pair:
        found.append(f"the key {key} is not that of the certificate {certificate}")
    if loaded.not_valid_after_utc <= now:
        found.append(f"it ran out on {loaded.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    return found + _too_early(certificate)


def _due(certificate):
    """
    Return whether to renew a certificate unasked. Where it is too early for the authority as well,
    the clock is wrong (it has no battery, say), and what it says would make matters worse.
    """
    authority = _authority_files()[1]
    if authority.exists() and _too_early(authority):
        return False
    return bool(_expiring(certificate) or _too_early(certificate))


def _expiring(certificate):
    """Return that it is time to renew a certificate, as one sentence, or nothing."""
    renew_days = __salt__["llm_config.platform"]()["certificates"]["renew_days"]
    left = _loaded(certificate).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left > datetime.timedelta(days=renew_days):
        return []
    return [f"it runs out in {max(0, left.days)} days"]


def _too_early(certificate):
    """Return that a certificate is not valid yet, as one sentence, or nothing."""
    start, now = _loaded(certificate).not_valid_before_utc, datetime.datetime.now(datetime.UTC)
    # The authority's clock may be ahead of this one by what the preflight lets pass.
    skew = __salt__["llm_config.platform"]()["preflight"]["clock_skew"]
    if start <= now + datetime.timedelta(seconds=skew):
        return []
    return [f"it is not valid before {start:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"]


def _check_own(key, certificate):
    """Raise ``CommandExecutionError`` with all that makes the user's own files unfit."""
    found = [f"{path} is not on this host" for path in (key, certificate) if not path.exists()]
    found = found or _unfit(key, certificate)
    name = __salt__["llm_config.platform"]()["site"]["public_name"]
    with contextlib.suppress(CommandExecutionError):  # said already
        names = _names(certificate)
        fitting = {f"dns:{name}", f"dns:*.{name.partition('.')[2]}"}
        if not fitting & {each.lower() for each in names}:
            said = ", ".join(sorted(names)) or "no names"
            found.append(f"it is for {said}, not for public_name {name}")
    if found:
        raise CommandExecutionError(f"{certificate} of site.yaml: {'; '.join(found)}")


def _differing(own, files):
    """Return which of the user's own files are not yet in place."""
    return [
        f"the {part} of site.yaml is another"
        for part, path in files.items()
        if not path.exists() or path.read_bytes() != own[part].read_bytes()
    ]


def _misnamed(service, certificate):
    """Return whether the certificate bears other names than the pillar says."""
    wanted = set(__pillar__["llm"]["names"][service])
    found = _names(certificate)
    wanted = {_canonical(name) for name in wanted}
    if found == wanted:
        return []
    return [f"its names are {', '.join(sorted(found))}, not {', '.join(sorted(wanted))}"]


def _names(certificate):
    """Return the names that a certificate is for: ``DNS:llm.internal``, ``IP:127.0.0.1``."""
    found = set()
    with contextlib.suppress(x509.ExtensionNotFound):
        extensions = _loaded(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found |= {f"DNS:{name}" for name in names.get_values_for_type(x509.DNSName)}
        found |= {f"IP:{address}" for address in names.get_values_for_type(x509.IPAddress)}
    return found


def _canonical(name):
    kind, _, value = name.partition(":")
    return f"IP:{ipaddress.ip_address(value)}" if kind == "IP" else name


def _signed(certificate, authority):
    """Return whether ``authority`` has signed ``certificate``, where the former is here to ask."""
    if not authority.exists():
        return True
    try:
        _loaded(certificate).verify_directly_issued_by(_loaded(authority))
    except (CommandExecutionError, ValueError, TypeError, InvalidSignature):
        return False
    return True


def _loaded(path):
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (ValueError, OSError) as err:
        raise CommandExecutionError(f"{path} cannot be read: {err}") from None


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
    with _locked(path.parent):
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chown(new, user, user)
        new.chmod(mode)
        new.replace(path)


@contextlib.contextmanager
def _locked(folder):
    """Wait until nobody else has locked ``folder``: a state run, or the minion by itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
