"""System packages: which are missing, and their installation."""

import importlib.util
import shlex
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path
from urllib.parse import urlsplit

from . import progress as words
from . import variables

LISTS = Path("/var/lib/apt/lists")
FRESH = 3600  # seconds for which the package lists are believed
# A new server installs its security updates just when somebody first logs in.
PATIENT = ("-o", "DPkg::Lock::Timeout=300")


def missing():
    """Return the Debian packages that are needed and not there; a truth, not a package, decides."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    truths = {
        "ca-certificates": Path("/etc/ssl/certs/ca-certificates.crt").exists(),
        "python3-venv": bool(importlib.util.find_spec("ensurepip")),
        "gcc": bool(shutil.which("gcc")),
        "libc6-dev": Path("/usr/include/stdlib.h").exists(),
        "python3-dev": header.exists(),
        "gnupg": bool(shutil.which("gpg")),
        "debootstrap": bool(shutil.which("debootstrap")),
        "iptables": bool(shutil.which("iptables")),
        "procps": bool(shutil.which("sysctl")),
        "curl": bool(shutil.which("curl")),
    }
    return [package for package, there in truths.items() if not there]


def mirrors():
    """Return the URL of one file on each mirror that apt asks."""
    asked = subprocess.run(
        ["apt-get", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=",  # leave none
         "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {}
    for line in asked.stdout.splitlines():
        uri, _, suite = line.partition(" ")
        found.setdefault(uri, f"{uri}dists/{suite}/InRelease")
    return list(found.values())


def proxies(url):
    """
    Return apt's own proxy for ``url`` as ``{scheme: proxy}``, or the program that finds one; ``{}``
    where apt shall use none, and ``None`` where the environment's counts.
    """
    where = urlsplit(url)
    names = (
        f"Acquire::{where.scheme}::Proxy::{where.hostname}", "Acquire::http::Proxy-Auto-Detect",
        "Acquire::http::ProxyAutoDetect", f"Acquire::{where.scheme}::Proxy", "Acquire::http::Proxy",
    )  # fmt: skip
    words = [word for name in names for word in ("proxy", name)]
    asked = subprocess.run(
        ["apt-config", "shell", *words], capture_output=True, text=True, check=False
    )
    found = [word.removeprefix("proxy=") for word in shlex.split(asked.stdout)]
    if not found:
        return None
    return {} if found[0] == "DIRECT" else {where.scheme: found[0]}


def install(progress, names, log):
    """Install the packages ``names``, after mending what an interrupted run left."""
    environment = {"DEBIAN_FRONTEND": "noninteractive", **variables.clean()}
    if any(Path("/var/lib/dpkg/updates").iterdir()):
        words.run(
            progress, ["dpkg", "--configure", "-a"], log, "dpkg --configure -a", env=environment
        )
    if not are_fresh():
        words.run(progress, ["apt-get", "update", "-q"], log, "apt-get update", env=environment)
    argv = ["apt-get", *PATIENT, "install", "-q", "-y", "--no-install-recommends", *names]
    words.run(progress, argv, log, "apt-get install " + " ".join(names), env=environment)


def are_fresh():
    """Whether the package lists are there and not old."""
    times = [path.stat().st_mtime for path in LISTS.glob("*_Packages*")]
    return bool(times) and time.time() - max(times) < FRESH


def remove(progress, names, log):
    """Remove the packages ``names`` with their configuration."""
    environment = {"DEBIAN_FRONTEND": "noninteractive", **variables.clean()}
    argv = ["apt-get", *PATIENT, "purge", "-q", "-y", "--autoremove", *names]
    words.run(progress, argv, log, "apt-get purge " + " ".join(names), env=environment)
