"""Bring the platform up: each step makes one thing true, and leaves alone what is."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import llm_outcome

from . import (
    configuration,
    daemons,
    environment,
    keys,
    listeners,
    machine,
    packages,
    variables,
)
from .installation import Installation, write
from .progress import Failure, Progress, last_line, run, wait_for

STEPS = 8


def up(installation):
    """Make this machine serve the platform; return the exit code."""
    progress = Progress(STEPS)
    progress.step("Look at the machine")
    problems = machine.problems(installation)
    if problems:
        raise Failure(*problems)
    progress.done("it has what is needed")
    changes = []
    log = installation.log / "up"
    missing = packages.missing()
    if missing:
        installation.remember(packages=missing)
    changes += install_packages(progress, missing, log)
    changes += bring_environment(progress, "platform", log)
    installation = Installation()  # read again: now with a YAML library
    changes += configure(progress, installation)
    changes += start(progress, installation)
    changes += deploy(progress, installation)
    if changes:
        timings = {"seconds": round(progress.total(), 3), "steps": progress.timings}
        write(installation.log / "up.json", json.dumps(timings, indent=2) + "\n")
    tell(progress, installation, changes)
    return 0


def install_packages(progress, missing, log):
    """Install the system packages that are missing; return them."""
    progress.step("System packages")
    if missing:
        packages.install(progress, missing, log)
    progress.done("installed " + ", ".join(missing) if missing else "all there")
    return missing


def bring_environment(progress, lock, log):
    """Bring `.venv` to ``lock``; return what changed."""
    progress.step(f"Python environment (.venv from requirements/{lock}.txt, by hash)")
    if environment.is_current(lock):
        progress.done("as locked")
        return []
    environment.install(progress, lock, log)
    progress.done("installed")
    return [".venv"]


def environment_alone(lock):
    """Bring `.venv` to ``lock``, without a platform; return the exit code."""
    if environment.is_current(lock):
        return 0
    progress = Progress(2)
    missing = packages.missing()
    problems = list(machine.basics() if missing else machine.python())
    if problems:
        raise Failure(*problems)
    folder = Path(tempfile.mkdtemp(prefix="llm-environment-"))  # stays when something fails
    install_packages(progress, missing, folder / "log")
    bring_environment(progress, lock, folder / "log")
    shutil.rmtree(folder)
    return 0


def configure(progress, installation):
    """Write Salt's configuration and the secrets that are missing; return what changed."""
    progress.step(f"Configuration of Salt in {installation.conf}")
    changed = configuration.ensure(installation)
    progress.done("written: " + ", ".join(changed) if changed else "as it was")
    progress.step("Secrets")
    before = secrets(installation)
    argv = installation.command("salt-run", "llm.secret", "generate")
    env = variables.installation(installation)
    run(progress, argv, installation.log / "up", "salt-run llm.secret generate", env=env)
    made = sorted(
        name for name, state in secrets(installation).items() if state != before.get(name)
    )
    progress.done("generated: " + ", ".join(made) if made else "all there")
    return changed + made


def secrets(installation):
    """Return each file of the pillar's secrets with the time of its last change."""
    folder = installation.pillar / "secrets"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*")}


def start(progress, installation):
    """Start the daemons and let the minion in; return what changed."""
    keeper = daemons.of(installation)
    progress.step(f"Salt's master and minion ({type(keeper).__name__.lower()})")
    started = keeper.ensure_running(progress)
    progress.done("started " + " and ".join(started) if started else "run already")
    minion = installation.host()
    progress.step(f"The minion {minion}")
    accepted = keys.ensure_accepted(progress, installation, minion)
    wait_for(progress, lambda: is_connected(installation), f"{minion} connects", 60)
    wait_for(progress, lambda: answers(progress, installation, minion), f"{minion} answers", 60)
    progress.done("answers, its key newly accepted by fingerprint" if accepted else "answers")
    return started + ([f"the key of {minion}"] if accepted else [])


def is_connected(installation):
    """Whether a minion listens to what the master publishes."""
    return listeners.inodes(installation.publish_port, listeners.ESTABLISHED)


