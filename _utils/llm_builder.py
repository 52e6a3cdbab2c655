"""
The part of the container engine's HTTP API that makes images.
"""

import collections
import contextlib
import http.client
import json
import logging
import re
import threading
import time
import urllib.parse

import llm_engine
import llm_mirror
from llm_world import SITE
from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

LABEL = "llm.image"
ABANDONED = 3600  # seconds; no step of a build takes so long
LINES = 30  # of the log, shown when a build fails
SILENCE = 900  # seconds without a word from a build before it is given up
_LAYER = re.compile(r"^ ---> ([0-9a-f]{12})$")


class Builder(llm_engine.Engine):
    """
    The engine, as far as images are concerned. Threads may share one; ``cancel`` ends what they do.
    """

    def __init__(self, path=llm_engine.SOCKET):
        super().__init__(path)
        self.layers = set()
        self._open = set()
        self._lock = threading.Lock()
        self._cancelled = False

    def images(self, **filters):
        """Return images in short, all or those that fit the engine's ``filters``."""
        query = json.dumps(filters) if filters else None
        return json.loads(self.request("GET", "/images/json", filters=query))

    def ours(self):
        """Return ``{reference: id}`` of the images that this project made."""
        return {
            reference: image["Id"]
            for image in self.images(label=[LABEL])
            for reference in image["RepoTags"] or ()
        }

    def pull(self, reference, timeout=60):
        """
        Pull ``reference``, which names a digest. The engine checks that the content fits it.

        timeout
            Seconds without progress until the registry counts as out of reach.

        Raises ``CommandExecutionError`` when that fails.
        """
        name, digest = reference.rsplit("@", 1)
        name = re.sub(r":[^:/]+$", "", name)
        query = {"fromImage": name, "tag": digest}
        try:
            messages = list(self._stream("/images/create", timeout=timeout, **query))
        except CommandExecutionError as err:
            messages = [{"error": err}]
        for message in messages:
            if "error" in message:
                raise CommandExecutionError(f"{reference} cannot be pulled: {message['error']}")
        self.image(reference)  # the stream ends alike when the engine breaks off

    def load(self, archive, reference, label):
        """Make image ``reference`` of the file system in ``archive``, an open tar file."""
        repository, tag = reference.rsplit(":", 1)
        query = {"fromSrc": "-", "repo": repository, "tag": tag}
        for message in self._stream(
            "/images/create", archive, changes=f"LABEL {LABEL}={label}", **query
        ):
            if "error" in message:
                raise CommandExecutionError(f"{reference} cannot be imported: {message['error']}")
        self.image(reference)

    def build(self, reference, context, arguments, label):
        """
        Build image ``reference``, with the builder that every engine has.

        Raises ``CommandExecutionError`` with the end of the log when a step fails.
        """
        lines = collections.deque(maxlen=LINES)
        query = {
            "t": reference,
            "rm": 1,
            "forcerm": 1,
            "buildargs": json.dumps(arguments),
            "labels": json.dumps({LABEL: label}),
        }
        finished = False
        for message in self._stream("/build", context, **query):
            finished = finished or "ID" in (message.get("aux") or {})
            text = llm_mirror.without_passwords(message.get("stream") or "")
            lines.extend(line for line in text.splitlines() if line.strip())
            if text.startswith("Step "):
                log.info("image %s: %s", label, text.strip())
            elif layer := _LAYER.match(text.rstrip("\n")):
                self.layers.add(layer[1])
            if "error" in message:
                raise CommandExecutionError(
                    "\n".join([llm_mirror.without_passwords(message["error"]), *lines])
                )
        if not finished:
            raise CommandExecutionError("\n".join(["the container engine broke off", *lines]))

    def forget_stages(self, everything=False):
        """
        Remove what the builds left of their earlier stages, and of those that failed. Called when
        all are done, for the engine cannot tell a stage that a build still needs.

        everything
            Also what other builds left. Default: ``False``.
        """
        removed = True
        while removed:  # the engine leaves some of the layers below one that it removes
            removed = False
            for image in self.images(dangling=["true"]):  # without label, where a stage failed
                mine = image["Id"].removeprefix("sha256:")[:12] in self.layers
                if mine or (everything and LABEL in (image["Labels"] or {})):
                    with contextlib.suppress(llm_engine.EngineError):
                        self.request("DELETE", f"/images/{image['Id']}", timeout=300)
                        removed = True

    def forget_steps(self, age=ABANDONED):
        """
        Remove the containers of build steps that an engine which was killed left, ``age`` seconds
        old or older. A service's container has a site, and a step has none.
        """
        for container in self.containers():
            labels, old = container["Labels"] or {}, time.time() - container["Created"] >= age
            if LABEL in labels and SITE not in labels and old and container["State"] != "running":
                with contextlib.suppress(llm_engine.EngineError):
                    self.remove(container["Id"])

    def info(self):
        """Return what the engine says of itself."""
        return json.loads(self.request("GET", "/info"))

    def remove_image(self, reference):
        """Remove image ``reference``; one that a container uses is refused."""
        self.request("DELETE", f"/images/{urllib.parse.quote(reference)}", timeout=300)

    def cancel(self):
        """Let every call that waits for the engine fail; the engine then ends what it was doing."""
        with self._lock:
            self._cancelled = True
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(2)

    def _stream(self, path, body=b"", timeout=SILENCE, **query):
        """Send ``body`` and yield the engine's messages as they come."""
        connection = llm_engine._Connection(self.path, timeout)
        try:
            connection.connect()
            with self._lock:
                if self._cancelled:
                    raise CommandExecutionError("given up, for the run was interrupted")
                self._open.add(connection)
            headers = {"Content-Type": "application/x-tar"}
            connection.request("POST", f"{path}?{urllib.parse.urlencode(query)}", body, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise llm_engine.EngineError(llm_engine._message(response.read()), response.status)
            while line := response.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as err:
            raise CommandExecutionError(f"the container engine broke off: {err}") from err
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
