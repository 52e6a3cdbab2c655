"""
A check: one question to a container or an address, as the catalogue or an SLS writes it.

With an address, ``{http: url}``, ``{tcp: address}``, ``{redis: address}`` or ``{grpc: address}``
and the other arguments of `llm_probe`'s function of that name. Of a container, the catalogue's
shorter forms: ``{http: path}``, ``{tcp: port}`` or ``{tcp: true}``, ``{redis: <secret>}``, ``{grpc:
<service>}``, with ``port`` or ``socket`` (a file in the container's /run/llm), and ``{container:
running}``.
"""

import json

import llm_probe
from salt.exceptions import SaltInvocationError

PROTOCOLS = {
    "http": llm_probe.http,
    "tcp": llm_probe.tcp,
    "redis": llm_probe.redis,
    "grpc": llm_probe.grpc,
}
QUESTIONS = {"http": "GET", "tcp": "connect to", "redis": "PING", "grpc": "gRPC health of"}
SOCKETS = "/run/llm"  # where a container has the folder of its sockets


def protocol(check):
    """
    Return what ``check`` speaks.

    Raises ``SaltInvocationError`` when it is none.
    """
    for each in PROTOCOLS:
        if each in check:
            return each
    raise SaltInvocationError(f"a check needs one of {', '.join(PROTOCOLS)}, container")


def is_short(check):
    """
    Return whether ``check`` leaves the address to the container.
    """
    if "container" in check:
        return False
    value = str(check[protocol(check)])
    return value.startswith("/") or ":" not in value


def addressed(check, found, port):
    """
    Return ``check``, which is short, with the address of a container.

    found
        What the engine said of the container.
    port
        Where it listens, unless the check says so.

    Raises ``SaltInvocationError`` when there is no port, or no socket.
    """
    kind = protocol(check)
    value = check[kind]
    rest = {key: each for key, each in check.items() if key not in (kind, "port")}
    if "socket" in check:
        return rest | {kind: f"http://localhost{value}", "socket": _socket(found, check["socket"])}
    if kind == "tcp" and value is not True:
        port = value
    if not port:
        raise SaltInvocationError("the check needs a port")
    address = f"{_address(found)}:{port}"
    if kind == "http":
        return rest | {kind: f"http://{address}{value}"}
    extra = {"redis": {"secret": value}, "grpc": {"service": value}}
    return rest | {kind: address} | extra.get(kind, {})


def ask(check, found, timeout):
    """
    Ask ``check``, which names an address, or the container ``found``, and return ``{"ok": bool,
    "answer": str}``.

    found
        What the engine said of the container, or ``None``.
    timeout
        Seconds until giving up.
    """
    if "container" in check:
        return _own_state(found)
    kind = protocol(check)
    arguments = {key: value for key, value in check.items() if key != kind}
    return PROTOCOLS[kind](check[kind], timeout=timeout, **arguments)


def question(check):
    """
    Return ``check`` in words.
    """
    if "container" in check:
        return "the container runs"
    kind = protocol(check)
    through = f" through {check['socket']}" if "socket" in check else ""
    expected = [f"status {check['status']}"] if "status" in check else []
    expected += [f"JSON {json.dumps(check['json'])}"] if "json" in check else []
    wanted = f" must give {' and '.join(expected)}" if expected else ""
    return f"{QUESTIONS[kind]} {check[kind]}{through}{wanted}"


def _own_state(found):
    """Return whether the container runs, and is healthy by its image's own health check."""
    if not found:
        raise SaltInvocationError("the check asks for a container, and none is given")
    state = found["State"]
    health = (state.get("Health") or {}).get("Status", "none")
    answer = state["Status"] if health == "none" else f"{state['Status']}, {health}"
    return {"ok": state["Status"] == "running" and health in ("none", "healthy"), "answer": answer}


def _address(found):
    """Return where this host reaches the container."""
    for network in found["NetworkSettings"]["Networks"].values():
        if network["IPAddress"]:
            return network["IPAddress"]
    return "127.0.0.1"


def _socket(found, name):
    for mount in found["Mounts"]:
        if mount["Destination"] == SOCKETS:
            return f"{mount['Source']}/{name}"
    raise SaltInvocationError(f"the container has no folder at {SOCKETS}")
