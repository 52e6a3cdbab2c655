import time
from unittest.mock import create_autospec

import llm_lock
import llm_release as releases_module
import pytest
from salt.exceptions import CommandExecutionError, SaltClientError
from salt.modules import saltutil

from _modules import llm_release as llm_release_module

SERVED = {"tail": {"1": {"container": "llm-tail-1-g1", "digest": "v1:a", "image": "x"}}}


class Hosts:
    """Hosts that answer what a test wants them to."""

    def __init__(self):
        self.answers = {
            "llm_deploy.begin": time.time,
            "llm_deploy.call_off": 0,
            "llm_deploy.end": {"changes": {"llm-tail-1-g1": ["pids 1 → 2"]}, "services": SERVED},
            "llm_deploy.take_back": {"begun": True, "changes": {}, "errors": []},
            "llm_deploy.go_to": {"changes": {}, "errors": []},
            "llm_deploy.start": None,
            "llm_deploy.obstacles": [],
            "saltutil.refresh_pillar": True,
        }
        self.silent = set()
        self.away = []  # for each question whether the master is away, the last one first
        self.asked = []

    def cmd(self, tgt, fun, arg=(), timeout=None, tgt_type="glob", ret="", kwarg=None, **_):
        assert tgt_type == "list"
        self.asked.append((fun, *arg))
        if self.away and self.away.pop():
            raise SaltClientError("The salt master could not be contacted. Is master running?")
        answer = self.answers[fun]
        answer = answer() if callable(answer) else answer
        return {host: {"ret": answer} for host in tgt if host not in self.silent}

    def asked_for(self, function):
        return [words[1:] for words in self.asked if words[0] == f"llm_deploy.{function}"]


@pytest.fixture
def hosts():
    return Hosts()


@pytest.fixture
def verify():
    return {"retcode": 0}


@pytest.fixture
def llm_release(configure_loader, platform, hosts, verify, tmp_path):
    platform["site"]["root"] = str(tmp_path)
    salt = {
        "llm_config.platform": lambda: platform,
        "llm_config.tiers": lambda: [["cache"], ["head", "rate-limiter"], ["tail"]],
        "llm_config.hosts": lambda service: ["node1"],
        "saltutil.cmd": create_autospec(saltutil.cmd, side_effect=hosts.cmd),
        "saltutil.runner": create_autospec(saltutil.runner, return_value=verify),
    }
    return configure_loader(
        llm_release_module, salt=salt, opts={"file_roots": {"base": [str(tmp_path / "salt")]}}
    )


@pytest.fixture
def record(tmp_path):
    """A function that returns the record of a release."""
    return releases_module.Releases(tmp_path / "salt" / "releases").read


@pytest.fixture
def lock(tmp_path):
    return llm_lock.Lock(tmp_path / "salt" / "lock.json")


def test_release_that_changes_something(llm_release, record, lock):
    number = llm_release.next_number()
    llm_release.begin(number, "deploy")
    assert record(1)["result"] == "running"
    assert lock.is_mine()
    assert llm_release.finish(1) == {"node1": {"llm-tail-1-g1": ["pids 1 → 2"]}}
    assert (record(1)["result"], record(1)["hosts"]) == ("done", {"node1": SERVED})
    assert lock.holder() is None
    assert llm_release.next_number() == 2


def test_release_that_changes_nothing_is_forgotten(llm_release, hosts, record, lock):
    llm_release.begin(1, "deploy")
    llm_release.finish(1)
    hosts.answers["llm_deploy.end"] |= {"changes": {}}
    llm_release.begin(2, "deploy")
    assert llm_release.finish(2) == {}
    assert record(2) is None
    assert lock.holder() is None
    assert llm_release.next_number() == 3


def test_begin_while_another_has_the_lock(llm_release, hosts, record, lock):
    lock.take("audit", by_hand=True)
    with pytest.raises(llm_lock.Locked):
        llm_release.begin(1, "deploy")
    assert record(1) is None
    assert hosts.asked == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda hosts: hosts.silent.add("node1"), "node1 does not answer: is its minion running?"),
        (
            lambda hosts: hosts.answers.update({"llm_deploy.begin": "ERROR: busy"}),
            "node1: ERROR: busy",
        ),
        (
            lambda hosts: hosts.answers.update({"llm_deploy.begin": time.time() + 100}),
            "clock: found it 100 s ahead of the master's, needed at most 30 s",
        ),
        (
            lambda hosts: hosts.answers.update({"llm_deploy.begin": time.time() - 100}),
            "clock: found it 100 s behind the master's",
        ),
    ],
    ids=["silent", "refuses", "ahead", "behind"],
)
def test_begin_that_is_refused_changes_nothing(llm_release, hosts, record, lock, fault, words):
    fault(hosts)
    with pytest.raises(CommandExecutionError) as refused:
        llm_release.begin(1, "deploy")
    assert words in str(refused.value)
    assert hosts.asked_for("call_off") == [(1,)]
    assert record(1)["result"] == "refused"
    assert lock.holder() is None


