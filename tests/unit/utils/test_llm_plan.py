"""
What a plan says and decides, of a world that is given; `llm_container`'s tests carry plans out.
"""

import dataclasses

import llm_plan
import llm_spec
import llm_world
import pytest

MIB = 1024**2
MOUNT = {"source": "/etc/one", "target": "/etc/llm", "read_only": True}


def spec(replica=1, **keys):
    return llm_spec.completed({"service": "head", "image": "head:2", "replica": replica, **keys})


def container(replica=1, version="1.2", state="running", edited=(), **keys):
    """A container of head as it was made of an older spec."""
    keys = {"memory": "100m", "image": "head:1", "network": "bridge", **keys}
    parts = llm_spec.parts(spec(replica, **keys), "sha256:1")
    return llm_world.Container(
        id=f"id{replica}",
        name=f"llm-head-{replica}-g1",
        service="head",
        replica=replica,
        generation=1,
        spec=llm_spec.digest(parts),
        parts=parts,
        image_id="sha256:1",
        state=state,
        networks={"bridge": {"id": "b", "address": "", "aliases": []}},
        host={"RestartPolicy": {"Name": "always"}},
        version=version,
        edited=list(edited),
    )


def world(*containers, **limits):
    return llm_world.World(
        site="llm",
        containers=list(containers),
        foreign=set(),
        addresses={},
        networks={"bridge": "b"},
        images={"head:2": {"id": "sha256:2", "create": "head:2"}},
        limits={service: size * MIB for service, size in limits.items()},
    )


def room(memory, **taken):
    return {"memory": memory * MIB, "taken": {name: size * MIB for name, size in taken.items()}}


LACKS = "memory lacks 50m for both at once"


@pytest.mark.parametrize(
    ("memory", "taken", "when_tight", "strategy", "tight", "refused"),
    [
        pytest.param(300, {}, "refuse", "start-first", [], False, id="just-enough"),
        pytest.param(250, {}, "refuse", "start-first", [LACKS], True, id="refused"),
        pytest.param(250, {}, "stop-first", "stop-first", [LACKS], False, id="stopped-first"),
        pytest.param(
            350, {"cache": 200}, "refuse", "start-first", [LACKS], True, id="cache-is-to-grow"
        ),
        pytest.param(
            250, {"cache": 50}, "refuse", "start-first", [], False, id="cache-is-to-shrink"
        ),
    ],
)
def test_plan_looks_for_the_room_of_two_generations(
    memory, taken, when_tight, strategy, tight, refused
):
    wanted = spec(memory="100m", room=room(memory, **taken), when_tight=when_tight)
    plan = llm_plan.plan([wanted], world(container(), head=100, cache=100))
    (operation,) = plan["operations"]
    assert (operation["strategy"], operation["tight"]) == (strategy, tight)
    assert [each.startswith(f"head cannot be replaced without a gap: {LACKS}; ") for each in
            plan["conflicts"]] == [True] * refused  # fmt: skip
    assert operation["sentence"].endswith(LACKS) is bool(tight)
    steps = [step["do"] for step in operation["steps"]]
    assert (steps.index("stop") < steps.index("start")) is (strategy == "stop-first")


def test_plan_of_replicas_in_turn_counts_what_those_before_take_then():
    """Both at once would fit into 350m, one after another the second does not."""
    wanted = [spec(replica, memory="150m", room=room(350)) for replica in (1, 2)]
    plan = llm_plan.plan(wanted, world(container(1), container(2), head=200))
    assert [operation["tight"] for operation in plan["operations"]] == [
        [],
        ["memory lacks 50m for both at once"],
    ]


@pytest.mark.parametrize("keys", [{"strategy": "stop-first"}, {"room": None}])
def test_plan_needs_no_room_for_one_generation(keys):
    wanted = spec(**({"memory": "100m", "room": room(10)} | keys))
    plan = llm_plan.plan([wanted], world(container(), head=100))
    assert plan["operations"][0]["tight"] == []
    assert plan["conflicts"] == []


def test_plan_needs_no_room_beside_what_does_not_run():
    wanted = spec(memory="100m", room=room(100))
    plan = llm_plan.plan([wanted], world(container(state="exited")))
    assert plan["conflicts"] == []


def kept(**keys):
    """A container that was replaced, and the spec by which it serves again."""
    found = container(state="exited", **keys)
    found.id, found.name, found.generation = "kept", "llm-head-1-g0", 0
    pinned = {"digest": found.spec, "why": "release 1 comes back"}
    wanted = spec(memory="100m", pinned=pinned, room=room(250))
    found.host = {"RestartPolicy": {"Name": "no"}, **llm_spec.limits(wanted)}
    return found, wanted


