"""
Who changes the platform: one process at a time in the whole installation.

The lock is one line of JSON in a file that is never removed, read and written under the kernel's
own lock of it. It names its owner by process and start of that process, so that an owner who is
dead holds nothing: the lock of a deploy that was killed is free without anybody's help.
"""

import contextlib
import datetime
import fcntl
import getpass
import json
import os
import pathlib
import platform

from salt.exceptions import CommandExecutionError


class Locked(CommandExecutionError):
    """
    Somebody else holds the lock; ``holder`` is the record of who, when and what.
    """

    def __init__(self, holder):
        way = "try again once it has ended; llm.deploy waits for that with wait=SECONDS"
        if holder["by_hand"]:
            way = "salt-run llm.unlock frees it"
        super().__init__(f"the platform is locked: {told(holder)}; {way}")
        self.holder = holder


class Lock:
    """
    The lock in the file at ``path``, whose folder is made when it is taken.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def holder(self):
        """
        Return who holds the lock, or ``None``.

        Returns ``{"number": int or None, "what": str, "who": str, "since": ISO 8601, "host": str,
        "pid": int, "started": str, "by_hand": bool}``.
        """
        return _living(self._read().get("holder"))

    def next(self):
        """Return the number that the next release gets. Takes nothing."""
        return self._read().get("last", 0) + 1

    def take(self, what, number=None, by_hand=False):
        """
        Take the lock for this process; return the record of it.

        what
            What it is taken for, for people.
        number
            The release that is made meanwhile, as `next` gave it. Default: none.
        by_hand
            Keep it after this process has ended, until somebody calls `free`.

        Raises ``Locked`` when somebody else has it, and ``CommandExecutionError`` when another
        release took ``number`` in between.
        """
        self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        with self._opened(os.O_RDWR | os.O_CREAT) as file:
            found = _line(file)
            if holder := _living(found.get("holder")):
                raise Locked(holder)
            last = found.get("last", 0)
            if number is not None and number <= last:
                raise CommandExecutionError(
                    f"release {last} came in between: nothing was changed; deploy again"
                )
            record = {
                "number": number,
                "what": what,
                "who": who(),
                "by_hand": by_hand,
                **this_process(),
            }
            record["since"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            _write(file, {"last": last if number is None else number, "holder": record})
        return record

    def is_mine(self):
        """Whether this process holds the lock."""
        holder = self.holder()
        return bool(holder) and not holder["by_hand"] and holder["pid"] == os.getpid()

    def free(self, last=0):
        """
        Free the lock, whoever holds it; return who held it, or ``None``. Releases get numbers after
        ``last`` from now on.
        """
        if not self.path.exists():
            return None
        with self._opened(os.O_RDWR) as file:
            found = _line(file)
            _write(file, {"last": max(last, found.get("last", 0)), "holder": None})
        return _living(found.get("holder"))

    def _read(self):
        try:
            with self._opened(os.O_RDONLY) as file:
                return _line(file)
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise CommandExecutionError(f"{self.path}: {err.strerror}") from None

    @contextlib.contextmanager
    def _opened(self, flags):
        file = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_SH if flags == os.O_RDONLY else fcntl.LOCK_EX)
            yield file
        except ValueError:
            raise CommandExecutionError(
                f"{self.path} is damaged: it is not what was written; remove it"
            ) from None
        finally:
            os.close(file)


def told(holder):
    """
    Return a lock's holder in words.
    """
    release = f" (release {holder['number']})" if holder["number"] else ""
    by = "by hand" if holder["by_hand"] else f"process {holder['pid']} on {holder['host']}"
    return f"{holder['what']}{release} of {holder['who']} since {holder['since']}, {by}"


def who():
    """
    Return the name of the person at work: behind ``sudo``, whoever called it.
    """
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _line(file):
    """Return the first line; what is behind it is the rest of a longer one."""
    found = json.loads(os.pread(file, 65536, 0).split(b"\n")[0] or b"{}")
    if not isinstance(found, dict):
        raise ValueError(found)
    return found


def _write(file, found):
    os.pwrite(file, json.dumps(found).encode() + b"\n", 0)  # one call, so whole or not at all


def this_process():
    """
    Return what tells this process from every other, also from a later one of its number.
    """
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "started": _started(pid)}


def _started(pid):
    """
    Return which boot of this machine and which clock tick of it process ``pid`` has started at,
    ``None`` when there is none. A clock that is set changes neither.
    """
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot}:{fields[19]}"


def _living(holder):
    """Return ``holder`` unless its process has ended."""
    return holder if holder and (holder["by_hand"] or lives(holder)) else None


def lives(process):
    """
    Return whether a process of this machine, as `this_process` told it, has not ended yet.
    """
    return process["started"] == _started(process["pid"])