def test_begin_after_the_file_of_the_lock_was_lost(llm_release, hosts, record, lock):
    """No number comes twice: those on record are known here, and what hosts know they tell."""
    for number in (1, 2):
        llm_release.begin(number, "deploy")
        llm_release.finish(number)
    lock.path.unlink()
    assert llm_release.next_number() == 3
    hosts.answers["llm_deploy.begin"] = "ERROR: deploy 8 has begun here since"
    hosts.answers["llm_deploy.call_off"] = 8
    with pytest.raises(CommandExecutionError, match="deploy 8 has begun here since"):
        llm_release.begin(3, "deploy")
    assert llm_release.next_number() == 9
    assert lock.holder() is None


def test_begin_notes_what_was_killed_before(llm_release, record, lock):
    llm_release.begin(1, "deploy")
    lock.free()
    llm_release.begin(2, "deploy")
    assert record(1)["result"] == "interrupted"


def test_finish_without_a_host(llm_release, hosts, lock):
    llm_release.begin(1, "deploy")
    hosts.silent.add("node1")
    with pytest.raises(CommandExecutionError, match="node1 does not say what serves there"):
        llm_release.finish(1)
    assert lock.is_mine()


def test_take_back_goes_tier_by_tier_from_the_last(llm_release, hosts, record, lock):
    llm_release.begin(1, "deploy")
    found = llm_release.take_back(1, ["tail is sick"])
    assert found == {"result": "taken back", "changes": {}, "errors": []}
    assert hosts.asked_for("take_back") == [
        (1, ["tail"]), (1, ["head", "rate-limiter"]), (1, ["cache"]),
    ]  # fmt: skip
    assert hosts.asked_for("end") == [(1, "taken back")]
    assert (record(1)["result"], record(1)["why"]) == ("taken back", ["tail is sick"])
    assert record(1)["stable"] is False
    assert lock.holder() is None


def test_take_back_of_what_needs_something_that_goes_back_later(llm_release, hosts):
    """Such as the password of the cache."""
    back = {"begun": True, "changes": {}, "errors": []}
    answers = iter([back, back | {"errors": ["WRONGPASS"]}, back, back])
    hosts.answers["llm_deploy.take_back"] = lambda: next(answers)
    llm_release.begin(1, "deploy")
    assert llm_release.take_back(1)["result"] == "taken back"
    assert [services for _, services in hosts.asked_for("take_back")] == [
        ["tail"], ["head", "rate-limiter"], ["cache"], ["head", "rate-limiter"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        (lambda h: h.answers["llm_deploy.take_back"].update(errors=["gone"]), "not taken back"),
        (lambda h: h.answers.update({"llm_deploy.take_back": "ERROR: x"}), "not taken back"),
        (lambda h: h.answers["llm_deploy.take_back"].update(begun=False), "refused"),
        (lambda h: h.silent.add("node1"), "unknown"),
    ],
    ids=["error", "exception", "not begun", "silent"],
)
def test_take_back_that_does_not_succeed(
    llm_release, hosts, record, lock, fault, result, monkeypatch
):
    monkeypatch.setattr(llm_release_module, "PATIENCE", 0)
    llm_release.begin(1, "deploy")
    fault(hosts)
    assert llm_release.take_back(1)["result"] == result
    assert record(1)["result"] == result
    assert lock.holder() is None


def test_take_back_asks_a_silent_host_once_for_all(llm_release, hosts, monkeypatch):
    """Frozen, it hears one question when it wakes up, not one for each tier, and then the end."""
    monkeypatch.setattr(llm_release_module, "PATIENCE", 0)
    llm_release.begin(1, "deploy")
    hosts.silent.add("node1")
    assert llm_release.take_back(1)["errors"] == [
        "node1 does not answer: nobody knows what serves there"
    ]
    assert hosts.asked_for("take_back") == [(1, ["tail", "head", "rate-limiter", "cache"])]
    assert hosts.asked_for("end") == [(1, "unknown")]


def test_take_back_while_the_master_is_away(llm_release, hosts, monkeypatch):
    monkeypatch.setattr(llm_release_module.time, "sleep", lambda seconds: None)
    llm_release.begin(1, "deploy")
    hosts.away = [False, True, True, True]
    assert llm_release.take_back(1)["result"] == "taken back"
    assert hosts.asked_for("end") == [(1, "taken back")]


def test_take_back_after_which_clients_are_not_served(llm_release, verify):
    llm_release.begin(1, "deploy")
    verify |= {"retcode": 1, "error": "no completion"}
    found = llm_release.take_back(1)
    assert found["result"] == "not taken back"
    assert found["errors"] == ["after going back: no completion"]


