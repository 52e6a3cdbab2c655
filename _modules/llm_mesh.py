"""
Where the replicas of each service are: one file per service, which the Envoys of this host read
again whenever one is moved into their folder.
"""

import hashlib
import json
import pathlib
import time

import llm_catalogue
import llm_envoy
import llm_world
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_mesh"

SUBSCRIPTIONS = {"clusters": "cluster_manager.cds", "listeners": "listener_manager.lds"}
HEALTH = "llm_mesh.health"
RECENT = 2  # seconds that the states of one run share what the Envoys said
ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def __virtual__():
    return __virtualname__


def _path(service):
    root = __salt__["llm_config.platform"]()["site"]["root"]
    return pathlib.Path(root, "endpoints", f"{service}.yaml")


def services():
    """
    Return the names of the services that are reached by way of an Envoy of this host, and of the
    canaries that there may be of them, sorted.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.services
    """
    catalogue = _catalogue()
    found = [name for name, service in catalogue.items() if not service["every_host"]]
    tried = [f"{name}{llm_world.CANARY}" for name in llm_catalogue.canaries(catalogue)]
    return sorted(found + tried)


def endpoints(service):
    """
    Return the addresses that requests for ``service`` may go to on this host, sorted; ``None``
    when that was never said, or cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.endpoints head
    """
    try:
        groups = json.loads(_path(service).read_text())["resources"][0]["endpoints"]
        return sorted(
            entry["endpoint"]["address"]["socket_address"]["address"]
            for group in groups
            for entry in group["lb_endpoints"]
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def said(service, addresses):
    """
    Return whether it was said to every Envoy of this host, ports and all, that requests for
    ``service`` go to ``addresses``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.said head '[172.30.0.80]'

    service
        A service of the catalogue.
    addresses
        The IPv4 addresses of its replicas on this host.
    """
    try:
        return _path(service).read_bytes() == _text(service, sorted(set(addresses))).encode()
    except FileNotFoundError:
        return False


def serving(service):
    """
    Return the addresses of the containers that serve ``service`` on this host, sorted: those that
    run, of each replica the newest.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.serving head
    """
    newest = {}
    for found in __salt__["llm_container.list"](service):
        if found["state"] == "running" and found["address"]:
            kept = newest.get(found["replica"])
            if not kept or kept["generation"] < found["generation"]:
                newest[found["replica"]] = found
    return sorted(found["address"] for found in newest.values())


def route(service, addresses, timeout=10):
    """
    Send requests for ``service`` to ``addresses`` and nowhere else.

    Where some addresses go and others come, the old ones serve on until every Envoy of this host
    has found the new ones healthy, so that there is no moment without a replica.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.route head '[172.30.0.80]'

    service
        A service of the catalogue.
    addresses
        The IPv4 addresses of its replicas on this host; an empty list for none.
    timeout
        Seconds to wait for the Envoys. Default: 10.

    Returns whether anything changed. Raises ``CommandExecutionError`` when the new ones are not
    healthy in time; then both serve, as far as they can.
    """
    if said(service, addresses):
        return False
    wanted, current = sorted(set(addresses)), endpoints(service)
    coming, going = set(wanted) - set(current or ()), set(current or ()) - set(wanted)
    if coming and going:
        _write(service, sorted(set(current) | coming))
        _wait(service, coming, timeout)
    _write(service, wanted)
    return True


def close(service):
    """
    Send no more requests for ``service`` to this host.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.close head

    service
        Any name; of one that the catalogue does not know no file is left.
    """
    if service in services():
        route(service, [])
    else:
        _path(service).unlink(missing_ok=True)


def _write(service, addresses):
    """Move the endpoint file of ``service`` into place."""
    __context__.pop(HEALTH, None)
    text = _text(service, addresses)
    path = _path(service)
    new = path.with_name(f".{service}.new")
    try:
        _make_folder(path.parent)
        new.unlink(missing_ok=True)
        new.write_text(text)
        new.chmod(0o444)
        new.replace(path)
    except OSError as err:
        raise CommandExecutionError(f"{path}: {err.strerror}") from err


def _text(service, addresses):
    """Return what the endpoint file of ``service`` says when it is at ``addresses``."""
    found = __salt__["llm_config.service"](service.removesuffix(llm_world.CANARY))
    health = {"port_value": found["health"]["port"]} if found["health"].get("port") else {}
    entries = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": address, "port_value": found["port"]}},
                "health_check_config": health,
            }
        }
        for address in addresses
    ]
    groups = [{"lb_endpoints": entries}] if entries else []
    resource = {"@type": ASSIGNMENT, "cluster_name": service, "endpoints": groups}
    version = hashlib.sha256(json.dumps(resource).encode()).hexdigest()[:12]
    return json.dumps({"version_info": version, "resources": [resource]}, indent=1) + "\n"


def _make_folder(folder):
    """Make the folder of the endpoint files, which Envoy's user has to enter."""
    for place, mode in ((folder.parent, 0o711), (folder, 0o755)):
        if not place.exists():
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(mode)


