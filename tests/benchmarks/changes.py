"""
What changes cost on the deployed platform: to clients, and in time.
"""

import contextlib
import json
import pathlib
import shutil
import statistics
import subprocess
import time
import uuid

from tests.benchmarks import seven
from tests.benchmarks.figures import Failed, run
from tests.benchmarks.installation import REPOSITORY
from tests.support.load import Load
from tests.support.platform import change_service, docker

SERVICES = ("mesh", "ingress", "cache", "model-proxy", "head", "rate-limiter", "tail")
RATE = 60  # requests per second; `LEAST` must come through
LEAST = 50
KNOWN = 0.9  # of them, which the cache answers: the tiny model shares two cores with all the rest
BEFORE = 15  # seconds of load before the first change
BROKEN = {"command": ["sh", "-c", "exit 3"]}  # a version that ends as soon as it is started
STATES = pathlib.Path(__file__).parent / "states"
ORCHESTRATED = "nothing to do: salt-run state.orchestrate orch.deploy"
EMPTY = "nothing to do: salt-run state.orchestrate of as many steps, all empty salt.state ones"
EMPTY_ONES = "nothing to do: salt-run state.orchestrate of as many salt.state steps, empty"
BACK = "old version again, the platform's seven services: salt-run llm.rollback"
PERCENT = 100


def measure(figures, runs, installation):
    """
    Measure changes of an installation, the gentle ones first.
    """
    _empty_orchestration(figures, runs, installation)
    _updates(figures, installation)
    _bad_version(figures, runs, installation)
    seven.measure(figures, runs)
    _rollback(figures, runs, installation)


def _change(installation, *services):
    """Let the pillar ask for other containers of ``services``."""
    for service in services:
        change_service(installation.pillar, service, environment={"BENCH": uuid.uuid4().hex})


def _deploy(installation, **options):
    return run(installation.command("salt-run", "llm.deploy"), **options)


def _p99(outcomes):
    """Return below how many milliseconds 99 of 100 answers came."""
    seconds = [outcome.seconds for outcome in outcomes if not outcome.flaw]
    return statistics.quantiles(seconds, n=PERCENT)[-1] * 1000


def _updates(figures, installation):
    """Replace each service in its turn under load."""
    settings = installation.told("llm.client")
    with Load(settings, RATE, known=KNOWN) as load:
        load.flow(RATE)  # what comes first meets cold caches
        start = time.monotonic()
        load.flow(RATE * BEFORE)
        before, rates = load.since(start), []
        rates.append(len(before) / (time.monotonic() - start))
        figures.add("under load, before updates: p99", _p99(before), "ms")
        for service in SERVICES:
            start = time.monotonic()
            _change(installation, service)
            _deploy(installation)
            during = load.since(start)
            rates.append(len(during) / (time.monotonic() - start))
            title = f"under load, update of {service}"
            figures.add(f"{title}: p99", _p99(during), "ms")
            figures.add(f"{title}: failed requests", sum(bool(each.flaw) for each in during), "")
    for title, rate in (("before updates", rates[0]), ("during updates", min(rates[1:]))):
        figures.add(f"under load, {title}: requests a second", rate, "")
        if rate < LEAST:
            figures.note(f"{title} this machine answered only {rate:.0f} requests a second")
    for outcome in load.failures[:5]:
        figures.note(f"failed during updates: {outcome}")
    figures.aim("failed requests while each service is updated", len(load.failures), most=0)


def _bad_version(figures, runs, installation):
    """Deploy a version that cannot run, until the old one serves alone again."""
    old = _running(installation)
    overlay = installation.pillar / "environments/dev.sls"
    sound = overlay.read_text()
    change_service(installation.pillar, "tail", **BROKEN)
    for _ in range(runs):
        start = time.time()
        seconds = _deploy(installation, code=4)
        figures.add("bad version of tail: until the old one serves alone", _died(start) - start)
        figures.add("bad version of tail: until that is proved and recorded", seconds)
        if _running(installation) != old:
            raise Failed("a bad version was not taken back")
    overlay.write_text(sound)


def _died(since):
    """Return when the last container of tail died since then, as a Unix time."""
    times = docker(
        "events", "--since", f"{since:.6f}", "--until", f"{time.time():.6f}",
        "--filter", "event=die", "--filter", "label=llm.service=tail", "--format", "{{.TimeNano}}",
    ).split()  # fmt: skip
    return int(times[-1]) / 1e9


def _running(installation):
    site = f"label=llm.site={installation.site['name']}"
    return sorted(docker("ps", "--filter", site, "--format", "{{.Names}}").split())


def _rollback(figures, runs, installation):
    """Go back from a release that has replaced one service, and from one with all of them."""
    one = "old version again, one service of the platform: salt-run llm.rollback"
    for name, services in ((one, ["tail"]), (BACK, SERVICES)):
        _change(installation, *services)
        figures.add(
            name.replace("old version again", "new version").replace("rollback", "deploy"),
            _deploy(installation),
        )
        newest = installation.told("llm.releases", "lines=1")["releases"][0]["number"]
        for _ in range(min(runs, 3)):  # a minute each with the way forward
            figures.add(name, run(installation.command("salt-run", "llm.rollback")))
            run(installation.command("salt-run", "llm.rollback", str(newest)))
    peer = figures.median(seven.name("Ansible"))
    figures.aim(
        "rollback of seven services, share of Ansible's time for seven small containers",
        figures.median(BACK) / peer,
        most=0.2,
    )


def _empty_orchestration(figures, runs, installation):
    """Compare a deploy with nothing to do with as many steps that do nothing, in turns."""
    deploy = installation.command("salt-run", "state.orchestrate", "orch.deploy")
    (host,) = installation.site["hosts"]
    shown = subprocess.run([*deploy, "--out=json"], capture_output=True, text=True, check=True)
    (steps,) = json.loads(shown.stdout)["data"].values()
    taken = [tag for tag, step in steps.items() if "onfail" not in step["comment"]]
    numbers = {EMPTY: len(taken), EMPTY_ONES: sum(tag.startswith("salt_|-") for tag in taken)}
    with _served(STATES / "empty") as name:
        empty = {
            title: installation.command(
                "salt-run",
                "state.orchestrate",
                f"{name}.steps",
                f"pillar={json.dumps({'steps': number, 'host': host})}",
            )
            for title, number in numbers.items()
        }
        _wait_until_served(empty[EMPTY_ONES])
        for _ in range(runs):
            for title, command in {ORCHESTRATED: deploy, **empty}.items():
                figures.add(title, run(command))
    for title, what in ((EMPTY, "all of its steps"), (EMPTY_ONES, "its salt.state steps")):
        figures.aim(
            f"deploy with nothing to do: times as long as {numbers[title]} empty steps, {what}",
            figures.median(ORCHESTRATED) / figures.median(title),
            most=1.5,
        )


@contextlib.contextmanager
def _served(folder):
    """Let the master serve a folder with states for a while; give its name there."""
    name = f"benchmark-{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(folder, REPOSITORY / "salt" / name)
        yield name
    finally:
        shutil.rmtree(REPOSITORY / "salt" / name, ignore_errors=True)


def _wait_until_served(command, seconds=60):
    """Return once ``command`` succeeds: the master keeps the list of its files for a while."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return run(command)
        except Failed:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