def test_take_back_of_what_is_somebody_elses(llm_release, hosts, lock):
    lock.take("audit", by_hand=True)
    assert llm_release.take_back(1)["result"] == "refused"
    assert hosts.asked == []
    assert lock.holder()["what"] == "audit"


def test_go_to_an_earlier_release(llm_release, hosts):
    llm_release.begin(1, "deploy")
    llm_release.finish(1)
    llm_release.begin(2, "rollback to 1")
    hosts.answers["llm_deploy.go_to"] = {"changes": {"llm-tail-1-g1": ["…"]}, "errors": []}
    assert llm_release.go_to(2, 1) == {"node1": {"llm-tail-1-g1": ["…"]}}
    assert hosts.asked_for("go_to") == [(2, 1, {"tail": SERVED["tail"]})]


def test_go_to_starts_all_before_anything_goes(llm_release, hosts):
    """What carries calls goes back last, and beside it what makes none."""
    carriers = ["ingress", "mesh"]
    tiers = [carriers, ["cache", "model-proxy"], ["head", "rate-limiter"], ["tail"]]
    llm_release.__salt__["llm_config.tiers"] = lambda: tiers
    served = dict.fromkeys(sum(tiers, []), SERVED["tail"])
    hosts.answers["llm_deploy.end"] |= {"services": served}
    llm_release.begin(1, "deploy")
    llm_release.finish(1)
    llm_release.begin(2, "rollback to 1")
    llm_release.go_to(2, 1)
    asked = [(word, set(wanted[-1])) for word, *wanted in hosts.asked if len(wanted) > 2]
    last = {"ingress", "mesh", "cache", "model-proxy"}
    assert asked == [
        ("llm_deploy.start", served.keys()),
        *(("llm_deploy.go_to", each) for each in ({"tail"}, {"head", "rate-limiter"}, last)),
    ]


def test_go_to_what_needs_something_that_goes_back_later(llm_release, hosts):
    served = SERVED | {"cache": SERVED["tail"]}
    hosts.answers["llm_deploy.end"] |= {"services": served}
    llm_release.begin(1, "deploy")
    llm_release.finish(1)
    llm_release.begin(2, "rollback to 1")
    gone = {"changes": {"llm-tail-1-g1": ["…"]}, "errors": []}
    answers = iter([gone | {"errors": ["WRONGPASS"]}, gone, gone])
    hosts.answers["llm_deploy.go_to"] = lambda: next(answers)
    assert llm_release.go_to(2, 1) == {"node1": {"llm-tail-1-g1": ["…"]}}
    assert [list(wanted) for _, _, wanted in hosts.asked_for("go_to")] == [
        ["tail"], ["cache"], ["tail"],
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [["head is gone", "tail is gone"], "ERROR: no engine", None])
def test_go_to_where_something_is_gone_switches_nothing(llm_release, hosts, platform, answer):
    """Every host is asked of all its services, and what each says is told."""
    platform["site"]["hosts"] |= {"node2": {"address": "127.0.0.2"}}
    hosts.answers["llm_deploy.end"] |= {"services": SERVED | {"cache": SERVED["tail"]}}
    llm_release.begin(1, "deploy")
    llm_release.finish(1)
    llm_release.begin(2, "rollback to 1")
    hosts.answers["llm_deploy.obstacles"] = answer
    if not answer:
        hosts.silent |= {"node1", "node2"}
    said = answer if isinstance(answer, list) else [answer or "does not answer"]
    with pytest.raises(CommandExecutionError) as raised:
        llm_release.go_to(2, 1)
    assert str(raised.value).splitlines() == [
        f"{host}: {each}" for host in ("node1", "node2") for each in said
    ]
    wanted = {"tail": SERVED["tail"], "cache": SERVED["tail"]}
    assert hosts.asked_for("obstacles") == 2 * [(1, wanted)]
    assert [*wanted] == [*hosts.asked_for("obstacles")[0][1]]
    assert hosts.asked_for("go_to") == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda hosts: hosts.answers["llm_deploy.go_to"].update(errors=["it is gone"]),
        lambda hosts: hosts.answers.update({"llm_deploy.go_to": "ERROR: it is gone"}),
        lambda hosts: hosts.silent.add("node1"),
    ],
    ids=["error", "exception", "silent"],
)
def test_go_to_that_cannot_be(llm_release, hosts, fault):
    llm_release.begin(1, "deploy")
    llm_release.finish(1)
    llm_release.begin(2, "rollback to 1")
    fault(hosts)
    with pytest.raises(CommandExecutionError, match="node1: (.*it is gone|does not answer)"):
        llm_release.go_to(2, 1)
