"""The Python environment of the checkout: `.venv`, from the locks in `requirements/`, by hash."""

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import progress as words
from . import variables
from .installation import PYTHON, REPOSITORY, VENV

STAMP = VENV / "llm-locks.json"
REQUIREMENTS = REPOSITORY / "requirements"
LOCKS = {"platform": ["platform"], "tests": ["platform", "tests"]}  # tests.in includes platform.in


def digest(lock):
    """Return the hash of the lock file ``lock`` and of the Python that it is installed for."""
    text = (REQUIREMENTS / f"{lock}.txt").read_bytes()
    return hashlib.sha256(text + sys.version.encode()).hexdigest()


def stamp():
    """Return which locks the environment holds."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_current(lock):
    """Whether the environment holds what ``lock`` says."""
    return PYTHON.exists() and stamp().get(lock) == digest(lock)


def index():
    """Return the package index that pip asks."""
    configured = configparser.ConfigParser(interpolation=None)
    configured.read(["/etc/pip.conf", Path.home() / ".config/pip/pip.conf"], encoding="utf-8")
    url = configured.get("global", "index-url", fallback="https://pypi.org/simple")
    return os.environ.get("PIP_INDEX_URL", url).rstrip("/")


def install(progress, lock, log):
    """Bring the environment to what ``lock`` says."""
    env = variables.packaging(index())
    if not works():
        shutil.rmtree(VENV, ignore_errors=True)
        argv = [sys.executable, "-m", "venv", str(VENV)]
        words.run(progress, argv, log, "python3 -m venv .venv", env=env)
    STAMP.unlink(missing_ok=True)
    uv = VENV / "bin" / "uv"
    if pinned("uv") not in version(uv):
        wanted = VENV / "uv.txt"
        wanted.write_text(lines("uv"), encoding="utf-8")
        argv = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check",
                "--require-hashes", "-r", str(wanted)]  # fmt: skip
        words.run(progress, argv, log, f"pip install uv {pinned('uv')}", env=env)
    argv = [str(uv), "pip", "sync", "--python", str(PYTHON), "--require-hashes",
            "--compile-bytecode", str(REQUIREMENTS / f"{lock}.txt")]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llm-environment-") as folder:  # uv leaves locks behind
        env["TMPDIR"] = folder
        words.run(progress, argv, log, f"uv pip sync requirements/{lock}.txt", env=env)
    held = {name: digest(name) for name in LOCKS[lock]}
    STAMP.write_text(json.dumps(held) + "\n", encoding="utf-8")


def works():
    """Whether the environment's Python starts and is the one that runs this."""
    program = "import sys; print(sys.version)"
    try:
        answer = subprocess.run(
            [str(PYTHON), "-c", program], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.strip() == sys.version.strip()


def version(uv):
    """Return what the program ``uv`` says of itself."""
    try:
        return subprocess.run(
            [str(uv), "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return ""


def lines(package):
    """Return the lines of the lock that pin ``package``, with its hashes."""
    text = (REQUIREMENTS / "platform.txt").read_text(encoding="utf-8")
    return re.search(rf"^{package}==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL).group(0)


def pinned(package):
    """Return the version of ``package`` in the lock."""
    return re.match(rf"{package}==(\S+)", lines(package)).group(1)
