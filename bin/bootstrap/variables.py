"""Environment variables of what we start: little of the user's, so that nothing of theirs leaks."""

import os
import re
from pathlib import Path

from .installation import VENV

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PASSED_ON = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT", "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "GOPROXY",
    "GOSUMDB",
)  # fmt: skip
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean():
    """Return the variables for daemons and for the system's own programs."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {"PATH": SYSTEM, "HOME": "/root", "LANG": "C.UTF-8", **kept}


def lines():
    """Return the variables for daemons as lines of a file, as systemd and `launch.py` read it."""
    quoted = {name: re.sub(r'(["\\])', r"\\\1", value) for name, value in clean().items()}
    return "".join(f'{name}="{value}"\n' for name, value in quoted.items())


def packaging(index):
    """Return the variables for pip and uv: the system's certificates, one index, our own cache."""
    found = dict(os.environ, UV_NO_PROGRESS="1", PIP_NO_INPUT="1", PIP_NO_CACHE_DIR="1")
    found.pop("VIRTUAL_ENV", None)
    found.setdefault("UV_CACHE_DIR", str(VENV / "cache"))  # an interrupted installation goes on
    found.setdefault("UV_DEFAULT_INDEX", index)
    if "PIP_FIND_LINKS" in found:
        found.setdefault("UV_FIND_LINKS", ",".join(found["PIP_FIND_LINKS"].split()))
    if Path(BUNDLE).exists():
        found.setdefault("SSL_CERT_FILE", BUNDLE)
        found.setdefault("PIP_CERT", BUNDLE)
    return found


def installation(of):
    """Return the variables for Salt's programs: the configuration of this installation alone."""
    return dict(os.environ, SALT_SALTFILE=str(of.conf / "Saltfile"))
