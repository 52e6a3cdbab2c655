"""
What `make up` says while it works and when it is done.
"""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from bootstrap import commands, progress, up

STAMP = "2026-11-23 15:13:16,397"
STATE = f"{STAMP} [salt.state       :2384][INFO    ][3089] Executing state a.healthy for [head]\n"
OURS = f"{STAMP} [llm_builder      :94  ][INFO    ][3089] image cache: Step 4/7 : RUN x\n"
OTHER = f"{STAMP} [salt.state       :2556][INFO    ][3089] Completed state [head] at time 15:13\n"


@pytest.fixture
def log(tmp_path):
    """The minion's log."""
    return tmp_path / "minion"


@pytest.mark.parametrize(
    ("host", "resolve"),
    [("127.0.0.1", ""), ("llm.example.com", "--resolve llm.example.com:8443:127.0.0.1 ")],
)
def test_line_for_the_shell_finds_the_platform_by_any_name(site, host, resolve):
    installation = site("hosts: {node1: {address: 127.0.0.1, roles: []}}\n")
    line = up.curl(installation, f"https://{host}:8443/v1", "/ca.pem")
    start = f"curl {resolve}--cacert /ca.pem https://{host}:8443/v1/chat/completions "
    assert line.startswith(start)


def test_work_before_the_log_is_there(log):
    assert up.Work(log).now() == ""


def test_work_is_the_state_that_runs_and_then_what_it_says(log):
    log.write_text(STATE)
    work = up.Work(log)
    assert work.now() == "", "what was before is not what runs now"
    for line, said in ((STATE, "head: healthy"), (OTHER, "head: healthy"),
                       (OURS, "image cache: Step 4/7 : RUN x")):  # fmt: skip
        with open(log, "a") as file:
            file.write(line)
        assert work.now() == said


@pytest.fixture
def said():
    """What is printed."""
    return io.StringIO()


def test_waiting_speaks_at_least_every_two_seconds(said, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    words = progress.Progress(1, out=said)
    words.step("Something")
    for clock[0] in range(1, 9):
        words.waiting("the master listens")
    assert said.getvalue().count("the master listens") >= 4


def test_run_that_fails_shows_the_logs_end(tmp_path, said):
    words = progress.Progress(1, out=said)
    argv = [sys.executable, "-c", "print('cannot find it'); raise SystemExit(3)"]
    with pytest.raises(progress.Failure) as failure:
        progress.run(words, argv, tmp_path / "log", "looking")
    assert failure.value.problems[0] == "looking failed (exit code 3); the log's end:"
    assert "cannot find it" in failure.value.problems


def test_run_ends_its_command_when_interrupted(tmp_path, said, monkeypatch):
    words = progress.Progress(1, out=said)
    started = tmp_path / "pid"
    program = (
        f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )

    def interrupt(_):
        if started.exists() and started.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(words, "waiting", interrupt)
    with pytest.raises(KeyboardInterrupt):
        progress.run(words, [sys.executable, "-c", program], tmp_path / "log", "sleeping")
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.parametrize("ending", commands.ENDINGS)
def test_run_ends_its_command_when_the_process_is_told_to_end(tmp_path, ending):
    started = tmp_path / "pid"
    sleeper = (
        f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    program = (
        "import sys; from bootstrap import commands, progress; commands.hear_endings();"
        f" progress.run(progress.Progress(1), [sys.executable, '-c', {sleeper!r}],"
        f" {str(tmp_path / 'log')!r}, 'sleeping')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(ending, signal.SIG_DFL),  # also under `nohup`
    ) as process:  # fmt: skip
        while not (started.exists() and started.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(ending)
        process.send_signal(ending)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_wait_for_gives_up_and_says_what_it_waited_for(said):
    begun = time.monotonic()
    with pytest.raises(progress.Failure, match="gave up after 0.1 s: the engine answers"):
        progress.wait_for(progress.Progress(1, out=said), bool, "the engine answers", 0.1, 0.01)
    assert time.monotonic() - begun < 2
