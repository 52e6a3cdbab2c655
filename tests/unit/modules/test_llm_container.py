"""
Plans and their execution, against an engine in memory.
"""

import contextlib
import copy
import inspect
import logging
import os
from unittest.mock import Mock, call, create_autospec, patch

import llm_engine
import llm_execution
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from salt.exceptions import CommandExecutionError, SaltInvocationError
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_container as llm_container_module
from _modules import llm_deploy, llm_drain, llm_files, llm_health, llm_watch
from tests.support.engine import Interrupted, ModelEngine

IMAGES = ("llm/head:1", "llm/head:2", "llm/sick:1")
HEAD = {
    "service": "head",
    "image": "llm/head:1",
    "network": "llm-network",
    "addresses": "172.30.0.80/28",
}
LEFT = {"timeout": 5, "admin": None, "routed": True}


class Host:
    """A host with an engine in memory, and what the module needs to work on it."""

    def __init__(self):
        self.engine = ModelEngine(IMAGES)
        self.routed = []
        self.waited = []
        self.drained = []
        self.salt = {
            "llm_health.wait": create_autospec(llm_health.wait, side_effect=self.wait),
            "llm_health.redacted": llm_health.redacted,
            "llm_deploy.tell": create_autospec(llm_deploy.tell),
            "llm_deploy.touch": create_autospec(llm_deploy.touch),
            "llm_mesh.route": lambda service, addresses: self.routed.append((service, addresses)),
            "llm_drain.wait": create_autospec(llm_drain.wait, side_effect=self.drain),
            "llm_watch.remember": create_autospec(llm_watch.remember),
        }

    def wait(self, check, container, **seconds):
        self.waited.append((check, container, seconds))
        found = self.engine.inspect(container)
        if found["State"]["Status"] != "running" or "sick" in found["Image"]:
            raise CommandExecutionError(f"{container} is not healthy")

    def drain(self, container, **how):
        name = self.engine.inspect(container)["Name"].lstrip("/")
        self.drained.append((name, how, self.state()[name]))

    def plan(self, *specs):
        return llm_container_module.plan(list(specs))

    def apply(self, *specs):
        plan = self.plan(*specs)
        assert not plan["missing"]
        assert not plan["conflicts"]
        return llm_container_module.execute(plan)

    def state(self):
        return {each["Name"]: each["State"]["Status"] for each in self.engine.found.values()}


def make_host(stack):
    host = Host()
    mock = {
        "__opts__": {},
        "__pillar__": {"llm": {"site": {"name": "llm"}, "secrets": {"a": {"b": "two"}}}},
        "__salt__": host.salt,
        "__context__": {},
    }
    stack.enter_context(LoaderModuleMock({llm_container_module: mock}))
    stack.enter_context(patch.object(llm_engine, "Engine", lambda path: host.engine))
    stack.enter_context(patch.object(llm_container_module.time, "sleep", autospec=True))
    return host


@pytest.fixture
def host():
    with contextlib.ExitStack() as stack:
        yield make_host(stack)


@pytest.mark.parametrize("method", [name for name in vars(ModelEngine) if not name.startswith("_")])
def test_model_engine_has_the_manners_of_the_real_one(method):
    if method in ("named", "kill"):
        return
    real = inspect.signature(getattr(llm_engine.Engine, method))
    assert inspect.signature(getattr(ModelEngine, method)) == real


@pytest.mark.parametrize("pillar", [{}, {"llm": None}, {"llm": {"site": {}}}])
def test_nothing_is_ours_without_a_site(host, pillar):
    host.apply(HEAD)
    host.engine.calls.clear()
    with patch.object(llm_container_module, "__pillar__", pillar):
        for wanted in (
            lambda: llm_container_module.removal("head", volumes=True),
            lambda: llm_container_module.plan([HEAD]),
            llm_container_module.list_,
        ):
            with pytest.raises(CommandExecutionError, match=r"llm\.site\.name is missing"):
                wanted()
    assert host.engine.calls == []


def test_plan_creates_what_is_missing(host):
    plan = host.plan(HEAD)
    assert plan["changes"] == {"llm-head-1-g1": ["create: there is none"]}
    assert host.engine.calls == []
    assert llm_container_module.execute(plan) == {"changes": plan["changes"], "errors": []}
    assert host.state() == {"llm-head-1-g1": "running"}
    assert host.waited == []
    assert host.plan(HEAD)["operations"] == []


def test_plan_without_an_engine_creates_everything(host):
    host.engine.request = Mock(side_effect=CommandExecutionError("no engine"))
    host.apply(HEAD)
    llm_container_module.__context__.clear()
    plan = llm_container_module.plan([HEAD], engine_expected=False)
    assert plan["changes"] == {"llm-head-1-g1": ["create: there is none"]}
    assert plan["missing"] == [
        "image llm/head:1 is not on this host",
        "network llm-network does not exist",
    ]


def test_services_are_those_of_all_our_containers(host):
    host.apply(HEAD)
    host.engine.kill("llm-head-1-g1")
    host.engine.create(
        "foreign", {"Image": IMAGES[0], "Labels": {}, "HostConfig": {"NetworkMode": "bridge"}}
    )
    llm_container_module.__context__.clear()
    assert llm_container_module.services() == ["head"]


def test_digest_is_that_of_the_plan(host):
    first = llm_container_module.digest(host.plan(HEAD))
    assert first == llm_container_module.digest(host.plan(HEAD))
    host.apply(HEAD)
    assert first != llm_container_module.digest(host.plan(HEAD))


def test_plan_gives_every_replica_an_address_of_its_block(host):
    host.apply(HEAD, HEAD | {"replica": 2})
    found = llm_container_module.list_("head")
    assert [each["address"] for each in found] == ["172.30.0.80", "172.30.0.81"]


