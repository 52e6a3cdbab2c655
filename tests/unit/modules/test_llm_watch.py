import copy
import json
from unittest.mock import create_autospec

import llm_diagnosis
import llm_engine
import llm_record
import llm_watch as shared
import pytest
from salt.exceptions import CommandExecutionError
from salt.modules import saltutil

from _modules import llm_config, llm_container, llm_deploy, llm_mesh
from _modules import llm_watch as llm_watch_module

NOTHING = {"operations": [], "changes": {}, "missing": [], "conflicts": [], "notes": []}
KILLED = {"container": "llm-head-1-g2", "causes": ["it was killed"], "do": "start"}
START = NOTHING | {"operations": [KILLED], "changes": {"llm-head-1-g2": ["start: it was killed"]}}
MADE = {"digest": "v1:a", "parts": {"image": "llm/head:1"}, "rollout": {}, "version": "1"}


class Clock:
    """The time, which passes when a test says so."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(llm_watch_module, "time", found)
    return found


def container(service="head", state="running", generation=2, **more):
    """What ``llm_container.list`` says of one."""
    name = f"llm-{service}-1-g{generation}"
    found = {"name": name, "id": f"id-{name}", "service": service, "replica": 1, "state": state}
    return found | {"restarts": 0, "spec": "v1:a", **MADE, **more}


@pytest.fixture
def containers():
    """What is on the host."""
    return [container()]


@pytest.fixture
def plans():
    """What is to be done for all to be as it was, by service."""
    return {"head": NOTHING, "mesh": NOTHING}


@pytest.fixture
def salt(platform, containers, plans):
    def listed(service=None, parked=False, parts=False):
        return [each for each in containers if service in (None, each["service"])]

    return {
        "llm_config.platform": create_autospec(llm_config.platform, return_value=platform),
        "llm_config.assume": create_autospec(llm_config.assume),
        "llm_config.carried": create_autospec(llm_config.carried, return_value=["head", "mesh"]),
        "llm_container.list": create_autospec(llm_container.list_, side_effect=listed),
        "llm_container.restoration": create_autospec(
            llm_container.restoration, side_effect=lambda made: {each: plans[each] for each in made}
        ),
        "llm_container.execute": create_autospec(
            llm_container.execute, return_value={"changes": {}, "errors": []}
        ),
        "llm_container.logs": create_autospec(
            llm_container.logs, return_value={"llm-head-1-g2": ["out of [redacted]"]}
        ),
        "llm_deploy.under_way": create_autospec(llm_deploy.under_way, return_value=False),
        "llm_mesh.said": create_autospec(llm_mesh.said, return_value=True),
        "llm_mesh.serving": create_autospec(llm_mesh.serving, return_value=["172.30.0.80"]),
        "llm_mesh.route": create_autospec(llm_mesh.route, return_value=True),
        "saltutil.is_running": create_autospec(saltutil.is_running, return_value=[]),
    }


@pytest.fixture
def llm_watch(configure_loader, salt, platform, pillar, tmp_path, clock):
    """The module, on a host where head and mesh were deployed."""
    pillar["site"]["root"] = platform["site"]["root"] = str(tmp_path)
    module = configure_loader(llm_watch_module, salt=salt)
    for service in ("head", "mesh"):
        llm_record.write(tmp_path / "deployed.json", _deployed(tmp_path, platform, service, clock))
    return module


def _deployed(folder, platform, service, clock):
    known = llm_record.read(folder / "deployed.json") or {"platform": platform, "services": {}}
    entry = {"since": clock.now, "made": {"1": MADE}}
    return json.loads(json.dumps(known | {"services": known["services"] | {service: entry}}))


@pytest.fixture
def execute(salt):
    return salt["llm_container.execute"]


@pytest.fixture
def history(llm_watch, tmp_path):
    """A function that returns the history as it stands in the file."""
    return lambda: shared.noted(tmp_path, 1000)


def test_look_where_all_is_well_does_and_writes_nothing(llm_watch, execute, history, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert llm_watch.look() is None
    assert not execute.called
    assert history() == []
    added = {path.name for path in tmp_path.iterdir()}.difference(before)
    assert added == {shared.LOCK, shared.TROUBLES}


def test_look_before_anything_was_deployed(llm_watch, execute, tmp_path):
    (tmp_path / "deployed.json").unlink()
    assert llm_watch.look() is None
    assert llm_watch.look(str(tmp_path / "new")) is None
    assert not (tmp_path / "new").exists()


def test_look_without_a_pillar_goes_by_what_was_deployed(
    configure_loader, llm_watch, salt, plans, execute, platform, tmp_path
):
    """As in the minion's engine: it starts before a master has answered."""
    plans["head"] = START
    llm_watch.__pillar__.clear()
    llm_watch.look(str(tmp_path))
    (assumed,) = salt["llm_config.assume"].call_args.args
    assert assumed == json.loads(json.dumps(platform))
    assert salt["llm_container.restoration"].call_args.args == (
        {"head": {"1": MADE}, "mesh": {"1": MADE}},
    )
    assert not salt["llm_config.platform"].called
    execute.assert_called_once_with(START, heals=True)


