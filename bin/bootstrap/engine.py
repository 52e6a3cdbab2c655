"""The container engine, asked over its socket."""

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from urllib.parse import quote, urlencode

from .progress import Failure

SOCKET = "/var/run/docker.sock"
OLDEST_API = (1, 41)  # Debian 12's 20.10
SET_INTERFACE_FLAGS, REMOVE_BRIDGE = 0x8914, 0x89A1  # of linux/sockios.h


class Refused(Failure):
    """The engine answered with an error."""

    def __init__(self, status, problem):
        super().__init__(problem)
        self.status = status


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(method, path, body=None, timeout=120, **query):
    """
    Return the engine's answer, parsed.

    Raises ``OSError`` where no engine answers and ``Failure`` where it refuses.
    """
    connection = Connection(SOCKET, timeout)
    content = None if body is None else json.dumps(body)
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        connection.request(
            method, f"{path}?{urlencode(query)}" if query else path, content, headers
        )
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        if answer.status >= 400:
            raise Refused(answer.status, f"engine: {method} {path}: {text.strip()}")
        return json.loads(text) if text.startswith(("{", "[")) else text
    finally:
        connection.close()


def answers():
    """Whether an engine answers."""
    try:
        return ask("GET", "/_ping", timeout=5) == "OK"
    except (OSError, Failure, http.client.HTTPException):
        return False


def data_folder():
    """Return the folder that holds the images."""
    try:
        return Path(ask("GET", "/info", timeout=10)["DockerRootDir"])
    except (OSError, Failure, http.client.HTTPException):
        return Path("/var/lib/docker")


def problems():
    """Yield what would keep an engine from running the platform."""
    if answers():
        api = ask("GET", "/version")["ApiVersion"]
        if tuple(map(int, api.split("."))) < OLDEST_API:
            oldest = ".".join(map(str, OLDEST_API))
            yield f"the engine speaks API {api}: {oldest} or newer is needed (Docker 20.10)"
        return
    if os.path.exists("/.dockerenv") and not has_capability(21):
        yield "this is a container without CAP_SYS_ADMIN: no engine can run in it"
        return
    if not has_capability(12):
        yield "no CAP_NET_ADMIN here: the engine cannot make networks"
    if "overlay" not in Path("/proc/filesystems").read_text() and not shutil.which("modprobe"):
        yield "the kernel has no overlay file system: the engine has nowhere to keep images"
    if not any(path.exists() for path in cgroups()):
        yield "no memory cgroup is mounted at /sys/fs/cgroup: limits would not hold"


def cgroups():
    """Return where the memory controller may be."""
    return Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/cgroup.controllers")


def has_capability(number):
    """Whether this process may ever have the capability ``number``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return True


def remove_folders(folders):
    """Remove ``folders`` with all that is mounted in them."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for folder in folders:
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
            subprocess.run(["umount", mount], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def forget(forwarding):
    """
    Take back what an engine that is gone has left in the kernel.

    forwarding
        How the host forwarded packets before: ``{"switch": "0", "policy": "ACCEPT"}``.
    """
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with control, contextlib.suppress(OSError):  # it is not there
        fcntl.ioctl(control, SET_INTERFACE_FLAGS, struct.pack("16sH14x", b"docker0", 0))
        fcntl.ioctl(control, REMOVE_BRIDGE, struct.pack("16s", b"docker0"))
    for family in ("iptables", "ip6tables"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            saved = subprocess.run([f"{family}-save"], capture_output=True, text=True, check=True)
            kept = [line for line in saved.stdout.splitlines(True) if "docker" not in line.lower()]
            subprocess.run([f"{family}-restore"], input="".join(kept), text=True, check=True)
    if forwarding:
        with contextlib.suppress(OSError):
            policy = ["iptables", "-P", "FORWARD", forwarding["policy"]]
            subprocess.run(policy, capture_output=True, check=False)
            Path("/proc/sys/net/ipv4/ip_forward").write_text(forwarding["switch"])


def labelled(kind, label, **more):
    """Return what of ``kind`` (containers, networks, volumes, images) carries ``label``."""
    filters = json.dumps({"label": [label]})
    found = ask("GET", f"/{kind}/json" if kind in ("containers", "images") else f"/{kind}",
                filters=filters, **more)  # fmt: skip
    return (found["Volumes"] or []) if kind == "volumes" else found


def remove(kind, name, **query):
    """Remove one object; return why it is still there, or an empty string."""
    try:
        ask("DELETE", f"/{kind}/{quote(name, safe='')}", **query)
    except Refused as refusal:
        return "" if refusal.status == 404 else str(refusal)
    return ""
