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


def figures(requests=100, errors=0, p99=10.0):
    return {"requests": requests, "errors": errors, "p99": p99}


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
    assert found["old"] == {"requests": 100, "errors": 1, "p99": pytest.approx(9.95)}
    assert found["canary"] == {"requests": 0, "errors": 0, "p99": None}


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
        (figures(p99=100.0), figures(p99=224.0), []),
        (figures(p99=100.0), figures(p99=226.0), ["p99: found 226 ms, expected at most 225 ms"]),
        (figures(requests=0, p99=None), figures(), []),
        (figures(requests=0, p99=None), figures(errors=50), ["errors: found 50 of 100"]),
    ],
)
def test_flaws(old, canary, words):
    found = llm_canary.flaws({"old": old, "canary": canary}, errors=1, slower=2)
    assert len(found) == len(words)
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True))


@pytest.mark.parametrize(("errors", "lost"), [(0, False), (2, False), (3, True)])
def test_is_lost_after_errors_enough(errors, lost):
    found = {"old": figures(), "canary": figures(requests=5, errors=errors, p99=math.inf)}
    assert llm_canary.is_lost(found, errors=1) is lost


def test_words():
    found = {"old": figures(), "canary": figures(requests=0, p99=None)}
    expected = "the canary 0 requests, 0 errors, p99 -; the old one 100 requests, 0 errors, p99 10"
    assert llm_canary.words(found).startswith(expected)
