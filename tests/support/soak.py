"""
A `Platform` that is changed and broken at random under load, and what must be true after each step.

What is done hangs on the seed alone: the same seed brings the same steps in the same order.
"""

import itertools
import os
import random
import signal
import time
from dataclasses import dataclass

import yaml
from llm_release import Releases
from rich.console import Console
from rich.table import Table

from tests.support import invariants
from tests.support.operator import deploy_twice_at_once, start, wait_for_another
from tests.support.platform import docker

SERVICES = ("mesh", "ingress", "cache", "model-proxy", "head", "rate-limiter", "tail")
ALL = ("all",)
CONCERNED = {  # by kinds of steps that do not concern just any service
    "scale": ("model-proxy", "rate-limiter", "tail"),
    "rollback": ALL,
    "limit": ALL,
    "secret": ("cache",),
    "minion killed": ALL,
}
UNMISSED = ("cache", "rate-limiter")  # clients are served while one of these is gone
SICK = {"command": ["sleep", "600"], "healthy_deadline": "6s", "progress_deadline": "12s"}
FAULTS = {  # by hand, to a container
    "kill": ["kill"],
    "stop": ["stop", "-t", "1"],
    "remove": ["rm", "-f"],
    "pause": ["pause"],
    "update": ["update", "--pids-limit", "199", "--restart", "no"],
}
HARMLESS = ("update",)
CONVERGED = (  # leave nothing to be made good
    "change", "two deploys", "bad version", "limit", "scale", "secret",
)  # fmt: skip
ENDS = (0, 1, 4, 5, 6)  # of a deploy whose minion was killed
NOTHING = "Nothing to do: all is as declared"
PATIENCE = 400  # seconds for one command


@dataclass
class Step:
    """
    What is done, to which service, and how many seconds after its beginning something breaks.
    """

    number: int
    kind: str
    service: str
    delay: float
    began: float = 0.0  # as `time.monotonic` tells it

    def __str__(self):
        delay = f" after {self.delay:.1f} s" if "in a deploy" in self.kind else ""
        return f"{self.number}. {self.kind}: {self.service}{delay}"


def steps(seed):
    """Yield the steps of a seed without end. Each kind comes once before any comes again."""
    chance, numbers = random.Random(seed), itertools.count(1)
    while True:
        kinds = list(KINDS)
        chance.shuffle(kinds)
        for kind in kinds:
            service, delay = chance.choice(CONCERNED.get(kind, SERVICES)), chance.uniform(0, 4)
            yield Step(next(numbers), kind, service, delay)


class Soak:
    """
    The steps of ``seed``, taken on ``platform`` while ``load`` is on it.
    """

    def __init__(self, platform, load, seed):
        self.platform, self.load, self.seed = platform, load, seed
        self.taken, self.gaps = [], []  # a gap: from when to when requests may fail
        self.releases = Releases(platform.root / "salt" / "releases")
        self.first = 0  # release; those before it do not know the client that makes the load

    def run(self, minutes, number=0):
        """Take steps until ``minutes`` are over, or as many as ``number`` says if it says any."""
        self.platform.change_service("rate-limiter", pids=299)
        self.release()
        self.first = self.releases.current()["number"]
        end = time.monotonic() + minutes * 60
        try:
            for step in steps(self.seed):
                if step.number > number if number else time.monotonic() >= end:
                    break
                self._take(step)
        except BaseException:
            print(f"\nSeed {self.seed} failed at its last step:", *self.taken, sep="\n  ")
            print(f"Again: make soak SEED={self.seed} STEPS={len(self.taken)}", flush=True)
            raise

    def _take(self, step):
        """Take a step; then the next deploy converges, another has nothing to do, all is well."""
        self.taken.append(step)
        print(f"{time.strftime('%X')}  {step}", flush=True)
        step.began = time.monotonic()
        cache = self._cache()
        KINDS[step.kind](self, step)
        converged = NOTHING in self.release().stdout
        if self._cache() != cache:  # it is stopped before the new one starts
            self.gaps.append((step.began, time.monotonic()))
        self.gaps = [(a, b or time.monotonic()) for a, b in self.gaps]
        assert converged or step.kind not in CONVERGED
        containers = self.platform.containers()
        assert converged or NOTHING in self.release().stdout
        assert self.platform.containers() == containers
        invariants.hold(self.platform)
        self.load.flow(10)
        missed = self.unannounced()
        assert not missed, "\n".join(str(outcome) for outcome in missed)

    def _cache(self):
        """Return what tells a cache that was started anew."""
        containers = self.platform.containers()
        return {name: each[:2] for name, each in containers.items() if "-cache-" in name}

    def release(self, command="llm.deploy", ends=(0,)):
        """Run a command that makes a release and may end so; return the finished process."""
        done = self.platform.run(command, check=False, timeout=PATIENCE)
        said = f"{command}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        assert done.returncode in ends, said
        return done

    def unannounced(self):
        """Return the outcomes of the requests that failed outside of announced gaps."""
        return [
            outcome
            for outcome in self.load.failures
            if not any(
                outcome.sent <= end and outcome.sent + outcome.seconds >= begin
                for begin, end in self.gaps
            )
        ]

    def show(self):
        """Print how often each kind of step was taken, and how many requests failed meanwhile."""
        failures, unannounced = self.load.failures, self.unannounced()
        ends = [step.began for step in self.taken[1:]] + [time.monotonic()]
        table = Table("step", "times", "seconds", "failed", "of them unannounced")
        for kind in KINDS:
            spans = [
                (step.began, end)
                for step, end in zip(self.taken, ends, strict=True)
                if step.kind == kind
            ]
            counts = [
                sum(any(a <= each.sent < b for a, b in spans) for each in found)
                for found in (failures, unannounced)
            ]
            seconds = sum(b - a for a, b in spans)
            table.add_row(kind, str(len(spans)), f"{seconds:.0f}", *map(str, counts))
        table.add_section()
        totals = (len(self.taken), ends[-1] - self.taken[0].began, len(failures), len(unannounced))
        table.add_row("all", *(f"{total:.0f}" for total in totals))
        console = Console(width=100)
        console.print(f"Seed {self.seed}; {len(self.load.outcomes)} requests")
        console.print(table)


