import llm_outlook
import pytest

SERVICE = {"stop_timeout": 10, "healthy_deadline": 60, "progress_deadline": 180}
WAIT = {"do": "wait", "health": {"healthy_deadline": 60}}
STOP = {"do": "stop", "seconds": 10}


def operation(do, replica=1, steps=(), lane="head", **more):
    return {
        "do": do,
        "replica": replica,
        "container": f"llm-head-{replica}-g2",
        "causes": ["memory 1g → 2g"],
        "steps": list(steps),
        "lane": lane,
        **more,
    }


def replace(strategy="start-first", replica=1, tight=(), steps=(WAIT, STOP)):
    old = {"old": f"llm-head-{replica}-g1", "strategy": strategy, "tight": list(tight)}
    return operation("replace", replica, steps, **old)


def service(*operations, wanted=None, running=("llm-head-1-g1",), of=SERVICE):
    wanted = {1: "llm-head-1-g1"} if wanted is None else wanted
    return llm_outlook.service({"operations": list(operations)}, of, wanted, set(running))


TWO = ("llm-head-1-g1", "llm-head-2-g1")


@pytest.mark.parametrize(
    ("found", "effect", "seconds"),
    [
        (service(), "none", 0),
        (service(replace()), "none", 0),
        (service(replace("stop-first")), "gap", 70),
        (service(replace("stop-first"), running=TWO), "none", 0),
        (service(replace("stop-first"), running=()), "starts", 0),
        (service(operation("create"), running=()), "starts", 0),
        (service(operation("create", 2)), "none", 0),
        (service(operation("start"), running=()), "starts", 0),
        (service(operation("resume"), running=()), "starts", 0),
        (service(operation("update")), "none", 0),
        (service(operation("remove", 2), running=TWO), "none", 0),
        (service(operation("remove"), of=None), "ends", 0),
        (service(operation("remove"), of=None, running=()), "none", 0),
    ],
)
def test_service_says_what_clients_notice(found, effect, seconds):
    assert found["traffic"] == {"effect": effect, "seconds": seconds}


@pytest.mark.parametrize(
    ("operations", "seconds"),
    [
        ([], 0),
        ([replace()], 70),
        ([replace(), replace(replica=2)], 140),
        ([operation("remove", steps=[STOP], lane="a"), operation("remove", lane="b")], 10),
        ([operation("create", lane="a"), operation("create", lane="b")], 60),
        ([operation("remove", steps=[{"do": "drain", "seconds": 5}, {"do": "route"}])], 15),
        ([operation("update")], 0),
    ],
)
def test_service_says_how_long_it_may_take(operations, seconds):
    assert service(*operations)["seconds"] == seconds


def test_service_lists_every_replica():
    found = service(
        replace("stop-first", 2, tight=["memory lacks 1g for both at once"]),
        wanted={1: "llm-head-1-g1", 2: "llm-head-2-g1"},
    )
    assert found["actions"] == [
        {"action": "none", "replica": 1, "container": "llm-head-1-g1", "causes": []},
        {
            "action": "replace",
            "replica": 2,
            "container": "llm-head-2-g2",
            "causes": ["memory 1g → 2g", "memory lacks 1g for both at once"],
            "old": "llm-head-2-g1",
            "strategy": "stop-first",
        },
    ]


QUIET = {"files": {}, "live_files": {}, "certificate": [], "routes": False, "digest": "d"}


def on(tier, *operations, **how):
    return {"tier": tier, **QUIET, **service(*operations, **how)}


def host(*preparations, **services):
    return {
        "preparations": [{"what": "image", "name": "head", "do": do} for do in preparations],
        "services": services,
        "problems": [],
    }


def test_summary_of_nothing_to_do():
    assert llm_outlook.summary({"node1": host(head=on(3)), "node2": None}) == {
        "changes": False,
        "actions": {"none": 1},
        "preparations": 0,
        "unlimited": 0,
        "gaps": {},
        "ends": [],
        "seconds": 0,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"a": "create"}},
        {"live_files": {"a": "change"}},
        {"certificate": ["there is none"]},
        {"routes": True},
    ],
)
def test_summary_counts_what_replaces_nothing_as_a_change(change):
    found = llm_outlook.summary({"node1": host(head=on(3) | change)})
    assert found["changes"] is True
    assert found["actions"] == {"none": 1}


def test_summary_counts_a_replica_once():
    """That an older one, long stopped, is removed as well is no change of its own."""
    old = operation("remove") | {"container": "llm-head-1-g0"}
    found = llm_outlook.summary({"node1": host(head=on(3, old, replace()))})
    assert found["actions"] == {"replace": 1}


def test_summary_adds_tiers_and_takes_the_slowest_host_of_each():
    found = llm_outlook.summary(
        {
            "node1": host("build", "create", head=on(3, replace()), tail=on(4, replace())),
            "node2": host(head=on(3, replace(), replace(replica=2)), other=on(3, replace())),
        }
    )
    assert found["seconds"] == 140 + 70 + 70
    assert (found["preparations"], found["unlimited"]) == (2, 1)


def test_summary_names_gaps_and_ends():
    gone = {"running": ("llm-head-1-g1",), "of": None, "wanted": {}}
    found = llm_outlook.summary(
        {
            "node1": host(
                cache=on(2, replace("stop-first")),
                old=on(None, operation("remove"), **gone),
                head=on(None, operation("remove"), **gone),
            ),
            "node2": host(head=on(3)),
        }
    )
    assert found["gaps"] == {"cache": 70}
    assert found["ends"] == ["old"]


def test_announcement_is_of_the_hosts_that_answered():
    found = llm_outlook.announcement({"node1": host(head=on(3)), "node2": None})
    assert found == {"node1": {"head": "d"}}


@pytest.mark.parametrize(
    ("services", "names"),
    [(None, []), ("", []), ("head", ["head"]), ("head, tail,", ["head", "tail"]), (["a"], ["a"])],
)
def test_chosen_names(services, names):
    assert llm_outlook.chosen_names(services) == names
