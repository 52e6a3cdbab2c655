"""
A Salt engine of each minion: looks after what was deployed whenever the container engine tells that
something befell it, and every few minutes, as an event can be lost. What it does about it:
``_modules/llm_watch.py``.

It runs from the minion's start on, before a master answers, and has no pillar then.
"""

import logging
import pathlib
import queue
import threading
import time

import llm_engine
from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

__virtualname__ = "llm_watch"

INTERVAL = 300  # seconds between two looks that nothing has caused
SETTLED = 1  # seconds in which what belongs together happens
LONGEST = 30  # seconds until the container engine, or a look that failed, is tried again
EVENTS = ("die", "oom", "destroy", "update", "rename", "pause", "disconnect")
CODE = ("_engines", "_modules", "_utils")
GONE = None  # what is heard when the container engine has ended


def __virtual__():
    return __virtualname__


def start(root):
    """
    Look after what was deployed, until the minion ends. When its code has changed it ends by
    itself, and Salt starts it anew.

    root
        The platform's folder.
    """
    code, pause, heard = _code(), SETTLED, _listening()
    while _code() == code:
        if _is_there(heard, _look(root)):
            pause = SETTLED
            continue
        time.sleep(pause)
        pause, heard = min(2 * pause, LONGEST), _listening()


def _look(root):
    """Look at everything once; return the seconds until the next look."""
    try:
        again = __salt__["llm_watch.look"](root)
    except (CommandExecutionError, OSError) as err:
        log.warning("%s", err)
        return LONGEST
    return INTERVAL if again is None else min(max(SETTLED, again), INTERVAL)


def _is_there(heard, seconds):
    """
    Return as soon as something has happened and settled, after so many ``seconds`` at the latest:
    whether the container engine is still there.
    """
    try:
        happened = [heard.get(timeout=seconds)]
    except queue.Empty:
        return True
    time.sleep(SETTLED)
    while not heard.empty():
        happened.append(heard.get())
    return GONE not in happened


def _listening():
    """Return a queue of what happens from now on."""
    heard = queue.Queue()
    engine = llm_engine.Engine(llm_engine.socket_path(__opts__))
    threading.Thread(target=_listen, args=(engine, heard), daemon=True).start()
    return heard


def _listen(engine, heard):
    try:
        for event in engine.stream(["container", "network"], EVENTS):
            if event["Type"] == "network" or "llm.site" in event["Actor"]["Attributes"]:
                heard.put(event)
    except CommandExecutionError as err:
        log.info("%s", err)
    finally:
        heard.put(GONE)


def _code():
    """Return what changes whenever the code does that a look runs."""
    repository = pathlib.Path(__file__).resolve().parents[1]
    files = [path for folder in CODE for path in sorted((repository / folder).glob("*.py"))]
    return [(path.name, path.stat().st_mtime_ns) for path in files]
