"""
Where this host gets its software from, for the builds: what works here works in them.
"""

import configparser
import os
import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path("/")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
DEBIAN = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"
_LOOPBACK = re.compile(r"//([^/@]*@)?(localhost|127\.|\[::1\])")  # a build has one of its own
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCE = """\
Types: deb
URIs: {uri}
Suites: {suites}
Components: main
Signed-By: {keyring}
"""


def certificates(root=ROOT):
    """
    Return the authorities that this host trusts beyond the usual, as files for a build:
    ``{"certificates/<path>": content}``.
    """
    folder = root / "usr/local/share/ca-certificates"
    paths = sorted(path for path in folder.rglob("*.crt") if path.is_file())
    found = {f"certificates/{path.relative_to(folder)}": path.read_bytes() for path in paths}
    return found | {"certificates/README": b"Authorities of the host.\n"}


def authorities(root=ROOT):
    """Return all that this host trusts as one file, empty where it trusts none."""
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    return bundle.read_bytes() if bundle.exists() else b""


def apt(root=ROOT):
    """
    Return the addresses of Debian's archive and of its security archive. Other people's archives
    are told from them by their suites: they have no updates and no security.
    """
    found = {}
    for address, suites in _archives(root / "etc/apt"):
        for suite in suites:
            if "debian" in address:
                found.setdefault(suite.rpartition("-")[2], address.rstrip("/"))
    return found.get("updates", DEBIAN), found.get("security", SECURITY)


def _archives(folder):
    """Yield address and suites of each archive that apt knows, in either of its two forms."""
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        lines = path.read_text(errors="replace").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        if path.suffix == ".list":
            for address, suite in re.findall(r"^deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)", text, re.M):
                yield address, [suite]
            continue
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.M))
            if fields.get("Enabled", "yes") != "no":
                for address in fields.get("URIs", "").split():
                    yield address, fields.get("Suites", "").split()


def sources(suite, root=ROOT):
    """Return apt's ``.sources`` file for ``suite`` from this host's mirrors."""
    debian, security = apt(root)
    return "\n".join(
        _SOURCE.format(uri=uri, suites=suites, keyring=_KEYRING)
        for uri, suites in (
            (debian, f"{suite} {suite}-updates"),
            (security, f"{suite}-security"),
        )
    )


def proxies(environment):
    """Return the proxies of ``environment``; without them those that apt alone is told of."""
    found = {}
    for name in PROXIES:
        value = environment.get(name) or environment.get(name.upper()) or _apt_proxy(name)
        if value:
            found |= {name: value, name.upper(): value}
    return found


def _apt_proxy(name):
    """Return the proxy in apt's own configuration that ``name`` stands for, or an empty string."""
    option = f"Acquire::{name.removesuffix('_proxy')}::Proxy"
    try:
        asked = subprocess.run(
            ["apt-config", "shell", "proxy", option], capture_output=True, text=True, check=False
        )
    except OSError:  # no apt here
        return ""
    proxy = "".join(shlex.split(asked.stdout)).removeprefix("proxy=")
    return "" if proxy == "DIRECT" else proxy


def arguments(environment=None, root=ROOT):
    """Return build arguments for this host's proxies and package indexes, where it has any."""
    environment = os.environ if environment is None else environment
    found = proxies(environment).items()
    found = {name: value for name, value in found if not _LOOPBACK.search(value)}
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    index = next((environment[name] for name in names if environment.get(name)), "")
    if index := index or _pip_index(root):
        found |= {"UV_DEFAULT_INDEX": index, "PIP_INDEX_URL": index}
    return found | {
        name: environment[name] for name in ("GOPROXY", "GOSUMDB") if environment.get(name)
    }


def _pip_index(root):
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read([root / "root/.config/pip/pip.conf", root / "etc/pip.conf"])
    except configparser.Error:
        return ""
    return config.get("global", "index-url", fallback="")


def without_passwords(text):
    """Return ``text`` with the user part of every URL left out."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