def test_plan_replaces_start_first_and_parks_the_old_one(host):
    host.apply(HEAD | {"memory": "1g"})
    plan = host.plan(HEAD | {"memory": "2g", "routed": True})
    assert plan["changes"] == {"llm-head-1-g2": ["replace: llm-head-1-g1: memory 1g → 2g"]}
    host.engine.calls.clear()
    assert llm_container_module.execute(plan)["errors"] == []
    assert host.engine.calls == [
        ("create", "llm-head-1-g2"),
        ("start", "llm-head-1-g2"),
        ("update", "llm-head-1-g1"),
        ("stop", "llm-head-1-g1"),
    ]
    assert host.routed == [("head", ["172.30.0.81"])]
    assert host.drained == [("llm-head-1-g1", LEFT, "running")]
    assert host.waited == [
        ({"container": "running"}, "llm-head-1-g2", {"min_healthy": 2, "healthy_deadline": 60})
    ]
    assert host.state() == {"llm-head-1-g1": "exited", "llm-head-1-g2": "running"}
    parked = llm_container_module.list_("head", parked=True)[0]
    assert parked["parked"] is True
    assert [each["name"] for each in llm_container_module.list_("head")] == ["llm-head-1-g2"]


def test_plan_replaces_stop_first(host):
    cache = HEAD | {"strategy": "stop-first"}
    host.apply(cache)
    host.engine.calls.clear()
    host.apply(cache | {"image": "llm/head:2"})
    assert host.engine.calls == [
        ("create", "llm-head-1-g2"),
        ("update", "llm-head-1-g1"),
        ("stop", "llm-head-1-g1"),
        ("start", "llm-head-1-g2"),
    ]


def test_plan_of_stop_first_leads_callers_away_before(host):
    cache = HEAD | {"strategy": "stop-first", "routed": True}
    host.apply(cache)
    host.routed.clear()
    host.apply(cache | {"image": "llm/head:2"})
    assert host.routed == [("head", []), ("head", ["172.30.0.81"])]
    assert host.drained == []
    host.routed.clear()
    (error,) = llm_container_module.execute(host.plan(cache | {"image": "llm/sick:1"}))["errors"]
    assert error.endswith("It was taken back: llm-head-1-g2 serves as before")
    assert host.routed == [("head", []), ("head", ["172.30.0.81"])]


@pytest.fixture
def envoy(tmp_path):
    """The spec of an Envoy that callers find by name, with its folder in place of {name}."""
    mount = {"source": f"{tmp_path}/{{name}}", "target": "/run/llm", "read_only": False}
    check = {"http": "/ready", "socket": "admin.sock"}
    return HEAD | {"user": "0:0", "mounts": [mount], "health": {"check": check}}


def test_plan_leaves_an_envoy_by_its_administrative_socket(host, envoy, tmp_path):
    host.apply(envoy)
    host.apply(envoy | {"memory": "1g"})
    admin = f"{tmp_path}/llm-head-1-g1/admin.sock"
    left = {"timeout": 5, "admin": admin, "routed": False}
    assert host.drained == [("llm-head-1-g1", left, "running")]


def test_execute_starts_an_envoy_again_that_was_told_to_be_left(host, envoy):
    host.apply(envoy)
    plan = host.plan(envoy | {"memory": "1g"})
    host.engine.calls.clear()
    broken = CommandExecutionError("engine is gone")
    update = host.engine.update
    with patch.object(host.engine, "update", side_effect=[broken, *[None] * 9]):
        (error,) = llm_container_module.execute(plan)["errors"]
    assert update == host.engine.update
    assert error.endswith("It was taken back: llm-head-1-g1 serves as before")
    assert host.engine.calls[-3:] == [
        ("stop", "llm-head-1-g1"),
        ("start", "llm-head-1-g1"),
        ("remove", "llm-head-1-g2"),
    ]


def test_plan_replaces_what_was_told_to_be_left(host, envoy, tmp_path):
    host.apply(envoy)
    mark = tmp_path / "llm-head-1-g1/drained"
    mark.touch()
    os.utime(mark, (1, 1))
    assert host.plan(envoy)["operations"] == []
    os.utime(mark)
    done = host.apply(envoy)["changes"]
    assert done == {"llm-head-1-g2": ["replace: llm-head-1-g1: it was told to be left"]}
    assert host.plan(envoy)["operations"] == []


def test_plan_keeps_only_the_last_one_parked(host):
    for memory in ("1g", "2g", "3g"):
        done = host.apply(HEAD | {"memory": memory})["changes"]
    assert done["llm-head-1-g1"] == ["remove: only 1 kept to go back to"]
    assert host.state() == {"llm-head-1-g2": "exited", "llm-head-1-g3": "running"}


def test_plan_goes_back_by_a_start(host):
    host.apply(HEAD | {"memory": "1g"})
    host.apply(HEAD | {"memory": "2g"})
    host.engine.calls.clear()
    assert host.apply(HEAD | {"memory": "1g"})["changes"] == {
        "llm-head-1-g1": ["replace: llm-head-1-g2: its spec is wanted again, memory 2g → 1g"]
    }
    assert ("start", "llm-head-1-g1") in host.engine.calls
    assert host.state() == {"llm-head-1-g1": "running", "llm-head-1-g2": "exited"}
    assert host.plan(HEAD | {"memory": "1g"})["operations"] == []


TAKEN_BACK = {
    "start-first": [("create", 2), ("start", 2), ("remove", 2)],
    "stop-first": [
        *[("create", 2), ("update", 1), ("stop", 1), ("start", 2)],
        *[("stop", 2), ("update", 1), ("start", 1), ("remove", 2)],
    ],
}


