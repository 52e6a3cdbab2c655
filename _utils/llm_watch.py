"""
What the watch of a host keeps between two looks, how long it waits before it tries again, and what
it has done. Nothing here asks the engine or Salt.
"""

import contextlib
import datetime
import fcntl
import json
import os
import time

DEPLOYED = "deployed.json"  # what serves since the last deploy or state run, and the catalogue then
TROUBLES = "troubles.json"  # what the watch has tried
MAINTENANCE = "maintenance.json"  # what it leaves alone
HISTORY = "history.jsonl"
LOCK = "watch.lock"

TRIES = 5  # until it gives up
FIRST = 10  # seconds from the first try to the second; each later one takes twice as long
WELL = 600  # seconds after which a container that was well all the time counts as new
RESTARTS, WITHIN = 5, 120  # so many restarts in so many seconds are a crash loop
KEPT = 1000  # entries of the history
NONE = {"services": {}, "restarts": {}}  # troubles
GIVEN_UP, WANTING = "given up", "a deploy is wanted"  # how the trouble with a service may end


@contextlib.contextmanager
def turn(folder, timeout=0):
    """
    Be the only one who heals, or keeps others from it; give whether that was so within ``timeout``
    seconds.
    """
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with open(folder / LOCK, "a", opener=_private) as file:
        while not (mine := _taken(file)) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield mine


def _private(path, flags):
    return os.open(path, flags, mode=0o600)


def _taken(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def fresh(since):
    """
    Return what is known of a service that has given no trouble.

    since
        When what serves of it was deployed: what comes later has its own chance.
    """
    return {"since": since, "tries": 0, "last": 0, "told": "", "ended": ""}


def patience(trouble, now):
    """
    Return the seconds until the next try to heal a service, of which ``trouble`` is known.
    """
    if not trouble["tries"] or now < trouble["last"]:  # the clock was set back since then
        return 0
    return max(0, trouble["last"] + FIRST * 2 ** (trouble["tries"] - 1) - now)


def is_over(trouble, now):
    """
    Return whether a service that is well now has been so for long enough.
    """
    return now - trouble["last"] > WELL


def counted(known, restarts, now):
    """
    Return ``known``, what is known of a container's restarts, with ``restarts``, how many there
    are now.

    Returns ``{"seen": [[when, restarts]], "looping": bool, "told": bool}``; it is in a crash loop
    until it was not restarted for a while.
    """
    known = known or {"seen": [], "looping": False, "told": False}
    seen = [each for each in known["seen"] if each[1] <= restarts]
    if not seen or seen[-1][1] != restarts:
        seen.append([now, restarts])
    if now - seen[-1][0] > WELL:
        return {"seen": [seen[-1]], "looping": False, "told": False}
    older = [each for each in seen if now - each[0] > WITHIN]
    seen = older[-1:] + [each for each in seen if now - each[0] <= WITHIN]
    looping = known["looping"] or restarts - seen[0][1] >= RESTARTS
    return {"seen": seen, "looping": looping, "told": known["told"]}


def in_force(maintenance, now):
    """
    Return those entries of ``maintenance`` that have not expired.
    """
    return {name: each for name, each in (maintenance or {}).items() if each["until"] > now}


def told(name, entry):
    """
    Return an entry of what is left alone in words.
    """
    return f"maintenance of {name} until {written(entry['until'])}: {entry['reason']}"


def held(left, service, host):
    """
    Return in words why ``service`` of ``host`` is left alone, or ``None`` where it is not; ``left``
    as `in_force` returned it.
    """
    return next((told(name, left[name]) for name in (service, host) if name in left), None)


def written(moment):
    """
    Return a Unix time for people and programs, ISO 8601 in UTC.
    """
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")


def note(folder, entries):
    """
    Add ``entries`` to the history in ``folder``; the oldest go when there are too many.
    """
    path = folder / HISTORY
    with open(path, "a", opener=_private) as file:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in entries)
    lines = path.read_text().splitlines(keepends=True)
    if len(lines) > KEPT * 1.1:
        new = path.with_name(f".{HISTORY}.new")
        new.touch(mode=0o600)
        new.write_text("".join(lines[-KEPT:]))
        new.replace(path)


def noted(folder, lines):
    """
    Return the last ``lines`` entries of the history in ``folder``; one that a power cut has cut
    off is left out.
    """
    path = folder / HISTORY
    found = []
    for line in path.read_text().splitlines()[-lines:] if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
