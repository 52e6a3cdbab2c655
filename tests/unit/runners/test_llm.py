import io
import json
from types import SimpleNamespace
from unittest.mock import create_autospec

import llm_catalogue
import llm_completion
import llm_lock
import llm_release
import llm_review
import llm_secret
import pytest
import salt.client
import salt.utils.args
from salt.exceptions import SaltClientError

from _runners import llm as llm_runner
from bootstrap.keys import fingerprint


@pytest.fixture
def event():
    """The event of a job that ``salt-run`` shows."""
    return SimpleNamespace(print_func=print)


@pytest.fixture
def output():
    """How ``salt-run`` is asked to show its answer: as for people."""
    return {}


@pytest.fixture
def context():
    return {}


@pytest.fixture
def llm(configure_loader, pillar_root, keyring, repository, tmp_path, event, output, context):
    opts = {
        "pillar_roots": {"base": [str(pillar_root)]},
        "file_roots": {"base": [str(repository / "salt")]},
        "gpg_keydir": keyring.folder,
        "pki_dir": str(tmp_path / "pki"),
        "hash_type": "sha256",
        **output,
    }
    return configure_loader(llm_runner, opts=opts, context=context, jid_event=event)


@pytest.fixture
def verify(monkeypatch):
    """The question for a completion."""
    asked = create_autospec(llm_completion.verify)
    monkeypatch.setattr(llm_completion, "verify", asked)
    found = {"model": "tiny", "tokens": 8, "total": 1.0, "first_token": 0.5, "hops": {}}
    asked.return_value = found
    return asked


@pytest.fixture
def as_json(output):
    output["output"] = "json"


