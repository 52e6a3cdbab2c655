"""
Start one of Salt's daemons in place of this process: ``launch.py <program> <configuration>``.

A daemon that was killed leaves children that hold its ports and do half of its work. They end here
first, and its variables are read anew. (systemd does both by itself.) The file is run by its path,
without the package around it.
"""

import os
import shlex
import signal
import sys
import time

try:
    from . import listeners
except ImportError:
    import listeners


def end_leftovers(program, configuration, patience=5.0):
    """End the processes of ``program`` with this ``configuration``: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in listeners.daemons(program, configuration):
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while listeners.daemons(program, configuration) and time.monotonic() < deadline:
            time.sleep(0.1)


def variables(configuration):
    """Return the variables in the file ``environment``; the supervisor's may be old."""
    with open(os.path.join(configuration, "environment"), encoding="utf-8") as file:
        return dict(word.split("=", 1) for word in shlex.split(file.read()))


if __name__ == "__main__":
    path, folder = sys.argv[1:]
    end_leftovers(os.path.basename(path), folder)
    os.execve(path, [path, "-c", folder], variables(folder))
