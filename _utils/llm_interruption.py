"""
Ctrl-C and SIGTERM that are heard, whatever the command is at.

What a signal's handler raises while Python takes an object away is dropped ("Exception ignored
in"), and what it raises in a callback of an event loop stays with its task, which tells it when it
is taken away ("Task exception was never retrieved"). Salt opens and closes a loop for each of its
questions: one in some hundred interruptions met such a moment, and the command went on as if nobody
had said anything, or showed a traceback.
"""

import asyncio
import contextlib
import functools
import signal
import threading
import time

SIGNALS = signal.SIGINT, signal.SIGTERM
CLOSING = {"__del__", "close", "close_pub", "destroy"}
CALLBACK = asyncio.Handle._run.__code__
PATIENCE = 5  # seconds to wait for the end of a close or a callback
AGAIN = 2  # seconds after which an exception that was raised must have ended the block


@contextlib.contextmanager
def heard():
    """
    Raise ``SystemExit`` in the block on the first SIGINT or SIGTERM, but not while something is
    closed nor in a callback of an event loop, and again until the block has ended. Only a process's
    main thread can hear signals; elsewhere the block is run as it is.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    since, timers = [], []

    def interrupt(number, frame):
        since.append(time.monotonic())
        lost = _lost(frame) and time.monotonic() < since[0] + PATIENCE
        told = functools.partial(signal.pthread_kill, main.ident, number)
        timers.append(threading.Timer(0.05 if lost else AGAIN, told))
        timers[-1].start()
        if not lost:
            raise SystemExit

    before = {each: signal.signal(each, interrupt) for each in SIGNALS}
    try:
        yield
    finally:
        ignore()
        for timer in timers:
            timer.cancel()
            timer.join()
        for each, handler in before.items():
            signal.signal(each, handler)


def ignore():
    """Hear no further one in this process: what it is at now is to be carried through."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _lost(frame):
    """Return whether what is raised in ``frame`` would not arrive."""
    while frame:
        if frame.f_code is CALLBACK or frame.f_code.co_name in CLOSING:
            return True
        frame = frame.f_back
    return False
