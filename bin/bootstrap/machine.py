"""What the machine must be and have, found out before anything is changed."""

import os
import re
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

from . import engine, environment, interpreter, listeners, packages
from .installation import REPOSITORY

GIB = 1024**3
LINKS = ("_modules", "_states", "_utils", "orch")  # of salt/, each to the folder beside it
MEMORY = 3 * GIB  # of the machine: Salt 0.5, the five services 1.5, a build beside them 1
FIRST = {  # bytes that the first `make up` writes, measured and rounded up
    "the Python environment": GIB // 2,
    "images, models and Salt's own files": 6 * GIB,
}
SPARE = GIB // 2  # bytes that every `make up` wants free


def problems(installation):
    """Return one line for each thing that stops ``make up``, with what to do about it."""
    found = list(basics())
    if found:
        return found  # the rest would only repeat them
    missing = packages.missing()
    found += links()
    found += memory()
    found += disk(installation)
    found += ports(installation)
    found += root(installation)
    found += engine.problems()
    found += mirrors(installation, missing)
    return found


def python(version=None):
    """Yield whether Salt does not run on this Python."""
    if problem := interpreter.problem(version or sys.version_info):
        yield problem


def basics():
    """Yield what is wrong with the user, the Python and the system."""
    if os.geteuid() != 0:
        yield "not root: run `sudo make up` (it installs packages and starts daemons)"
    yield from python()
    system = release()
    if system.get("ID") == "debian" and system.get("VERSION_ID") in ("12", "13"):
        return
    if system.get("ID") != "ubuntu":
        name = system.get("PRETTY_NAME", sys.platform)
        yield f"this is {name}: the platform runs on Debian 12 and 13 and on Ubuntu"


def release(path="/etc/os-release"):
    """Return what the system says about itself."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key: value.strip().strip("\"'") for key, value in pairs}


def links(repository=REPOSITORY):
    """Yield each link of the checkout that a copy or a file system has made something else of."""
    for name in LINKS:
        path = repository / "salt" / name
        if not path.is_symlink():
            kind = ("a folder" if path.is_dir() else "a file") if path.exists() else "missing"
            yield (
                f"salt/{name} is {kind}, expected a link to ../{name}: clone again with links"
                " (git config core.symlinks true)"
            )


def memory():
    """Yield whether there is too little memory."""
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1)) * 1024
    if total < MEMORY * 0.95:  # the kernel keeps a little for itself
        yield f"{gib(total)} of memory: {gib(MEMORY)} are needed"


def disk(installation):
    """Yield each file system that is too small for what is still to be written to it."""
    first = not environment.is_current("platform")
    needs = {REPOSITORY: FIRST["the Python environment"] if first else 0}
    images = 0 if installation.has_served() else FIRST["images, models and Salt's own files"]
    needs[existing(engine.data_folder())] = images
    needs.setdefault(existing(installation.root), 0)
    systems = {}
    for folder, need in needs.items():
        name, total = systems.get(os.stat(folder).st_dev, (folder, 0))
        systems[os.stat(folder).st_dev] = (name, total + need)
    for folder, need in systems.values():
        free = shutil.disk_usage(folder).free
        if free < need + SPARE:
            yield (
                f"{gib(free)} free on the disk of {folder}: {gib(need + SPARE)} are needed;"
                " make room, or mount a larger disk there"
            )


def existing(folder):
    """Return ``folder`` or the nearest folder above it that exists."""
    folder = Path(folder)
    while not folder.exists():
        folder = folder.parent
    return folder


def gib(size):
    """Return ``size`` in GiB, for people."""
    return f"{size / GIB:.1f} GiB"


def ports(installation):
    """Yield each of Salt's ports that somebody else holds."""
    for port in (installation.publish_port, installation.return_port):
        holder = listeners.holder(port)
        if holder and str(installation.conf) not in holder.command:
            yield (
                f"port {port} is held by process {holder.pid} ({holder.command}): stop it, or"
                f" choose other ports under `salt:` in {installation.pillar}/site.yaml"
            )


def root(installation):
    """Yield whether the platform's folder is somebody else's."""
    folder = installation.root
    if not folder.is_absolute() or len(folder.parts) < 3:
        yield f"root {folder} in site.yaml: give an absolute path of two folders or more"
    elif folder.exists() and not folder.is_dir():
        yield f"root {folder} in site.yaml is not a folder"
    elif installation.marker() is None and any(path.is_file() for path in folder.rglob("*")):
        yield f"{folder} is not empty and not ours: move it, or choose another root in site.yaml"


def mirrors(installation, missing):
    """Yield each mirror that will be asked and does not answer."""
    first = not installation.has_served()  # engine and images are still to come
    if missing or first:
        wanted = [*missing, *(["engine", "images"] if first else [])]
        for url in packages.mirrors():
            yield from unreachable(url, "for " + ", ".join(wanted), packages.proxies(url))
    if first or not environment.is_current("platform"):
        yield from unreachable(environment.index() + "/uv/", "for Python packages")


def unreachable(url, purpose, proxies=None, timeout=8):
    """Yield why ``url`` cannot be reached, if it cannot. Default proxies: the environment's."""
    proxies = urllib.request.getproxies() if proxies is None else proxies
    scheme = url.partition(":")[0]
    if scheme not in ("http", "https") or not proxies.get(scheme, "http").startswith("http"):
        return  # only its own client speaks that
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=timeout):
            return
    except urllib.error.HTTPError as err:
        if err.code in (401, 403, 405):
            return  # it answers, but not to HEAD or not to us: its own client knows more
        reason = f"HTTP {err.code}"
    except (urllib.error.URLError, OSError) as err:
        reason = getattr(err, "reason", err)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return  # somebody is there; ca-certificates may be what is to be installed
    host = re.sub(r"//[^/@]*@", "//", url)
    yield f"{host} does not answer ({reason}), needed {purpose}: check the network or the proxy"
