"""
One question to a server, in the protocol it speaks. Each answers within ``timeout`` seconds with
``{"ok": bool, "answer": str}`` and never raises because of what the server does.

Nothing is imported before it is needed, and what Salt has loaded already (urllib3) is preferred,
because a run with nothing to do asks once per container.
"""

import functools
import json as jsonlib
import socket as sockets
import urllib.parse

import urllib3
from salt.exceptions import SaltInvocationError

MOST = 16384  # bytes of a body that are read


def http(url, socket=None, status=200, json=None, ca_file=None, timeout=3):
    """
    Ask ``url`` and compare the answer's status and JSON body.

    url
        What to ask for. Redirects and proxies are not followed.
    socket
        Path of a Unix socket to connect to instead of the URL's host. Default: none.
    status
        The status that is well. Default: 200.
    json
        What the body must hold: mappings are compared key by key, keys beyond these do not matter.
        Default: the body does not matter.
    ca_file
        The authority of an https server. Default: those of the system.
    timeout
        Seconds until giving up. Default: 3.
    """
    options = {"retries": False, "redirect": False, "preload_content": False}
    try:
        pool, target = _pool(url, socket, ca_file)
        response = pool.request("GET", target, timeout=timeout, **options)
        body = response.read(MOST, decode_content=True)
        response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as err:
        return _no(_reason(err, timeout))
    if response.status != status:
        text = " ".join(body.decode(errors="replace").split())
        return _no(f"{response.status} {response.reason or ''}: {text}".rstrip(": "))
    difference = _difference(json, _parsed(body)) if json is not None else None
    if difference:
        return _no(f"{status}, but {difference}")
    return _yes(str(status))


class _UnixConnection(urllib3.connection.HTTPConnection):
    """HTTP through the Unix socket ``path``."""

    def __init__(self, path, **kwargs):
        super().__init__(**kwargs)
        self.path = path

    def connect(self):
        self.sock = sockets.socket(sockets.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _pool(url, socket, ca_file):
    """Return what can send requests, and what of ``url`` it wants to be asked for."""
    if socket:
        parts = urllib.parse.urlsplit(url)
        pool = urllib3.HTTPConnectionPool(parts.hostname)
        pool.ConnectionCls = functools.partial(_UnixConnection, socket)
        return pool, parts._replace(scheme="", netloc="").geturl()
    return urllib3.PoolManager(**({"ca_certs": ca_file} if ca_file else {})), url


def _parsed(body):
    try:
        return jsonlib.loads(body)
    except ValueError:
        return None


def _difference(wanted, found, path="the body"):
    """Return in words where ``found`` lacks what is ``wanted``, or ``None``."""
    if not isinstance(wanted, dict):
        return None if wanted == found else f"{path} is {found!r} and not {wanted!r}"
    if not isinstance(found, dict):
        return f"{path} is no JSON mapping"
    for key, value in wanted.items():
        if key not in found:
            return f"{key} is missing from {path}"
        if difference := _difference(value, found[key], key):
            return difference
    return None


def tcp(address, timeout=3):
    """
    Connect to ``address``.

    address
        Host and port, as in ``127.0.0.1:6379`` or ``[::1]:6379``.
    timeout
        Seconds until giving up. Default: 3.
    """
    try:
        with _connection(address, timeout):
            return _yes("connected")
    except OSError as err:
        return _no(_reason(err, timeout))


def redis(address, password=None, timeout=3):
    """
    Send ``PING`` to a server that speaks the Redis protocol.

    address
        Host and port.
    password
        Default: none.
    timeout
        Seconds until giving up. Default: 3.
    """
    # Its own parser alone: the whole client takes 300 ms to import.
    import hiredis

    commands = [("AUTH", password), ("PING",)] if password else [("PING",)]
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    try:
        with _connection(address, timeout) as connection:
            connection.sendall(b"".join(hiredis.pack_command(command) for command in commands))
            replies = [_reply(connection, reader) for _ in commands]
    except (OSError, hiredis.ProtocolError) as err:
        return _no(_reason(err, timeout))
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            return _no(str(reply))
    return _yes(replies[-1]) if replies[-1] == "PONG" else _no(repr(replies[-1]))


def _reply(connection, reader):
    """Return the next reply that comes over ``connection``."""
    while (reply := reader.gets()) is False:
        data = connection.recv(4096)
        if not data:
            raise ConnectionResetError(0, "connection closed by the server")
        reader.feed(data)
    return reply


def grpc(address, service="", timeout=3):
    """
    Ask the gRPC health service at ``address`` about ``service``.

    address
        Host and port.
    service
        Name of a service. Default: the whole server.
    timeout
        Seconds until giving up. Default: 3.
    """
    import grpc as client
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A pool of its own: the shared one remembers a refused connection and lets the next one wait.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    question = health_pb2.HealthCheckRequest(service=service)
    try:
        with client.insecure_channel(address, options=options) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(question, timeout=timeout)
    except client.RpcError as err:
        return _no(f"{err.code().name}: {err.details()}")
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return _yes(name) if name == "SERVING" else _no(name)


def _connection(address, timeout):
    parts = urllib.parse.urlsplit(f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        port = None
    if not port:
        raise SaltInvocationError(f"{address}: expected <host>:<port>")
    return sockets.create_connection((host, port), timeout=timeout)


def _reason(err, timeout):
    """Return in words why nothing was answered: the cause at the bottom of ``err``."""
    chain = [err]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if any(isinstance(each, TimeoutError) or "Timeout" in type(each).__name__ for each in chain):
        return f"no answer within {timeout:g} s"
    words = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    return (words or [str(chain[-1]) or type(chain[-1]).__name__])[0].lower()


def _yes(answer):
    return {"ok": True, "answer": answer}


def _no(answer):
    return {"ok": False, "answer": answer}
