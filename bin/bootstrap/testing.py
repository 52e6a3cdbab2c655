"""Run the tests, with an engine where none runs: brought as the platform does, and removed."""

import contextlib
import json
import os
import random
import subprocess
import tempfile
from pathlib import Path

from . import daemons, down, engine, up
from .installation import PYTHON, REPOSITORY, VENV, Installation
from .progress import Failure, Progress, run

SUITES = ("integration", "functional", "unit")  # the longest first
SIDE_BY_SIDE = ("-n", "3", "--dist", "loadgroup")  # tests/conftest.py says what stays together
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
        return pytest(*SIDE_BY_SIDE, *folders)


def soak(minutes, seed=None, steps=None):
    """
    Change and break a platform under load for so many ``minutes``, or for so many ``steps``; return
    pytest's exit code. Another ``seed`` brings other steps; without one it is drawn.
    """
    up.environment_alone("tests")
    seed = random.randrange(10000) if seed is None else seed
    with started_engine():
        return pytest(
            "-s", "tests/integration/test_soak.py",
            LLM_SOAK_MINUTES=minutes, LLM_SOAK_SEED=seed, LLM_SOAK_STEPS=steps or 0,
        )  # fmt: skip


def pytest(*arguments, **environment):
    """Run pytest with further ``environment``; return its exit code."""
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    argv = [str(PYTHON), "-m", "pytest", *arguments]
    return subprocess.run(argv, cwd=REPOSITORY, env=environment, check=False).returncode


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
            end_engine(Path(folder))


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


def end_engine(folder):
    """Stop the engine; remove it where the tests brought it and nobody else uses it by now."""
    progress = Progress(1)
    progress.step("The end of the tests' engine")
    noted, data = down.notes(folder), engine.data_folder()
    brought = "docker.io" in noted.get("packages", []) and engine.answers()
    if brought:
        down.remove_images(progress)
    theirs = down.others() if brought else []
    daemons.of(Installation(forgiving=True)).stop_engine()
    if not brought:
        progress.done("stopped: it was installed before")
    elif theirs:
        progress.done(f"stopped, and stays: others use it by now ({', '.join(theirs)})")
    elif problems := down.uninstall(progress, noted, data, folder / "log"):
        raise Failure("this is left of the engine:", *problems)
    else:
        progress.done("removed")