def test_plan_starts_what_is_kept_ahead():
    found, wanted = kept()
    plan = llm_plan.plan([wanted], world(found, container(memory="50m"), head=50))
    (operation,) = plan["ahead"]
    assert operation["container"] == "llm-head-1-g0"
    assert [(step["do"], step["container"]) for step in operation["steps"]] == [("start", "kept")]
    assert plan["changes"].keys() == {"llm-head-1-g0"}


@pytest.mark.parametrize(
    ("limits", "keys"),
    [({"head": 50, "tail": 101}, {}), ({"head": 50}, {"strategy": "stop-first"})],
    ids=["tight", "stop-first"],
)
def test_plan_starts_nothing_ahead(limits, keys):
    found, wanted = kept()
    plan = llm_plan.plan([wanted | keys], world(found, container(memory="50m"), **limits))
    assert plan["ahead"] == []


def test_plan_starts_all_ahead_or_none():
    """Each fits beside the others, but not all of them."""
    first, wanted = kept()
    second, _ = kept(replica=2)
    second.id, second.name = "second", "llm-head-2-g0"
    wanted["room"] = room(350)
    wanted = [wanted, wanted | {"replica": 2}]
    old = [container(each, memory="50m") for each in (1, 2)]
    assert llm_plan.plan(wanted, world(first, second, *old, head=151))["ahead"] == []
    assert len(llm_plan.plan(wanted, world(first, second, *old, head=150))["ahead"]) == 2


def test_plan_lets_what_was_started_ahead_serve():
    found, wanted = kept()
    found.state = "running"
    plan = llm_plan.plan([wanted], world(found, container(memory="50m"), head=150))
    (operation,) = plan["operations"]
    assert operation["causes"][0] == "release 1 comes back"
    assert operation["tight"] == plan["conflicts"] == plan["ahead"] == []


def test_plan_names_the_versions_and_labels_the_new_one():
    wanted = spec(memory="100m", version="1.3")
    (operation,) = llm_plan.plan([wanted], world(container()))["operations"]
    assert operation["causes"] == ["image 1.2 → 1.3"]
    assert operation["steps"][0]["body"]["Labels"]["llm.version"] == "1.3"


@pytest.mark.parametrize(
    ("mounts", "causes"),
    [
        ([MOUNT], ["a.yaml was changed by hand"]),
        ([MOUNT | {"source": "/etc/two"}], ["file a.yaml changed"]),
    ],
    ids=["the-same-folder", "another-folder"],
)
def test_plan_tells_files_that_are_yet_to_come_from_those_changed_by_hand(mounts, causes):
    keys = {"image": "head:2", "memory": "100m", "mounts": [MOUNT], "files": {"a.yaml": "1"}}
    files = {"a.yaml": "1" if mounts == [MOUNT] else "2"}
    old = container(**keys)
    old.parts["image_id"] = "sha256:2"
    wanted = spec(**keys | {"mounts": mounts, "files": files, "edited": ["a.yaml"]})
    (operation,) = llm_plan.plan([wanted], world(old))["operations"]
    assert operation["causes"] == causes


@pytest.mark.parametrize(("pinned", "asked"), [(False, True), (True, False)])
def test_plan_asks_for_a_completion_of_what_has_not_served_before(pinned, asked):
    smoke_test = {"secret": "head.key", "model": "tiny"}
    kept = container(version="1.1", state="exited")
    pin = {"pinned": {"digest": kept.spec, "why": "back"}} if pinned else {}
    old = dataclasses.replace(container(command=["x"]), id="id2", generation=2)
    wanted = spec(smoke_test=smoke_test, room=room(900), **pin)
    operations = llm_plan.plan([wanted], world(kept, old))["operations"]
    (wait,) = (step for each in operations for step in each["steps"] if step["do"] == "wait")
    assert wait["health"].get("smoke_test") == (smoke_test if asked else None)


def test_digest_tells_plans_apart_by_what_they_say():
    old = world(container(), head=100)
    first = llm_plan.digest(llm_plan.plan([spec(memory="200m")], old))
    assert first == llm_plan.digest(llm_plan.plan([spec(memory="200m", drain_timeout=9)], old))
    assert first != llm_plan.digest(llm_plan.plan([spec(memory="300m")], old))
    assert first != llm_plan.digest(llm_plan.plan([spec(memory="200m")], world()))
    tight = spec(memory="200m", room=room(1), when_tight="stop-first")
    assert first != llm_plan.digest(llm_plan.plan([tight], old))


def test_limits_are_those_of_what_is_live():
    def listed(service, state, parts):
        return {"State": state, "Labels": {"llm.service": service, "llm.parts": parts}}

    found = [
        listed("head", "running", '{"memory": 5}'),
        listed("head", "restarting", '{"memory": 6}'),
        listed("head", "exited", '{"memory": 7}'),
        listed("cache", "paused", "{}"),
    ]
    assert llm_world.limits(found) == {"head": 11, "cache": 0}
