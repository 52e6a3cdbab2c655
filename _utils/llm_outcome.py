"""What an orchestration did, read from its answer."""

import json
from pathlib import Path
from typing import NamedTuple


class Truth(NamedTuple):
    """One state of one host, or one step of the orchestration itself."""

    host: str
    id: str
    result: object
    changed: bool
    comment: str


def read(path):
    """Return the states in the answer at ``path`` that Salt wrote with ``--out=json``."""
    try:
        answer = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found(answer)


def found(answer):
    """Return the states in what an orchestration returned."""
    data = answer.get("data") or {}
    return [truth for host, states in data.items() for truth in truths(host, states)]


def truths(host, states):
    """Return ``states`` of ``host`` in their order, each step followed by what it did elsewhere."""
    if states is False:
        return [Truth(host, "no answer", False, False, "it may still be at what it was told to do")]
    if not isinstance(states, dict):
        comment = "\n".join(states) if isinstance(states, list) else str(states)
        return [Truth(host, "states cannot be rendered", False, False, comment)]
    found = []
    for tag, state in sorted(states.items(), key=lambda item: order(item[1])):
        if not isinstance(state, dict):
            continue
        changes = state.get("changes") or {}
        is_step = tag.startswith("salt_|-")  # of the orchestration: what it did stands within
        name = state.get("__id__") or tag.split("_|-")[1]
        comment = str(state.get("comment", ""))
        if is_step and state.get("result") is False:
            comment = "\n".join([comment, *words(changes.get("return"))])
        changed = bool(changes) and not is_step
        found.append(Truth(host, name, state.get("result"), changed, comment))
        if is_step and changes.get("out") == "highstate":
            for minion, their in (changes.get("ret") or {}).items():
                found += truths(minion, their)
    return found


def words(answer):
    """Return the lines in what a runner returned, whatever their names are."""
    if isinstance(answer, dict):
        answer = [value for key, value in answer.items() if key != "retcode"]
    if isinstance(answer, list):
        return [line for part in answer for line in words(part)]
    return answer.splitlines() if isinstance(answer, str) else []


def order(state):
    """Return when ``state`` ran."""
    return state.get("__run_num__", 0) if isinstance(state, dict) else 0


def failures(found):
    """Return the lines that explain what failed: the cause, not what was left out because of it."""
    failed = [truth for truth in found if truth.result is False]
    causes = [truth for truth in failed if "requisite" not in truth.comment]
    inner = [truth for truth in causes if not truth.host.endswith("_master")]
    lines = []
    for truth in inner or causes or failed:
        lines += [f"{truth.host}: {truth.id}:"]
        lines += ["    " + line for line in without_traceback(truth.comment.strip().splitlines())]
    return lines


def without_traceback(said):
    """Return the lines ``said`` with what matters of a Python traceback: its end."""
    begins = next((number for number, line in enumerate(said) if "Traceback (" in line), None)
    return said if begins is None else said[:begins] + said[-1:]