def _change(soak, step):
    """Another value of a knob, which replaces each container of the service."""
    knobs = [{"pids": 300 + step.number}, {"environment": {"SOAK": str(step.number)}}]
    soak.platform.change_service(step.service, **knobs[step.number % 2])


def _changed(soak, step):
    _change(soak, step)
    soak.release()


def _twice(soak, step):
    _change(soak, step)
    deploy_twice_at_once(soak.platform)


def _bad(soak, step):
    names = soak.platform.containers().keys()
    with soak.platform.service_changed(step.service, **SICK):
        soak.release(ends=(4,))
        assert soak.platform.containers().keys() == names


def _rollback(soak, step):
    """Where all is still there that the earlier release of this soak needs, it serves again."""
    target = soak.releases.before(soak.releases.current())
    if not target or target["number"] < soak.first:
        return
    served = target["hosts"]["node1"]
    digests = {one["digest"] for replicas in served.values() for one in replicas.values()}
    there = digests <= _specs(soak.platform, "-a")
    done = soak.release("llm.rollback", ends=(0,) if there else (0, 1, 4))
    assert done.returncode or _specs(soak.platform) == digests


def _specs(platform, *which):
    """Return the digests of the containers that run, or of ``-a``ll."""
    label = '{{.Label "llm.spec"}}'
    site = f"label=llm.site={platform.name}"
    return set(docker("ps", *which, "--filter", site, "--format", label).split())


def _limit(soak, step):
    """Another limit of a client, which replaces nothing."""
    containers = soak.platform.containers()
    clients = yaml.safe_load((soak.platform.pillar / "site.yaml").read_text())["clients"]
    limited = {"default": {"requests": 1000 + step.number}}
    soak.platform.change_site(clients=clients | limited)
    soak.release()
    assert soak.platform.containers() == containers


def _scaled(soak, step):
    replicas = invariants.wanted(soak.platform).count(step.service)
    soak.platform.change_service(step.service, replicas=3 - replicas)
    soak.release()


def _secret(soak, step):
    soak.platform.run("llm.secret", "generate", "cache.password")
    soak.release()


def _fault(soak, step):
    only = soak.platform.services().count(step.service) == 1
    docker(*FAULTS[step.kind], soak.platform.container(step.service))
    if step.kind not in HARMLESS and step.service not in UNMISSED:
        # With another replica, only what was under way at the one that broke is lost.
        soak.gaps.append((step.began, None if only else time.monotonic()))


def _broken(soak, step, breaks, ends):
    """Change a service; while it is being replaced, something ``breaks``."""
    known = soak.platform.containers()
    _change(soak, step)
    process = start(soak.platform, "llm.deploy")
    try:
        wait_for_another(soak.platform, step.service, known)
        time.sleep(step.delay)
        breaks(process)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode in ends, f"exit code {process.returncode}\n{said[-3000:]}"


def _interrupted(soak, step):
    _broken(soak, step, lambda process: process.send_signal(signal.SIGINT), (0, 4))


def _runner_killed(soak, step):
    _broken(soak, step, lambda process: os.killpg(process.pid, signal.SIGKILL), (0, -9))


def _minion_killed(soak, step):
    soak.platform.kill_minion()


def _minion_killed_meanwhile(soak, step):
    _broken(soak, step, lambda _: soak.platform.kill_minion(), ENDS)


KINDS = {
    "change": _changed,
    "two deploys": _twice,
    "bad version": _bad,
    "rollback": _rollback,
    "limit": _limit,
    "scale": _scaled,
    "secret": _secret,
    **dict.fromkeys(FAULTS, _fault),
    "ctrl-c in a deploy": _interrupted,
    "runner killed in a deploy": _runner_killed,
    "minion killed": _minion_killed,
    "minion killed in a deploy": _minion_killed_meanwhile,
}
