import io

import llm_progress
import pytest

STEP = {"pillar": {"llm_deploy": 7, "llm_step": "head is healthy"}, "__kwarg__": True}
STATES = {"fun": "state.sls", "arg": [["head.running", "head.healthy"], STEP]}
VERIFY = {"fun": "runner.llm.verify"}


@pytest.fixture
def told():
    """A function that returns the lines that release 7 makes of events, and what it waits for."""
    progress = llm_progress.Progress({}, 7, io.StringIO())

    def told(*events):
        for tag, data in events:
            progress.hear(tag, data)
        lines = progress.out.getvalue().splitlines()
        return [line.partition(" s  ")[2] for line in lines], progress.now

    return told


def new(data, *hosts):
    return ("salt/job/1/new", {"minions": list(hosts), **data})


def ret(host, **data):
    return (f"salt/job/1/ret/{host}", {"success": True, "retcode": 0, **data})


def test_step_is_told_by_its_sentence_with_the_hosts_that_are_still_at_it(told):
    begun = new(STATES, "node1", "node2")
    assert told(begun, ret("node2")) == (
        ["node1, node2: head is healthy: under way", "node2: head is healthy: done"],
        "node1: head is healthy: under way",
    )
    lines, now = told(ret("node1", retcode=2))
    assert lines[-1] == now == "node1: head is healthy: failed"


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("llm_deploy.begin", [7], "takes part"),
        ("llm_deploy.take_back", [7, ["head", "tail"]], "takes back head, tail"),
        ("llm_deploy.go_to", [7, 5, {"head": {}, "tail": {}}], "goes to release 5 with head, tail"),
        ("llm_deploy.end", [7, "taken back"], "notes the release as taken back"),
    ],
)
def test_what_a_host_does_is_told_in_words(told, function, arguments, words):
    lines, _ = told(new({"fun": function, "arg": arguments}, "node1"), ret("node1"))
    assert lines == [f"node1: {words}: under way", f"node1: {words}: done"]


def test_questions_of_somebody_else_are_not_told(told):
    both = {"fun": ["llm_deploy.begin", "test.ping"], "arg": [[7], []]}
    assert told(new(both, "node1"), new({"fun": "llm_deploy.begin", "arg": [8]}, "node1"))[0] == []


def test_completion_is_waited_for(told):
    assert told(("salt/run/2/new", VERIFY))[1] == "A client gets a completion: under way"
    lines, _ = told(("salt/run/2/ret", VERIFY | {"success": False}))
    assert lines[-1] == "A client gets a completion: failed"


def test_what_is_no_part_of_the_release_is_not_told(told):
    other = {"pillar": {"llm_deploy": 6, "llm_step": "head is healthy"}}
    assert told(
        new({"fun": "state.sls", "arg": [["head.running"], other]}, "node1"),
        new({"fun": "llm_deploy.begin", "arg": [6]}, "node1"),
        new({"fun": "test.ping", "arg": []}, "node1"),
        ret("node1"),
        ("salt/run/2/new", {"fun": "runner.llm.status"}),
        ("salt/run/2/ret", {"fun": "runner.llm.status"}),
    ) == ([], "the pillar is checked")


def test_what_a_host_tells_itself_is_told(told):
    event = {"id": "node1", "data": {"text": "head waits 5 s more at most"}}
    assert told(("llm/progress/node1", event))[0] == ["node1: head waits 5 s more at most"]
