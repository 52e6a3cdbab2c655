"""
Releases: what was deployed when and by whom, how it ended, and which one to go back to.
"""

import datetime
import os
import pathlib

import llm_record
from salt.exceptions import CommandExecutionError

RUNNING = "running"
DONE = "done"
REFUSED = "refused"  # before anything was changed
TAKEN_BACK = "taken back"
NOT_TAKEN_BACK = "not taken back"
UNKNOWN = "unknown"
INTERRUPTED = "interrupted"


class Releases:
    """
    The records of releases in ``folder``, a file of JSON each.

    A record has ``number``, ``what`` (``deploy``, ``rollback to 5``, ...), ``who``, ``when``
    (ISO 8601), ``commit``, ``process`` (which made it), ``result``, ``stable`` (whether it passed
    its verification), ``why`` (what went wrong, as a list of lines), ``seconds``, ``changes``
    (``{host: {what: [cause]}}``) and ``hosts`` (``{host: {service: {replica: {"container",
    "digest", "image"}}}}``: what serves since then).
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def _path(self, number):
        return self.folder / f"{number:06d}.json"

    def write(self, record):
        """Keep ``record``, whole or not at all."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        llm_record.write(self._path(record["number"]), record)

    def remove(self, number):
        """Forget release ``number``."""
        self._path(number).unlink(missing_ok=True)

    def read(self, number):
        """Return the record of release ``number``, or ``None``."""
        return llm_record.read(self._path(number))

    def next(self):
        """Return the first number that no release has, nor one after it."""
        return max(self._numbers(), default=0) + 1

    def _numbers(self):
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.json"))

    def all(self):
        """Return every record, the first release first."""
        return [self.read(number) for number in self._numbers()]

    def abandon(self):
        """Note of each release whose process has ended without a word that it was interrupted."""
        for record in self.all():
            if record["result"] == RUNNING:
                self.write(abandoned(record))

    def current(self):
        """Return the last release that is stable, which is the one that serves, or ``None``."""
        return next((each for each in reversed(self.all()) if each["stable"]), None)

    def before(self, current):
        """
        Return the last stable release before ``current``, a record, that another one was then, or
        ``None``: what a rollback without a number goes to.
        """
        earlier = [each for each in self.all() if each["stable"]]
        earlier = [each for each in earlier if each["number"] < current["number"]]
        different = (each for each in reversed(earlier) if each["hosts"] != current["hosts"])
        return next(different, None)

    def containers(self):
        """
        Return the names of the containers of the current release and of the one to go back to.
        """
        current = self.current()
        records = [each for each in (current, current and self.before(current)) if each]
        return sorted(
            replica["container"]
            for record in records
            for services in record["hosts"].values()
            for replicas in services.values()
            for replica in replicas.values()
        )

    def target(self, number=None, force=False):
        """
        Return the record of the release to go back to, or forward.

        number
            Which one. Default: the last stable one before the current.
        force
            Also to one that was not stable. Default: ``False``.

        Raises ``CommandExecutionError`` when there is none, or it must not be.
        """
        if number is None:
            current = self.current()
            if found := current and self.before(current):
                return found
            raise CommandExecutionError(
                "there is no stable release before the current one that served anything else"
            )
        found = self.read(number)
        if not found or not found["hosts"]:
            known = [str(each["number"]) for each in self.all() if each["stable"]]
            there = f"stable ones: {', '.join(known)}" if known else "there is no stable one"
            raise CommandExecutionError(f"there is no release {number} to go to; {there}")
        if not found["stable"] and not force:
            raise CommandExecutionError(
                f"release {number} was not stable ({found['result']}): force=True goes there"
            )
        return found


def begun(number, what, who, commit, process=None):
    """
    Return the record of a release that begins now, made by ``process`` as `llm_lock` tells it.
    """
    return {
        "number": number,
        "what": what,
        "who": who,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "process": process,
        "result": RUNNING,
        "stable": False,
        "why": [],
        "seconds": None,
        "changes": {},
        "hosts": {},
    }


def abandoned(record):
    """
    Return ``record`` of a release whose process has ended without a word.
    """
    return record | {"result": INTERRUPTED, "why": ["its process was killed"]}


def ended(record, result, why=(), **more):
    """
    Return ``record`` of a release that ends now with ``result``.
    """
    begun_at = datetime.datetime.fromisoformat(record["when"])
    seconds = (datetime.datetime.now(datetime.UTC) - begun_at).total_seconds()
    end = {"result": result, "stable": result == DONE, "why": list(why)}
    return record | end | {"seconds": max(0, round(seconds))} | more


def commit(folder):
    """
    Return the commit of the checkout in ``folder``, with ``+changes`` where it differs from it;
    an empty string where there is no git.
    """
    import subprocess

    def git(*words):
        argv = ["git", "-C", str(folder), *words]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        if head.returncode:
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    except OSError:
        return ""
    return head.stdout.strip() + ("+changes" if changed else "")
