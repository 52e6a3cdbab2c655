"""
How a canary does beside what serves: the mesh's own counters and times, and what they come to.

Plain functions on plain data. Counters are those of an Envoy since its start, so that what happened
in between is the difference of two of them.
"""

import math
import re
import urllib.parse

import llm_world

FIRST = f"{llm_world.CANARY}-first"  # behind a service's name, the cluster of what a canary takes
EARLY = 3  # errors of which so many are enough, whatever the time that is left
WARM = 10  # requests after which a canary's caches and connections are no longer cold
QUANTILES = {"p99": 99, "p90": 90, "median": 50}  # percent of the requests that are as quick
BEYOND = 10  # requests that have to be slower, or a quantile is but the luck of a few
NOISE = 25  # milliseconds by which two times may differ that mean the same
NOTHING = {"requests": 0, "errors": 0, "times": {}}
_STATISTIC = re.compile(r"cluster\.(.+?)\.(retry\.)?upstream_rq_(completed|4xx|5xx|time)")


def question(service):
    """
    Return the path at an Envoy's administrative interface of the figures about ``service``.
    """
    clusters = f"{re.escape(service)}(-anywhere|-elsewhere|{FIRST})?"
    wanted = rf"^cluster\.{clusters}\.(retry\.)?upstream_rq_(completed|4xx|5xx|time)$"
    return f"/stats?format=json&histogram_buckets=cumulative&filter={urllib.parse.quote(wanted)}"


def read(service, answer):
    """
    Return the figures in an Envoy's ``answer`` to `question`: ``{"old": counts, "canary": counts}``
    with ``requests``, ``errors`` (answers of 400 and above, also those that were tried again) and
    ``times``, ``{milliseconds: requests that took at most so long}``.
    """
    found = {"old": dict(NOTHING), "canary": dict(NOTHING)}
    for each in answer.get("stats", ()):
        for histogram in each.get("histograms", ()):
            side, kind = _meant(service, histogram["name"])
            if kind == "time":
                buckets = {
                    float(bucket["upper_bound"]): bucket["cumulative"]
                    for bucket in histogram["buckets"]
                }
                found[side] = found[side] | {"times": _added(found[side]["times"], buckets)}
        if "name" in each:
            side, kind = _meant(service, each["name"])
            counted = "requests" if kind == "completed" else "errors"
            if kind and kind != "time":
                found[side] = found[side] | {counted: found[side][counted] + each["value"]}
    return found


def _meant(service, name):
    """Return which side a statistic is about, and which it is; ``None`` for another one."""
    match = _STATISTIC.fullmatch(name)
    if not match:
        return None, None
    return ("canary" if match[1] == f"{service}{FIRST}" else "old"), match[3]


def _added(one, other):
    return {key: one.get(key, 0) + other.get(key, 0) for key in one.keys() | other.keys()}


def total(answers):
    """
    Return the figures of several hosts as one.
    """
    found = {"old": dict(NOTHING), "canary": dict(NOTHING)}
    for answer in answers:
        for side, counts in answer.items():
            found[side] = {
                "requests": found[side]["requests"] + counts["requests"],
                "errors": found[side]["errors"] + counts["errors"],
                "times": _added(found[side]["times"], _numbered(counts["times"])),
            }
    return found


def _numbered(times):
    """Return ``times`` with numbers for keys: JSON makes them texts on the way."""
    return {float(bound): count for bound, count in times.items()}


def is_warm(before, now, canaries):
    """
    Return whether each of so many ``canaries`` has had requests enough from figures ``before`` to
    those of ``now`` that the next ones tell how quick it is.
    """
    return _number(_times(before, now)["canary"]) >= WARM * canaries


def since(before, now, warm=None):
    """
    Return what happened from figures ``before`` to those of ``now``.

    warm
        The figures since which times count, for the canary was cold. Where it has had few requests
        since then, and by default, all count.

    Returns ``{"old": counts, "canary": counts}`` with ``requests``, ``errors``, ``quantile``, which
    of `QUANTILES` both were judged by, and ``time``, what it is in milliseconds (``None`` without
    requests).
    """
    times = _times(warm or before, now)
    if _number(times["canary"]) < WARM:
        times = _times(before, now)
    judged = bearable(min(map(_number, times.values())))
    return {
        side: {
            "requests": counts["requests"] - before[side]["requests"],
            "errors": counts["errors"] - before[side]["errors"],
            "quantile": judged,
            "time": quantile(times[side], QUANTILES[judged] / 100),
        }
        for side, counts in now.items()
    }


def _times(before, now):
    """Return the times of each side that came from figures ``before`` to those of ``now``."""
    return {
        side: {
            bound: count - before[side]["times"].get(bound, 0)
            for bound, count in counts["times"].items()
        }
        for side, counts in now.items()
    }


def _number(times):
    """Return of how many requests ``times`` tell."""
    return max(times.values(), default=0)


def bearable(requests):
    """
    Return the highest of `QUANTILES` that so many ``requests`` bear: `BEYOND` of them are slower.
    The median is borne by any number.
    """
    borne = (
        name for name, percent in QUANTILES.items() if requests * (100 - percent) >= BEYOND * 100
    )
    return next(borne, "median")


def quantile(times, share):
    """
    Return the milliseconds within which ``share`` of the requests ended, read between the bounds of
    ``times`` as if they lay evenly there; ``None`` where there are none.
    """
    bounds = sorted(times)
    whole = times[bounds[-1]] if bounds else 0
    if not whole:
        return None
    below, before = 0.0, 0
    for bound in bounds:
        if times[bound] >= share * whole:
            part = (share * whole - before) / max(1, times[bound] - before)
            return below + (bound - below) * part
        below, before = bound, times[bound]
    return math.inf


def flaws(found, errors, slower):
    """
    Return why a canary does worse than what serves, as sentences.

    found
        What `since` returned.
    errors
        Percentage points by which its share of errors may be higher.
    slower
        How many times as long its time may be, at the quantile that was judged.
    """
    old, canary, reasons = found["old"], found["canary"], []
    shares = [each["errors"] / max(1, each["requests"]) * 100 for each in (old, canary)]
    if shares[1] > shares[0] + errors:
        reasons.append(
            f"errors: found {canary['errors']} of {canary['requests']} ({shares[1]:.1f} %), "
            f"expected at most {shares[0] + errors:.1f} %, that is {errors:g} above the old one's"
        )
    if None not in (old["time"], canary["time"]):
        most = old["time"] * slower + NOISE
        if canary["time"] > most:
            reasons.append(
                f"{canary['quantile']}: found {canary['time']:.0f} ms, expected at most "
                f"{most:.0f} ms, that is {slower:g} times the old one's {old['time']:.0f} ms and "
                f"{NOISE} ms"
            )
    return reasons


def is_lost(found, errors):
    """
    Return whether a canary's errors are so many that nothing that is to come makes them good.
    """
    return found["canary"]["errors"] >= EARLY and bool(flaws(found, errors, math.inf))


def words(found):
    """
    Return what `since` returned for people.
    """

    def side(counts):
        time = "-" if counts["time"] is None else f"{counts['time']:.0f} ms"
        kinds = f"{counts['requests']} requests, {counts['errors']} errors"
        return f"{kinds}, {counts['quantile']} {time}"

    return f"the canary {side(found['canary'])}; the old one {side(found['old'])}"
