"""Which process holds a port or a socket of this machine, from /proc."""

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

ESTABLISHED, LISTEN = "01", "0A"


class Process(NamedTuple):
    """A process and its command line."""

    pid: int
    command: str


def holder(port):
    """Return the process that listens on TCP ``port``, or None."""
    wanted = inodes(port)
    if not wanted:
        return None
    return next(holders(wanted), Process(0, "of another namespace"))


def holders(wanted):
    """Yield the processes that hold a socket whose inode is among ``wanted``."""
    links = {f"socket:[{inode}]" for inode in wanted}
    for process in Path("/proc").glob("[0-9]*"):
        if links & set(handles(process)):
            yield Process(int(process.name), command(process))


def handles(process):
    """Yield what the process under ``/proc`` has open; nothing when it ends or is not ours."""
    with contextlib.suppress(OSError):
        for handle in os.listdir(process / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(process / "fd" / handle)


def inodes(port, state=LISTEN):
    """Return the inodes of the sockets in ``state`` on the TCP ``port`` of this machine."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == state and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(fields[9])
    return found


def command(process):
    """Return the command line of the process under ``/proc``."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode("utf-8", "replace") for word in words).strip()


def sockets(folder):
    """Return the inodes of the Unix sockets with a name in ``folder``."""
    rows = (row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {row[6] for row in rows if len(row) > 7 and row[7].startswith(f"{folder}/")}


def daemons(program, configuration):
    """
    Return the processes of Salt's daemon ``program`` that use the folder ``configuration``.

    Some of them rename themselves: those are known by their sockets.
    """
    pattern = re.compile(rf"\S*python\S* \S*/{program} -c {re.escape(str(configuration))}( |$)")
    lines = {int(path.name): command(path) for path in Path("/proc").glob("[0-9]*")}
    found = {pid: Process(pid, line) for pid, line in lines.items() if pattern.match(line)}
    role = program.split("-")[1]
    for process in holders(sockets(Path(configuration).parent / "run" / role)):
        found[process.pid] = process
    found.pop(os.getpid(), None)
    return list(found.values())