@pytest.mark.parametrize("strategy", TAKEN_BACK)
def test_execute_takes_a_sick_container_back(host, strategy):
    head = HEAD | {"strategy": strategy, "routed": True}
    host.apply(head)
    host.engine.calls.clear()
    done = llm_container_module.execute(host.plan(head | {"image": "llm/sick:1"}))
    assert done["changes"] == {}
    assert done["errors"] == [
        "llm-head-1-g2: llm-head-1-g2 is not healthy\n"
        "It was taken back: llm-head-1-g1 serves as before"
    ]
    taken_back = [(verb, f"llm-head-1-g{number}") for verb, number in TAKEN_BACK[strategy]]
    assert host.engine.calls == taken_back
    assert host.state() == {"llm-head-1-g1": "running"}
    assert host.engine.named("llm-head-1-g1")["HostConfig"]["RestartPolicy"]["Name"] == "always"
    assert host.plan(head)["operations"] == []


def test_execute_stops_a_rolling_replacement_at_the_first_failure(host):
    two = [HEAD, HEAD | {"replica": 2}]
    host.apply(*two)
    done = llm_container_module.execute(host.plan(*(e | {"image": "llm/sick:1"} for e in two)))
    assert len(done["errors"]) == 1
    assert host.state() == {"llm-head-1-g1": "running", "llm-head-2-g1": "running"}


def test_execute_routes_to_every_replica_in_turn(host):
    two = [HEAD | {"routed": True}, HEAD | {"routed": True, "replica": 2}]
    host.apply(*two)
    assert host.routed == [
        ("head", []),
        ("head", ["172.30.0.80"]),
        ("head", ["172.30.0.80"]),
        ("head", ["172.30.0.80", "172.30.0.81"]),
    ]
    host.routed.clear()
    host.apply(*(each | {"memory": "1g"} for each in two))
    assert host.routed == [
        ("head", ["172.30.0.82", "172.30.0.81"]),
        ("head", ["172.30.0.82", "172.30.0.83"]),
    ]


def test_execute_of_a_first_container_that_cannot_start_leaves_nothing(host):
    plan = host.plan(HEAD)
    host.engine.network_ids.pop("llm-network")
    done = llm_container_module.execute(plan)
    assert done["errors"] == [
        "llm-head-1-g1: network llm-network not found\nIt was taken back: nothing is left of it"
    ]
    assert host.state() == {}


def test_execute_does_the_rest_when_one_service_fails(host):
    plan = host.plan(HEAD | {"image": "llm/head:2"}, HEAD | {"service": "other"})
    host.engine.images.pop("llm/head:2")
    done = llm_container_module.execute(plan)
    assert done["changes"] == {"llm-other-1-g1": ["create: there is none"]}
    assert done["errors"] == ["llm-head-1-g1: No such image: llm/head:2"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SaltInvocationError("172.30.0.80:True: expected a port"), "172.30.0.80:True"),
        (KeyError("port"), "KeyError: 'port'"),
    ],
)
def test_execute_takes_back_whatever_goes_wrong(host, error, words, monkeypatch):
    log = create_autospec(logging.Logger, instance=True)
    monkeypatch.setattr(llm_execution, "log", log)
    other = HEAD | {"service": "other"}
    host.apply(HEAD, other)
    plan = host.plan(HEAD | {"memory": "1g"}, other | {"replica": 2}, other)
    host.salt["llm_health.wait"].side_effect = error
    done = llm_container_module.execute(plan)
    assert done["changes"] == {"llm-other-2-g1": ["create: there is none"]}
    (said,) = done["errors"]
    assert said.startswith(f"llm-head-1-g2: {words}")
    assert log.exception.called is isinstance(error, KeyError)
    assert said.endswith("It was taken back: llm-head-1-g1 serves as before")
    assert set(host.state()) == {"llm-head-1-g1", "llm-other-1-g1", "llm-other-2-g1"}


def test_execute_ends_a_rollout_at_its_deadline(host):
    three = [HEAD | {"replica": number, "progress_deadline": "100s"} for number in (1, 2, 3)]
    host.apply(*three)
    plan = host.plan(*(each | {"memory": "1g"} for each in three))
    now, waits = [0.0], []

    def wait(check, container, min_healthy, healthy_deadline):
        waits.append((container, healthy_deadline))
        now[0] += {"llm-head-1-g2": 70, "llm-head-2-g2": 30}[container]

    host.salt["llm_health.wait"].side_effect = wait
    with patch.object(llm_execution.time, "monotonic", lambda: now[0]):
        done = llm_container_module.execute(plan)
    assert waits == [("llm-head-1-g2", 60), ("llm-head-2-g2", 30)]
    assert list(done["changes"]) == ["llm-head-1-g2", "llm-head-2-g2"]
    assert done["errors"] == ["llm-head-3-g2: not begun, for those before took 100 s"]
    assert host.state()["llm-head-3-g1"] == "running"


def test_execute_takes_back_what_it_can(host):
    head = HEAD | {"strategy": "stop-first"}
    host.apply(head)
    plan = host.plan(head | {"image": "llm/sick:1", "addresses": None})
    with patch.object(host.engine, "remove", side_effect=CommandExecutionError("engine is gone")):
        (error,) = llm_container_module.execute(plan)["errors"]
    assert error.endswith("is not healthy\nTaking it back failed: engine is gone")
    assert host.state()["llm-head-1-g1"] == "running"


