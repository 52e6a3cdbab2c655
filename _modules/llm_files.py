"""
Configuration files of the services: rendered from templates, secrets included, and put where
their containers read them.

A service has two kinds of files. Those of ``files`` are read once, at start: they lie in a
directory named after their content, which a container mounts for good, so that going back to an
older container finds the older files. Those of ``live_files`` are read again when they change:
they are moved into place one by one, and no container is replaced. As they were before, they are
kept in ``live.before`` until the service is found healthy with the new ones.

A template is ``salt://<service>/files/<file>.jinja`` or ``salt://<service>/files/live/<file>.jinja``
and knows ``service``, ``platform`` and ``secrets``. It writes secrets as they are or through
``json``; nothing else may be made of them, or a change of the secret goes unnoticed.
"""

import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import tempfile

import jinja2
from salt.exceptions import CommandExecutionError
from salt.utils.jinja import SerializerExtension

__virtualname__ = "llm_files"

RENDERED = "llm_files.rendered"
TEMPLATES = "llm_files.templates"
FETCHED = "llm_files.fetched"
CERTIFICATE = "tls"  # the folder of a service's certificate beside its files


def __virtual__():
    return __virtualname__


def _root(service):
    """Return the folder of ``service`` on this host."""
    return pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"], "services", service)


def _fingerprint_key():
    """
    Return the host's key for fingerprints of secrets; without one nothing was deployed yet, and
    any key will do until `write` makes it.
    """
    return _kept_key() or b"not yet made"


def _kept_key():
    """Return the host's key, nothing where it was never made or its making was cut short."""
    path = _key_path()
    return path.read_bytes() if path.exists() else b""


def _key_path():
    return pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"], "fingerprint.key")


def _secrets(service):
    """Return what templates of ``service`` know as ``secrets``, and the same as a flat mapping."""
    named = {name: __salt__["llm_config.secret"](name) for name in service["secrets"]}
    flat = {}
    for name, value in named.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{entry}": text for entry, text in value.items()})
        else:
            flat[name] = value
    return named, flat


def _masked(named):
    """Return ``named`` with each value replaced by a mark that names it."""
    return {
        name: (
            {entry: f"<secret {name}.{entry}>" for entry in value}
            if isinstance(value, dict)
            else f"<secret {name}>"
        )
        for name, value in named.items()
    }


def _environment():
    """Return where templates come from: the file server."""
    if TEMPLATES not in __context__:
        __context__[TEMPLATES] = jinja2.Environment(
            loader=jinja2.FunctionLoader(_template),
            undefined=jinja2.StrictUndefined,
            extensions=["jinja2.ext.do", SerializerExtension],
            keep_trailing_newline=True,
        )
    return __context__[TEMPLATES]


def _template(name):
    """
    Return the text of a template, ``None`` when there is none. What a service has is fetched when
    something of it is wanted, for each file costs a round trip.
    """
    service, fetched = name.partition("/")[0], __context__.setdefault(FETCHED, set())
    if service not in fetched:
        __salt__["cp.cache_dir"](f"salt://{service}/files")
        fetched.add(service)
    try:
        return pathlib.Path(__opts__["cachedir"], "files", "base", name).read_text()
    except FileNotFoundError:
        return None


def _render(environment, template, context):
    try:
        return environment.get_template(template).render(**context)
    except jinja2.TemplateError as err:
        line = getattr(err, "lineno", None)
        where = f"salt://{template}" + (f":{line}" if line else "")
        raise CommandExecutionError(f"{where}: {err.message}") from None


def _rendered(name):
    """
    Return the files of service ``name`` as they should be on this host. Private, for it holds
    secrets, and what is public can be called over the bus.

    Returns ``{"files": {file: text}, "live_files": {file: text}, "digests": {file: digest},
    "secrets": {secret: fingerprint}}``. Digests leave the secrets' values out and fingerprints
    are keyed, so both may be shown; they cover ``files`` alone.
    """
    cache = __context__.setdefault(RENDERED, {})
    if name in cache:
        return cache[name]
    service = __salt__["llm_config.service"](name)
    environment = _environment()
    named, flat = _secrets(service)
    context = {"service": service, "platform": __salt__["llm_config.platform"]()}
    found = {"files": {}, "live_files": {}, "digests": {}, "secrets": {}}
    for kind, folder in (("files", "files"), ("live_files", "files/live")):
        for file in service[kind]:
            template = f"{name}/{folder}/{file}.jinja"
            found[kind][file] = _render(environment, template, context | {"secrets": named})
            if kind == "live_files":
                continue
            masked = _render(environment, template, context | {"secrets": _masked(named)})
            found["digests"][file] = hashlib.sha256(masked.encode()).hexdigest()
            for secret, value in flat.items():
                if f"<secret {secret}>" in masked:
                    found["secrets"][secret] = _fingerprint(secret, value)
    cache[name] = found
    return found


def _fingerprint(secret, value):
    text = f"{secret}={value}".encode()
    return hmac.new(_fingerprint_key(), text, hashlib.sha256).hexdigest()[:16]


def digests(name):
    """
    Return what identifies the files of service ``name`` and holds no secret.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.digests head

    Returns ``{"files": {file: digest}, "secrets": {secret: fingerprint}, "directory": path}``;
    ``directory`` is where the container finds ``files``, or ``None`` without any.
    """
    found = _rendered(name)
    named = json.dumps([found["digests"], found["secrets"]], sort_keys=True)
    digest = hashlib.sha256(named.encode()).hexdigest()[:16]
    return {
        "files": found["digests"],
        "secrets": found["secrets"],
        "directory": str(_root(name) / "config" / digest) if found["files"] else None,
    }


