"""
Model files: fetched or copied into ``<root>/models``, checked before anything uses them.

A file's checksum is kept beside it together with its size and time, so that gigabytes are not read
again at every run; whoever writes into the file changes its time, and it is read again.
"""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import ssl
import time
import urllib.parse

import llm_catalogue
from llm_size import rounded as _size
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_model"
__func_alias__ = {"list_": "list"}

RESERVE = 64 << 20  # bytes of the disk that a model leaves free
TRIES = 6  # attempts in a row that bring nothing
PATIENCE = 20  # seconds between attempts, at most
REPORT = 5  # seconds between two lines about a download

log = logging.getLogger(__name__)


def __virtual__():
    return __virtualname__


class _Again(Exception):
    """This attempt failed, another may not."""


def list_():
    """
    Return the names of the models on this host.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_model.list
    """
    files = _folder().glob("[!.]*.gguf")
    return sorted(file.stem.replace("%2F", "/") for file in files)


def checksum(name):
    """
    Return the sha256 of model ``name``, or ``None`` when it is not on this host.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_model.checksum qwen
    """
    file = _file(name)
    if not file.exists():
        return None
    kept = _kept(name)
    return kept["sha256"] if kept.get("stamp") == _stamp(file) else _digest(file)


def need(name, url=None, path=None):
    """
    Return what bringing model ``name`` here takes. Changes nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_model.need qwen url=https://example.org/qwen.gguf

    name
        What it will be called.
    url, path
        Where it comes from, one of them.

    Returns ``{"source": where from, "size": bytes or None when unknown, "free": bytes}``; what of
    it is here already, or is linked, does not count.

    Raises ``CommandExecutionError`` when it cannot be read there.
    """
    source, folder = _source(url, path), _folder()
    while not folder.exists():
        folder = folder.parent
    if url:
        size = _remote_size(url)
        size = size and max(0, size - _length(_part(name)))
    else:
        file = _local(path)
        size = 0 if _is_linkable(file, folder) else file.stat().st_size
    return {"source": source, "size": size, "free": shutil.disk_usage(folder).free - RESERVE}


def bring(name, sha256, url=None, path=None):
    """
    Put model ``name`` on this host. A download goes on where an earlier one ended.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_model.bring qwen 4b1f... url=https://example.org/qwen.gguf

    name
        What it is called here.
    sha256
        Its checksum, 64 hexadecimal digits.
    url, path
        Where it comes from, one of them. A file of this host is linked where that is possible.

    Raises ``CommandExecutionError`` when it cannot be read, has another checksum, or does not fit.
    """
    source = _source(url, path)
    file, part = _file(name), _part(name)
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        if url:
            _download(name, url, part, sha256)
        else:
            _copy(_local(path), part)
        found = _digest(part)
    except OSError as err:
        raise CommandExecutionError(f"{source}: {err.strerror}") from None
    if found != sha256.lower():
        part.unlink()
        raise CommandExecutionError(
            f"{source} is not model {name}: its sha256 is {found}, expected {sha256}"
        )
    if part.stat().st_nlink == 1:  # a link is somebody else's file as well
        part.chmod(0o444)
        kept = _kept(name)
        if not file.exists() and kept.get("sha256") == found:
            # Somebody has removed it; containers that have read it need not be replaced.
            os.utime(part, ns=(kept["stamp"][1],) * 2)
    part.replace(file)
    part.unlink(missing_ok=True)  # two links to one file: the move left it
    _note(name).write_text(json.dumps({"stamp": _stamp(file), "sha256": found}))
    return found


def note(name):
    """
    Remember the checksum of model ``name``, so that it is not read again.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_model.note qwen
    """
    stamp = _stamp(_file(name))
    if _kept(name).get("stamp") != stamp:
        found = checksum(name)
        _note(name).write_text(json.dumps({"stamp": stamp, "sha256": found}))


def remove(name):
    """
    Remove model ``name`` from this host. Return whether it was there.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_model.remove qwen
    """
    there = _file(name).exists()
    for path in (_file(name), _note(name), _part(name)):
        path.unlink(missing_ok=True)
    return there


def _folder():
    return pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"], "models")


def _file(name):
    return _folder() / llm_catalogue.model_file(name)


def _note(name):
    return _folder() / f".{_file(name).stem}.json"


def _part(name):
    return _folder() / f".{_file(name).name}.part"


def _length(part):
    return part.stat().st_size if part.exists() else 0


def _stamp(file):
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _kept(name):
    """Return what `note` wrote."""
    try:
        return json.loads(_note(name).read_text())
    except (OSError, ValueError):
        return {}