def test_plan_removes_surplus_replicas(host):
    host.apply(HEAD, HEAD | {"replica": 2})
    assert host.apply(HEAD)["changes"] == {"llm-head-2-g1": ["park: only 1 wanted"]}
    assert host.state() == {"llm-head-1-g1": "running", "llm-head-2-g1": "exited"}
    assert host.plan(HEAD)["operations"] == []
    both = (HEAD, HEAD | {"replica": 2})
    assert host.apply(*both)["changes"] == {
        "llm-head-2-g1": ["start: it had stopped (exit code 143)"]
    }


DRIFTS = [
    (lambda engine: engine.stop("llm-head-1-g1"), "start: it had stopped (exit code 143)"),
    (lambda engine: engine.kill("llm-head-1-g1"), "start: it was killed"),
    (lambda engine: engine.remove("llm-head-1-g1"), "create: there is none"),
    (
        lambda engine: engine.update("llm-head-1-g1", {"Memory": 64 * 1024**2}),
        "update: memory 64m → 256m",
    ),
    (
        lambda engine: engine.update("llm-head-1-g1", {"RestartPolicy": {"Name": "no"}}),
        "update: restart policy no → always",
    ),
    (
        lambda engine: engine.update("llm-head-1-g1", {"CpusetCpus": "0"}),
        "replace: llm-head-1-g1: CPU set set by hand",
    ),
    (lambda engine: engine.rename("llm-head-1-g1", "mine"), "rename: it was called mine"),
    (
        lambda engine: engine.named("llm-head-1-g1")["Networks"].clear(),
        "replace: llm-head-1-g1: not connected to network llm-network",
    ),
    (
        lambda engine: engine.named("llm-head-1-g1")["Networks"]["llm-network"].update(
            IPAddress="172.30.0.7", IPAMConfig={}
        ),
        "replace: llm-head-1-g1: its address on network llm-network is not of 172.30.0.80/28",
    ),
    (
        lambda engine: engine.named("llm-head-1-g1")["Networks"]["llm-network"].update(
            Aliases=["cache", "9f0a"]
        ),
        "replace: llm-head-1-g1: network llm-network does not know it as head",
    ),
    (
        lambda engine: engine.named("llm-head-1-g1")["State"].update(Status="paused"),
        "resume: it was paused",
    ),
]


@pytest.mark.parametrize(("drift", "said"), DRIFTS)
def test_plan_mends_what_was_done_by_hand(host, drift, said):
    head = HEAD | {"aliases": ["cache", "head"]}
    host.apply(head)
    drift(host.engine)
    done = host.apply(head)
    assert done["errors"] == []
    assert [sentence for each in done["changes"].values() for sentence in each] == [said]
    assert host.plan(head)["operations"] == []
    assert list(host.state().values()).count("running") == 1


def test_execute_goes_no_further_than_its_deploy(host):
    """It ends between two steps: what was done of the operation goes back."""
    host.apply(HEAD)
    fences = iter([None, None, None, "deploy 7 has ended"])
    fence = create_autospec(llm_deploy.fence, side_effect=lambda number: next(fences))
    llm_container_module.__salt__["llm_deploy.fence"] = fence
    llm_container_module.__pillar__["llm_deploy"] = 7
    done = host.apply(HEAD | {"memory": "1g"})
    assert done["changes"] == {}
    (error,) = done["errors"]
    assert "deploy 7 has ended\nIt was taken back: llm-head-1-g1 serves as before" in error
    assert host.state()["llm-head-1-g1"] == "running"
    assert list(host.state().values()).count("running") == 1


def test_plan_leaves_an_address_to_who_has_taken_it(host):
    host.apply(HEAD)
    host.engine.kill("llm-head-1-g1")
    address = host.engine.named("llm-head-1-g1")["Networks"]["llm-network"]["IPAMConfig"]
    theirs = {"EndpointsConfig": {"llm-network": {"IPAMConfig": address}}}
    body = {"Image": "llm/head:1", "Labels": {}, "HostConfig": {"NetworkMode": "llm-network"}}
    host.engine.create("theirs", body | {"NetworkingConfig": theirs})
    host.engine.start("theirs")
    done = host.apply(HEAD)
    assert done["errors"] == []
    (sentence,) = done["changes"]["llm-head-1-g2"]
    assert sentence.endswith("container theirs has taken its address")
    assert host.state() == {
        "llm-head-1-g1": "exited", "theirs": "running", "llm-head-1-g2": "running",
    }  # fmt: skip
    assert host.plan(HEAD)["operations"] == []


def test_plan_replaces_what_has_read_a_file_that_was_changed_by_hand(host, tmp_path):
    mounts = [{"source": str(tmp_path), "target": "/etc/llm"}]
    spec = HEAD | {"files": {"config.yaml": "digest"}, "mounts": mounts}
    path = tmp_path / "config.yaml"
    path.write_text("right")
    os.utime(path, (1, 1))
    host.apply(spec)
    assert host.plan(spec)["operations"] == []
    edited = spec | {"edited": ["config.yaml"]}
    others = edited | {"files": {"config.yaml": "of another digest"}}
    causes = ["replace: llm-head-1-g1: file config.yaml changed"]
    assert host.plan(others)["changes"] == {"llm-head-1-g2": causes}
    changes = {"llm-head-1-g2": ["replace: llm-head-1-g1: config.yaml was changed by hand"]}
    assert host.plan(edited)["changes"] == changes
    second = 1767225601  # the first of 2026, and so after the start
    os.utime(path, (second, second))
    assert host.plan(spec)["changes"] == changes
    meant = host.plan(edited | {"files": {"config.yaml": "another"}})["changes"]
    assert meant == {"llm-head-1-g2": ["replace: llm-head-1-g1: file config.yaml changed"]}
    assert host.apply(spec)["errors"] == []
    host.engine.found[host.engine.named("llm-head-1-g2")["Id"]]["State"]["StartedAt"] = (
        "2026-01-01T00:00:02.000000001Z"
    )
    assert host.plan(spec)["operations"] == []