@pytest.fixture
def typed(monkeypatch):
    """A function that sets what stands on standard input."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def generated(llm, capsys):
    """All secrets made."""
    llm.secret("generate")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("command", "arguments", "keywords", "lines"),
    [
        (
            "deploy",
            (),
            {"sevices": "head"},
            ['unknown argument "sevices"; did you mean "services"?'],
        ),
        ("deploy", (), {"services": ""}, ['services: found ""; expected some text']),
        ("deploy", (), {"wait": "abc"}, ['wait: found "abc"; expected a number']),
        ("deploy", (), {"wait": -3}, ["wait: found -3; expected at least 0"]),
        ("status", ("head",), {}, ['found "head" after the last of 0 arguments']),
        ("logs", (), {"lines": 0}, ["service: is missing", "lines: found 0; expected at least 1"]),
        ("scale", ("head", "many"), {}, ['replicas: found "many"; expected a whole number']),
        ("canary", ("head",), {"window": "1m"}, ['window: found "1m"; expected a number']),
        ("canary", ("head", 101), {}, ["weight: found 101; expected at most 100"]),
        ("rollback", ("abc",), {}, ['number: found "abc"; expected a whole number']),
        ("prune", (), {"test": "maybe"}, ['test: found "maybe"; expected true or false']),
        ("lock", ("",), {}, ['reason: found ""; expected some text']),
        ("maintenance", ("head",), {"hours": 0}, ["hours: found 0; expected more than 0"]),
    ],
)
def test_wrong_arguments_are_told_and_not_answered_with_help(
    llm, context, command, arguments, keywords, lines
):
    answer = getattr(llm, command)(*arguments, **keywords, __pub_user="root")
    assert answer["retcode"] == context["retcode"] == 1
    assert answer["error"].splitlines() == lines


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("scale", ("head", 99), "head.replicas: found 99; expected at most 7"),
        ("deploy", (None, "head:a/b@sha256:1"), "head.image: found "),
        ("canary", ("head", 10, 60, 1, 2, 20, "head:a/b@sha256:1"), "head.image: found "),
    ],
)
def test_knob_that_cannot_be_is_told_as_it_was_typed(
    llm, generated, pillar_root, monkeypatch, command, arguments, said
):
    monkeypatch.setattr(llm_review, "problems", lambda *_, **__: [])  # as long as none is turned
    file = pillar_root / "environments" / "dev.sls"
    before = file.read_text()
    answer = getattr(llm, command)(*arguments)
    assert answer["retcode"] == 1
    assert answer["error"].startswith(said)
    assert file.read_text() == before


def test_salt_leaves_arguments_to_the_commands():
    spec = salt.utils.args.get_function_argspec(llm_runner.deploy)
    assert (spec.args, bool(spec.varargs), bool(spec.keywords)) == ([], True, True)


def test_check_shows_the_fingerprint_of_a_key_that_waits(llm, generated, tmp_path, event, capsys):
    event.print_func = print
    for folder, minion in (("minions", "other"), ("minions_pre", "node1")):
        path = tmp_path / "pki" / folder / minion
        path.parent.mkdir(parents=True)
        path.write_text("-----BEGIN PUBLIC KEY-----\nMIIBIjANBg\n-----END PUBLIC KEY-----\n")
    assert llm.check()["retcode"] == 1
    expected = f"hosts.node1: no accepted key (pending: yes, fingerprint {fingerprint(path)})"
    assert expected in capsys.readouterr().out


def test_secret_generate_says_what_it_made(llm, capsys, context):
    assert llm.secret("generate")["secrets"][0] == "cache.password"
    assert capsys.readouterr().out.startswith("made cache.password\nmade clients.default\n")
    assert context["retcode"] == 0
    llm.secret("generate")


def test_secret_generate_again_makes_nothing(llm, generated, event, capsys):
    event.print_func = print
    assert llm.secret("generate")["secrets"] == []
    assert capsys.readouterr().out == "Nothing to make: every secret is there\n"


def test_secret_generate_one_anew(llm, generated, pillar_root, keyring):
    before = llm_secret.value(pillar_root, keyring, "cache.password")
    llm.secret("generate", "cache.password")
    assert llm_secret.value(pillar_root, keyring, "cache.password") != before


def test_secret_set_takes_standard_input(
    llm, generated, typed, pillar_root, keyring, event, capsys
):
    typed("canary\n")
    event.print_func = print
    assert llm.secret("set", "providers.openai") == {"retcode": 0, "secrets": ["providers.openai"]}
    assert llm_secret.value(pillar_root, keyring, "providers.openai") == "canary"
    assert capsys.readouterr().out == "providers.openai is set\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("set",), "no name given"),
        (("set", "cache.pasword"), 'did you mean "cache.password"?'),
        (("set", "clients.batch"), 'nothing needs a secret "clients.batch"'),
        (("set", "providers.a b"), "is no name of a secret"),
        (("generate", "providers.openai"), "only its provider can give"),
        (("generate", "head.kye"), 'did you mean "head.key"?'),
        (("frobnicate",), "expected one of list, generate, set"),
    ],
)
def test_secret_refuses(llm, typed, context, capsys, arguments, expected):
    typed("canary")
    assert llm.secret(*arguments)["retcode"] == context["retcode"] == 1
    shown = capsys.readouterr().out
    assert expected in shown
    assert "canary" not in shown


@pytest.mark.parametrize("value", ["", "CHANGEME", "a\nb", llm_catalogue.MASK])
def test_secret_set_refuses_a_value(llm, typed, value, capsys):
    typed(value)
    assert llm.secret("set", "providers.openai")["retcode"] == 1
    assert "the value for providers.openai " in capsys.readouterr().out


def test_secret_list_shows_names_alone(llm, generated, event, capsys, pillar_root, keyring):
    event.print_func = print
    llm.secret("list")
    shown = capsys.readouterr().out
    assert shown.splitlines() == llm_secret.names(pillar_root)
    assert llm_secret.value(pillar_root, keyring, "cache.password") not in shown


def keys(verify, pillar_root, keyring):
    """Return the clients as which a completion was asked for."""
    known = {
        llm_secret.value(pillar_root, keyring, f"clients.{name}"): name
        for name in ("verify", "default")
    }
    return [known[call.kwargs["api_key"]] for call in verify.call_args_list]


def test_verify_asks_as_a_client_of_its_own(llm, generated, verify, pillar_root, keyring):
    assert llm.verify()["retcode"] == 0
    assert keys(verify, pillar_root, keyring) == ["verify"]


def test_verify_asks_as_another_client_where_tail_has_older_keys(
    llm, generated, verify, pillar_root, keyring
):
    """As after going back to where its key was another one."""
    verify.side_effect = [llm_completion.KeyRefused("no"), verify.return_value]
    assert llm.verify()["retcode"] == 0
    assert keys(verify, pillar_root, keyring) == ["verify", "default"]


def test_verify_of_a_client_asks_as_no_other(llm, generated, verify, pillar_root, keyring):
    verify.side_effect = llm_completion.KeyRefused("tail refuses the key")
    assert llm.verify(client="verify")["error"] == "tail refuses the key"
    assert keys(verify, pillar_root, keyring) == ["verify"]
    assert llm.verify()["retcode"] == 1
    assert keys(verify, pillar_root, keyring) == ["verify", "verify", "default"]


def test_client_shows_what_a_client_needs(llm, generated, event, capsys, pillar_root, keyring):
    event.print_func = print
    answer = llm.client()
    key = llm_secret.value(pillar_root, keyring, "clients.default")
    assert capsys.readouterr().out.split() == [
        "base_url",
        "https://127.0.0.1:8443/v1",
        "ca_file",
        "/var/lib/llm/trust/ca.pem",
        "api_key",
        key,
    ]
    assert answer == {"retcode": 0}  # what goes to the job cache and to the event bus
    assert event.print_func is None  # Salt shows it no second time


@pytest.mark.parametrize(
    ("more", "told"),
    [("", "/etc/ssl/certs/ca-certificates.crt"), (", authority: /own/ca.pem", "/own/ca.pem")],
)
@pytest.mark.usefixtures("as_json")
def test_client_is_told_who_signed_a_certificate_of_the_users_own(
    llm, generated, event, capsys, pillar_root, more, told
):
    event.print_func = print
    site = pillar_root / "site.yaml"
    own = f"public_certificate: {{certificate: /own/c.pem, key: /own/k.pem{more}}}"
    site.write_text(site.read_text().replace("public_certificate: {}", own))
    llm.client()
    found = json.loads(capsys.readouterr().out)
    assert found["ca_file"] == told
    assert found["base_url"] == "https://llm.internal:8443/v1"  # which it names, and no address


@pytest.mark.usefixtures("as_json")
def test_client_as_json(llm, generated, event, capsys):
    event.print_func = print
    llm.client()
    assert set(json.loads(capsys.readouterr().out)) == {"base_url", "ca_file", "api_key"}


@pytest.mark.usefixtures("as_json")
def test_client_unknown_as_json(llm, generated, event, capsys):
    event.print_func = print
    assert llm.client("nobody")["retcode"] == 1
    assert json.loads(capsys.readouterr().out) == {
        "error": 'unknown client "nobody"; there are verify, default'
    }


def test_client_without_its_key(llm, capsys, context):
    llm.client()
    assert "clients.default is missing; salt-run llm.secret set" in capsys.readouterr().out
    assert context["retcode"] == 1


def test_client_of_a_pillar_that_is_not_sound(llm, pillar_root, capsys):
    path = pillar_root / "site.yaml"
    path.write_text(path.read_text().replace("public_port: 8443", "public_port: 84430"))
    assert llm.client()["retcode"] == 1
    assert capsys.readouterr().out == "1 mistake in the pillar; see salt-run llm.check\n"


def test_client_asked_by_an_orchestration_shows_nothing(llm, generated, capsys):
    assert llm.client() == {"retcode": 0}
    assert capsys.readouterr().out == ""


def test_logs_followed_until_salt_makes_ctrl_c_an_exit(llm, capsys, context, monkeypatch):
    one, two = "2026-01-01T00:00:01Z one", "2026-01-01T00:00:02Z two"
    said = [{"node1": {"llm-head-1-g1": lines}} for lines in ([one], [one, two], [])]
    asked = create_autospec(llm_runner._asked, side_effect=[{"node1": True}, *said, SystemExit(0)])
    monkeypatch.setattr(llm_runner, "_asked", asked)
    monkeypatch.setattr(llm_runner.time, "sleep", lambda seconds: None)
    llm.logs("head", follow=True)
    assert capsys.readouterr().out.split() == ["one", "two"]
    assert context["retcode"] == 0
    assert asked.call_args.kwargs["lines"] == 1000


def test_logs_without_an_error_say_so(llm, capsys, context, monkeypatch):
    said = [{"node1": True}, {"node1": {"llm-head-1-g1": []}}]
    monkeypatch.setattr(llm_runner, "_asked", create_autospec(llm_runner._asked, side_effect=said))
    llm.logs("head", lines=70, errors=True)
    assert capsys.readouterr().out == "No errors in the last 70 lines of llm-head-1-g1\n"
    assert context["retcode"] == 0


def test_status_asks_the_hosts_that_answer_once_they_know_the_pillar(
    llm, capsys, context, monkeypatch
):
    asked = create_autospec(llm_runner._asked, side_effect=[{}, {}])
    monkeypatch.setattr(llm_runner, "_asked", asked)
    llm.status()
    assert [call.args[:2] for call in asked.call_args_list] == [
        (["node1"], "saltutil.refresh_pillar"),
        ([], "llm_service.status"),
    ]
    assert "node1   no answer" in capsys.readouterr().out
    assert context["retcode"] == 1


@pytest.fixture
def hosts(llm, monkeypatch):
    """What ``_asked`` answers, by function; a host that is in none of it is silent."""
    found = {"saltutil.refresh_pillar": {"node1": True, "node2": True}}

    def asked(hosts, function, *arguments, **keywords):
        return {host: ret for host, ret in found[function].items() if host in hosts}

    mock = create_autospec(llm_runner._asked, side_effect=asked)
    monkeypatch.setattr(llm_runner, "_asked", mock)
    pillar = llm_runner._pillar()
    pillar["site"]["hosts"]["node2"] = {"address": "10.0.0.2", "roles": ["head"]}
    monkeypatch.setattr(llm_runner, "_pillar", lambda: pillar)
    found["asked"] = mock
    return found


def _entry(moment, **more):
    found = {"time": f"2026-11-24T20:00:{moment:02d}+00:00", "service": "head", "do": "start"}
    return found | {"container": "llm-head-1-g2", "seen": "killed", "result": "done"} | more


def test_history_of_all_hosts_in_its_order(as_json, llm, hosts, capsys, context):
    hosts["llm_watch.history"] = {"node1": [_entry(1), _entry(3)], "node2": [_entry(2)]}
    llm.history(lines=2)
    shown = json.loads(capsys.readouterr().out)
    assert [(each["host"], each["time"][17:19]) for each in shown["history"]] == [
        ("node2", "02"),
        ("node1", "03"),
    ]
    assert shown["silent"] == []
    assert context["retcode"] == 0


def test_history_says_who_does_not_answer(llm, hosts, capsys, context):
    hosts["llm_watch.history"] = {
        "node1": [_entry(1, seen="crash loop: exit code 3", log=["[1] no such file"])]
    }
    llm.history()
    shown = capsys.readouterr().out
    for word in ("2026-11-24 20:00:01", "node1", "llm-head-1-g2", "crash loop", "[1] no such file"):
        assert word in shown
    assert "node2: no answer" in shown
    assert context["retcode"] == 1


def test_history_where_nothing_was_amiss(llm, hosts, capsys):
    hosts["llm_watch.history"] = {"node1": [], "node2": []}
    llm.history()
    assert capsys.readouterr().out.strip() == "Nothing was amiss"


@pytest.mark.parametrize(
    ("name", "concerned"), [("head", ["node1", "node2"]), ("tail", ["node1"]), ("node2", ["node2"])]
)
def test_maintenance_is_for_who_carries_the_service(llm, hosts, context, capsys, name, concerned):
    entry = {"reason": "why", "until": 1_800_000_000}
    hosts["llm_watch.maintain"] = dict.fromkeys(concerned, entry)
    hosts["llm_watch.maintenance"] = {"node1": {name: entry}, "node2": {}}
    llm.maintenance(name, reason="why", hours=3)
    call = hosts["asked"].call_args_list[0]
    assert call.args == (concerned, "llm_watch.maintain", name, "why")
    assert call.kwargs == {"hours": 3}
    shown = capsys.readouterr().out.strip()
    assert shown == f"node1: maintenance of {name} until 2027-01-15T08:00:00+00:00: why"
    assert context["retcode"] == 0


def test_maintenance_for_programs_has_times_as_all_else(as_json, llm, hosts, capsys):
    entry = {"reason": "why", "until": 1_800_000_000}
    hosts["llm_watch.maintain"] = {}
    hosts["llm_watch.maintenance"] = {"node1": {"head": entry}, "node2": {}}
    llm.maintenance()
    said = entry | {"until": "2027-01-15T08:00:00+00:00"}
    assert json.loads(capsys.readouterr().out)["maintenance"]["node1"] == {"head": said}


def test_maintenance_ends(llm, hosts, context, capsys):
    hosts["llm_watch.resume"] = {"node1": True}
    hosts["llm_watch.maintenance"] = {"node1": {}, "node2": {}}
    llm.maintenance("tail", end=True)
    assert capsys.readouterr().out.strip() == "Nothing is left alone"
    assert context["retcode"] == 0


@pytest.mark.parametrize("silent", ["llm_watch.maintain", "llm_watch.maintenance"])
def test_maintenance_says_who_does_not_answer(llm, hosts, context, capsys, silent):
    hosts["llm_watch.maintain"] = {"node1": {}, "node2": {}}
    hosts["llm_watch.maintenance"] = {"node1": {}, "node2": {}}
    del hosts[silent]["node2"]
    llm.maintenance("head")
    assert "node2: no answer" in capsys.readouterr().out
    assert context["retcode"] == 1


def test_maintenance_of_what_there_is_not(llm, hosts, context, capsys):
    llm.maintenance("heda")
    assert 'unknown service or host "heda"; did you mean' in capsys.readouterr().out
    assert context["retcode"] == 1


SERVICE = {
    "tier": 1,
    "actions": [{"action": "none", "replica": 1, "container": "c", "causes": []}],
    "traffic": {"effect": "none", "seconds": 0},
    "seconds": 0,
    "files": {},
    "live_files": {},
    "certificate": [],
    "routes": False,
    "maintenance": None,
    "digest": "d",
}
SAME = {"preparations": [], "services": {"head": SERVICE}, "problems": []}
OTHER = SAME | {"services": {"head": SERVICE | {"live_files": {"a.yaml": "change"}}}}
UNABLE = SAME | {"problems": ["node1: memory: found 1g", "no engine"]}
FAILED = "The minion function caused an exception: Traceback\n  line\nValueError: odd"


@pytest.fixture
def answers(monkeypatch, llm):
    """A function that sets what comes of asking the hosts; it returns the mock."""

    def set_answers(answer):
        found = {} if answer is None else {"node1": answer}
        refreshed = {"node1": {"ret": True, "retcode": 0}}
        mock = create_autospec(llm_runner._answers, side_effect=[refreshed, found])
        monkeypatch.setattr(llm_runner, "_answers", mock)
        monkeypatch.setattr(llm_runner, "_reviewed", list)
        return mock

    return set_answers


@pytest.mark.parametrize(
    ("answer", "code", "problems", "silent"),
    [
        ({"ret": SAME, "retcode": 0}, 0, [], []),
        ({"ret": OTHER, "retcode": 0}, 2, [], []),
        (
            {"ret": UNABLE, "retcode": 0},
            1,
            ["node1: memory: found 1g", "node1: no engine"],
            [],
        ),
        (None, 1, ["node1: no answer"], ["node1"]),
        ({"ret": FAILED, "retcode": 1}, 1, ["node1: ValueError: odd"], []),
        (
            {"ret": "'llm_change.foreseen' is not available.", "retcode": 254},
            1,
            ["node1: 'llm_change.foreseen' is not available."],
            [],
        ),
    ],
    ids=["nothing", "changes", "would-fail", "silent", "exception", "old-code"],
)
@pytest.mark.usefixtures("as_json")
def test_plan_ends_with_a_code(llm, answers, capsys, context, answer, code, problems, silent):
    asked = answers(answer)
    llm.plan("head,tail")
    data = json.loads(capsys.readouterr().out)
    assert context["retcode"] == code
    assert data["problems"] == problems
    assert data["silent"] == silent
    assert data["summary"]["changes"] is (code == 2)
    assert asked.call_args.args == (["node1"], "llm_change.foreseen")
    assert asked.call_args.kwargs["services"] == ["head", "tail"]


def test_plan_for_people(llm, answers, capsys):
    answers({"ret": SAME, "retcode": 0})
    llm.plan()
    assert capsys.readouterr().out == "Nothing to do\n"


def test_plan_of_a_service_that_nobody_knows(llm, answers, capsys, context):
    answers(None)
    llm.plan("haed")
    assert capsys.readouterr().out == 'unknown service "haed"; did you mean "head"?\n'
    assert context["retcode"] == 1


def test_plan_of_a_pillar_with_mistakes_is_what_check_says(llm, capsys, pillar_root, event):
    path = pillar_root / "site.yaml"
    path.write_text(path.read_text().replace("public_port: 8443", "public_port: 84430"))
    planned = llm.plan()
    shown = capsys.readouterr().out
    event.print_func = print
    assert llm.check() == planned
    assert capsys.readouterr().out == shown
    assert planned["retcode"] == 1


@pytest.mark.parametrize(("command", "arguments"), [("status", ()), ("logs", ("head",))])
def test_a_command_says_in_one_line_that_the_master_is_stopped(
    llm, capsys, context, event, monkeypatch, command, arguments
):
    event.print_func = print
    words = "The salt master could not be contacted. Is master running?"
    client = create_autospec(salt.client.LocalClient, instance=True)
    client.cmd.side_effect = SaltClientError(words)
    monkeypatch.setattr(salt.client, "get_local_client", lambda conf_file: client)
    monkeypatch.setitem(llm_runner.__opts__, "conf_file", "master")
    assert getattr(llm, command)(*arguments)["retcode"] == context["retcode"] == 1
    assert capsys.readouterr().out == f"{words}\n"


def test_release_whose_process_was_killed_is_told_as_interrupted(llm, tmp_path, monkeypatch):
    process, kept = llm_lock.this_process(), llm_release.Releases(tmp_path / "releases")
    monkeypatch.setattr(llm_runner, "_releases", lambda: kept)
    for number, started in ((1, "earlier"), (2, process["started"])):
        kept.write(llm_release.begun(number, "deploy", "root", "", process | {"started": started}))
    assert [each["result"] for each in llm.releases()["releases"]] == ["running", "interrupted"]
    assert llm.release(1)["why"] == ["its process was killed"]
