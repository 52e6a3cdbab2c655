import itertools
import types
from unittest.mock import create_autospec

import llm_canary as llm_canary_util
import llm_envoy
import pytest
import salt.modules.saltutil
from salt.exceptions import CommandExecutionError

from _modules import llm_canary as llm_canary_module
from _modules import llm_container, llm_drain, llm_health, llm_mesh, llm_service

GIGABYTE = 1024**3
SPEC = {
    "service": "head",
    "memory": GIGABYTE,
    "room": {"memory": 4 * GIGABYTE},
    "health": {"check": {"http": "/"}, "min_healthy": 1, "healthy_deadline": 9},
    "smoke_test": {"secret": "head.key", "model": "tiny"},
}
CANARY = {"name": "llm-head-canary-1-g1", "memory": GIGABYTE, "state": "running", "restarts": 0}


@pytest.fixture
def containers():
    """What ``llm_container.list`` says."""
    return [CANARY]


@pytest.fixture
def llm_canary(configure_loader, platform, containers, monkeypatch):
    plan = {"operations": [], "changes": {}, "missing": [], "conflicts": [], "notes": []}
    done = {"changes": {CANARY["name"]: ["create: there is none"]}, "errors": []}
    salt_ = {
        "llm_config.platform": lambda: platform,
        "llm_config.service": platform["services"].get,
        "llm_container.list": create_autospec(llm_container.list_, return_value=containers),
        "llm_container.services": lambda: ["head", "head-canary"],
        "llm_container.plan": create_autospec(llm_container.plan, return_value=plan),
        "llm_container.execute": create_autospec(llm_container.execute, return_value=done),
        "llm_drain.wait": create_autospec(llm_drain.wait),
        "llm_health.wait": create_autospec(llm_health.wait),
        "llm_mesh.sockets": create_autospec(
            llm_mesh.sockets, return_value=[f"llm-mesh-1-g{number}/admin.sock" for number in (1, 2)]
        ),
        "llm_mesh.wait": create_autospec(llm_mesh.wait),
        "llm_mesh.close": create_autospec(llm_mesh.close),
        "llm_service.specs": create_autospec(llm_service.specs, return_value=[SPEC]),
        "llm_service.withdraw": create_autospec(llm_service.withdraw, return_value={"it": ["-"]}),
        "saltutil.cmd": create_autospec(salt.modules.saltutil.cmd),
    }
    monkeypatch.setattr(llm_envoy, "told", create_autospec(llm_envoy.told, return_value=True))
    monkeypatch.setattr(llm_canary_module, "POLL", 0)
    monkeypatch.setattr(llm_canary_module, "_tell", lambda text: None)
    return configure_loader(llm_canary_module, salt=salt_)


def test_start_lets_it_take_requests_once_it_is_healthy(llm_canary):
    assert llm_canary.start("head", 10) == {CANARY["name"]: ["create: there is none"]}
    ((specs,), _) = llm_canary.__salt__["llm_container.plan"].call_args
    assert [(spec["service"], spec["keep"]) for spec in specs] == [("head-canary", 1)]
    llm_canary.__salt__["llm_health.wait"].assert_called_once_with(
        {"http": "/"},
        container=CANARY["name"],
        min_healthy=1,
        healthy_deadline=9,
        smoke_test=SPEC["smoke_test"],
    )
    orders = [call.args[1] for call in llm_envoy.told.call_args_list]
    assert orders == ["/runtime_modify?canary.head=10"] * 2


def test_start_without_room(llm_canary, containers):
    containers += [CANARY | {"memory": 3 * GIGABYTE}]
    with pytest.raises(CommandExecutionError, match="no room for a canary of head: memory lacks 1"):
        llm_canary.start("head", 10)
    llm_canary.__salt__["llm_container.execute"].assert_not_called()


@pytest.mark.parametrize("kind", ["missing", "conflicts", "errors"])
def test_start_that_cannot_be(llm_canary, kind):
    function = "execute" if kind == "errors" else "plan"
    llm_canary.__salt__[f"llm_container.{function}"].return_value[kind].append("no image")
    with pytest.raises(CommandExecutionError, match="no image"):
        llm_canary.start("head", 10)
    llm_envoy.told.assert_not_called()