def test_plan_does_not_take_files_that_are_still_to_be_written_for_changed_by_hand(host):
    """As in test mode when a secret changes: the files will lie in another folder."""
    spec = HEAD | {"files": {"config.yaml": "digest"}, "secrets": {"head.key": "one"}}
    host.apply(spec | {"mounts": [{"source": "/tmp", "target": "/etc/llm"}]})
    spec |= {"secrets": {"head.key": "two"}, "edited": ["config.yaml"]}
    changes = host.plan(spec | {"mounts": [{"source": "/new", "target": "/etc/llm"}]})["changes"]
    assert changes == {"llm-head-1-g2": ["replace: llm-head-1-g1: secret head.key changed"]}


def test_plan_says_that_memory_ran_out(host):
    host.apply(HEAD)
    found = host.engine.named("llm-head-1-g1")
    host.engine.kill("llm-head-1-g1")
    found["State"]["OOMKilled"] = True
    said = host.plan(HEAD)["changes"]["llm-head-1-g1"]
    assert said == ["start: it was killed: out of memory (limit 256m)"]


def test_plan_replaces_a_stopped_container_whose_network_was_made_anew(host):
    host.apply(HEAD)
    host.engine.kill("llm-head-1-g1")
    host.engine.network_ids["llm-network"] = "net-other"
    said = host.apply(HEAD)["changes"]["llm-head-1-g2"]
    assert said == ["replace: llm-head-1-g1: network llm-network was made anew"]
    assert host.plan(HEAD)["operations"] == []


def test_plan_of_a_moved_tag_changes_nothing(host):
    host.apply(HEAD)
    host.engine.images["llm/head:1"] = "sha256:other"
    assert host.plan(HEAD)["operations"] == []


def test_plan_with_a_moved_tag_creates_from_the_image_in_use(host):
    host.apply(HEAD)
    host.engine.images["old"] = host.engine.images["llm/head:1"]
    host.engine.images["llm/head:1"] = "sha256:llm/head:2"
    host.apply(HEAD, HEAD | {"replica": 2})
    assert {each["image_id"] for each in llm_container_module.list_()} == {"sha256:llm/head:1"}


def test_plan_renames_two_that_were_swapped(host):
    two = [HEAD, HEAD | {"replica": 2}]
    host.apply(*two)
    for old, new in (("1-g1", "x"), ("2-g1", "1-g1"), ("x", "2-g1")):
        host.engine.rename(
            f"llm-head-{old}" if old != "x" else "x", f"llm-head-{new}" if new != "x" else "x"
        )
    assert host.apply(*two)["errors"] == []
    assert host.plan(*two)["operations"] == []


def test_plan_refuses_a_foreign_container_with_our_name(host):
    body = {"Image": "llm/head:1", "Labels": {}, "HostConfig": {"NetworkMode": "bridge"}}
    host.engine.create("llm-head-1-g1", body)
    assert host.plan(HEAD)["conflicts"] == [
        "Container llm-head-1-g1 is not ours and has the name that we need: rename or remove it"
    ]


def test_plan_refuses_a_foreign_volume_with_our_name(host):
    host.engine.create_volume("llm-head-data", {})
    assert host.plan(HEAD | {"volumes": {"llm-head-data": "/data"}})["conflicts"] == [
        "Volume llm-head-data is not ours and has the name that we need: remove it"
    ]


def test_plan_refuses_two_of_the_same_replica(host):
    assert host.plan(HEAD, HEAD)["conflicts"] == ["Service head has the same replica twice"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image": "llm/none:1"}, "image llm/none:1 is not on this host"),
        ({"network": "none-such"}, "network none-such does not exist"),
        (
            {"mounts": [{"source": "/none/such", "target": "/a"}]},
            "/none/such, which llm-head-1-g1 needs, is missing",
        ),
        ({"devices": ["/dev/none"]}, "/dev/none, which llm-head-1-g1 needs, is missing"),
    ],
)
def test_plan_names_what_is_missing(host, keys, said):
    plan = host.plan(HEAD | {"addresses": None} | keys)
    assert plan["missing"] == [said]
    assert plan["changes"] == {"llm-head-1-g1": ["create: there is none"]}


def test_plan_names_the_mistakes_of_every_spec(host):
    with pytest.raises(SaltInvocationError) as err:
        host.plan(HEAD | {"memory": 1}, HEAD | {"replica": 2, "colour": "red"})
    assert len(str(err.value).splitlines()) == 2


def test_plan_says_when_every_address_is_taken(host):
    replicas = [HEAD | {"replica": number} for number in range(1, 18)]
    assert host.plan(*replicas)["conflicts"] == [
        "Every address of 172.30.0.80/28, the block of head, is taken"
    ]


def test_plan_asks_for_little_when_there_is_nothing_to_do(host):
    host.apply(HEAD)
    with (
        patch.object(host.engine, "image", side_effect=AssertionError),
        patch.object(host.engine, "networks", side_effect=AssertionError),
        patch.object(host.engine, "volumes", side_effect=AssertionError),
        patch.object(host.engine, "containers", wraps=host.engine.containers) as containers,
    ):
        assert host.plan(HEAD)["operations"] == []
    assert containers.call_count == 1


def test_plan_makes_the_folders_of_a_container(host, tmp_path):
    mount = {"source": f"{tmp_path}/run/{{name}}", "target": "/run/llm", "read_only": False}
    head = HEAD | {"mounts": [mount], "user": "0:0"}
    host.apply(head)
    assert (tmp_path / "run/llm-head-1-g1").is_dir()
    llm_container_module.execute(llm_container_module.removal("head"))
    assert not (tmp_path / "run/llm-head-1-g1").exists()


