"""
Whether this process has stood still, as one does that is frozen or whose host was suspended.

Who waits for it has given up meanwhile, and what was said to it since then comes late or never.
"""

import os
import threading
import time

LIMIT = 15  # seconds; after a shorter one nobody has given up yet
_PAUSE = 1
_watches = {}  # by process: a fork has its own


class _Watch(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.longest = 0.0

    def run(self):
        while True:
            before = _now()
            time.sleep(_PAUSE)
            self.longest = max(self.longest, _now() - before - _PAUSE)


def longest():
    """
    Return for how many seconds this process has stood still at most, since it asked first.
    """
    pid = os.getpid()
    if pid not in _watches:
        _watches[pid] = _Watch()
        _watches[pid].start()
    return _watches[pid].longest


def _now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the host is suspended
