import json
from unittest.mock import create_autospec

import llm_engine
import llm_snapshot
import llm_spec
import llm_standstill
import llm_watch
import pytest
from salt.exceptions import CommandExecutionError
from salt.modules import saltutil

from _modules import llm_canary, llm_container, llm_files, llm_service
from _modules import llm_deploy as llm_deploy_module
from _modules import llm_watch as llm_watch_module

SPEC = {"service": "tail", "image": "llm/envoy:1"}


def container(generation, memory="64m", state="running", service="tail"):
    """What ``llm_container.list`` says of one."""
    parts = llm_spec.parts(llm_spec.completed(SPEC | {"memory": memory}), "sha256:1")
    return {
        "name": f"llm-{service}-1-g{generation}",
        "service": service,
        "replica": 1,
        "state": state,
        "spec": llm_spec.digest(parts),
        "image": "llm/envoy:1",
        "parts": parts,
    }


@pytest.fixture
def containers():
    """What runs."""
    return [container(1)]


@pytest.fixture
def plan():
    keys = ("operations", "ahead", "missing", "conflicts", "notes")
    return {key: [] for key in keys} | {"changes": {}}


@pytest.fixture
def llm_deploy(configure_loader, platform, pillar, containers, plan, tmp_path):
    platform["site"]["root"] = pillar["site"]["root"] = str(tmp_path)
    live = tmp_path / "services" / "tail" / "live" / "listeners.yaml"
    live.parent.mkdir(parents=True)
    live.write_text("one")
    salt = {
        "llm_canary.running": create_autospec(llm_canary.running, return_value=[]),
        "llm_canary.end": create_autospec(llm_canary.end),
        "llm_config.carried": lambda: ["tail", "head"],
        "llm_config.platform": lambda: platform,
        "llm_container.list": create_autospec(llm_container.list_, return_value=containers),
        "llm_container.plan": create_autospec(llm_container.plan, return_value=plan),
        "llm_container.execute": create_autospec(
            llm_container.execute, return_value={"changes": {}, "errors": []}
        ),
        "llm_files.fingerprints": create_autospec(
            llm_files.fingerprints, return_value={"listeners.yaml": "f"}
        ),
        "llm_service.specs": create_autospec(
            llm_service.specs, return_value=[SPEC | {"replica": 1, "memory": "128m"}]
        ),
        "llm_watch.remembered": create_autospec(llm_watch_module.remembered, return_value={}),
        "saltutil.is_running": create_autospec(saltutil.is_running, return_value=[]),
        "saltutil.kill_job": create_autospec(saltutil.kill_job),
    }
    return configure_loader(llm_deploy_module, salt=salt)


@pytest.fixture
def live(tmp_path, llm_deploy):
    return tmp_path / "services" / "tail" / "live" / "listeners.yaml"


def test_begin_remembers_what_serves(llm_deploy, containers):
    containers += [container(2, "32m"), container(3, state="exited")]
    assert llm_deploy.current() is None
    assert isinstance(llm_deploy.begin(7), float)
    record = llm_deploy.current()
    assert (record["number"], record["state"]) == (7, "running")
    assert record["before"]["tail"]["1"]["container"] == "llm-tail-1-g2"


@pytest.mark.parametrize("deployed", [False, True])
def test_begin_without_an_engine(llm_deploy, containers, deployed):
    """What is kept serving comes back with the engine, and is the way back."""
    made = {"container": containers[0]["name"], "digest": containers[0]["spec"]}
    made["parts"] = containers[0]["parts"]
    remembered = {"tail": {"1": made}} if deployed else {}
    llm_deploy.__salt__["llm_watch.remembered"].return_value = remembered
    listed = llm_deploy.__salt__["llm_container.list"]
    listed.side_effect = CommandExecutionError("no engine")
    llm_deploy.begin(1)
    assert llm_deploy.current()["before"] == remembered
    listed.side_effect = None
    assert bool(llm_deploy.end(1, "done")["changes"]) is not deployed


def test_begin_while_another_run_does_not_end(llm_deploy, monkeypatch):
    monkeypatch.setattr(llm_deploy_module, "PATIENCE", 0)
    runs = [{"fun": "state.sls", "jid": "20261124"}]
    llm_deploy.__salt__["saltutil.is_running"].return_value = runs
    with pytest.raises(CommandExecutionError, match=r"still at work here: state.sls \(job 2026"):
        llm_deploy.begin(1)
    assert llm_deploy.current() is None