def fingerprints(name):
    """
    Return what tells the live files of service ``name``, as they should be, from others.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.fingerprints tail

    Returns ``{file: fingerprint}``, keyed, so that they may be shown.
    """
    files = _rendered(name)["live_files"]
    return {file: _fingerprint(file, text) for file, text in files.items()}


def _folders(name):
    """Return where each kind of file of service ``name`` lies."""
    return {
        "files": pathlib.Path(digests(name)["directory"] or _root(name)),
        "live_files": _root(name) / "live",
    }


def pending(name, anew=False):
    """
    Return the files of service ``name`` that are not on this host as they should be.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.pending head

    name
        Its name.
    anew
        Also those that were taken back, as a deploy tries them. Default: ``False``.

    Returns ``{file: "create" | "change"}``.
    """
    found = _rendered(name)
    refused = {} if anew else (__salt__["llm_deploy.refused"](name) or {}).get("files", {})
    changes = {}
    for kind, place in _folders(name).items():
        for file, text in found[kind].items():
            if kind == "live_files" and refused.get(file) == _fingerprint(file, text):
                continue  # it was taken back
            path = place / file
            if not path.exists():
                changes[file] = "create"
            elif path.read_bytes() != text.encode():
                changes[file] = "change"
    return changes


def write(name):
    """
    Put the files of service ``name`` on this host, readable by its user alone.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.write head

    Returns what `pending` said before.
    """
    if not _kept_key():
        try:
            _make_fingerprint_key()
        except OSError as err:
            raise CommandExecutionError(f"{_key_path()}: {err.strerror}") from err
    changes = pending(name)
    found = _rendered(name)
    owner = __salt__["llm_config.service"](name)["user"]
    for kind, path in _folders(name).items():
        if changes.keys() & found[kind].keys():
            try:
                if kind == "live_files":
                    _keep(path)
                _write_folder(path, found[kind], owner, changes)
            except OSError as err:
                raise CommandExecutionError(f"{path}: {err.strerror}") from err
    return changes


def _make_fingerprint_key():
    path = _key_path()
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_bytes(os.urandom(32))
    new.replace(path)
    __context__.pop(RENDERED, None)


def _write_folder(folder, files, owner, changes):
    """Write those ``files`` that ``changes`` names; a new ``folder`` appears whole."""
    _make_private(folder.parent)
    _clear_unfinished(folder.parent)
    fresh = not folder.exists()
    target = pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        for file in files.keys() & changes.keys():
            path = target / file
            path.write_text(files[file])
            os.chown(path, owner, owner)
            path.chmod(0o400)
        if fresh:
            os.chown(target, owner, owner)
            target.chmod(0o500)
            target.rename(folder)
        else:
            for path in target.iterdir():
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _keep(folder):
    """Keep the files of ``folder``, unless earlier ones are kept: what came since is unproven."""
    before = _before(folder)
    if before.exists() or not folder.exists():
        return
    target = pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    for path in folder.iterdir():
        os.link(path, target / path.name)  # what is moved into its place leaves this as it is
    target.rename(before)


def _before(folder):
    return folder.with_name("live.before")


def approve(name):
    """
    Forget the live files of service ``name`` as they were before, for it is healthy with those of
    now.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.approve tail
    """
    before = _before(_root(name) / "live")
    if before.exists():
        shutil.rmtree(before)


def take_back(name):
    """
    Put back the live files of service ``name`` as they were when it was found healthy last.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.take_back tail

    Returns a list of those that were others.
    """
    folder = _root(name) / "live"
    back = []
    for path in sorted(_before(folder).glob("*")):
        now = folder / path.name
        if not now.exists() or now.read_bytes() != path.read_bytes():
            path.replace(now)
            back.append(path.name)
    approve(name)
    return back


def _make_private(folder):
    """Make ``folder`` and its parents up to the platform's root, each for root alone."""
    if not folder.exists():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700)


def _clear_unfinished(folder):
    """Remove what an interrupted run left in ``folder``."""
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)


def clear(name, mounted):
    """
    Remove the configuration of service ``name`` that nothing needs any more: neither what the
    pillar asks for now, nor a container that runs or is kept for going back.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.clear head '[/var/lib/llm/services/head/config/0123456789abcdef]'

    name
        The service.
    mounted
        The folders that its containers mount.
    """
    folders = list(_root(name).glob("config/*"))
    if not folders:
        return
    needed = set(mounted)
    if name in __salt__["llm_config.carried"]():  # else this host may lack its secrets
        needed.add(digests(name)["directory"])
    for path in folders:
        if str(path) not in needed:
            shutil.rmtree(path, ignore_errors=True)


def removable(name):
    """
    Return the paths of what `remove` would take away of service ``name``, sorted.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.removable head
    """
    return sorted(str(path) for path in _root(name).glob("*") if path.name != CERTIFICATE)


def remove(name):
    """
    Remove the files of service ``name`` from this host: configuration, live files, sockets. Its
    certificate stays.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.remove head
    """
    for path in removable(name):
        shutil.rmtree(path)
    with contextlib.suppress(OSError):  # its certificate is in there, or it never was
        _root(name).rmdir()


def folder(name):
    """
    Return the folder of service ``name`` on this host, whether it exists or not.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_files.folder head
    """
    return str(_root(name))