def test_execute_explains_what_the_disk_refuses(host, tmp_path):
    (tmp_path / "run").touch()
    mount = {"source": f"{tmp_path}/run/{{name}}", "target": "/run/llm", "read_only": False}
    (error,) = llm_container_module.execute(host.plan(HEAD | {"mounts": [mount]}))["errors"]
    assert "Not a directory" in error or "File exists" in error


@pytest.fixture
def clear(host):
    """What removes configuration; head is in the catalogue."""
    host.salt["llm_files.clear"] = create_autospec(llm_files.clear)
    catalogue = {"llm": {"site": {"name": "llm"}, "services": {"head": {}}}}
    with patch.dict(llm_container_module.__pillar__, catalogue):
        yield host.salt["llm_files.clear"]


def test_execute_clears_configuration_that_no_container_mounts(host, clear, tmp_path):
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        mount = {"source": str(folder), "target": "/etc/llm", "read_only": True}
        host.apply(HEAD | {"mounts": [mount]}, HEAD | {"service": "other"})
    assert clear.call_args.args == ("head", {f"{tmp_path}/2", f"{tmp_path}/3"})
    assert {call.args[0] for call in clear.call_args_list} == {"head"}


def test_plan_clears_nothing(host, clear):
    host.plan(HEAD)
    assert not clear.called


def test_tidy_of_what_is_in_no_catalogue(host, clear):
    host.apply(HEAD | {"service": "other"})
    llm_container_module.tidy("other")
    assert not clear.called


def test_execute_says_what_cannot_be_cleared(host, clear):
    clear.side_effect = CommandExecutionError("the pillar is not sound")
    assert host.apply(HEAD)["errors"] == ["the pillar is not sound"]


def test_the_version_that_runs_is_the_one_that_was_created(host):
    host.apply(HEAD | {"version": "1.0"})
    assert host.apply(HEAD | {"version": "2.0"})["changes"] == {}
    assert [each["version"] for each in llm_container_module.list_("head")] == ["1.0"]


def test_removal_leaves_nothing_of_the_service(host):
    host.apply(HEAD)
    host.apply(HEAD | {"memory": "1g"})
    host.apply(HEAD | {"service": "other"})
    plan = llm_container_module.removal("head")
    assert plan["changes"] == {
        "llm-head-1-g1": ["remove: it is not wanted"],
        "llm-head-1-g2": ["remove: it is not wanted"],
    }
    llm_container_module.execute(plan)
    assert host.state() == {"llm-other-1-g1": "running"}
    assert llm_container_module.removal("head")["operations"] == []


@pytest.mark.parametrize("volumes", [True, False])
def test_removal_takes_volumes_when_told(host, volumes):
    head = HEAD | {"volumes": {"llm-head-data": "/data"}, "user": "0:0"}
    host.apply(head)
    host.engine.create_volume("foreign", {})
    llm_container_module.execute(llm_container_module.removal("head", volumes=volumes))
    assert set(host.engine.found_volumes) == {"foreign"} | (set() if volumes else {"llm-head-data"})


def test_logs_hide_secrets_and_choose_errors(host):
    host.apply(HEAD)
    assert llm_container_module.logs("head") == {"llm-head-1-g1": ["one", "an error: [redacted]"]}
    assert llm_container_module.logs("head", errors=True) == {
        "llm-head-1-g1": ["an error: [redacted]"]
    }


def test_logs_have_no_colours_also_around_a_secret(host):
    host.apply(HEAD)
    said = ["\x1b[92mone\x1b[0m", "", "10 %\r20 %", "t\x1b[1mwo"]
    with patch.object(host.engine, "logs", autospec=True, return_value=said):
        shown = llm_container_module.logs("head")["llm-head-1-g1"]
    assert shown == ["one", "", "10 %", "20 %", "[redacted]"]


def pinned(host, name, why="release 2 was taken back"):
    """What a spec says for the container ``name`` to serve in place of it."""
    found = {each["name"]: each for each in llm_container_module.list_(parked=True)}
    return {"pinned": {"digest": found[name]["spec"], "why": why}}


def test_plan_of_a_pinned_spec_goes_back_to_the_kept_container(host):
    host.apply(HEAD | {"memory": "1g"})
    host.apply(HEAD | {"memory": "2g", "image": "llm/head:2"})
    back = HEAD | {"memory": "2g", "image": "llm/head:2"} | pinned(host, "llm-head-1-g1")
    host.engine.calls.clear()
    assert host.apply(back)["changes"] == {
        "llm-head-1-g1": [
            "replace: llm-head-1-g2: release 2 was taken back, image llm/head:2 → llm/head:1, "
            "memory 2g → 1g"
        ]
    }
    assert ("start", "llm-head-1-g1") in host.engine.calls
    assert not [call for call in host.engine.calls if call[0] == "create"]
    assert host.state() == {"llm-head-1-g1": "running", "llm-head-1-g2": "exited"}
    assert host.plan(back)["operations"] == []


def test_plan_of_a_pinned_spec_mends_it_as_it_was_made(host):
    host.apply(HEAD | {"memory": "1g"})
    host.engine.update("llm-head-1-g1", {"Memory": 64 * 1024**2})
    kept = HEAD | {"memory": "2g"} | pinned(host, "llm-head-1-g1")
    assert host.plan(kept)["changes"] == {"llm-head-1-g1": ["update: memory 64m → 1g"]}


