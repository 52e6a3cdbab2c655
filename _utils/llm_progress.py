"""
What a deploy is at, while it is at it: told on standard error from what the master's event bus
says. Only shown; nothing is decided by it, for a minion may say what it likes there.
"""

import sys
import threading
import time

QUIET = 2  # seconds without a word are the most that a reader has to bear
TAG = "llm/progress/"


class Progress:
    """
    Tell, until it is left, what the state runs of release ``number`` are at. ``opts`` are the
    master's.
    """

    def __init__(self, opts, number, out=None):
        self.opts = opts
        self.number = number
        self.out = out or sys.stderr
        self.started = time.monotonic()
        self.spoken = 0.0
        self.jobs = {}  # jid: what runs there, for people
        self.now = "the pillar is checked"
        self.over = threading.Event()
        self.live = None

    def __enter__(self):
        if self.out.isatty():
            from rich.console import Console

            self.live = Console(file=self.out).status(self.now)
            self.live.start()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(5)
        if self.live:
            self.live.stop()

    def _listen(self):
        import salt.utils.event

        with salt.utils.event.get_event(
            "master", sock_dir=self.opts["sock_dir"], opts=self.opts, listen=True
        ) as bus:
            while not self.over.is_set():
                if event := bus.get_event(wait=0.5, full=True):
                    self.hear(event["tag"], event["data"])
                self.wait()

    def hear(self, tag, data):
        """Take note of one event of the bus."""
        parts = tag.split("/")
        if tag.startswith(TAG):
            self.say(f"{data.get('id', parts[-1])}: {data.get('data', {}).get('text', '')}")
        elif parts[:2] == ["salt", "job"] and parts[3:] == ["new"]:
            if (what := self._mine(data)) is not None:
                self.jobs[parts[2]] = what
                self.say(f"{', '.join(data.get('minions', ()))}: {what}")
        elif parts[:2] == ["salt", "job"] and parts[3:4] == ["ret"] and parts[2] in self.jobs:
            how = "done" if data.get("success") and not data.get("retcode") else "failed"
            self.say(f"{parts[4]}: {self.jobs[parts[2]]}: {how}")

    def _mine(self, data):
        """Return what a job does, if it is one of this release, else ``None``."""
        arguments = data.get("arg") or []
        words = [each for each in arguments if not isinstance(each, dict)]
        given = {}
        for each in arguments:
            given |= each if isinstance(each, dict) else {}
        if (given.get("pillar") or {}).get("llm_deploy") == self.number:
            named = [each if isinstance(each, list) else str(each).split(",") for each in words]
            return " ".join(", ".join(each) for each in named)
        if data.get("fun", "").startswith("llm_deploy.") and words[:1] == [self.number]:
            return data["fun"]
        return None

    def say(self, text):
        """Tell what happens now."""
        self.now = text
        self._print()

    def wait(self):
        """Tell what is waited for, when nothing was said for a while."""
        if self.live:
            self.live.update(f"{self.elapsed():4.0f} s  {self.now}")
        elif time.monotonic() - self.spoken >= QUIET:
            self._print()

    def elapsed(self):
        """Return the seconds since it began."""
        return time.monotonic() - self.started

    def _print(self):
        line = f"{self.elapsed():6.0f} s  {self.now}"
        if self.live:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self.out, flush=True)
        self.spoken = time.monotonic()
