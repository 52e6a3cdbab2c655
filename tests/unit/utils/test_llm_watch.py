import json

import llm_watch
import pytest


def test_turn_is_for_one_at_a_time(tmp_path):
    folder = tmp_path / "root"
    with llm_watch.turn(folder) as first, llm_watch.turn(folder, timeout=0.2) as second:
        assert (first, second) == (True, False)
    with llm_watch.turn(folder) as third:
        assert third
    assert (folder / llm_watch.LOCK).stat().st_mode & 0o777 == 0o600


def test_patience_doubles():
    trouble = llm_watch.fresh(1)
    waits = []
    for tries in range(llm_watch.TRIES):
        waits.append(llm_watch.patience(trouble | {"tries": tries, "last": 100}, now=100))
    assert waits == [0, 10, 20, 40, 80]
    assert llm_watch.patience(trouble | {"tries": 2, "last": 100}, now=115) == 5
    assert llm_watch.patience(trouble | {"tries": 2, "last": 100}, now=500) == 0


def test_patience_does_not_outlast_a_clock_that_was_set_back():
    trouble = llm_watch.fresh(since=1) | {"tries": 2, "last": 3700}
    assert llm_watch.patience(trouble, now=100) == 0


def test_trouble_is_over_after_ten_minutes_of_none():
    trouble = llm_watch.fresh(1) | {"last": 100}
    assert not llm_watch.is_over(trouble, now=700)
    assert llm_watch.is_over(trouble, now=701)


@pytest.mark.parametrize(
    ("looks", "looping"),
    [
        ([(0, 0), (1, 3), (5, 5)], True),
        ([(0, 0), (1, 4)], False),
        ([(0, 0), (9000, 1), (9010, 2), (9020, 3), (9030, 4), (9040, 5)], True),
        ([(0, 0), (9000, 1), (9010, 4)], False),
        ([(second, second // 60) for second in range(0, 1200, 60)], False),  # once a minute
        ([(0, 30), (10, 31), (20, 32)], False),  # those before the first look are history
        ([(0, 0), (5, 5), (500, 5)], True),
        ([(0, 0), (5, 5), (700, 5)], False),  # well for ten minutes
        ([(0, 4), (5, 0), (10, 4)], False),  # started by hand: the engine counts anew
    ],
)
def test_five_restarts_in_two_minutes_are_a_crash_loop(looks, looping):
    known = None
    for now, restarts in looks:
        known = llm_watch.counted(known, restarts, now)
    assert known["looping"] is looping
    assert json.loads(json.dumps(known)) == known


def test_a_crash_loop_that_was_told_is_new_after_it_was_well():
    known = llm_watch.counted(llm_watch.counted(None, 0, 0), 5, 5) | {"told": True}
    assert llm_watch.counted(known, 6, 10)["told"]
    assert not llm_watch.counted(known, 5, 900)["told"]


def test_maintenance_expires_by_itself():
    found = {"head": {"reason": "why", "until": 50}, "node1": {"reason": "why", "until": 150}}
    assert llm_watch.in_force(found, now=100) == {"node1": found["node1"]}
    assert llm_watch.in_force(None, now=100) == {}
    words = "maintenance of head until 1970-01-01T00:00:50+00:00: why"
    assert llm_watch.held(found, "head", "node1") == words
    assert llm_watch.held(found, "tail", "node1").startswith("maintenance of node1 until ")
    assert llm_watch.held(found, "tail", "node2") is None


def test_history_keeps_the_last_ones(tmp_path):
    assert llm_watch.noted(tmp_path, 5) == []
    llm_watch.note(tmp_path, [{"number": number} for number in range(1200)])
    llm_watch.note(tmp_path, [{"number": 1200}])
    found = llm_watch.noted(tmp_path, 5000)
    assert [each["number"] for each in found] == [*range(200, 1201)]
    assert llm_watch.noted(tmp_path, 1) == [{"number": 1200}]
    assert [path.name for path in tmp_path.iterdir()] == [llm_watch.HISTORY]
    assert (tmp_path / llm_watch.HISTORY).stat().st_mode & 0o777 == 0o600


def test_history_after_a_power_cut(tmp_path):
    llm_watch.note(tmp_path, [{"number": 1}])
    with open(tmp_path / llm_watch.HISTORY, "a") as file:
        file.write('{"num')
    llm_watch.note(tmp_path, [{"number": 2}, {"number": 3}])
    assert [each["number"] for each in llm_watch.noted(tmp_path, 10)] == [1, 3]