def test_plan_of_a_pinned_spec_asks_as_it_was_asked_then(host):
    host.apply(HEAD | {"health": {"check": {"http": "/old"}}})
    host.apply(HEAD | {"memory": "1g", "health": {"check": {"http": "/new"}}})
    host.waited.clear()
    new = HEAD | {"memory": "1g", "health": {"check": {"http": "/new"}}}
    host.apply(new | pinned(host, "llm-head-1-g1"))
    assert [check for check, _, _ in host.waited] == [{"http": "/old"}]


def test_plan_of_a_pinned_spec_does_not_ask_with_a_password_of_today(host):
    cache = HEAD | {"health": {"check": {"redis": "cache.password"}}}
    host.apply(cache | {"secrets": {"cache.password": "a"}})
    host.apply(cache | {"secrets": {"cache.password": "b"}})
    host.waited.clear()
    host.apply(cache | {"secrets": {"cache.password": "b"}} | pinned(host, "llm-head-1-g1"))
    assert [check for check, _, _ in host.waited] == [{"container": "running"}]


NOT_FIT = "llm-head-1-g1 is not fit to (not connected to network llm-network)"


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda engine: engine.remove("llm-head-1-g1"), "its container is not kept any more"),
        (lambda engine: engine.named("llm-head-1-g1")["Networks"].clear(), NOT_FIT),
    ],
)
def test_plan_of_a_pinned_spec_whose_container_is_not_fit(host, end, why):
    host.apply(HEAD)
    host.apply(HEAD | {"memory": "1g"})
    back = HEAD | {"memory": "1g"} | pinned(host, "llm-head-1-g1")
    end(host.engine)
    plan = host.plan(back)
    assert plan["operations"] == []
    (conflict,) = plan["conflicts"]
    assert conflict.startswith(
        f"Replica 1 of head cannot go back (release 2 was taken back): {why}; there are: "
    )
    assert "llm-head-1-g2" in conflict


def made(**services):
    """What is remembered of the containers that serve now, by their names."""
    found = {each["name"]: each for each in llm_container_module.list_(parts=True)}
    kept = ("parts", "rollout", "version")
    return {
        service: {
            str(found[name]["replica"]): {"digest": found[name]["spec"]}
            | {key: found[name][key] or "" for key in kept}
            for name in names
        }
        for service, names in services.items()
    }


def restore(remembered):
    """Let all be as it was; return what was changed."""
    changes, errors = {}, []
    for plan in llm_container_module.restoration(remembered).values():
        done = llm_container_module.execute(plan, heals=True)
        changes |= done["changes"]
        errors += plan["missing"] + plan["conflicts"] + done["errors"]
    assert errors == []
    return changes


@pytest.mark.parametrize(("drift", "said"), DRIFTS)
def test_restoration_mends_what_was_done_by_hand(host, drift, said):
    host.apply(HEAD | {"aliases": ["cache", "head"]})
    remembered = made(head=["llm-head-1-g1"])
    host.salt["llm_watch.remember"].reset_mock()
    assert restore(remembered) == {}
    drift(host.engine)
    changes = restore(remembered)
    assert [sentence for each in changes.values() for sentence in each] == [said]
    assert restore(remembered) == {}
    assert list(host.state().values()).count("running") == 1
    assert not host.salt["llm_watch.remember"].called


def test_restoration_makes_again_what_was_removed_and_leaves_the_older_one_parked(host):
    """From the very image of then, which its tag names no more."""
    head = HEAD | {"routed": True}
    host.apply(head | {"memory": "1g"})
    host.apply(head | {"memory": "2g", "version": "2.0"})
    remembered = made(head=["llm-head-1-g2"])
    before = host.engine.inspect("llm-head-1-g2")
    host.engine.images["old"] = host.engine.images["llm/head:1"]
    host.engine.images["llm/head:1"] = "sha256:llm/head:2"
    host.engine.remove("llm-head-1-g2")
    host.engine.calls.clear()
    assert restore(remembered) == {"llm-head-1-g2": ["create: there is none"]}
    after = host.engine.inspect("llm-head-1-g2")
    for key in ("Labels", "Image", "Networks"):
        assert after[key] == before[key]
    assert after["HostConfig"] == before["HostConfig"]
    assert {name for _, name, *_ in host.engine.calls} == {"llm-head-1-g2"}
    assert host.state() == {"llm-head-1-g1": "exited", "llm-head-1-g2": "running"}
    assert host.routed[-1] == ("head", ["172.30.0.81"])


def test_restoration_does_not_let_an_older_one_serve_when_the_new_one_cannot(host, monkeypatch):
    host.apply(HEAD | {"memory": "1g"})
    host.apply(HEAD | {"memory": "2g"})
    remembered = made(head=["llm-head-1-g2"])
    host.engine.remove("llm-head-1-g2")
    host.engine.network_ids["llm-network"] = "net-other"  # to which what is kept has no way
    refused = llm_engine.EngineError("no", 500)
    monkeypatch.setattr(
        host.engine, "start", create_autospec(host.engine.start, side_effect=refused)
    )
    plan = llm_container_module.restoration(remembered)["head"]
    assert llm_container_module.execute(plan, heals=True)["errors"]
    assert host.state() == {"llm-head-1-g1": "exited"}


def test_restoration_lets_go_of_one_that_somebody_has_started(host):
    """The kept one was started by hand, in place of the one that was removed."""
    host.apply(HEAD | {"memory": "1g"})
    host.apply(HEAD | {"memory": "2g"})
    remembered = made(head=["llm-head-1-g2"])
    host.engine.remove("llm-head-1-g2")
    host.engine.start("llm-head-1-g1")
    assert list(restore(remembered)) == ["llm-head-1-g2"]
    assert host.state() == {"llm-head-1-g1": "exited", "llm-head-1-g2": "running"}