def test_look_puts_back_and_says_so(llm_watch, plans, execute, salt, history):
    plans["head"] = START
    assert llm_watch.look() == shared.FIRST
    execute.assert_called_once_with(START, heals=True)
    salt["llm_mesh.route"].assert_called_once_with("head", ["172.30.0.80"])
    assert history() == [
        {
            "time": "2027-01-15T08:00:00+00:00",
            "service": "head",
            "container": "llm-head-1-g2",
            "seen": "it was killed",
            "do": "start",
            "result": "done",
        }
    ]


def test_look_sends_no_request_by_a_file_to_what_is_called_by_its_name(llm_watch, plans, salt):
    plans["mesh"] = START
    llm_watch.look()
    assert salt["llm_container.execute"].called
    assert not salt["llm_mesh.route"].called


def test_look_sends_requests_to_where_what_runs_is_by_now(llm_watch, execute, salt, history):
    salt["llm_mesh.said"].return_value = False
    llm_watch.look()
    salt["llm_mesh.route"].assert_called_once_with("head", ["172.30.0.80"])
    (entry,) = history()
    assert (entry["service"], entry["do"], entry["container"]) == ("head", "route", None)


@pytest.mark.parametrize("state", ["restarting", "paused", None])
def test_look_leaves_routes_alone_while_something_does_not_run(llm_watch, containers, salt, state):
    containers[:] = [container(state=state)] if state else []
    salt["llm_mesh.said"].return_value = False
    llm_watch.look()
    assert not salt["llm_mesh.route"].called


def test_tries_come_ever_more_seldom_and_end(llm_watch, plans, execute, clock, history):
    plans["head"] = START
    execute.return_value = {"changes": {}, "errors": ["llm-head-1-g2: no\n  its log: secret"]}
    tries = []
    for _ in range(400):
        before = execute.call_count
        llm_watch.look()
        if execute.call_count > before:
            tries.append(clock.now - 1_800_000_000)
        clock.now += 1
    assert tries == [0, 10, 30, 70, 150]
    results = [each["result"] for each in history()]
    assert results == ["failed: llm-head-1-g2: no"] * 5 + ["crash loop: given up after 5 tries"]
    assert llm_watch.notes() == {"head": "given up"}
    assert llm_watch.look() is None


def test_the_next_look_is_due_when_the_next_try_is(llm_watch, plans, clock):
    plans["head"] = START
    assert llm_watch.look() == 10
    clock.now += 4
    assert llm_watch.look() == 6
    clock.now += 6
    assert llm_watch.look() == 20


def test_what_was_given_up_is_tried_again_after_a_deploy(
    llm_watch, plans, execute, clock, tmp_path, platform
):
    plans["head"] = START
    for _ in range(6):
        llm_watch.look()
        clock.now += 100
    assert execute.call_count == 5
    llm_record.write(tmp_path / "deployed.json", _deployed(tmp_path, platform, "head", clock))
    llm_watch.look()
    assert execute.call_count == 6
    assert llm_watch.notes() == {}


@pytest.mark.parametrize(("well", "again"), [(60, 5), (601, 6)])
def test_what_was_given_up_is_tried_again_after_it_was_well(
    llm_watch, plans, execute, clock, well, again
):
    plans["head"] = START
    for _ in range(6):
        llm_watch.look()
        clock.now += 100
    clock.now -= 200  # the last try was the one before the one that gave up
    plans["head"] = NOTHING
    clock.now += well
    llm_watch.look()
    plans["head"] = START
    llm_watch.look()
    assert execute.call_count == again


@pytest.mark.parametrize(
    "at_work",
    [
        {"llm_deploy.under_way": True},
        {"saltutil.is_running": [{"fun": "state.apply", "jid": "1", "pid": 1}]},
    ],
)
def test_look_keeps_out_of_what_others_do(llm_watch, plans, salt, execute, history, at_work):
    plans["head"] = START
    for name, found in at_work.items():
        salt[name].return_value = found
    assert llm_watch.look() == llm_watch_module.AGAIN
    assert not salt["llm_container.restoration"].called
    assert history() == []
    for name in at_work:
        salt[name].return_value = None
    llm_watch.look()
    assert execute.called


def test_only_one_looks_at_a_time(llm_watch, plans, execute, tmp_path):
    plans["head"] = START
    with shared.turn(tmp_path):
        assert llm_watch.look() == llm_watch_module.AGAIN
    assert not execute.called