def answers(progress, installation, minion):
    """Whether the minion answers the master."""
    argv = installation.command("salt", "--timeout=5", "--out=json", minion, "test.ping")
    env = variables.installation(installation)
    what = f"{minion} answers a ping"
    return run(progress, argv, installation.log / "up", what, env=env, check=False) == 0


def deploy(progress, installation):
    """Deploy and verify; return the states that changed something."""
    progress.step("Deploy and verify (salt-run state.orchestrate orch.deploy)")
    answer = installation.log / "deploy.json"
    answer.unlink(missing_ok=True)
    argv = installation.command(
        "salt-run", "state.orchestrate", "orch.deploy", "--out=json", f"--out-file={answer}"
    )
    work = Work(installation.log / "minion")
    code = run(
        progress, argv, installation.log / "up", "deploy", watch=work.now,
        env=variables.installation(installation), check=False,
    )  # fmt: skip
    found = llm_outcome.read(answer)
    if code or not found or any(truth.result is False for truth in found):
        raise Failure(
            f"the deploy failed after {progress.elapsed():.0f} s (exit code {code}):",
            *(llm_outcome.failures(found) or [last_line(installation.log / "up")]),
            f"Logs: {installation.log}",
        )
    changed = [truth.id for truth in found if truth.changed]
    progress.done(f"{len(found)} states true, {len(changed)} of them newly")
    return changed


class Work:
    """What the minion is at, from its log: the state that runs, or what our own code says."""

    line = re.compile(r"\[(?P<logger>\S+) *:\d+ *\]\[INFO *\]\[\d+\] (?P<message>.*)")
    executing = re.compile(r"Executing state \S+\.(\S+) for \[(.*)\]$")

    def __init__(self, log):
        self.log = log
        self.position = log.stat().st_size if log.exists() else 0
        self.at = ""

    def now(self):
        """Return what the minion is at, for people."""
        with (
            contextlib.suppress(OSError),
            open(self.log, encoding="utf-8", errors="replace") as log,
        ):
            log.seek(self.position)
            for match in map(self.line.search, log):
                if match and (state := self.executing.match(match["message"])):
                    self.at = f"{state[2]}: {state[1]}"
                elif match and "llm_" in match["logger"]:
                    self.at = match["message"]
            self.position = log.tell()
        return self.at


def tell(progress, installation, changes):
    """Say where the platform answers and how to ask it."""
    if changes:
        progress.say(f"\nThe platform is up ({progress.total():.0f} s).")
    else:
        progress.say(f"\nNothing to do: all is as declared ({progress.total():.0f} s).")
    client = ask(installation, "llm.client")
    if not isinstance(client, dict):
        return
    url, bundle = client["base_url"], client["ca_file"]
    progress.say(f"It answers at {url} (certificate authority: {bundle}). Try it:\n")
    progress.say(curl(installation, url, bundle))


def curl(installation, url, bundle):
    """Return the line that asks the platform at ``url``, also where no name server knows it."""
    model = next(iter(installation.site.get("models") or {"tiny": {}}))
    question = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    fetch = shlex.join(installation.command("salt-run", "llm.client", "--out=json"))
    key = f'$({fetch} | sed -n \'s/.*"api_key": *"\\([^"]*\\)".*/\\1/p\')'
    where, address = urlsplit(url), installation.hosts[installation.host()]["address"]
    named = where.hostname != address  # as by a certificate of the user's own
    resolve = f"--resolve {where.netloc}:{address} " if named else ""
    return (
        f"curl {resolve}--cacert {bundle} {url}/chat/completions"
        f" -H 'Content-Type: application/json' -H \"Authorization: Bearer {key}\""
        f" -d '{question}'"
    )


def ask(installation, function):
    """Return what a runner answers, or None where it cannot."""
    asked = subprocess.run(
        installation.command("salt-run", function, "--out=json"),
        capture_output=True, text=True, check=False, env=variables.installation(installation),
    )  # fmt: skip
    try:
        return json.loads(asked.stdout)
    except ValueError:
        return None
