"""The minion's key: accepted when its fingerprint is the one on the minion's own disk."""

import hashlib
import subprocess
from pathlib import Path

from .progress import Failure, wait_for


def fingerprint(path):
    """Return the fingerprint of the public key at ``path`` as Salt computes it, or ``""``."""
    try:
        lines = [line for line in Path(path).read_bytes().splitlines(True) if line.strip()]
    except OSError:
        return ""
    plain = hashlib.sha256(b"".join(lines[1:-1]).replace(b"\r\n", b"\n")).hexdigest()
    return ":".join(plain[i : i + 2] for i in range(0, len(plain), 2))


def ensure_accepted(progress, installation, minion, timeout=60):
    """
    Accept the key of ``minion``, which runs on this machine; return whether that was needed.

    Raises ``Failure`` where the master was offered another key under this name.
    """
    master, own = installation.pki / "master", installation.pki / "minion" / "minion.pub"
    if fingerprint(own) and fingerprint(master / "minions" / minion) == fingerprint(own):
        return False

    def offered():
        if (master / "minions_denied" / minion).exists():
            refuse(minion, master / "minions_denied" / minion, own)
        return fingerprint(own) and fingerprint(master / "minions_pre" / minion)

    wait_for(progress, offered, f"the minion {minion} offers its key to the master", timeout)
    pending = master / "minions_pre" / minion
    if fingerprint(pending) != fingerprint(own):
        refuse(minion, pending, own)
    accepted = subprocess.run(
        installation.command("salt-key", "--yes", f"--accept={minion}"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if fingerprint(master / "minions" / minion) != fingerprint(own):
        raise Failure(f"salt-key did not accept {minion}: {accepted.stderr.strip()}")
    return True


def refuse(minion, offered, own):
    """Raise what a key that is not this machine's means."""
    raise Failure(
        f"a key of {minion} with fingerprint {fingerprint(offered)} was offered to the master, but"
        f" this machine's is {fingerprint(own)}: look who offers it; if this machine was rebuilt,"
        f" remove the old key with `.venv/bin/salt-key -d {minion}`"
    )