@pytest.mark.parametrize("name", ["head", "node1"])
def test_maintenance_is_kept_and_told_once(llm_watch, plans, execute, clock, history, name):
    plans["head"] = START
    llm_watch.maintain(name, "a closer look", hours=1)
    assert llm_watch.look() == llm_watch_module.HELD
    clock.now += 60
    llm_watch.look()
    (entry,) = history()
    said = f"maintenance of {name} until 2027-01-15T09:00:00+00:00: a closer look"
    assert (entry["do"], entry["result"]) == ("left alone", said)
    assert llm_watch.notes()["head"] == said
    assert not execute.called
    clock.now += 3600
    llm_watch.look()
    assert execute.called
    assert llm_watch.maintenance() == {}


def test_maintenance_of_one_service_is_none_of_another(llm_watch, plans, execute):
    plans["head"] = START
    llm_watch.maintain("mesh", "a closer look")
    llm_watch.look()
    assert execute.called


def test_maintenance_ends_when_it_is_told_to(llm_watch, plans, execute):
    plans["head"] = START
    llm_watch.maintain("head", "a closer look")
    assert llm_watch.resume("head") is True
    assert llm_watch.resume("head") is False
    llm_watch.look()
    assert execute.called


@pytest.mark.parametrize("kind", ["missing", "conflicts"])
def test_what_only_a_deploy_can_bring_is_told_once(llm_watch, plans, execute, history, kind):
    plans["head"] = START | {kind: ["image llm/head:1 is not on this host"]}
    llm_watch.look()
    llm_watch.look()
    (entry,) = history()
    assert entry["result"] == "a deploy is wanted: image llm/head:1 is not on this host"
    assert not execute.called
    assert llm_watch.notes() == {"head": "a deploy is wanted"}
    plans["head"] = START
    llm_watch.look()
    assert execute.called  # somebody has brought it
    assert llm_watch.notes() == {}


def test_what_stands_in_the_way_is_told(llm_watch, plans, history):
    plans["head"] = NOTHING | {"conflicts": ["two claim to be llm-head-1-g2"]}
    llm_watch.look()
    (entry,) = history()
    assert entry["result"] == "a deploy is wanted: two claim to be llm-head-1-g2"


def test_an_engine_that_is_gone_ends_a_look(llm_watch, salt):
    salt["llm_container.restoration"].side_effect = llm_engine.NoAnswer("no engine")
    with pytest.raises(llm_engine.NoAnswer):
        llm_watch.look()


def test_what_goes_wrong_with_one_service_keeps_nothing_from_the_others(
    llm_watch, plans, execute, history
):
    plans |= {"head": START, "mesh": START}
    execute.side_effect = [CommandExecutionError("first line\nsecret"), {"errors": []}]
    llm_watch.look()
    assert [each["result"] for each in history()] == ["failed: first line", "done"]


@pytest.fixture
def described(monkeypatch):
    """What the engine says of a container that crashes."""
    engine = create_autospec(llm_engine.Engine, instance=True)
    monkeypatch.setattr(llm_watch_module.llm_engine, "Engine", lambda path: engine)
    words = "restarting, exit code 137, out of memory (limit 32m), restarts 5"
    describe = create_autospec(llm_diagnosis.describe, return_value=words)
    monkeypatch.setattr(llm_watch_module.llm_diagnosis, "describe", describe)
    return words


def test_a_crash_loop_is_told_once_and_not_fed(
    llm_watch, containers, execute, clock, history, described
):
    for restarts in (0, 2, 5, 6, 7):
        containers[:] = [container(state="restarting", restarts=restarts)]
        llm_watch.look()
        clock.now += 5
    (entry,) = history()
    assert entry["seen"] == f"crash loop: {described}"
    assert entry["container"] == "llm-head-1-g2"
    assert not execute.called
    assert llm_watch.notes() == {"head": "crash loop"}
    clock.now += shared.WELL
    llm_watch.look()
    assert llm_watch.notes() == {}


def test_a_crash_loop_of_what_was_started_just_now(
    llm_watch, plans, containers, execute, history, clock, described
):
    containers[:] = [container(state="exited")]
    plans["head"] = START

    def start(plan, heals):
        containers[:] = [container(restarts=0)]
        return {"changes": {}, "errors": []}

    execute.side_effect = start
    llm_watch.look()
    plans["head"] = NOTHING
    containers[:] = [container(state="restarting", restarts=5)]
    clock.now += 3
    llm_watch.look()
    assert [each["seen"] for each in history()] == ["it was killed", f"crash loop: {described}"]


def test_a_crash_loop_in_maintenance_is_told_when_that_is_over(
    llm_watch, containers, clock, history, described
):
    llm_watch.maintain("head", "a closer look", hours=0.01)
    for restarts in (0, 5, 6):
        containers[:] = [container(restarts=restarts)]
        llm_watch.look()
        assert history() == []
        clock.now += 5
    clock.now += 30
    llm_watch.look()
    assert len(history()) == 1


