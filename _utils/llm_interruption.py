"""
Ctrl-C and SIGTERM that are heard, whatever the command is at.

What a signal's handler raises while Python takes an object away is dropped ("Exception ignored
in"); an object that it leaves half-made fails when it is taken away; what it raises in a callback
of an event loop stays with its task, which tells it then ("Task exception was never retrieved");
and Salt's loader goes on without a module in whose import it comes. Salt opens and closes a loop
for each of its questions: one in some hundred interruptions met such a moment, and the command went
on as if nobody had said anything, or showed a traceback.
"""

import asyncio
import contextlib
import functools
import signal
import threading
import time

SIGNALS = signal.SIGINT, signal.SIGTERM
FRAGILE = {"__init__", "__del__", "close", "close_pub", "destroy", "_load_module"}
CALLBACK = asyncio.Handle._run.__code__
PATIENCE = 5  # seconds to wait for the end of such a moment
AGAIN = 2  # seconds after which an exception that was raised must have ended the block


@contextlib.contextmanager
def heard():
    """
    Raise ``SystemExit`` in the block on the first SIGINT or SIGTERM, but not while something is
    made, loaded or closed nor in a callback of an event loop, again until the block has ended, and
    also where that has come to an end of its own. Only a process's main thread can hear signals;
    elsewhere the block is run as it is.
    """
    since, timers = [], []

    def interrupt(number, frame):
        since.append(time.monotonic())
        lost = _lost(frame) and time.monotonic() < since[0] + PATIENCE
        told = functools.partial(signal.pthread_kill, threading.main_thread().ident, number)
        timer = threading.Timer(0.05 if lost else AGAIN, told)
        timer.start()
        timers.append(timer)
        if not lost:
            raise SystemExit

    with ignored():
        try:
            with _handled_by(interrupt):
                yield
        except Exception:
            if not since:  # else it may come of what somebody has caught
                raise
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()
        if since:  # somebody has caught it
            raise SystemExit


def ignored():
    """
    Return a context in which none is heard, but within `heard`: what is done there is carried
    through.
    """
    return _handled_by(signal.SIG_IGN)


@contextlib.contextmanager
def _handled_by(handler):
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in SIGNALS}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, earlier)


def _lost(frame):
    """Return whether what is raised in ``frame`` would not arrive."""
    while frame:
        if frame.f_code is CALLBACK or frame.f_code.co_name in FRAGILE:
            return True
        frame = frame.f_back
    return False