def test_begin_lets_what_is_being_healed_come_to_its_end(llm_deploy, tmp_path, monkeypatch):
    monkeypatch.setattr(llm_deploy_module, "PATIENCE", 0)
    with (
        llm_watch.turn(tmp_path),
        pytest.raises(CommandExecutionError, match="still being healed"),
    ):
        llm_deploy.begin(1)
    assert llm_deploy.current() is None
    llm_deploy.begin(1)


def test_under_way_from_the_beginning_to_the_end(llm_deploy, monkeypatch):
    assert llm_deploy.under_way() is False
    llm_deploy.begin(7)
    assert llm_deploy.under_way() is True
    llm_deploy.end(7, "done")
    assert llm_deploy.under_way() is False
    llm_deploy.begin(8)
    monkeypatch.setattr(llm_deploy_module, "LONGEST", -1)  # it was killed long ago
    assert llm_deploy.under_way() is False


@pytest.mark.parametrize(
    ("number", "end", "words"),
    [
        (6, None, "deploy 7 has begun here since: deploy 6 changes nothing"),
        (7, None, None),
        (7, "taken back", r"deploy 7 has ended \(taken back\)"),
        (8, "taken back", None),
    ],
)
def test_fence(llm_deploy, number, end, words):
    assert llm_deploy.fence(number) is None
    llm_deploy.begin(7)
    if end:
        llm_deploy.end(7, end)
    why = llm_deploy.fence(number)
    assert (why is None) == (words is None)
    if words:
        with pytest.raises(CommandExecutionError, match=words):
            llm_deploy.begin(number)


def test_fence_of_a_host_that_stood_still(llm_deploy, monkeypatch):
    llm_deploy.begin(7)
    monkeypatch.setattr(llm_standstill, "longest", lambda: 74.2)
    assert llm_deploy.fence(7) == "this host stood still for 74 s: who deploys may have given up"


def test_deploy_that_was_called_off_changes_nothing(llm_deploy, tmp_path):
    llm_deploy.begin(7)
    assert llm_deploy.call_off(6) == 7
    assert llm_deploy.current()["state"] == "running"
    assert llm_deploy.call_off(7) == 7
    assert not (tmp_path / "deploys" / "7").exists()
    llm_deploy.call_off(8)
    for number in (7, 8):
        with pytest.raises(CommandExecutionError, match="changes nothing"):
            llm_deploy.begin(number)
    llm_deploy.begin(9)


def test_deploy_that_is_called_off_while_it_begins(llm_deploy):
    def is_running(_):
        llm_deploy.call_off(7)
        return []

    llm_deploy.__salt__["saltutil.is_running"].side_effect = is_running
    with pytest.raises(CommandExecutionError, match=r"deploy 7 has ended \(refused\)"):
        llm_deploy.begin(7)
    assert llm_deploy.current()["state"] == "refused"


@pytest.mark.parametrize("called_off", [False, True])
def test_begin_after_a_deploy_that_was_killed(llm_deploy, containers, live, called_off):
    """What it has switched is not proved, so going back means what served before it."""
    llm_deploy.begin(7)
    llm_deploy.touch()
    containers[:] = [container(2, "128m")]
    live.write_text("two")
    if called_off:
        llm_deploy.begin(8)
        llm_deploy.call_off(8)
    llm_deploy.begin(9)
    record = llm_deploy.current()
    assert record["before"]["tail"]["1"]["container"] == "llm-tail-1-g1"
    assert llm_deploy.take_back(9, ["tail"])["begun"] is True
    assert live.read_text() == "one"
    llm_deploy.end(9, "taken back")
    llm_deploy.begin(10)
    assert llm_deploy.current()["before"]["tail"]["1"]["container"] == "llm-tail-1-g2"


def test_begin_waits_for_one_that_goes_back(llm_deploy, monkeypatch):
    monkeypatch.setattr(llm_deploy_module.time, "sleep", lambda seconds: None)
    late = [{"fun": "llm_deploy.take_back", "jid": "2"}]
    found = {"llm_deploy.take_back": [late, []]}
    is_running = llm_deploy.__salt__["saltutil.is_running"]
    is_running.side_effect = lambda fun: found[fun].pop(0) if found.get(fun) else []
    llm_deploy.begin(7)
    assert found == {"llm_deploy.take_back": []}


