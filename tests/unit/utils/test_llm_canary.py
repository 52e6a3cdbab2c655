import math

import llm_canary
import pytest


def histogram(name, **buckets):
    """What an Envoy says of times: of each bound, how many took at most so long."""
    found = [{"upper_bound": float(key[1:]), "cumulative": value} for key, value in buckets.items()]
    return {"histograms": [{"name": name, "buckets": found}]}


ANSWER = {
    "stats": [
        {"name": "cluster.head.upstream_rq_completed", "value": 90},
        {"name": "cluster.head.upstream_rq_5xx", "value": 1},
        {"name": "cluster.head-canary-first.upstream_rq_completed", "value": 10},
        {"name": "cluster.head-canary-first.upstream_rq_4xx", "value": 2},
        {"name": "cluster.head-canary-first.retry.upstream_rq_5xx", "value": 3},
        {"name": "cluster.head-other.upstream_rq_completed", "value": 1000},
        histogram("cluster.head.upstream_rq_time", _5=80, _10=90),
        histogram("cluster.head-canary-first.upstream_rq_time", _5=1, _10=10),
    ]
}


def figures(requests=100, errors=0, time=10.0):
    return {"requests": requests, "errors": errors, "quantile": "p90", "time": time}


def counted(canary, old=None):
    """What was counted up to a moment, each side's times as ``{bound: requests}``."""
    sides = {"old": canary if old is None else old, "canary": canary}
    return {
        side: {"requests": max(times.values(), default=0), "errors": 0, "times": times}
        for side, times in sides.items()
    }


def test_read_tells_the_canary_from_the_others():
    found = llm_canary.read("head", {"stats": ANSWER["stats"][:5] + ANSWER["stats"][6:]})
    assert found["old"] == {"requests": 90, "errors": 1, "times": {5.0: 80, 10.0: 90}}
    assert found["canary"] == {"requests": 10, "errors": 5, "times": {5.0: 1, 10.0: 10}}


def test_total_of_hosts_whose_answers_came_as_json():
    one = llm_canary.read("head", {"stats": ANSWER["stats"][:1] + ANSWER["stats"][6:7]})
    one["old"]["times"] = {str(bound): count for bound, count in one["old"]["times"].items()}
    found = llm_canary.total([one, one])
    assert found["old"] == {"requests": 180, "errors": 0, "times": {5.0: 160, 10.0: 180}}
    assert found["canary"] == llm_canary.NOTHING


def test_since_counts_what_came_in_between():
    before = {side: {"requests": 5, "errors": 1, "times": {5.0: 5}} for side in ("old", "canary")}
    now = {
        "old": {"requests": 105, "errors": 2, "times": {5.0: 5, 10.0: 105}},
        "canary": {"requests": 5, "errors": 1, "times": {5.0: 5}},
    }
    found = llm_canary.since(before, now)
    median = {"quantile": "median", "time": pytest.approx(7.5)}
    assert found["old"] == {"requests": 100, "errors": 1} | median
    assert found["canary"] == {"requests": 0, "errors": 0} | median | {"time": None}


COLD = {5.0: 0, 2000.0: 10}  # ten requests to caches that are empty
QUICK, SLOW = {5.0: 30, 2000.0: 40}, {5.0: 0, 2000.0: 40}  # those of before, and 30 more


@pytest.mark.parametrize(("times", "slowness"), [(QUICK, None), (SLOW, "median: found 1002 ms")])
def test_since_leaves_out_how_slow_a_canary_was_while_cold(times, slowness):
    now = counted(times, old={5.0: 360, 2000.0: 360})
    found = llm_canary.since(counted({}), now, warm=counted(COLD, old={}))
    assert found["canary"]["requests"] == 40
    said = llm_canary.flaws(found, errors=1, slower=2)
    assert [text[: len(slowness or "")] for text in said] == [slowness] * bool(slowness)


def test_since_counts_errors_of_a_canary_that_is_cold():
    before, cold, now = counted({}), counted(COLD), counted(QUICK)
    now["canary"]["errors"] = cold["canary"]["errors"] = 9
    assert llm_canary.since(before, now, warm=cold)["canary"]["errors"] == 9


def test_since_counts_all_where_there_were_few_since_it_was_warm():
    now = counted({5.0: 0, 2000.0: 19}, old={5.0: 19, 2000.0: 19})
    found = llm_canary.since(counted({}), now, warm=counted(COLD, old={}))
    assert found["canary"]["time"] == pytest.approx(1002.5)
    assert llm_canary.flaws(found, errors=1, slower=2)


@pytest.mark.parametrize(("requests", "warm"), [(0, False), (19, False), (20, True)])
def test_is_warm_after_some_requests_each(requests, warm):
    now = counted({5.0: requests}, old={5.0: 500})
    assert llm_canary.is_warm(counted({}), now, canaries=2) is warm


@pytest.mark.parametrize(
    ("requests", "expected"),
    [(0, "median"), (99, "median"), (100, "p90"), (999, "p90"), (1000, "p99")],
)
def test_bearable(requests, expected):
    assert llm_canary.bearable(requests) == expected


@pytest.mark.parametrize(("old", "canary"), [(100, 1000), (1000, 100)])
def test_since_judges_both_by_what_the_side_with_fewer_requests_bears(old, canary):
    found = llm_canary.since(counted({}), counted({5.0: canary}, old={5.0: old}))
    assert [side["quantile"] for side in found.values()] == ["p90", "p90"]


@pytest.mark.parametrize(
    ("times", "share", "expected"),
    [
        ({}, 0.99, None),
        ({5.0: 0}, 0.99, None),
        ({10.0: 100}, 0.5, 5.0),
        ({10.0: 50, 20.0: 100}, 0.75, 15.0),
        ({10.0: 0, 20.0: 0, 40.0: 4}, 1, 40.0),
    ],
)
def test_quantile(times, share, expected):
    assert llm_canary.quantile(times, share) == expected


@pytest.mark.parametrize(
    ("old", "canary", "words"),
    [
        (figures(), figures(), []),
        (figures(errors=2), figures(errors=3), []),
        (figures(), figures(errors=2), ["errors: found 2 of 100 (2.0 %), expected at most 1.0 %"]),
        (figures(time=100.0), figures(time=224.0), []),
        (figures(time=100.0), figures(time=226.0), ["p90: found 226 ms, expected at most 225 ms"]),
        (figures(requests=0, time=None), figures(), []),
        (figures(requests=0, time=None), figures(errors=50), ["errors: found 50 of 100"]),
    ],
)
def test_flaws(old, canary, words):
    found = llm_canary.flaws({"old": old, "canary": canary}, errors=1, slower=2)
    assert len(found) == len(words)
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True))


@pytest.mark.parametrize(("errors", "lost"), [(0, False), (2, False), (3, True)])
def test_is_lost_after_errors_enough(errors, lost):
    found = {"old": figures(), "canary": figures(requests=5, errors=errors, time=math.inf)}
    assert llm_canary.is_lost(found, errors=1) is lost


def test_words():
    found = {"old": figures(), "canary": figures(requests=0, time=None)}
    expected = "the canary 0 requests, 0 errors, p90 -; the old one 100 requests, 0 errors, p90 10"
    assert llm_canary.words(found).startswith(expected)