def test_history_brings_the_log_of_a_crash_loop_without_secrets(
    llm_watch, containers, clock, described
):
    for restarts in (0, 5):
        containers[:] = [container(restarts=restarts)]
        llm_watch.look()
    (entry,) = llm_watch.history()
    assert entry["log"] == ["out of [redacted]"]


def test_remember_keeps_how_what_serves_was_made(llm_watch, containers, tmp_path, platform, clock):
    containers[:] = [
        container(state="running", generation=2, spec="v1:b"),
        container(state="exited", generation=3, spec="v1:c"),
    ]
    clock.now += 5
    llm_watch.remember("head")
    found = llm_record.read(tmp_path / "deployed.json")
    made = found["services"]["head"]["made"]
    assert made == {"1": MADE | {"container": "llm-head-1-g2", "digest": "v1:b"}}
    assert llm_watch.remembered()["head"] == made
    assert found["services"]["head"]["since"] == clock.now
    assert (tmp_path / "deployed.json").stat().st_mode & 0o777 == 0o600


def test_remember_what_should_run_and_does_not(llm_watch, containers, tmp_path):
    containers[:] = [
        container(state="exited", generation=2),
        container(state="exited", generation=3, spec="v1:c"),
        container(state="created", generation=4, spec="v1:d"),
    ]
    llm_watch.remember("head")
    found = llm_record.read(tmp_path / "deployed.json")
    assert found["services"]["head"]["made"]["1"]["digest"] == "v1:c"


def test_remembered_by_an_earlier_version_has_no_names(llm_watch, tmp_path):
    known = llm_record.read(tmp_path / "deployed.json")
    known["services"]["head"]["made"] = {"1": MADE | {"digest": "v1:a"}}
    llm_record.write(tmp_path / "deployed.json", known)
    assert llm_watch.remembered()["head"]["1"]["container"] == "head 1"


def test_remembered_of_a_host_without_a_deploy(llm_watch, tmp_path):
    (tmp_path / "deployed.json").unlink()
    assert llm_watch.remembered() == {}


@pytest.mark.parametrize("gone", ["containers", "catalogue"])
def test_remember_forgets_what_was_withdrawn(llm_watch, containers, pillar, tmp_path, gone):
    if gone == "containers":
        containers.clear()
    else:
        del pillar["services"]["head"]
    llm_watch.remember("head", changed=False)
    assert list(llm_record.read(tmp_path / "deployed.json")["services"]) == ["mesh"]


def test_remember_takes_nothing_of_what_others_were_not_deployed_with(
    llm_watch, platform, containers, tmp_path
):
    """The pillar of head was edited, and mesh alone was deployed since."""
    containers.append(container("mesh"))
    before = copy.deepcopy(platform["services"]["head"])
    platform["services"]["head"]["port"] = 4999
    platform["services"]["mesh"]["memory"] = 5
    llm_watch.remember("mesh")
    found = llm_record.read(tmp_path / "deployed.json")["platform"]["services"]
    assert found["head"] == json.loads(json.dumps(before))
    assert found["mesh"]["memory"] == 5


def test_remember_writes_nothing_when_nothing_has_changed(llm_watch, tmp_path):
    llm_watch.remember("head")
    path = tmp_path / "deployed.json"
    before = path.stat().st_mtime_ns, path.read_text()
    llm_watch.remember("head", changed=False)
    assert (path.stat().st_mtime_ns, path.read_text()) == before


@pytest.mark.parametrize("name", ["deployed.json", "troubles.json", "maintenance.json"])
def test_a_file_that_a_power_cut_has_broken_is_written_anew(llm_watch, plans, tmp_path, name):
    (tmp_path / name).write_text("")
    plans["head"] = START
    llm_watch.look()
    llm_watch.remember("head")
    llm_watch.maintain("head", "why")
    llm_watch.look()
    assert llm_record.read(tmp_path / name)
    assert llm_watch.notes()["head"].endswith("why")


def test_remember_leaves_alone_what_is_in_no_catalogue(llm_watch, containers, tmp_path, pillar):
    containers.append(container("bench"))
    before = (tmp_path / "deployed.json").read_text()
    llm_watch.remember("bench")
    assert (tmp_path / "deployed.json").read_text() == before
    pillar.pop("site")
    llm_watch.remember("bench")


def test_wait_lets_what_is_being_healed_come_to_its_end(llm_watch, tmp_path):
    llm_watch.wait()
    assert not (tmp_path / shared.LOCK).exists()
    with shared.turn(tmp_path), pytest.raises(CommandExecutionError, match="still being healed"):
        llm_watch.wait(timeout=0.2)
    llm_watch.wait(timeout=0.2)
