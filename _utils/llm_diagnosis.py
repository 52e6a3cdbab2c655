"""
What the engine knows of a container that is not well: in which state it is, how it died, what it
said last.
"""

import re
import time

import llm_size
from salt.exceptions import CommandExecutionError

KILLED = 137  # exit code of what a signal 9 ended, the kernel's for want of memory among them
LATE = 2  # seconds that the engine may hear of the want of memory after it heard of the death
# Colours and what else a terminal would obey.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def fate(engine, found, before=None):
    """
    Return why waiting for a container is of no use, or ``None``.

    found
        What the engine said, ``None`` when there is no such container.
    before
        What it said earlier: a container that has been started again by the engine since then has
        crashed. Default: not known.
    """
    if not found:
        return "there is no such container"
    state, crashed = found["State"], _crashed(found, before)
    if state["Status"] in ("running", "paused") and not crashed:
        return None
    if state["Status"] == "created":
        return f"it was not started: {state['Error'] or 'nobody asked for it'}"
    death = _death(engine, found)
    if death["oom"]:
        return f"killed: out of memory (limit {_limit(found)})"
    if crashed or state["Status"] == "restarting":
        return f"it crashes and is started again: exit code {death['exit_code']}"
    return f"it has exited: exit code {death['exit_code']}"


def describe(engine, found):
    """
    Return in a few words how a container is.

    found
        What the engine said.
    """
    state, death = found["State"], _death(engine, found)
    words = [state["Status"]]
    if health := (state.get("Health") or {}).get("Status"):
        words.append(health)
    if death["exit_code"] is not None:
        words.append(f"exit code {death['exit_code']}")
    if death["oom"]:
        words.append(f"out of memory (limit {_limit(found)})")
    return ", ".join([*words, f"restarts {found['RestartCount']}"])


def log(engine, container, lines=50):
    """
    Return the last lines that ``container`` wrote, without colours. They may hold secrets.

    container
        Its name.
    lines
        How many. Default: 50.
    """
    try:
        return [plain(line) for line in engine.logs(container, lines)]
    except CommandExecutionError as err:
        return [f"(the log cannot be read: {err})"]


def plain(line):
    """
    Return ``line`` without colours and what else a terminal would obey.
    """
    return CONTROL.sub("", line)


def _crashed(found, before):
    return before and before["Id"] == found["Id"] and before["RestartCount"] < found["RestartCount"]


def _death(engine, found):
    """
    Return the exit code of the last death and whether memory ran out. The container's own state
    forgets both when the engine starts it again, the engine's events do not.
    """
    state = found["State"]
    death = {"oom": state["OOMKilled"], "exit_code": None}
    if state["Status"] not in ("running", "paused", "created"):
        death["exit_code"] = state["ExitCode"]
    if found["RestartCount"]:
        for event in _events(engine, found["Id"], "die"):
            death["exit_code"] = int(event["Actor"]["Attributes"]["exitCode"])
    killed = death["exit_code"] == KILLED
    if not death["oom"] and (killed or found["RestartCount"]):
        death["oom"] = _ran_out_of_memory(engine, found["Id"], LATE if killed else 0)
    return death


def _ran_out_of_memory(engine, container, seconds):
    """Return whether the engine hears within ``seconds`` that memory ran out."""
    deadline = time.monotonic() + seconds
    while not (heard := _events(engine, container, "oom")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(heard)


def _events(engine, container, kind):
    """Return what happened to ``container``, as far as the engine remembers."""
    try:
        # Up to now; without an end the engine would go on forever.
        return engine.events(container, kind, since=0, until=f"{time.time():.9f}")
    except CommandExecutionError:
        return []


def _limit(found):
    limit = found["HostConfig"]["Memory"]
    return llm_size.exact(limit) if limit else "none, the host's"