def test_restoration_asks_for_no_password(host):
    cache = HEAD | {"health": {"check": {"redis": "cache.password"}}}
    host.apply(cache)
    remembered = made(head=["llm-head-1-g1"])
    host.engine.named("llm-head-1-g1")["Networks"].clear()
    host.waited.clear()
    restore(remembered)
    assert [check for check, _, _ in host.waited] == [{"container": "running"}]


def test_restoration_looks_at_no_file(host, tmp_path):
    mounts = [{"source": str(tmp_path), "target": "/etc/llm"}]
    (tmp_path / "config.yaml").write_text("changed since")
    host.apply(HEAD | {"files": {"config.yaml": "digest"}, "mounts": mounts})
    assert restore(made(head=["llm-head-1-g1"])) == {}


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("image", "image llm/head:1 is not on this host"),
        ("network", "network llm-network does not exist"),
        ("mount", None),
    ],
)
def test_restoration_says_what_it_cannot_bring(host, tmp_path, gone, said):
    folder = tmp_path / "config"
    folder.mkdir()
    host.apply(HEAD | {"mounts": [{"source": str(folder), "target": "/etc/llm"}]})
    remembered = made(head=["llm-head-1-g1"])
    host.engine.remove("llm-head-1-g1")
    if gone == "image":
        del host.engine.images["llm/head:1"]
    elif gone == "network":
        del host.engine.network_ids["llm-network"]
    else:
        folder.rmdir()
        said = f"{folder}, which llm-head-1-g1 needs, is missing"
    assert llm_container_module.restoration(remembered)["head"]["missing"] == [said]


def test_execute_remembers_what_serves(host):
    host.apply(HEAD)
    assert host.salt["llm_watch.remember"].call_args_list == [call("head")]


def test_plan_keeps_as_many_as_it_is_told(host):
    for size in range(1, 6):
        host.apply(HEAD | {"memory": f"{size}g", "keep": 3})
    kept = [f"llm-head-1-g{number}" for number in range(2, 6)]
    assert sorted(host.state()) == kept
    assert host.plan(HEAD | {"memory": "5g", "keep": 3})["operations"] == []
    host.apply(HEAD | {"memory": "5g", "keep": 1})
    assert sorted(host.state()) == kept[2:]


# What may happen to a host between two runs, by hand or by accident.
def keys_with(*images):
    return st.fixed_dictionaries(
        {
            "memory": st.sampled_from(["64m", "128m"]),
            "image": st.sampled_from(images),
            "strategy": st.sampled_from(["start-first", "stop-first"]),
            "routed": st.booleans(),
        }
    )


DRIFTS = {
    "stop": lambda engine, found: engine.stop(found["Id"]),
    "kill": lambda engine, found: engine.kill(found["Id"]),
    "remove": lambda engine, found: engine.remove(found["Id"]),
    "start": lambda engine, found: engine.start(found["Id"]),
    "limit": lambda engine, found: engine.update(found["Id"], {"Memory": 7 * 1024**2}),
    "stick": lambda engine, found: engine.update(found["Id"], {"CpuShares": 7}),
    "policy": lambda engine, found: engine.update(found["Id"], {"RestartPolicy": {"Name": "no"}}),
    "revive": lambda engine, found: engine.update(
        found["Id"], {"RestartPolicy": {"Name": "always"}}
    ),
    "rename": lambda engine, found: engine.rename(found["Id"], f"by-hand-{found['Id']}"),
    "retag": lambda engine, _: engine.images.update({"llm/head:1": "sha256:llm/head:2"}),
    "network": lambda engine, found: found["Networks"].clear(),
    "reconnect": lambda engine, found: [
        end.update(IPAMConfig={}, IPAddress="") for end in found["Networks"].values()
    ],
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(DRIFTS)) | st.none(),
        st.integers(0, 5),
        keys_with(*IMAGES),
        st.integers(1, 3),
        st.none() | st.integers(0, 12),
    ),
    max_size=6,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, last=keys_with(*IMAGES[:2]), replicas=st.integers(1, 3))
def test_plan_carried_out_leaves_nothing_to_do(steps, last, replicas):
    with contextlib.ExitStack() as stack:
        host = make_host(stack)
        foreign = {"Image": "llm/head:1", "Labels": {}, "HostConfig": {"NetworkMode": "bridge"}}
        host.engine.create("somebody-elses", foreign)
        before = copy.deepcopy(host.engine.named("somebody-elses"))
        for drift, which, keys, wanted, interrupt_after in steps:
            ours = [each for each in host.engine.found.values() if each["Labels"]]
            if drift and ours:
                with contextlib.suppress(CommandExecutionError):
                    DRIFTS[drift](host.engine, ours[which % len(ours)])
            host.engine.calls.clear()
            host.engine.interrupt_after = interrupt_after
            with contextlib.suppress(Interrupted):
                host.apply(*(HEAD | keys | {"replica": n + 1} for n in range(wanted)))
            host.engine.interrupt_after = None
        specs = [HEAD | last | {"replica": number + 1} for number in range(replicas)]
        assert host.apply(*specs)["errors"] == []
        assert host.plan(*specs)["operations"] == []
        found = llm_container_module.list_(parked=True)
        live = [each for each in found if each["state"] == "running"]
        assert [each["replica"] for each in live] == list(range(1, replicas + 1))
        assert len({each["address"] for each in live}) == replicas
        parked = [each["replica"] for each in found if each["parked"]]
        assert len(parked) == len(set(parked))
        assert len(live) + len(parked) == len(found)
        assert host.engine.named("somebody-elses") == before