def _digest(file):
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _source(url, path):
    """Return where a model comes from as anybody may read it: a URL without its secrets."""
    if bool(url) == bool(path):
        raise SaltInvocationError("a model has either a url or a path")
    if path:
        return str(path)
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _local(path):
    file = pathlib.Path(path)
    if not file.is_file():
        host = __salt__["llm_config.platform"]()["host"]
        raise CommandExecutionError(f"source file {path} missing on host {host}")
    return file


def _check_room(name, size, folder):
    free = shutil.disk_usage(folder).free - RESERVE
    if size > free:
        raise CommandExecutionError(
            f"model {name} needs {_size(size)}, {_size(max(0, free))} are free in {folder}"
        )


def _copy(source, part):
    part.unlink(missing_ok=True)
    if _is_linkable(source, part.parent):
        os.link(source, part)
        return
    _check_room(source.name, source.stat().st_size, part.parent)
    shutil.copyfile(source, part)


def _is_linkable(source, folder):
    """
    Return whether a link in ``folder`` will do for file ``source``, whose owner and mode it shares:
    every container must be able to read it.
    """
    found = source.stat()
    return found.st_dev == folder.stat().st_dev and bool(found.st_mode & 0o004)


def _client():
    import httpx

    # The system's authorities, among them those that the host's administrator has added.
    return httpx.Client(
        verify=ssl.create_default_context(),
        follow_redirects=True,
        timeout=httpx.Timeout(30, connect=10),
    )


def _remote_size(url):
    import httpx

    try:
        with _client() as client:
            answer = client.head(url)
    except httpx.HTTPError as err:
        raise CommandExecutionError(f"{_source(url, None)}: {_words(err)}") from None
    if answer.status_code in (405, 501):  # it knows no HEAD
        return None
    if answer.is_error:
        raise CommandExecutionError(f"{_source(url, None)}: {_status(answer)}")
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _download(name, url, part, sha256):
    """Fetch ``url`` into ``part``; go on after what broke off, as long as it gets anywhere."""
    import httpx
    import tenacity

    got = {"size": _length(part), "fruitless": 0}

    def count(state):
        size = _length(part)
        got["fruitless"] = 0 if size > got["size"] else got["fruitless"] + 1
        got["size"] = size
        log.warning("Model %s: %s; trying again", name, _words(state.outcome.exception()))

    try:
        with _client() as client:
            tenacity.Retrying(
                retry=tenacity.retry_if_exception_type((httpx.HTTPError, _Again)),
                stop=lambda state: got["fruitless"] >= TRIES,
                wait=tenacity.wait_random_exponential(multiplier=0.5, max=PATIENCE),
                after=count,
                reraise=True,
            )(_fetch, client, name, url, part, sha256)
    except (httpx.HTTPError, _Again) as err:
        raise CommandExecutionError(f"{_source(url, None)}: {_words(err)}") from None


def _fetch(client, name, url, part, sha256):
    """Fetch what ``part`` lacks of ``url``."""
    have = _length(part)
    # As it is stored: a part that was unpacked on the way cannot be gone on with.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 416:  # nothing beyond: whole, or something else than before
            if _digest(part) == sha256.lower():
                return
            part.unlink()
            raise _Again("the file has changed there")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise _Again(_status(answer))
        if answer.is_error:
            raise CommandExecutionError(f"{_source(url, None)}: {_status(answer)}")
        have = have if answer.status_code == 206 else 0
        length = answer.headers.get("content-length", "")
        left = int(length) if length.isdigit() else 0
        _check_room(name, left, part.parent)
        with part.open("ab" if have else "wb") as file:
            _save(answer, file, name, have, left)
    if have and _digest(part) != sha256.lower():
        part.unlink()
        raise _Again("what came does not go with what was here from before")


def _save(answer, file, name, have, left):
    """Write the body of ``answer`` into ``file``; tell the log how far it is."""
    start = said = time.monotonic()
    got = 0
    for chunk in answer.iter_bytes():
        file.write(chunk)
        got += len(chunk)
        if (now := time.monotonic()) - said >= REPORT:
            said, speed = now, got / (now - start)
            of = f" of {_size(have + left)}, {(left - got) / speed:.0f} s left" if left else ""
            log.info(
                "Model %s: %s%s (%s/s)",
                name,
                _size(have + got),
                of,
                _size(speed),
            )


def _status(answer):
    return f"{answer.status_code} {answer.reason_phrase}"


def _words(err):
    return str(err) or type(err).__name__
