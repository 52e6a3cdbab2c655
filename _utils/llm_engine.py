"""
The container engine's HTTP API, as much of it as containers and networks need.

The Docker SDK is not used here: its import and its two requests cost a run with nothing to do more
than everything else together, and each further request four times as much as this.
"""

import http.client
import json
import platform
import socket
import struct
import urllib.parse

from salt.exceptions import CommandExecutionError

SOCKET = "/var/run/docker.sock"
_FRAME = struct.Struct(">BxxxL")  # of a log without a terminal: stream, length


def socket_path(opts):
    """
    Return the path of the engine's socket: what ``docker.url`` of Salt's configuration ``opts``
    says, else the usual one.
    """
    return (opts.get("docker.url") or SOCKET).removeprefix("unix://")


class EngineError(CommandExecutionError):
    """
    The engine refused a request; ``status`` is its HTTP status.
    """

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


class NotFound(EngineError):
    """
    The container, image, network or volume asked for does not exist.
    """


class NoAnswer(CommandExecutionError):
    """
    Nothing answers on the engine's socket.
    """


def failure(err, test):
    """
    Return what a state says when ``err`` has ended it, ``{"result": ..., "changes": {}, "comment":
    str}``. In test mode an engine that does not answer is no failure: an earlier state starts it.
    """
    if test and isinstance(err, NoAnswer):
        comment = f"Can be told once the engine runs. {err}"
        return {"result": None, "changes": {}, "comment": comment}
    return {"result": False, "changes": {}, "comment": str(err)}


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("engine", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Engine:
    """
    The engine behind the Unix socket ``path``. Every method may be called by several threads.

    Each raises ``NotFound`` for what does not exist, ``EngineError`` for what the engine refuses,
    and ``NoAnswer`` when it cannot be reached.
    """

    def __init__(self, path=SOCKET):
        self.path = path

    def request(self, method, path, body=None, timeout=60, **query):
        """
        Send one request and return the answer's bytes.
        """
        query = {key: value for key, value in query.items() if value is not None}
        if query:
            path = f"{path}?{urllib.parse.urlencode(query)}"
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection = _Connection(self.path, timeout)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as err:
            raise self._no_answer(err) from err
        finally:
            connection.close()
        if response.status >= 400:
            kind = NotFound if response.status == 404 else EngineError
            raise kind(_message(answer), response.status)
        return answer

    def _no_answer(self, err):
        host, reason = platform.node(), getattr(err, "strerror", None) or err
        return NoAnswer(
            f"The container engine of host {host} does not answer at {self.path}: {reason}"
        )

    def _json(self, method, path, body=None, **query):
        return json.loads(self.request(method, path, body, **query) or "null")

    def containers(self):
        """
        Return every container of the host, running or not, in short.
        """
        return self._json("GET", "/containers/json", all=1)

    def inspect(self, container):
        """
        Return all that the engine knows of ``container``.
        """
        return self._json("GET", f"/containers/{container}/json")

    def create(self, name, body):
        """
        Create container ``name`` and return its id.
        """
        return self._json("POST", "/containers/create", body, name=name)["Id"]

    def start(self, container):
        """
        Start ``container``.
        """
        self.request("POST", f"/containers/{container}/start")

    def stop(self, container, seconds=10):
        """
        Stop ``container``, by force after ``seconds``.
        """
        self.request("POST", f"/containers/{container}/stop", timeout=seconds + 60, t=seconds)

    def resume(self, container):
        """
        Let a paused ``container`` go on.
        """
        self.request("POST", f"/containers/{container}/unpause")

    def update(self, container, body):
        """
        Change limits or the restart policy of ``container``.
        """
        self.request("POST", f"/containers/{container}/update", body)

    def rename(self, container, name):
        """
        Call ``container`` ``name`` from now on.
        """
        self.request("POST", f"/containers/{container}/rename", name=name)

    def remove(self, container):
        """
        Remove ``container``, whatever it does, and its anonymous volumes.
        """
        self.request("DELETE", f"/containers/{container}", force=1, v=1)

    def logs(self, container, lines=50, since=None, times=False):
        """
        Return the last ``lines`` lines that ``container`` wrote, with ``times`` each after the
        time at which it did.
        """
        query = {"tail": lines, "since": since, "timestamps": int(times)}
        path = f"/containers/{container}/logs"
        answer = self.request("GET", path, stdout=1, stderr=1, **query)
        return _unframed(answer).decode(errors="replace").splitlines()

    def stats(self, container):
        """
        Return what ``container`` uses at this moment.
        """
        path = f"/containers/{container}/stats"
        return self._json("GET", path, stream="false", **{"one-shot": "true"})

    def events(self, container, kind, since, until):
        """
        Return the events of ``kind`` that ``container`` had between two Unix times.
        """
        filters = json.dumps({"container": [container], "event": [kind]})
        answer = self.request("GET", "/events", since=since, until=until, filters=filters)
        return [json.loads(line) for line in answer.splitlines()]

    def stream(self, types, kinds):
        """
        Yield what happens from now on, as the engine tells it, until it ends.

        types
            Of what: ``container``, ``network``.
        kinds
            Which events.
        """
        filters = urllib.parse.urlencode({"filters": json.dumps({"type": types, "event": kinds})})
        connection = _Connection(self.path, timeout=None)
        try:
            connection.request("GET", f"/events?{filters}")
            for line in connection.getresponse():
                yield json.loads(line)
        except (OSError, ValueError, http.client.HTTPException) as err:
            raise self._no_answer(err) from err
        finally:
            connection.close()

    def image(self, reference):
        """
        Return what the engine knows of the image that ``reference`` means now.
        """
        return self._json("GET", f"/images/{urllib.parse.quote(reference)}/json")

    def networks(self):
        """
        Return every network of the host.
        """
        return self._json("GET", "/networks")

    def network(self, name):
        """
        Return network ``name`` with the containers that are connected to it now.
        """
        return self._json("GET", f"/networks/{name}")

    def create_network(self, body):
        """
        Create a network and return its id.
        """
        return self._json("POST", "/networks/create", body)["Id"]

    def remove_network(self, name):
        """
        Remove network ``name``.
        """
        self.request("DELETE", f"/networks/{name}")

    def volumes(self):
        """
        Return every named volume of the host.
        """
        return self._json("GET", "/volumes")["Volumes"] or []

    def create_volume(self, name, labels):
        """
        Create volume ``name`` unless it exists, and return it.
        """
        return self._json("POST", "/volumes/create", {"Name": name, "Labels": labels})

    def remove_volume(self, name):
        """
        Remove volume ``name`` and what it holds.
        """
        self.request("DELETE", f"/volumes/{name}")


class NoEngine:
    """
    What a host has that has no engine yet, to those who ask what is there: nothing.
    """

    def containers(self):
        """
        Return no container.
        """
        return []

    def networks(self):
        """
        Return no network.
        """
        return []

    def volumes(self):
        """
        Return no volume.
        """
        return []

    def image(self, reference):
        """
        Raise ``NotFound``.
        """
        raise NotFound(f"No such image: {reference}", 404)


def _message(answer):
    """Return the engine's own words, on one line."""
    try:
        text = json.loads(answer)["message"]
    except (ValueError, KeyError, TypeError):
        text = answer.decode(errors="replace")
    return " ".join(text.split())


def _unframed(answer):
    """Return a log without the frames that tell its two streams apart."""
    found, position = [], 0
    while position + _FRAME.size <= len(answer):
        _, length = _FRAME.unpack_from(answer, position)
        position += _FRAME.size
        found.append(answer[position : position + length])
        position += length
    return b"".join(found)
