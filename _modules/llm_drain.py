"""
How a container is left: before it is stopped, it finishes what it has begun.
"""

import contextlib
import pathlib
import time

import llm_engine
import llm_envoy
import llm_world
import psutil
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_drain"

SETTLED = 2  # seconds in which callers notice a closed listener: so often they ask names and health
QUIET = 1  # seconds in which nothing is under way, after which nothing comes any more
POLL = 0.1  # seconds
_ESTABLISHED, _CLOSE_WAIT, _LISTENING = "01", "08", "0A"  # of /proc/net/tcp


def __virtual__():
    return __virtualname__


def wait(container, timeout=60, admin=None, routed=True):
    """
    Let ``container`` finish what it has begun; return once nothing is under way in it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_drain.wait llm-head-1-g1 timeout=30

    container
        Its name or id. Nothing new is sent to it any more, or it is an Envoy.
    timeout
        Seconds that it has. Default: 60.
    admin
        Path of an Envoy's administrative socket. It is told to end each connection with the next
        answer. Default: it is none.
    routed
        Whether callers are led away from it by endpoint files. If not, because they find it by name
        or port, it first takes no more connections. Default: ``True``.

    A client may ask on a kept connection in the moment in which the container is ended. An Envoy is
    therefore to have none any more: each ends with its next answer, or when it was idle for
    ``requests.connection`` and 5 s more, in which Envoy says so. The mesh is to have no request:
    our own services keep their connections to it, and ask again.

    Returns how many requests or connections are left when the time is over, else 0.

    Raises ``CommandExecutionError`` when a caller knows no other one in its place; then it was told
    nothing.
    """
    deadline = time.monotonic() + timeout
    found = llm_engine.Engine(llm_engine.socket_path(__opts__)).inspect(container)
    if admin and pathlib.Path(admin).exists():
        if not routed:
            ends = found["NetworkSettings"]["Networks"].values()
            _succeeded({llm_world.address_of(end) for end in ends} - {""})
        _begin(pathlib.Path(admin), routed, min(SETTLED, timeout))
    pid = found["State"]["Pid"]
    if admin:
        return _finished(lambda: _under_way(admin, routed, pid), deadline)
    return _finished(lambda: _connections(pid), deadline)


def _succeeded(addresses, timeout=30):
    """Return once every Envoy that knows one of ``addresses`` knows a healthy one in its place."""
    deadline = time.monotonic() + timeout
    while waiting := _without_successor(addresses):
        if time.monotonic() >= deadline:
            raise CommandExecutionError(f"no other one is healthy for {', '.join(waiting)}")
        time.sleep(POLL)


def _without_successor(addresses):
    health = __salt__["llm_mesh.health"](routing=False)
    return sorted(
        f"{envoy} ({cluster})"
        for envoy, clusters in health.items()
        for cluster, states in clusters.items()
        if addresses & states.keys()
        and not any(states[other] == "healthy" for other in states.keys() - addresses)
    )


def _begin(admin, routed, settled):
    """Tell the Envoy behind the socket ``admin`` that it is to be left."""
    admin.with_name(llm_world.DRAINED).touch()
    if not routed:
        llm_envoy.told(admin, "/drain_listeners")
        time.sleep(settled)
    # From now on it says with each answer that the connection ends.
    llm_envoy.told(admin, "/healthcheck/fail")


def _finished(under_way, deadline):
    """Return ``under_way()`` at ``deadline``, or 0 as soon as it was that for a while."""
    busy = time.monotonic()
    while True:
        left = under_way()
        now = time.monotonic()
        if left:
            busy = now
        if now - busy >= QUIET or now >= deadline:
            return left
        time.sleep(POLL)


def _under_way(admin, routed, pid):
    """
    Return how many connections the Envoy in container process ``pid`` has; of the mesh, how many
    requests it answers.
    """
    answer = llm_envoy.asked(admin, "/stats?format=json&filter=downstream_(rq|cx)_active$") or {}
    numbers = {each["name"]: each["value"] for each in answer.get("stats", ()) if "name" in each}
    kinds = {"http.": "downstream_rq_active", "listener.": "downstream_cx_active"}
    if routed:
        del kinds["http."]
    for start, end in kinds.items():
        own = {
            name: value
            for name, value in numbers.items()
            if name.startswith(start) and name.endswith(end)
            if ".admin." not in name and ".worker_" not in name
        }
        if any(own.values()) and start == "listener.":
            ports = {int(name.removesuffix(f".{end}").rpartition("_")[2]) for name in own}
            return min(sum(own.values()), _open(pid, ports))
        if own:
            return sum(own.values())
    return 0


def _open(pid, ports):
    """
    Return how many connections to ``ports`` process ``pid`` and its children have. One that was
    ended to its client is none, although an Envoy that only passes bytes on keeps it until the
    client ends it as well: idle ones may take no notice.
    """
    try:
        first = psutil.Process(pid)
        processes = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    mine = {name for process in processes for name in _files(process.pid)}
    return sum(
        state in (_ESTABLISHED, _CLOSE_WAIT)
        and int(local.split(":")[1], 16) in ports
        and f"socket:[{inode}]" in mine
        for local, _, state, inode in _sockets(pid)
    )


def _files(pid):
    """Yield what process ``pid`` has open."""
    with contextlib.suppress(FileNotFoundError):  # it has ended
        for each in pathlib.Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # was closed
                yield each.readlink().name


def _connections(pid):
    """Return how many connections others have to what listens in the network of process ``pid``."""
    sockets = list(_sockets(pid))
    ports = {local.split(":")[1] for local, _, state, _ in sockets if state == _LISTENING}
    return sum(
        state == _ESTABLISHED and local.split(":")[1] in ports and not _is_loopback(remote)
        for local, remote, state, _ in sockets
    )


def _sockets(pid):
    """Yield the sockets in the network of process ``pid``: their ends, state and number."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # it has ended
            for line in pathlib.Path("/proc", str(pid), "net", table).read_text().splitlines()[1:]:
                fields = line.split()
                yield (*fields[1:4], fields[9])


def _is_loopback(end):
    """Return whether ``0100007F:1F90``, an end of a connection, is 127.0.0.1."""
    return end.split(":")[0].endswith("00007F")
