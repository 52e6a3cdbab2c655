"""
What an operator does to a `Platform` beside deploying it.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid

import yaml

from tests.support.load import Load


def set_secret(platform, name, value):
    """Give secret ``name`` another ``value``; return what the command printed."""
    done = subprocess.run(
        platform.command("salt-run", platform.master.config_dir, ["llm.secret", "set", name]),
        input=value, capture_output=True, text=True, check=False, cwd=platform.folder, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def site_changed(platform, **changes):
    """Lay ``changes`` upon ``site.yaml``, and keep secrets that are set meanwhile, for a while."""
    with contextlib.ExitStack() as stack:
        for path in (platform.pillar / "secrets").iterdir():
            stack.enter_context(platform.changed(path, path.read_text()))
        text = (platform.pillar / "site.yaml").read_text()
        stack.enter_context(platform.changed("pillar/site.yaml", text))
        platform.change_site(**changes)
        yield yaml.safe_load((platform.pillar / "site.yaml").read_text())


def start(platform, *arguments):
    """Start ``salt-run`` in a process group of its own."""
    return subprocess.Popen(
        platform.command("salt-run", platform.master.config_dir, arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, cwd=platform.folder,
    )  # fmt: skip


def deploy_twice_at_once(platform):
    """Start two deploys at the same moment: one wins, and the other is told who."""
    both = [start(platform, "llm.deploy") for _ in range(2)]
    try:
        said = {process: process.communicate(timeout=300)[0] for process in both}
    finally:
        for process in both:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    winner, loser = sorted(both, key=lambda process: process.returncode)
    assert (winner.returncode, loser.returncode) == (0, 3), list(said.values())
    assert "the platform is locked: deploy (release " in said[loser]
    assert f", process {winner.pid} on " in said[loser]
    assert "Traceback" not in said[winner] + said[loser]


def wait_for_another(platform, service, known, timeout=120):
    """Return once a second container of ``service`` runs beside those ``known``."""
    start = f"{platform.name}-{service}-"
    deadline = time.monotonic() + timeout
    while not {n for n in platform.containers() if n.startswith(start)} - known.keys():
        assert time.monotonic() < deadline, f"no other {service} within {timeout} s"
        time.sleep(0.2)


@contextlib.contextmanager
def unlimited_client(platform, rate):
    """
    Have a client that may ask as often as it likes; give its settings once its key is known, asking
    at ``rate`` requests per second.
    """
    name = f"load-{uuid.uuid4().hex[:8]}"
    configured = "rate-limiter.configured,tail.configured"
    with site_changed(platform, clients={"default": {}, name: {"requests": 100000000}}):
        set_secret(platform, f"clients.{name}", uuid.uuid4().hex)
        platform.salt("*", "state.apply", configured)
        found = platform.client_settings(name)
        while True:
            with Load(found, rate) as load:
                load.flow(rate)
            if not load.failures:
                break
        yield found
    platform.salt("*", "state.apply", configured)


def gateway(platform):
    """Return the address at which containers of the platform find this machine."""
    site = yaml.safe_load((platform.pillar / "site.yaml").read_text())
    return site["network"]["subnet"].replace(".0/20", ".1")


def release(platform, *arguments, command="llm.deploy", code=0):
    """Make a release; return its record, or what was said in place of it."""
    done = platform.run(command, *arguments, "--out=json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def until(holds, seconds=60):
    """Return what ``holds()`` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
    return found