def test_end_tells_what_was_changed(llm_deploy, containers, live):
    llm_deploy.begin(7)
    containers[:] = [container(2, "128m"), container(1, service="head")]
    live.write_text("two")
    found = llm_deploy.end(7, "done")
    assert found["changes"] == {
        "llm-tail-1-g2": ["memory 64m → 128m"],
        "llm-head-1-g1": ["started: there was none"],
        "files of tail": ["listeners.yaml changed"],
    }
    assert found["services"]["tail"]["1"] == {
        "container": "llm-tail-1-g2",
        "digest": containers[0]["spec"],
        "image": "llm/envoy:1",
    }
    assert llm_deploy.current()["state"] == "done"


def test_end_of_one_that_changed_nothing(llm_deploy, tmp_path):
    llm_deploy.begin(7)
    assert llm_deploy.end(7, "done")["changes"] == {}
    assert not (tmp_path / "deploys" / "7").exists()


def test_end_waits_for_one_that_goes_back(llm_deploy, monkeypatch):
    monkeypatch.setattr(llm_deploy_module.time, "sleep", lambda seconds: None)
    llm_deploy.begin(7)
    late = [{"fun": "llm_deploy.take_back", "jid": "2"}]
    found = [late, []]
    llm_deploy.__salt__["saltutil.is_running"].side_effect = lambda _: found.pop(0)
    llm_deploy.end(7, "unknown")
    assert found == []


def test_begin_after_one_whose_end_nobody_knows_but_that_went_back(llm_deploy, containers, live):
    """What serves is what served before, so there is nothing to take over."""
    llm_deploy.begin(7)
    llm_deploy.touch()
    llm_deploy.end(7, "unknown")
    live.write_text("two")
    llm_deploy.begin(8)
    assert llm_deploy.current()["touched"] is False
    assert llm_deploy.end(8, "done")["changes"] == {}


def test_end_of_another(llm_deploy):
    llm_deploy.begin(7)
    with pytest.raises(CommandExecutionError, match="deploy 6 is not the one"):
        llm_deploy.end(6, "done")


def test_take_back_pins_what_served_before(llm_deploy, containers, plan, live):
    old = containers[0]["spec"]
    llm_deploy.begin(7)
    live.write_text("two")
    plan["operations"] = [{"do": "replace", "service": "tail"}]
    execute = llm_deploy.__salt__["llm_container.execute"]
    execute.return_value = {"changes": {"llm-tail-1-g1": ["replace: …"]}, "errors": []}
    assert llm_deploy.take_back(7, ["tail"]) == {
        "begun": True,
        "changes": {
            "llm-tail-1-g1": ["replace: …"],
            "files of tail": ["listeners.yaml as before"],
        },
        "errors": [],
    }
    ((specs,), _) = llm_deploy.__salt__["llm_container.plan"].call_args
    pinned = {"digest": old, "why": "release 7 was taken back"}
    assert [each["pinned"] for each in specs] == [pinned]
    assert live.read_text() == "one"
    assert llm_deploy.current()["state"] == "going back"
    refused = llm_deploy.refused("tail")
    assert (refused["digests"], refused["files"]) == ({"1": old}, {"listeners.yaml": "f"})
    assert llm_deploy.refused("head") is None


def test_take_back_ends_a_canary(llm_deploy):
    llm_deploy.begin(7)
    llm_deploy.touch()
    llm_deploy.__salt__["llm_canary.running"].return_value = ["tail"]
    llm_deploy.__salt__["llm_canary.end"].side_effect = CommandExecutionError("it stays")
    assert llm_deploy.take_back(7, ["head"])["errors"] == [
        "head: nothing of it served before, so there is no way back"
    ]
    llm_deploy.__salt__["llm_canary.end"].assert_not_called()
    assert llm_deploy.take_back(7, ["tail"])["errors"] == ["canary: it stays"]


def test_take_back_of_what_was_not_switched_refuses_nothing(llm_deploy):
    llm_deploy.begin(7)
    llm_deploy.touch()
    assert llm_deploy.take_back(7, ["tail"]) == {"begun": True, "changes": {}, "errors": []}
    assert llm_deploy.refused("tail") is None


