"""Run the tests, with an engine where none runs: started as the platform would, stopped after."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from . import engine, up
from .installation import PYTHON, REPOSITORY, VENV
from .progress import Failure, Progress, run

SUITES = ("integration", "functional", "unit")  # the longest first
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadgroup")  # tests/conftest.py says what stays together
SALT = """\
file_client: local
file_roots: {{base: [{repository}/salt]}}
pillar_roots: {{base: []}}
module_dirs: [{repository}]
root_dir: {folder}
log_level: error
"""


def test(suites):
    """Run ``suites`` of the tests one after another; return pytest's exit code."""
    up.environment_alone("tests")
    needs_engine = set(suites) - {"unit"}
    with started_engine() if needs_engine else contextlib.nullcontext():
        folders = [f"tests/{suite}" for suite in suites if (REPOSITORY / "tests" / suite).is_dir()]
        return subprocess.run(
            [str(PYTHON), "-m", "pytest", *SIDE_BY_SIDE, *folders], cwd=REPOSITORY, check=False
        ).returncode


@contextlib.contextmanager
def started_engine():
    """See that an engine answers while the tests run."""
    if engine.answers():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="llm-test-engine-") as folder:
        start_engine(Path(folder))
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(Path("/var/run/docker.pid").read_text()), signal.SIGTERM)
            deadline = time.monotonic() + 30
            while engine.answers() and time.monotonic() < deadline:
                time.sleep(0.2)


def start_engine(folder):
    """Apply the state that the platform applies, with ``folder`` as its root."""
    progress = Progress(1)
    progress.step("A container engine for the tests")
    conf = folder / "conf"
    conf.mkdir()
    (conf / "minion").write_text(SALT.format(repository=REPOSITORY, folder=folder / "salt-call"))
    pillar = json.dumps({"llm": {"site": {"root": str(folder)}}})
    argv = [
        str(VENV / "bin" / "salt-call"), "-c", str(conf), "--local", "--retcode-passthrough",
        "state.apply", "docker.running", f"pillar={pillar}",
    ]  # fmt: skip
    run(progress, argv, folder / "log", "salt-call --local state.apply docker.running")
    if not engine.answers():
        raise Failure("the tests need a container engine, and none answers")
    progress.done("started")