def wait(service, timeout=10):
    """
    Return once every Envoy of this host that sends requests to ``service`` has found its replicas
    healthy.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.wait head timeout=60

    service
        Its name.
    timeout
        Seconds to wait for the Envoys. Default: 10.

    Raises ``CommandExecutionError`` when they have not in time.
    """
    if unhealthy(service):
        _wait(service, endpoints(service), timeout)


def unhealthy(service):
    """
    Return the replicas of ``service`` that an Envoy of this host sends requests to, or would if it
    had found them healthy.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.unhealthy head

    Returns ``{container of the Envoy: {address}}``, without those Envoys that find all healthy.
    """
    addresses = endpoints(service)
    if not addresses:
        return {}
    when, found = __context__.get(HEALTH, (0, None))
    if found is None or time.monotonic() - when > RECENT or _waiting(found, service, addresses):
        when, found = time.monotonic(), health()
        __context__[HEALTH] = (when, found)
    return _waiting(found, service, addresses)


def _wait(service, addresses, timeout):
    """Return when every Envoy that routes ``service`` has found ``addresses`` healthy."""
    deadline = time.monotonic() + timeout
    while waiting := _waiting(health(), service, addresses):
        if time.monotonic() >= deadline:
            envoys = "; ".join(f"{name}: {', '.join(sorted(of))}" for name, of in waiting.items())
            raise CommandExecutionError(
                f"not yet healthy for the Envoys of this host after {timeout} s: {envoys}"
            )
        time.sleep(0.05)


def _waiting(found, service, addresses):
    """Return, by Envoy, which of ``addresses`` it does not take for healthy, as `health` found."""
    waiting = {
        name: {address for address in addresses if states[service].get(address) != "healthy"}
        for name, states in found.items()
        if service in states
    }
    return {name: of for name, of in waiting.items() if of}


def health(routing=True):
    """
    Return how the running Envoys of this host find the replicas that they route to.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.health

    routing
        Only of those that are told where replicas are, and not of those that ask the mesh by name.
        Default: ``True``.

    Returns ``{container: {service: {address: "healthy"}}}``; in place of ``"healthy"`` the first
    reason against it, such as ``"failed_active_health_check"``.
    """
    found = {}
    for envoy, service in sorted(_catalogue().items()):
        if routing and not service["endpoints"]:
            continue
        for path in map(pathlib.Path, sockets(envoy)):
            clusters = _clusters(path)
            if clusters is not None:
                found[path.parent.name] = clusters
    return found


def sockets(envoy):
    """
    Return the paths of the administrative sockets that the Envoys of service ``envoy`` have made on
    this host, sorted; whether one still answers is not asked.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.sockets ingress

    envoy
        A service of the catalogue; one that is no Envoy has none.
    """
    root = pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"])
    admin = _catalogue()[envoy]["health"].get("socket")
    return sorted(map(str, root.glob(f"services/{envoy}/run/*/{admin}"))) if admin else []


def refused(admin, folder, timeout=3):
    """
    Return those files of ``folder`` that an Envoy does not take: with them it would not start, and
    while it runs it keeps what it had.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_mesh.refused /var/lib/llm/services/tail/run/llm-tail-1-g1/admin.sock \\
            /var/lib/llm/services/tail/live

    admin
        Path of the Envoy's administrative socket.
    folder
        Path of its live files.
    timeout
        Seconds that it has to read them. Default: 3.

    Returns a sorted list of their names.
    """
    deadline = time.monotonic() + timeout
    while (late := _late(pathlib.Path(admin), pathlib.Path(folder))) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    # Without a failure it is only the clock that was set back.
    return sorted(file for file, failures in late.items() if failures)


def _late(admin, folder):
    """Return the files that are newer than what the Envoy has taken, each with its failures."""
    answer = (
        llm_envoy.asked(admin, "/stats?format=json&filter=%5C.update_(time|failure|rejected)$")
        or {}
    )
    numbers = {each["name"]: each["value"] for each in answer.get("stats", ()) if "name" in each}
    found = {}
    for path in folder.glob("*.yaml"):
        kind = SUBSCRIPTIONS.get(path.stem, f"sds.{path.stem}")
        taken = numbers.get(f"{kind}.update_time")
        if taken is not None and taken < int(path.stat().st_mtime * 1000):
            failures = (numbers.get(f"{kind}.update_{how}", 0) for how in ("failure", "rejected"))
            found[path.name] = sum(failures)
    return found


def _catalogue():
    return __salt__["llm_config.platform"]()["services"]


def _clusters(path):
    """Return what the Envoy behind the socket ``path`` says, or ``None`` if none is there."""
    answer = llm_envoy.asked(path, "/clusters?format=json")
    if answer is None:
        return None
    return {
        cluster["name"]: {
            host["address"]["socket_address"]["address"]: _state(host["health_status"])
            for host in cluster.get("host_statuses", ())
        }
        for cluster in answer.get("cluster_statuses", ())
    }


def _state(status):
    """Return the first thing that speaks against a replica, or ``healthy``."""
    flaws = [name for name, value in status.items() if value is True]
    return flaws[0] if flaws else status.get("eds_health_status", "HEALTHY").lower()