def test_take_back_of_what_has_changed_nothing(llm_deploy):
    llm_deploy.begin(7)
    assert llm_deploy.take_back(7, ["tail"]) == {"begun": False, "changes": {}, "errors": []}
    llm_deploy.__salt__["llm_container.plan"].assert_not_called()


def test_touch_without_a_deploy(llm_deploy):
    llm_deploy.touch()
    assert llm_deploy.current() is None
    llm_deploy.begin(7)
    llm_deploy.end(7, "done")
    llm_deploy.touch()
    assert llm_deploy.current()["touched"] is False


def test_take_back_where_it_has_not_begun(llm_deploy):
    llm_deploy.begin(6)
    assert llm_deploy.take_back(7, ["tail"])["begun"] is False
    assert llm_deploy.current()["state"] == "running"


def test_take_back_of_a_first_deploy(llm_deploy, containers):
    containers.clear()
    llm_deploy.begin(1)
    llm_deploy.touch()
    (error,) = llm_deploy.take_back(1, ["tail"])["errors"]
    assert error == "tail: nothing of it served before, so there is no way back"


@pytest.mark.parametrize("kind", ["conflicts", "missing"])
def test_take_back_that_cannot_be(llm_deploy, plan, kind):
    llm_deploy.begin(7)
    llm_deploy.touch()
    operations = [{"service": "tail"}]
    plan |= {"operations": operations, "ahead": operations, kind: ["its container is gone"]}
    assert llm_deploy.take_back(7, ["tail"])["errors"] == ["its container is gone"]
    llm_deploy.__salt__["llm_container.execute"].assert_not_called()


def test_take_back_goes_on_with_the_others(llm_deploy, containers, plan):
    """All go side by side, unless there is no way for one of them."""
    llm_deploy.__salt__["llm_service.specs"].side_effect = lambda name, anew: [
        {"service": name, "image": name, "replica": 1}
    ]
    containers.append(container(1, service="head"))
    llm_deploy.begin(7)
    llm_deploy.touch()
    planned = llm_deploy.__salt__["llm_container.plan"]
    execute = llm_deploy.__salt__["llm_container.execute"]
    assert llm_deploy.take_back(7, ["tail", "head"])["errors"] == []
    assert [len(call.args[0]) for call in planned.call_args_list] == [2, 2]
    planned.reset_mock()
    execute.reset_mock()

    def of(specs):
        conflicts = [f"no way for {each['service']}" for each in specs if each["service"] == "tail"]
        return plan | {"conflicts": conflicts}

    planned.side_effect = of
    assert llm_deploy.take_back(7, ["tail", "head"])["errors"] == ["no way for tail"]
    assert [len(call.args[0]) for call in planned.call_args_list] == [2, 1, 1]
    execute.assert_called_once()


def test_take_back_first_starts_all_that_will_serve(llm_deploy, containers, plan, live):
    """Not what has to read other live files by then, nor what the catalogue does not know."""
    llm_deploy.__salt__["llm_service.specs"].side_effect = lambda name, anew: [
        {"service": name, "image": name, "replica": 1}
    ]
    containers += [container(1, service="head"), container(1, service="outside")]
    llm_deploy.begin(7)
    llm_deploy.touch()
    live.write_text("two")
    plan["ahead"] = [{"service": "tail"}, {"service": "head"}]
    planned = llm_deploy.__salt__["llm_container.plan"]
    execute = llm_deploy.__salt__["llm_container.execute"]
    llm_deploy.take_back(7, ["tail"])
    (first, second) = execute.call_args_list
    assert {each["service"] for each in planned.call_args_list[0].args[0]} == {"head", "tail"}
    assert (first.args[0]["operations"], first.kwargs) == ([{"service": "head"}], {"heals": True})
    assert (second.args[0], second.kwargs) == (plan, {})
    execute.reset_mock()
    llm_deploy.take_back(7, ["head"])
    execute.assert_called_once_with(plan)


