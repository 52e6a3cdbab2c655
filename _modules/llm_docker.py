"""
The container engine: whether it is there, its installation, its configuration and its start.

An engine that was there before the platform is left as it is. One that the platform installed is
noted in ``engine.json`` under the platform's root, for the day when the platform goes.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import llm_engine
import salt.utils.files
from salt.exceptions import CommandExecutionError

OPTIONS = {  # no `hosts`: the engine listens on its Unix socket alone, never on TCP
    "live-restore": True,  # containers outlive a restart of the engine
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3"},
}
CONFIGURATION = pathlib.Path("/etc/docker/daemon.json")
APPARMOR = pathlib.Path("/sys/module/apparmor/parameters/enabled")
SYSTEMD = pathlib.Path("/run/systemd/system")


def __virtual__():
    return "llm_docker"


def answers():
    """
    Return whether an engine answers on its socket.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_docker.answers
    """
    try:
        llm_engine.Engine().request("GET", "/_ping", timeout=10)
    except CommandExecutionError:
        return False
    return True


def missing():
    """
    Return the packages that an engine still needs here: none where one answers.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_docker.missing
    """
    if answers():
        return []
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    needed = {"docker.io": "dockerd", "iptables": "iptables"}
    if APPARMOR.exists() and APPARMOR.read_text().startswith("Y"):
        needed["apparmor"] = "apparmor_parser"  # without it the engine starts and no container does
    return [package for package, program in needed.items() if not shutil.which(program, path=path)]


def install(packages):
    """
    Configure and install the engine. Return the packages that this brought.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_docker.install '[docker.io]'

    packages
        What ``llm_docker.missing`` returned.

    Raises ``CommandExecutionError`` when a package cannot be installed.
    """
    if "docker.io" in packages:
        configure()  # first: where packages start what they bring, it starts as it shall be
    _note(packages=packages, forwarding=_forwarding())
    brought = __salt__["pkg.install"](
        pkgs=packages, install_recommends=False, refresh=True, cache_valid_time=3600
    )
    if left := missing():
        raise CommandExecutionError(f"apt did not install {', '.join(left)} on {__opts__['id']}")
    return sorted(brought)


def configure():
    """
    Write the engine's configuration for one that the platform installs.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_docker.configure

    What an administrator has written there before stays and wins.
    """
    found = json.loads(CONFIGURATION.read_text()) if CONFIGURATION.exists() else {}
    _note(configuration=found)
    CONFIGURATION.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with salt.utils.files.fopen(CONFIGURATION, "w", encoding="utf-8") as file:
        json.dump(OPTIONS | found, file, indent=2)
        file.write("\n")


def start(timeout=60):
    """
    Start the engine and return once it answers.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_docker.start timeout=120

    timeout
        Seconds until giving up. Default: 60.

    As a service where there is systemd; else under the supervisor that keeps Salt's daemons, and
    where there is none, in a session of its own.
    Raises ``CommandExecutionError`` with the engine's last words when it does not answer in time.
    """
    log = _root() / "engine.log"
    if _systemd():
        _run("systemctl", "enable", "--now", "docker.service")
    elif _supervisor().exists():
        _supervise(log)
    else:
        with salt.utils.files.fopen(log, "ab") as output:
            subprocess.Popen(
                ["dockerd"], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                cwd="/", start_new_session=True,
            )  # fmt: skip
    deadline = time.monotonic() + timeout
    while not answers():
        if time.monotonic() >= deadline:
            words = "see `journalctl -u docker`" if _systemd() else _tail(log)
            raise CommandExecutionError(f"The engine did not answer in {timeout} s: {words}")
        time.sleep(0.5)
    return True


def _supervise(log):
    """Give the engine to the supervisor of Salt's daemons."""
    _note(supervised=True)
    program = _supervisor().parent / "programs" / "engine.conf"
    program.write_text(
        "[program:engine]\n"
        "command=dockerd\n"
        "autorestart=true\n"
        "startsecs=5\n"
        "startretries=1000000\n"
        "stopwaitsecs=30\n"  # containers run on: the engine alone is stopped, not its group
        "redirect_stderr=true\n"
        f"stdout_logfile={log}\n"
        "stdout_logfile_maxbytes=5MB\n"
        "stdout_logfile_backups=1\n"
    )
    control = pathlib.Path(sys.executable).with_name("supervisorctl")
    _run(str(control), "-c", str(_supervisor()), "update")
    _run(str(control), "-c", str(_supervisor()), "start", "engine", check=False)


def _run(*argv, check=True):
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise CommandExecutionError(f"{' '.join(argv)} failed: {words}")


def _note(**facts):
    """Remember what the platform put here; what is noted first stays."""
    path = _root() / "engine.json"
    noted = json.loads(path.read_text()) if path.exists() else {}
    packages = noted.get("packages", []) + facts.get("packages", [])
    noted = facts | noted | ({"packages": list(dict.fromkeys(packages))} if packages else {})
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with salt.utils.files.fopen(path, "w", encoding="utf-8") as file:
        json.dump(noted, file, indent=2)
        file.write("\n")


def _forwarding():
    """Return how the host forwards packets, which an engine changes and leaves changed."""
    switch = pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
    try:
        rules = subprocess.run(
            ["iptables", "-S", "FORWARD"], capture_output=True, text=True, check=False
        ).stdout.split()
    except OSError:  # nobody has set rules with a program that is not there
        rules = []
    return {"switch": switch, "policy": rules[2] if len(rules) > 2 else "ACCEPT"}


def _root():
    return pathlib.Path(__pillar__["llm"]["site"]["root"])


def _supervisor():
    return _root() / "salt" / "supervisor" / "supervisord.conf"


def _systemd():
    return SYSTEMD.is_dir()


def _tail(path, lines=10):
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as err:
        return str(err)
