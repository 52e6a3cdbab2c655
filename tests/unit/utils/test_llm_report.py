import llm_report
import pytest

QUIET = {"files": {}, "live_files": {}, "certificate": [], "routes": False}
NONE = {"effect": "none", "seconds": 0}
SUMMARY = {
    "changes": True,
    "actions": {"replace": 3, "create": 1, "none": 12},
    "preparations": 0,
    "unlimited": 0,
    "gaps": {},
    "ends": [],
    "seconds": 330,
}


def action(do, *causes, replica=1):
    return {"action": do, "replica": replica, "container": "c", "causes": list(causes)}


def service(tier, *actions, traffic=NONE, seconds=0, **more):
    found = {"tier": tier, "actions": list(actions), "traffic": traffic, "seconds": seconds}
    return QUIET | found | more


@pytest.fixture
def found():
    """What `salt-run llm.plan` has found."""
    image = {"what": "image", "name": "head 1.3", "do": "build", "causes": ["for head"]}
    services = {
        "old": service(None, action("remove", "it is not wanted"), files={"/x/old": "remove"}),
        "head": service(3, action("replace", "image 1.2 → 1.3"), action("none", replica=2),
                        seconds=200),
        "cache": service(2, action("replace", "memory [1g] → 2g"), seconds=70,
                         traffic={"effect": "gap", "seconds": 70}),
        "tail": service(4, action("none"), live_files={"a.yaml": "change"}, routes=True,
                        certificate=["it runs out in 3 days"], files={"b.yaml": "create"}),
    }  # fmt: skip
    host = {"preparations": [image], "services": services, "problems": []}
    return {"hosts": {"node1": host}, "silent": [], "problems": [], "summary": SUMMARY}


def test_plan_shows_hosts_and_tiers_in_their_order(found):
    lines = [" ".join(line.split()) for line in llm_report.plan(found).splitlines()]
    assert lines[0] == "node1"
    assert lines[4:-1] == [
        "before image head 1.3 build for head nothing -",
        "2 cache 1 replace memory [1g] → 2g a gap of at most 70 s 70 s",
        "3 head 1 replace image 1.2 → 1.3 nothing 4 min",
        "4 tail write read without a restart: a.yaml nothing -",
        "tail write b.yaml nothing -",
        "tail renew certificate: it runs out in 3 days nothing -",
        "tail route requests do not go to the containers that run nothing -",
        "outside old 1 remove it is not wanted nothing 0 s",
    ]
    assert lines[-1] == "1 to create, 3 to replace, 12 unchanged; no request is lost; at most 6 min"


def test_plan_shows_the_files_of_a_service_that_is_gone(found):
    found["hosts"]["node1"]["services"] = {"old": service(None, files={"/x/old": "remove"})}
    assert "outside old remove /x/old" in " ".join(llm_report.plan(found).split())


def test_plan_of_nothing_to_do(found):
    found["hosts"]["node1"] = {"preparations": [], "services": {}, "problems": []}
    found["summary"] = SUMMARY | {"changes": False}
    assert llm_report.plan(found) == "Nothing to do"


def test_plan_with_problems(found):
    found["hosts"] = {}
    found["problems"] = ["node1: no answer"]
    assert llm_report.plan(found) == (
        "Problem: node1: no answer\nA deploy would fail, or cannot be foreseen: 1 problem"
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gaps": {"cache": 70}}, "; cache has a gap of at most 70 s; "),
        ({"ends": ["old"]}, "; old serves no more; "),
        ({"preparations": 2, "unlimited": 2}, ", 2 to prepare first; "),
        ({"unlimited": 2}, "at most 6 min and what 2 downloads or builds take"),
    ],
)
def test_outcome(changed, words):
    assert words in llm_report.outcome(SUMMARY | changed)


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ("none", "nothing"),
        ("gap", "a gap of at most 12 s"),
        ("starts", "serves from then on"),
        ("ends", "serves no more"),
    ],
)
def test_noticed(effect, words):
    assert llm_report.noticed({"effect": effect, "seconds": 12}) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (44.2, "45 s"),
        (90, "90 s"),
        (91, "2 min"),
        (3540, "59 min"),
        (3901, "1 h 6 min"),
    ],
)
def test_duration(seconds, words):
    assert llm_report.duration(seconds) == words


ONE, TWO, THREE = (f"2026-01-01T00:00:00.00000000{number}Z" for number in (1, 2, 3))


def test_unseen_leaves_out_what_was_shown():
    shown = {}
    assert llm_report.unseen("a", [f"{ONE} one", f"{TWO} two"], shown) == ["one", "two"]
    assert llm_report.unseen("a", [f"{TWO} two", f"{THREE} three"], shown) == ["three"]
    assert llm_report.unseen("a", [f"{TWO} two", f"{THREE} three"], shown) == []
    assert llm_report.unseen("b", [f"{ONE} one"], shown) == ["one"]
    assert shown == {"a": THREE, "b": ONE}


def test_unseen_keeps_the_pieces_of_a_line_together():
    shown = {"a": ONE}
    said = [f"{ONE} 10 %", "20 %", f"{TWO} 30 %", "40 %"]
    assert llm_report.unseen("a", said, shown) == ["30 %", "40 %"]


def test_unseen_of_two_streams_that_were_written_at_once():
    shown = {}
    llm_report.unseen("a", [f"{THREE} three", f"{TWO} two"], shown)
    assert llm_report.unseen("a", [f"{THREE} three"], shown) == []


def test_status_says_below_the_table_why_services_are_not_looked_after():
    service = {"version": "1", "image": "llm/head:1", "healthy": 0, "wanted": 1, "since": None}
    service |= dict.fromkeys(("restarts", "memory", "memory_limit", "cpus", "cpus_limit"), 0)
    held = "maintenance of node1 until 2027-01-15T08:00:00+00:00: a closer [look]\nat it"
    shown = llm_report.status({"node1": {
        "head": service | {"watch": held}, "tail": service | {"watch": None},
        "mesh": service | {"watch": "given up"}, "cache": service | {"watch": held},
    }, "node2": None}).splitlines()  # fmt: skip
    starred = [line.split()[1] for line in shown if "0 of 1 *" in line]
    assert starred == ["head", "mesh", "cache"]
    assert shown[-2:] == [
        f"* node1: head, cache: {held.replace(chr(10), ' ')}",
        "* node1: mesh: given up",
    ]


def test_plan_says_what_is_in_maintenance_and_changed_all_the_same(found):
    services = found["hosts"]["node1"]["services"]
    for name in ("head", "cache"):
        services[name]["maintenance"] = f"maintenance of {name} until noon: a look"
    services["cache"]["actions"] = [action("none")]
    lines = llm_report.plan(found).splitlines()
    assert [line for line in lines if "maintenance" in line] == [
        "node1: head: maintenance of head until noon: a look; a deploy does not heed it"
    ]


def test_errors_are_shown_and_where_there_are_none_that_is_said():
    assert llm_report.errors({"a": ["an error"], "b": [], "c": []}, 50) == [
        "a: an error",
        "No errors in the last 50 lines of b, c",
    ]
    assert llm_report.errors({"a": ["an error"]}, 50) == ["an error"]
