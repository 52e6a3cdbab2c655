"""
What a deploy is at, while it is at it: told on standard error from what the master's event bus
says. Only shown; nothing is decided by it, for a minion may say what it likes there.
"""

import sys
import threading
import time

QUIET = 2  # seconds without a word are the most that a reader has to bear
DEEDS = {  # what a function does on a host, before its arguments
    "llm_deploy.begin": "takes part",
    "llm_deploy.call_off": "takes no part",
    "llm_deploy.end": "notes the release as",
    "llm_deploy.go_to": "goes to release",
    "llm_deploy.take_back": "takes back",
}


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
        self.jobs = {}  # jid: what runs there, for people, and the hosts that are still at it
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
        match tag.split("/"):
            case ["llm", "progress", who]:
                self.say(f"{data.get('id', who)}: {data.get('data', {}).get('text', '')}")
            case ["salt", "job", jid, "new"] if what := self._mine(data):
                self._begun(jid, what, data.get("minions", ()))
            case ["salt", "job", jid, "ret", host] if jid in self.jobs:
                self._ended(jid, data, host)
            case ["salt", "run", jid, "new"] if data.get("fun") == "runner.llm.verify":
                self._begun(jid, "A client gets a completion")
            case ["salt", "run", jid, "ret"] if jid in self.jobs:
                self._ended(jid, data)

    def _mine(self, data):
        """Return what a job does, if it is one of this release, else ``None``."""
        arguments = data.get("arg") or []
        given = {}
        for each in arguments:
            given |= each if isinstance(each, dict) else {}
        pillar = given.get("pillar") or {}
        if pillar.get("llm_deploy") == self.number:
            return pillar.get("llm_step")
        deed = DEEDS.get(str(data.get("fun")))  # a list where somebody asks for several at once
        if deed and arguments[:1] == [self.number]:
            return " ".join([deed, *map(_named, arguments[1:])])
        return None

    def _begun(self, jid, what, hosts=()):
        self.jobs[jid] = (what, list(hosts))
        self.say(_under_way(what, hosts))

    def _ended(self, jid, data, host=None):
        what, hosts = self.jobs[jid]
        how = "done" if data.get("success") and not data.get("retcode") else "failed"
        self.say(": ".join(filter(None, (host, what, how))))
        if host in hosts:
            hosts.remove(host)
        if hosts:
            self.now = _under_way(what, hosts)

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


def _named(argument):
    """Return an argument in words; services come as a list, or as a mapping to what serves."""
    if isinstance(argument, dict):
        return f"with {', '.join(argument)}"
    return ", ".join(argument) if isinstance(argument, list) else str(argument)


def _under_way(what, hosts):
    return ": ".join(filter(None, (", ".join(hosts), what, "under way")))
