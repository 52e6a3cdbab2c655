"""Say all the time what is being done, for how long, and what it waits for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

QUIET = 2.0  # seconds without a word are the most that a reader has to bear


class Failure(Exception):
    """Something a user can act on: one line for each problem."""

    def __init__(self, *problems):
        super().__init__("\n".join(problems))
        self.problems = problems


class Progress:
    """Numbered steps with their elapsed time."""

    def __init__(self, steps, out=sys.stdout):
        self.steps = steps
        self.out = out
        self.number = 0
        self.title = ""
        self.timings = []  # {"title": ..., "seconds": ...} of each step that is done
        self.begun = time.monotonic()
        self.step_begun = self.begun
        self.spoken = 0.0
        self.live = out.isatty()
        self.dirty = False

    def step(self, title):
        """Begin the next step."""
        self.number += 1
        self.title = title
        self.step_begun = time.monotonic()
        self.say(f"[{self.number}/{self.steps}] {title}")

    def say(self, line, indent=0):
        """Print a line that stays."""
        self._clear()
        print(" " * indent + line, file=self.out, flush=True)
        self.spoken = time.monotonic()

    def done(self, result):
        """Say how the step ended."""
        self.timings.append({"title": self.title, "seconds": round(self.elapsed(), 3)})
        self.say(f"{result} ({self.elapsed():.1f} s)", indent=6)

    def elapsed(self):
        """Seconds since the step began."""
        return time.monotonic() - self.step_begun

    def total(self):
        """Seconds since the first step."""
        return time.monotonic() - self.begun

    def waiting(self, what):
        """Say what is waited for, at most every two seconds; on a terminal in one live line."""
        now = time.monotonic()
        if now - self.spoken < (0.2 if self.live else QUIET):
            return
        self.spoken = now
        line = f"      {self.elapsed():4.0f} s  {what}"
        width = shutil.get_terminal_size((100, 25)).columns - 1
        line = line if len(line) <= width or not self.live else line[: width - 1] + "…"
        if self.live:
            print(f"\r\033[K{line}", end="", file=self.out, flush=True)
            self.dirty = True
        else:
            print(line, file=self.out, flush=True)

    def _clear(self):
        if self.dirty:
            print("\r\033[K", end="", file=self.out)
            self.dirty = False


def last_line(path, start=0):
    """Return the last line with a word in it of the file at ``path``, from byte ``start`` on."""
    try:
        with open(path, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(start, log.tell() - 4096))
            lines = log.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run(progress, argv, log, what, watch=None, env=None, check=True):
    """
    Run ``argv`` with its output in ``log``; return its exit code.

    what
        What it does, for people.
    watch
        Called for the line that says what is waited for. Default: the last line of ``log``.
    check
        Raise ``Failure`` with the log's end when the exit code is not 0.

    Ctrl-C reaches the command first, which has ten seconds to end.
    """
    Path(log).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(log, "ab") as output:
        start = output.tell()
        child = subprocess.Popen(
            argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=env, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                try:
                    code = child.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    at = watch() if watch else last_line(log, start)
                    progress.waiting(f"{what}: {at}" if at else what)
        except BaseException:
            end(child)
            raise
    if check and code:
        with open(log, "rb") as output:
            output.seek(start)
            tail = output.read().decode("utf-8", "replace").strip().splitlines()[-15:]
        raise Failure(f"{what} failed (exit code {code}); the log's end:", *tail, f"Log: {log}")
    return code


def end(child, patience=10):
    """End ``child`` and its group: politely, then not."""
    for number, wait in ((signal.SIGINT, patience), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=wait)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def wait_for(progress, truth, what, timeout, pause=0.3):
    """
    Return the first true answer of ``truth()``.

    Raises ``Failure`` after ``timeout`` seconds. ``what`` is a line, or a function that returns it.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = truth()
        if answer:
            return answer
        line = what() if callable(what) else what
        if time.monotonic() > deadline:
            raise Failure(f"gave up after {timeout} s: {line}")
        progress.waiting(line)
        time.sleep(pause)
