"""
Debian's own base image, made here, for hosts that reach no registry.
"""

import logging
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

import llm_mirror
from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

PREFIX = "llm-debootstrap-"
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LEFT_OUT = ("var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*",
            "usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*",
            "var/log/*", "proc/*", "sys/*", "dev/*")  # fmt: skip


def archive(suite, folder):
    """
    Make a minimal system of ``suite`` below ``folder`` and return it as an open tar file.

    Raises ``CommandExecutionError`` with the end of debootstrap's output when it fails, or when
    it could not check what it downloads.
    """
    for needed in ("debootstrap", "unshare", "tar"):
        if not shutil.which(needed):
            raise CommandExecutionError(f"{needed} is not installed")
    if not KEYRING.exists():
        raise CommandExecutionError(f"{KEYRING} is missing: install debian-archive-keyring")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for left in pathlib.Path(folder).glob(f"{PREFIX}*"):  # of an interrupted run
        shutil.rmtree(left, ignore_errors=True)
    work = tempfile.mkdtemp(prefix=PREFIX, dir=folder)
    try:
        mirror = llm_mirror.apt()[0]
        log.info("making Debian %s from %s", suite, llm_mirror.without_passwords(mirror))
        # In a mount namespace of its own: what it mounts is gone with it, however it ends.
        _run(
            [
                "unshare",
                "--mount",
                "debootstrap",
                "--variant=minbase",
                f"--keyring={KEYRING}",
                suite,
                f"{work}/root",
                mirror,
            ]  # fmt: skip
        )
        exclude = [f"--exclude=./{pattern}" for pattern in LEFT_OUT]
        _run(["tar", "-C", f"{work}/root", *exclude, "-cf", f"{work}/root.tar", "."])
        return open(f"{work}/root.tar", "rb")  # noqa: SIM115 - the caller closes it
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _environment():
    """Return the variables for debootstrap, which asks apt for no proxy."""
    quiet = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return os.environ | llm_mirror.proxies(os.environ) | quiet


def _run(command):
    """Run ``command`` to its end; an interrupted run takes it along."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
        start_new_session=True,
    )
    try:
        output = process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        last = "\n".join(llm_mirror.without_passwords(output).splitlines()[-15:])
        raise CommandExecutionError(f"{command[0]} failed with {process.returncode}:\n{last}")
