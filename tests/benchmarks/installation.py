"""
The platform itself: how long the first and a second run of everything take, and what the edge adds
to an answer.
"""

import contextlib
import json
import os
import pathlib
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import httpx
import yaml

from tests.benchmarks.figures import Failed, run
from tests.support.host import Host
from tests.support.platform import REPOSITORY, copy_pillar

REQUESTS = 300  # of each kind, for the edge's share
LOGS = ("up.json", "deploy.json")  # what `make up` took, and its deployment
BARE_SECONDS = 480  # that a first `make up` may take
SCRIPTS = pathlib.Path(sys.executable).parent
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


@dataclass
class Installation:
    """
    A second installation on this machine: its pillar and site, and how `make` is told of it.
    """

    pillar: pathlib.Path
    site: dict
    environment: dict

    def make(self, command, *options):
        """Run one of the commands behind `make`; return the seconds it took."""
        program = [sys.executable, "-B", "-m", "bootstrap", command, *options]
        return run(program, cwd=REPOSITORY, env=self.environment)

    def command(self, program, *arguments):
        """Return the command line of one of Salt's programs."""
        conf = ["-c", f"{self.site['root']}/salt/conf"]
        return [str(SCRIPTS / program), *conf, *arguments]

    def told(self, *arguments):
        """Return what a runner answers, as data."""
        asked = self.command("salt-run", *arguments, "--out=json")
        return json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)


@contextlib.contextmanager
def installed(figures):
    """
    Bring a second installation up, whose client has no limits, and measure that; give it, and take
    it away again.
    """
    with tempfile.TemporaryDirectory() as folder:
        unlimited = {"default": {"requests": 1_000_000}}
        pillar, site = copy_pillar(pathlib.Path(folder), clients=unlimited)
        environment = {**os.environ, "LLM_PILLAR": str(pillar), "PYTHONPATH": "bin"}
        installation = Installation(pillar, site, environment)
        try:
            figures.add("make up: images at hand, nothing deployed", installation.make("up"))
            log = pathlib.Path(site["root"], "salt/log")
            for title, seconds in _steps(*((log / name).read_text() for name in LOGS)):
                figures.add(f"  of it: {title}", seconds)
            yield installation
        finally:
            with contextlib.suppress(Failed):
                installation.make("purge", "--yes")


def measure(figures, runs, installation):
    """
    Measure an installation that nobody changes.
    """
    _repeat(figures, runs, installation)
    _edge(figures, installation)


def measure_bare(figures):
    """
    Bring the platform up once on a bare host of its own, which has nothing but its package mirrors.
    """
    name = "make up: a bare host"
    with Host(f"llm-bench-{os.getpid()}") as host:
        folder = host.clone()
        start = time.perf_counter()
        host.run("make up", folder=folder)
        figures.add(name, time.perf_counter() - start)
        logs = [host.run(f"cat /var/lib/llm/salt/log/{log}") for log in LOGS]
    for title, seconds in _steps(*logs):
        figures.add(f"  of it, bare: {title}", seconds)
    figures.aim("make up on a bare host, s", figures.median(name), most=BARE_SECONDS)


def _steps(installed, deployed):
    """Yield title and seconds of each step of a `make up` and of its deployment, from its logs."""
    for step in json.loads(installed)["steps"]:
        yield step["title"], step["seconds"]
    (steps,) = json.loads(deployed)["data"].values()
    for step in steps.values():
        yield f"deploy: {step['__id__']}", step["duration"] / 1000


def _repeat(figures, runs, installation):
    """Measure each way of applying where there is nothing to do."""
    ways = {
        "salt-run state.orchestrate orch.deploy": ("salt-run", "state.orchestrate", "orch.deploy"),
        "salt '*' state.apply": ("salt", "*", "state.apply"),
        "salt '*' state.apply head": ("salt", "*", "state.apply", "head"),
        "salt '*' test.ping, for comparison": ("salt", "*", "test.ping"),
        "salt-call --local state.apply": ("salt-call", "--local", "state.apply"),
    }
    for _ in range(runs):
        for name, command in ways.items():
            figures.add(f"nothing to do: {name}", run(installation.command(*command)))
        figures.add("nothing to do: make up", installation.make("up"))


def _edge(figures, installation):
    """Measure what client, ingress, tail and mesh add to an answer that head has in its cache."""
    settings = installation.told("llm.client")
    context = ssl.create_default_context(cafile=settings["ca_file"])
    with httpx.Client(verify=context) as client:
        edge = _latencies(client, settings["base_url"], settings["api_key"])
    address, key = _head(installation.site)
    with httpx.Client() as client:
        head = _latencies(client, f"http://{address}:4000/v1", key)
    for name, values in (("through the edge", edge), ("head alone", head)):
        cuts = statistics.quantiles(values, n=100)
        figures.add(f"cached answer, {name}: p50", cuts[49] * 1000, "ms")
        figures.add(f"cached answer, {name}: p99", cuts[98] * 1000, "ms")
    for part in ("p50", "p99"):
        added = figures.median(f"cached answer, through the edge: {part}")
        added -= figures.median(f"cached answer, head alone: {part}")
        figures.add(f"cached answer, added by the edge: {part}", added, "ms")


def _head(site):
    """Return address and key of head, as only this machine's root can see them."""
    format_ = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    name = f"{site['name']}-head-1-g1"
    shown = subprocess.run(
        ["docker", "inspect", "-f", format_, name], capture_output=True, text=True, check=True
    )
    (path,) = pathlib.Path(site["root"]).glob("services/head/config/*/config.yaml")
    key = yaml.safe_load(path.read_text())["general_settings"]["master_key"]
    return shown.stdout.strip(), key


def _latencies(client, base_url, key):
    """Return how long each of many answers took, in seconds; the first few do not count."""
    found = []
    for _ in range(REQUESTS + 20):
        start = time.perf_counter()
        answer = client.post(
            f"{base_url}/chat/completions",
            json=QUESTION,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )
        found.append(time.perf_counter() - start)
        answer.raise_for_status()
    return found[20:]