def test_start_of_what_an_earlier_release_had(llm_deploy, plan, tmp_path):
    llm_snapshot.take(tmp_path / "services", tmp_path / "deploys/6/after")
    wanted = {"tail": {"1": {"digest": "v1:a"}}}
    plan["ahead"] = [{"service": "tail"}]
    execute = llm_deploy.__salt__["llm_container.execute"]
    llm_deploy.begin(7)
    llm_deploy.end(7, "done")
    llm_deploy.begin(8)
    llm_deploy.start(8, 6, wanted)
    ((found,), _) = execute.call_args
    assert found["operations"] == plan["ahead"]
    llm_deploy.end(8, "interrupted")
    with pytest.raises(CommandExecutionError, match="deploy 8 has ended"):
        llm_deploy.start(8, 6, wanted)
    execute.assert_called_once()


def test_take_back_asks_an_engine_that_is_away_once(llm_deploy, containers):
    containers.append(container(1, service="head"))
    llm_deploy.begin(7)
    llm_deploy.touch()
    llm_deploy.__salt__["llm_container.plan"].side_effect = llm_engine.NoAnswer("no engine")
    assert llm_deploy.take_back(7, ["tail", "head"])["errors"] == ["no engine"]


def _take_back(llm_deploy, plan):
    """Let deploy 7 change the tail, and take it back."""
    llm_deploy.begin(7)
    llm_deploy.touch()
    plan["operations"] = [{"do": "replace", "service": "tail"}]
    llm_deploy.take_back(7, ["tail"])


def test_refused_is_tried_again_by_the_next_deploy(llm_deploy, plan):
    _take_back(llm_deploy, plan)
    llm_deploy.end(7, "taken back")
    assert llm_deploy.refused("tail")
    llm_deploy.begin(8)
    assert llm_deploy.refused("tail") is None
    llm_deploy.end(8, "refused")
    assert llm_deploy.refused("tail")
    llm_deploy.begin(9)
    llm_deploy.end(9, "done")
    assert llm_deploy.refused("tail") is None


def test_refused_is_tried_again_by_a_deploy_that_is_only_tested(llm_deploy, plan):
    _take_back(llm_deploy, plan)
    llm_deploy.end(7, "taken back")
    llm_deploy.__pillar__["llm_deploy"] = 8
    assert llm_deploy.refused("tail") is None


def test_take_back_remembers_what_the_pillar_asks_for_and_not_what_was_refused_before(
    llm_deploy, plan
):
    _take_back(llm_deploy, plan)
    llm_deploy.__salt__["llm_service.specs"].assert_called_with("tail", anew=True)


def test_obstacles_of_all_services_at_once(llm_deploy, plan, live):
    def specs(name, anew):
        if name == "head":
            raise CommandExecutionError("no secret head.key")
        return [SPEC | {"replica": 1}]

    plan |= {"conflicts": ["its container is gone"], "missing": ["no network"]}
    llm_deploy.__salt__["llm_service.specs"].side_effect = specs
    wanted = {name: {"1": {"digest": f"v1:{name}"}} for name in ("tail", "head", "cache")}
    live.write_text("two")
    assert llm_deploy.obstacles(7, wanted) == [
        "head: no secret head.key",
        "its container is gone",
        "no network",
    ]
    ((planned,), _) = llm_deploy.__salt__["llm_container.plan"].call_args
    assert [each["pinned"] for each in planned] == [
        {"digest": f"v1:{name}", "why": "release 7 comes back"} for name in ("tail", "cache")
    ]
    llm_deploy.__salt__["llm_container.execute"].assert_not_called()
    assert llm_deploy.current() is None
    assert live.read_text() == "two"


def test_go_to_an_earlier_release(llm_deploy, plan, live):
    llm_deploy.begin(7)
    live.write_text("two")
    llm_deploy.end(7, "done")
    live.write_text("three")
    llm_deploy.begin(9)
    found = llm_deploy.go_to(9, 7, {"tail": {"1": {"digest": "v1:a"}}})
    assert found == {"changes": {"files of tail": ["listeners.yaml as before"]}, "errors": []}
    assert live.read_text() == "two"
    with pytest.raises(CommandExecutionError, match="deploy 8 changes nothing"):
        llm_deploy.go_to(8, 7, {})


def test_records_are_for_root_alone(llm_deploy, tmp_path):
    llm_deploy.begin(7)
    assert (tmp_path / "deploy.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "deploy.json").read_text())["number"] == 7


def test_current_without_a_platform(llm_deploy, pillar):
    del pillar["site"]["root"]
    assert llm_deploy.current() is None
    assert llm_deploy.refused("tail") is None
