"""
A second installation of the platform on this machine: its own names, network, ports and folders,
driven by real daemons of pytest-salt-factories with the configuration that `make up` writes.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from string import Template

import httpx
import openai
import psutil
import yaml

from bootstrap.configuration import TEMPLATES

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = (  # and the like, upon which pytest-salt-factories decides
    "root_dir", "pki_dir", "cachedir", "sock_dir", "pidfile", "extension_modules", "log_file",
    "key_logfile", "master_port", "publish_port", "ret_port", "interface", "master", "auto_accept",
)  # fmt: skip
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # no network is that of two
COMPILED = shutil.ignore_patterns("__pycache__")


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def copy_pillar(folder, **changes):
    """
    Copy the pillar to ``folder``, as that of another installation, with ``changes`` of its site.

    Returns its path and its site.
    """
    pillar = folder / "pillar"
    shutil.copytree(REPOSITORY / "pillar", pillar, ignore=shutil.ignore_patterns("secrets"))
    (pillar / "secrets").mkdir()
    name = f"lt{random.randrange(16**4):04x}"
    site = yaml.safe_load((pillar / "site.yaml").read_text()) | {
        "name": name,
        "root": f"/var/tmp/{name}-root",
        "public_port": free_port(),
        "hosts_port": free_port(),
        "salt": {"publish_port": free_port(), "return_port": free_port()},
        "network": {
            "name": f"{name}-network",
            "subnet": f"10.{100 + random.randrange(10) * 10 + WORKER % 10}.0.0/20",
        },
        **changes,
    }
    (pillar / "site.yaml").write_text(yaml.safe_dump(site))
    return pillar, site


def change_service(pillar, name, **knobs):
    """Have other ``knobs`` of service ``name`` in the folder ``pillar``."""
    path = pillar / "environments" / "dev.sls"
    found = yaml.safe_load(path.read_text())
    found["llm"]["services"].setdefault(name, {}).update(knobs)
    path.write_text(yaml.safe_dump(found))


class Platform:
    """
    The installation: its files, its daemons, and what its users do with it.
    """

    def __init__(self, folder, factories):
        self.folder = folder
        self.pillar, site = copy_pillar(folder)
        for each in ("salt", "_modules", "_states", "_utils", "orch"):
            shutil.copytree(REPOSITORY / each, folder / each, symlinks=True, ignore=COMPILED)
        self.name, self.port, self.root = site["name"], site["public_port"], Path(site["root"])
        self.keyring = self.root / "salt" / "gpgkeys"
        # The name tells an orchestration's pillar from a minion's.
        self.master = factories.salt_master_daemon("lt_master")
        self._configure(self.master, "master")
        self.minion = self.master.salt_minion_daemon("node1")
        self._configure(self.minion, "minion")

    def _configure(self, daemon, kind):
        """Give ``daemon`` the configuration that `make up` writes, but for the places."""
        text = Template((TEMPLATES / kind).read_text()).substitute(
            repository=REPOSITORY, pillar=self.pillar, root=self.root, salt=self.root / "salt",
            name=self.name, id="node1", address="127.0.0.1", publish_port=0, return_port=0,
        )  # fmt: skip
        ours = {key: value for key, value in yaml.safe_load(text).items() if key not in PLACES}
        ours["file_roots"] = {"base": [str(self.folder / "salt")]}
        path = Path(daemon.config_file)
        theirs = yaml.safe_load(path.read_text()) | {"auto_accept": True}
        ours["engines"] = theirs["engines"] + ours.get("engines", [])
        path.write_text(yaml.safe_dump(theirs | ours))

    @contextlib.contextmanager
    def started(self):
        """Run the daemons, the watch held off; leave nothing behind but images."""
        self.root.mkdir(mode=0o711)
        try:
            self.run("llm.secret", "generate")
            with self.master.started(), self.minion.started():
                self.run("llm.maintenance", "node1", "reason=tests do things by hand", "hours=24")
                yield self
        finally:
            self.remove()

    def remove(self):
        """Take everything of this installation off the machine."""
        label = f"label=llm.site={self.name}"
        for kind, listing, removal in (
            ("container", ["ps", "-aq"], ["rm", "-fv"]),
            ("volume", ["volume", "ls", "-q"], ["volume", "rm", "-f"]),
            ("network", ["network", "ls", "-q"], ["network", "rm"]),
        ):
            found = docker(*listing, "--filter", label).split()
            if found:
                docker(*removal, *found)
            assert not docker(*listing, "--filter", label).split(), f"a {kind} is left"
        shutil.rmtree(self.root, ignore_errors=True)

    def kill_minion(self):
        """End the minion as a power cut does, with all that it runs; start it again."""
        parent = psutil.Process(self.minion.pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.minion.terminate()
        self.minion.start()

    def change_site(self, **changes):
        """Lay ``changes`` upon ``site.yaml``."""
        path = self.pillar / "site.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    @contextlib.contextmanager
    def changed(self, path, text):
        """Have another ``text`` in the file ``path`` of `pillar/` or `salt/` for a while."""
        path = self.folder / path
        before = path.read_text()
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(before)

    @contextlib.contextmanager
    def service_changed(self, name, **knobs):
        """Have other ``knobs`` of service ``name`` for a while."""
        path = "pillar/environments/dev.sls"
        found = yaml.safe_load((self.folder / path).read_text())
        found["llm"]["services"].setdefault(name, {}).update(knobs)
        with self.changed(path, yaml.safe_dump(found)):
            yield

    def change_service(self, name, **knobs):
        """Have other ``knobs`` of service ``name`` from now on."""
        change_service(self.pillar, name, **knobs)

    def run(self, *arguments, check=True, timeout=600):
        """Call ``salt-run``; return the finished process."""
        return self.called("salt-run", self.master.config_dir, arguments, check, timeout)

    def salt(self, *arguments, check=True, timeout=600):
        """Call ``salt``."""
        return self.called("salt", self.master.config_dir, arguments, check, timeout)

    def call(self, *arguments, check=True, timeout=600):
        """Call ``salt-call``."""
        arguments = ("--retcode-passthrough", *arguments)
        return self.called("salt-call", self.minion.config_dir, arguments, check, timeout)

    def command(self, program, config_dir, arguments):
        """Return the command line of one of Salt's programs."""
        return [str(Path(sys.executable).with_name(program)), "-c", str(config_dir), *arguments]

    def called(self, program, config_dir, arguments, check=True, timeout=600):
        """Run one of Salt's programs with a configuration; return the finished process."""
        done = subprocess.run(
            self.command(program, config_dir, arguments),
            capture_output=True, text=True, check=False, timeout=timeout, cwd=self.folder,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{program} {arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def apply(self, *arguments, check=True):
        """Apply states to the host by ``salt-call``; return their changes as `changes` does."""
        done = self.call("state.apply", *arguments, "--out=json", check=check)
        return changes(json.loads(done.stdout))

    def deploy(self, *arguments, check=True):
        """Run the orchestration of the whole platform."""
        return self.run("state.orchestrate", "orch.deploy", *arguments, check=check)

    def client_settings(self, name="default"):
        """Return base URL, CA file and API key of a client."""
        return json.loads(self.run("llm.client", name, "--out=json").stdout)

    def client(self, name="default", **options):
        """Return the official client, as a user would set it up."""
        settings = self.client_settings(name)
        context = ssl.create_default_context(cafile=settings["ca_file"])
        # An idle connection would hold each replacement of tail up, as long as it may live.
        limits = httpx.Limits(max_keepalive_connections=0)
        http = httpx.Client(verify=context, timeout=60, limits=limits)
        return openai.OpenAI(
            base_url=settings["base_url"],
            api_key=settings["api_key"],
            http_client=http,
            max_retries=0,
            **options,
        )

    def containers(self):
        """Return the running containers: name to id, when it was started, and whether paused."""
        found = docker("ps", "-q", "--filter", f"label=llm.site={self.name}").split()
        return {
            each["Name"].lstrip("/"): (
                each["Id"],
                each["State"]["StartedAt"],
                each["State"]["Paused"],
            )
            for each in json.loads(docker("inspect", *found) if found else "[]")
        }

    def services(self):
        """Return the services of the running containers, each as often as it runs."""
        label = '{{.Label "llm.service"}}'
        found = docker("ps", "--filter", f"label=llm.site={self.name}", "--format", label)
        return sorted(found.split())

    def container(self, service, replica=1):
        """Return the name of the running container of a service."""
        start = f"{self.name}-{service}-{replica}-g"
        return next(name for name in self.containers() if name.startswith(start))


def docker(*arguments):
    """Return what a docker command prints."""
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def images():
    """Return the ids of the platforms' images, none where no engine answers."""
    command = ["docker", "image", "ls", "-q", "--filter", "label=llm.image"]
    return set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())


def changes(states):
    """
    Return the changes and failures in the JSON of a state run, ``{host: {tag: {...}}}``, by id.
    """
    return {
        state["__id__"]: state["changes"] or state["comment"]
        for host in states.values()
        for state in host.values()
        if state["changes"] or state["result"] is not True
    }
