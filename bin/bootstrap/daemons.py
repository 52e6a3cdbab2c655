"""Salt's daemons: units where there is systemd, else programs of a supervisor of ours."""

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import time
import xmlrpc.client
from pathlib import Path
from string import Template

from . import engine, environment, launch, listeners, variables
from .configuration import TEMPLATES
from .installation import VENV, write
from .progress import Failure, wait_for

PROGRAMS = ("salt-master", "salt-minion")


def of(installation):
    """Return the keeper of daemons that this machine has."""
    keeper = Systemd if Path("/run/systemd/system").is_dir() else Supervisor
    return keeper(installation)


class Keeper:
    """Keeps the daemons of one installation running."""

    def __init__(self, installation):
        self.installation = installation
        self.started_with = installation.run / "started-with"

    def filled(self, template, **values):
        """Return the text of a template of `conf/`."""
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        known = {
            "bootstrap": TEMPLATES.parent,
            "name": self.installation.name,
            "salt": self.installation.salt,
            "venv": VENV,
        }
        return Template(text).substitute(known, **values)

    def digest(self):
        """Return the hash of what the daemons read once, when they start."""
        found = hashlib.sha256(environment.digest("platform").encode())
        for name in ("master", "minion", "environment"):
            found.update((self.installation.conf / name).read_bytes())
        return found.hexdigest()

    def ensure_running(self, progress):
        """Start what does not run, restart what runs with an old configuration; return these."""
        changed = self.configure()
        digest = self.digest()
        known = self.started_with.read_text() if self.started_with.exists() else ""
        old = changed or known != digest
        if not old and self.is_whole():
            return []
        self.start(restart=old)
        write(self.started_with, digest)
        ports = (self.installation.publish_port, self.installation.return_port)

        def listens():
            return all(listeners.inodes(port) for port in ports)

        what = f"the master listens on {ports[0]} and {ports[1]} (log: {self.installation.log})"
        wait_for(progress, listens, what, timeout=60)
        return list(PROGRAMS)

    def is_whole(self):
        """Whether all daemons run."""
        return all(self.is_running(program) for program in PROGRAMS)

    def start_engine_alone(self, timeout=60):
        """Start the engine in a session of its own: who uses it keeps it from now on."""
        with open("/var/log/dockerd.log", "ab") as log:
            subprocess.Popen(
                ["dockerd"], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                cwd="/", env=variables.clean(), start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while not engine.answers() and time.monotonic() < deadline:
            time.sleep(0.2)

    def end_engine(self):
        """End an engine that nobody keeps."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(Path("/var/run/docker.pid").read_text()), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while engine.answers() and time.monotonic() < deadline:
            time.sleep(0.2)

    def end_leftovers(self):
        """End our daemons that nobody keeps any more, and the agent of our keyring."""
        for program in PROGRAMS:
            launch.end_leftovers(program, self.installation.conf)
        keyring = self.installation.salt / "gpgkeys"
        if keyring.is_dir() and shutil.which("gpgconf"):
            argv = ["gpgconf", "--homedir", str(keyring), "--kill", "all"]
            subprocess.run(argv, capture_output=True, check=False)


class Systemd(Keeper):
    """Units named after the site."""

    folder = Path("/etc/systemd/system")

    def unit(self, program):
        """Return the name of the unit of ``program``."""
        return f"{self.installation.name}-{program}.service"

    def configure(self):
        """Write the units; return whether one changed."""
        changed = []
        for program in PROGRAMS:
            text = self.filled("unit.service", program=program)
            changed.append(write(self.folder / self.unit(program), text, mode=0o644))
        return any(changed)

    def is_running(self, program):
        """Whether systemd has it running."""
        return systemctl("is-active", self.unit(program)) == 0

    def start(self, restart):
        """Start or restart the daemons, now and at every boot."""
        units = [self.unit(program) for program in PROGRAMS]
        systemctl("daemon-reload")
        systemctl("enable", *units)
        if systemctl("restart" if restart else "start", *units):
            raise Failure(f"systemd cannot start {' and '.join(units)}: see `journalctl -u`")

    def stop(self):
        """Stop the daemons for good and forget them."""
        units = [self.unit(program) for program in PROGRAMS]
        systemctl("disable", "--now", *units)
        for unit in units:
            (self.folder / unit).unlink(missing_ok=True)
        systemctl("daemon-reload")
        self.end_leftovers()
        self.started_with.unlink(missing_ok=True)

    def stop_engine(self):
        """Stop the engine for good."""
        systemctl("disable", "--now", "docker.service", "docker.socket", "containerd.service")
        self.end_engine()


def systemctl(*words):
    """Run systemctl quietly; return its exit code."""
    return subprocess.run(["systemctl", "-q", *words], capture_output=True, check=False).returncode


class Supervisor(Keeper):
    """A supervisord of this installation."""

    def __init__(self, installation):
        super().__init__(installation)
        self.folder = installation.salt / "supervisor"
        self.conf = self.folder / "supervisord.conf"
        self.socket = installation.run / "supervisor.sock"

    def configure(self):
        """Write its configuration; return whether that changed."""
        changed = [write(self.conf, self.filled("supervisord.conf", files=files()))]
        for program in PROGRAMS:
            text = self.filled("program.conf", program=program)
            changed.append(write(self.folder / "programs" / f"{program}.conf", text))
        return any(changed)

    def pid(self):
        """Return the supervisor's process, or None."""
        try:
            pid = int((self.installation.run / "supervisord.pid").read_text())
        except (OSError, ValueError):
            return None
        alive = str(self.conf) in listeners.command(Path(f"/proc/{pid}"))
        return pid if alive else None

    def call(self, function, *arguments):
        """
        Return what supervisord answers, asked over its socket: this works without `.venv` too.

        Raises ``OSError`` where it does not answer and ``xmlrpc.client.Fault`` where it refuses.
        """
        connection = engine.Connection(self.socket, timeout=60)
        try:
            body = xmlrpc.client.dumps(arguments, f"supervisor.{function}")
            connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
            return xmlrpc.client.loads(connection.getresponse().read())[0][0]
        finally:
            connection.close()

    def is_running(self, program):
        """Whether the supervisor has it running."""
        try:
            return self.call("getProcessInfo", program)["statename"] == "RUNNING"
        except (OSError, xmlrpc.client.Fault):
            return False

    def start(self, restart):
        """Start or restart the daemons."""
        if self.pid() is None:
            self.end_leftovers()
            argv = [str(VENV / "bin" / "supervisord"), "-c", str(self.conf)]
            begun = subprocess.run(
                argv, env=variables.clean(), cwd="/", capture_output=True, text=True, check=False
            )
            if begun.returncode:
                raise Failure(f"supervisord does not start: {begun.stderr.strip()}")
            return
        added, changed, _ = self.call("reloadConfig")[0]
        for program in changed:
            self.end_program(program)
        for program in added + changed:
            self.call("addProcessGroup", program)  # which starts it
        for program in set(PROGRAMS) - set(added + changed):
            if restart:
                self.stop_program(program)
            with contextlib.suppress(xmlrpc.client.Fault):  # it runs
                self.call("startProcess", program, False)

    def stop_program(self, program):
        """Stop a program and return once it has ended."""
        with contextlib.suppress(xmlrpc.client.Fault):  # it does not run, or is unknown
            self.call("stopProcess", program, True)

    def end_program(self, program):
        """Stop a program and forget it."""
        self.stop_program(program)
        with contextlib.suppress(xmlrpc.client.Fault):
            self.call("removeProcessGroup", program)

    def stop(self):
        """Stop the daemons, and the supervisor when it keeps nothing else."""
        if self.pid():
            with contextlib.suppress(OSError):
                for program in reversed(PROGRAMS):
                    self.end_program(program)
        for program in PROGRAMS:
            (self.folder / "programs" / f"{program}.conf").unlink(missing_ok=True)
        if not list((self.folder / "programs").glob("*.conf")):
            self.end_supervisor()
        self.end_leftovers()
        self.started_with.unlink(missing_ok=True)

    def stop_engine(self):
        """Stop the engine for good, and the supervisor, which keeps nothing else now."""
        (self.folder / "programs" / "engine.conf").unlink(missing_ok=True)
        self.end_supervisor()
        self.end_engine()

    def end_supervisor(self, patience=60):
        """End supervisord with all that it keeps."""
        deadline = time.monotonic() + patience
        pid = self.pid()
        if pid:
            os.kill(pid, signal.SIGTERM)
        while pid and pid == self.pid() and time.monotonic() < deadline:
            time.sleep(0.1)


def files():
    """Return how many open files a daemon may have."""
    return min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2)
