"""
The networks that the platform's containers share.
"""

import ipaddress
import pathlib
import socket
import struct

import llm_engine
import llm_world
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_network"

ROUTES = "/proc/net/route"


def __virtual__():
    return __virtualname__


def _engine():
    return llm_engine.Engine(llm_engine.socket_path(__opts__))


def _site():
    return llm_world.site(__pillar__)


def find(name):
    """
    Return network ``name`` of this host, or ``None``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_network.find llm-network

    Returns ``{"name": str, "id": str, "subnets": [str], "ours": bool, "containers": [str]}``,
    ``containers`` being the names of those that are connected and run.
    """
    try:
        network = _engine().network(name)
    except llm_engine.NotFound:
        return None
    if network["Name"] != name:  # the engine takes the first part of an id, too
        return None
    return {
        "name": name,
        "id": network["Id"],
        "subnets": _subnets(network),
        "ours": (network["Labels"] or {}).get(llm_world.SITE) == _site(),
        "containers": sorted(each["Name"] for each in network["Containers"].values()),
    }


def _subnets(network):
    return [pool["Subnet"] for pool in network["IPAM"].get("Config") or [] if "Subnet" in pool]


def overlaps(subnet, name=None):
    """
    Return what on this host has addresses of ``subnet`` already.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_network.overlaps 172.30.0.0/20

    subnet
        A network such as ``172.30.0.0/20``.
    name
        The Docker network that is meant to have them, and the route to it. Default: none.

    Returns a list of phrases, each of which names a Docker network or a route and its subnet.
    """
    wanted = ipaddress.ip_network(subnet)
    found, bridges = [], set()
    for network in _engine().networks():
        bridges.add(_bridge(network))
        for each in _subnets(network) if network["Name"] != name else ():
            if _overlap(wanted, each):
                found.append(f"network {network['Name']} ({each})")
    for interface, each in _routes():
        if interface not in bridges and _overlap(wanted, each):
            found.append(f"the host's route to {each} by {interface}")
    return sorted(set(found))


def _overlap(wanted, subnet):
    other = ipaddress.ip_network(subnet, strict=False)
    return other.version == wanted.version and other.overlaps(wanted)


def _bridge(network):
    """Return the host's interface of a Docker network."""
    named = (network["Options"] or {}).get("com.docker.network.bridge.name")
    return named or f"br-{network['Id'][:12]}"


def _routes():
    """Yield interface and destination of each IPv4 route, without the default one."""
    for line in pathlib.Path(ROUTES).read_text().splitlines()[1:]:
        fields = line.split()
        address, mask = (
            socket.inet_ntoa(struct.pack("=L", int(fields[column], 16))) for column in (1, 7)
        )
        if mask != "0.0.0.0":
            yield fields[0], str(ipaddress.ip_network(f"{address}/{mask}"))


def create(name, subnet):
    """
    Create network ``name``, with the platform's label.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_network.create llm-network 172.30.0.0/20

    name
        Its name.
    subnet
        Its addresses, of which nothing else on this host may have any.

    Returns the id.

    Raises ``CommandExecutionError`` naming what has such addresses already.
    """
    if taken := overlaps(subnet, name):
        raise CommandExecutionError(f"{subnet} overlaps with {', '.join(taken)}: choose another")
    return _engine().create_network(
        {
            "Name": name,
            "Driver": "bridge",
            "CheckDuplicate": True,
            "IPAM": {"Config": [{"Subnet": str(ipaddress.ip_network(subnet))}]},
            "Labels": {llm_world.SITE: _site()},
        }
    )


def remove(name):
    """
    Remove network ``name``, provided that it is the platform's.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_network.remove llm-network

    Returns ``True``, or ``False`` when there was none.

    Raises ``CommandExecutionError`` when it is not ours, or containers are connected to it.
    """
    found = find(name)
    if not found:
        return False
    if not found["ours"]:
        raise CommandExecutionError(f"Network {name} is not ours")
    if found["containers"]:
        raise CommandExecutionError(f"Network {name} is in use by {', '.join(found['containers'])}")
    _engine().remove_network(found["id"])
    return True