def test_start_without_a_mesh(llm_canary):
    llm_envoy.told.return_value = False
    with pytest.raises(CommandExecutionError, match="no mesh runs here"):
        llm_canary.start("head", 10)


@pytest.mark.parametrize("change", [{"state": "exited"}, {"restarts": 1}])
def test_figures_of_one_that_has_ended(llm_canary, containers, change):
    containers[0] = CANARY | change
    with pytest.raises(CommandExecutionError, match="the canary of head has ended"):
        llm_canary.figures("head")


def test_figures_are_those_of_all_meshes(llm_canary, monkeypatch):
    answer = {"stats": [{"name": "cluster.head.upstream_rq_completed", "value": 4}]}
    monkeypatch.setattr(llm_envoy, "asked", create_autospec(llm_envoy.asked, return_value=answer))
    assert llm_canary.figures("head")["old"]["requests"] == 8


def test_running(llm_canary):
    assert llm_canary.running() == ["head"]


def test_end_drains_before_it_removes(llm_canary, platform):
    assert llm_canary.end("head") == {"it": ["-"]}
    assert llm_envoy.told.call_args.args[1] == "/runtime_modify?canary.head=0"
    llm_canary.__salt__["llm_mesh.close"].assert_called_once_with("head-canary")
    llm_canary.__salt__["llm_drain.wait"].assert_called_once_with(
        CANARY["name"], timeout=platform["services"]["head"]["drain_timeout"]
    )


def answers(*pairs):
    """What a host says one time after another: requests and errors of the canary."""
    for requests, errors in pairs:
        canary = {"requests": requests, "errors": errors, "times": {}}
        yield {"node1": {"ret": {"old": dict(llm_canary_util.NOTHING), "canary": canary}}}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(5, 0), (30, 0)], None),
        ([(5, 0), (30, 9)], "errors: found 9 of 25"),
        ([(5, 0), (9, 0)], "requests: found 4 in 0 s, expected at least 20"),
    ],
)
def test_watch(llm_canary, pairs, words):
    llm_canary.__salt__["saltutil.cmd"].side_effect = answers(*pairs)
    if not words:
        assert llm_canary.watch("head", ["node1"], window=0)["canary"]["requests"] == 25
        return
    with pytest.raises(CommandExecutionError, match=words):
        llm_canary.watch("head", ["node1"], window=0)


def test_watch_leaves_out_how_slow_a_canary_was_while_cold(llm_canary, monkeypatch):
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(llm_canary_module, "time", clock)
    nothing = {"requests": 0, "errors": 0, "times": {}}
    cold = nothing | {"requests": 15, "times": {5.0: 0, 2000.0: 15}}
    warm = nothing | {"requests": 60, "times": {5.0: 45, 2000.0: 60}}
    old = nothing | {"requests": 90, "times": {5.0: 90}}
    pairs = [(nothing, nothing), (nothing, cold), *[(old, warm)] * 20]
    llm_canary.__salt__["saltutil.cmd"].side_effect = [
        {"node1": {"ret": {"old": before, "canary": canary}}} for before, canary in pairs
    ]
    found = llm_canary.watch("head", ["node1"], window=20)
    assert found["canary"] == {"requests": 60, "errors": 0, "quantile": "median", "time": 2.5}


def test_watch_ends_early_when_there_is_no_doubt(llm_canary):
    llm_canary.__salt__["saltutil.cmd"].side_effect = answers((0, 0), (3, 3))
    with pytest.raises(CommandExecutionError, match="errors: found 3 of 3"):
        llm_canary.watch("head", ["node1"], window=3600)


@pytest.mark.parametrize(
    ("answer", "words"),
    [({}, "node1: does not answer"), ({"node1": {"ret": "it has ended"}}, "node1: it has ended")],
)
def test_watch_of_a_host_that_cannot_tell(llm_canary, answer, words):
    llm_canary.__salt__["saltutil.cmd"].return_value = answer
    with pytest.raises(CommandExecutionError, match=words):
        llm_canary.watch("head", ["node1"], window=0)
