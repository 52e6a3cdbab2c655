from unittest.mock import create_autospec

import llm_diagnosis
import llm_engine
import pytest
from salt.exceptions import CommandExecutionError

OOM = {"Action": "oom"}


def die(code):
    return {"Action": "die", "Actor": {"Attributes": {"exitCode": str(code)}}}


@pytest.fixture
def events():
    return []


@pytest.fixture
def engine(events):
    engine = create_autospec(llm_engine.Engine, instance=True)
    engine.events.side_effect = lambda container, kind, since, until: [
        event for event in events if event["Action"] == kind
    ]
    return engine


def found(status, restarts=0, memory=32 << 20, **state):
    state = {"Status": status, "OOMKilled": False, "ExitCode": 0, "Error": ""} | state
    return {
        "Id": "abc",
        "RestartCount": restarts,
        "State": state,
        "HostConfig": {"Memory": memory},
    }


UNKNOWN = None


@pytest.mark.parametrize(
    ("before", "now", "events", "fate"),
    [
        (UNKNOWN, None, [], "there is no such container"),
        (UNKNOWN, found("running"), [], None),
        (UNKNOWN, found("running", restarts=3), [], None),
        (UNKNOWN, found("running", OOMKilled=True), [], None),
        (UNKNOWN, found("paused"), [], None),
        (found("running"), found("running"), [], None),
        (UNKNOWN, found("created"), [], "it was not started: nobody asked for it"),
        (
            UNKNOWN,
            found("created", Error="no such file: /bin/x"),
            [],
            "it was not started: no such file: /bin/x",
        ),
        (UNKNOWN, found("exited", ExitCode=3), [], "it has exited: exit code 3"),
        (UNKNOWN, found("dead", ExitCode=255), [], "it has exited: exit code 255"),
        (
            UNKNOWN,
            found("exited", ExitCode=137, OOMKilled=True),
            [],
            "killed: out of memory (limit 32m)",
        ),
        (
            UNKNOWN,
            found("exited", memory=0, ExitCode=137, OOMKilled=True),
            [],
            "killed: out of memory (limit none, the host's)",
        ),
        (
            UNKNOWN,
            found("restarting", restarts=2, ExitCode=1),
            [die(1)],
            "it crashes and is started again: exit code 1",
        ),
        (
            found("running"),
            found("running", restarts=1),
            [die(4), die(5)],
            "it crashes and is started again: exit code 5",
        ),
        (
            found("running", restarts=1),
            found("running", restarts=2),
            [OOM, die(137)],
            "killed: out of memory (limit 32m)",
        ),
    ],
)
def test_fate(engine, events, before, now, fate):
    assert llm_diagnosis.fate(engine, now, before) == fate


def test_fate_of_another_container_of_that_name_is_open(engine):
    before = found("running", restarts=0)
    now = found("running", restarts=1) | {"Id": "other"}
    assert llm_diagnosis.fate(engine, now, before) is None


@pytest.mark.parametrize(
    ("now", "events", "words"),
    [
        (found("running"), [], "running, restarts 0"),
        (
            found("running", Health={"Status": "unhealthy"}),
            [],
            "running, unhealthy, restarts 0",
        ),
        (found("exited", ExitCode=3), [], "exited, exit code 3, restarts 0"),
        (
            found("running", restarts=2, memory=1 << 30),
            [OOM, die(137)],
            "running, exit code 137, out of memory (limit 1g), restarts 2",
        ),
    ],
)
def test_describe(engine, events, now, words):
    assert llm_diagnosis.describe(engine, now) == words


def test_fate_of_what_was_killed_waits_for_word_of_its_memory(engine):
    engine.events.side_effect = [[], [], [OOM]]
    killed = found("exited", ExitCode=137)
    assert llm_diagnosis.fate(engine, killed) == "killed: out of memory (limit 32m)"


def test_fate_of_what_was_killed_for_another_reason(engine):
    assert llm_diagnosis.fate(engine, found("exited", ExitCode=137)) == (
        "it has exited: exit code 137"
    )


def test_describe_without_the_engines_events(engine):
    engine.events.side_effect = CommandExecutionError("gone")
    assert llm_diagnosis.describe(engine, found("running", restarts=2)) == "running, restarts 2"


def test_log_is_without_colours(engine):
    engine.logs.return_value = ["\x1b[31;1mred\x1b[0m\tand\x07 more\r", "ü"]
    assert llm_diagnosis.log(engine, "x") == ["red\tand more", "ü"]


def test_log_that_cannot_be_read_says_so(engine):
    engine.logs.side_effect = llm_engine.EngineError("driver does not support reading", 501)
    words = "(the log cannot be read: driver does not support reading)"
    assert llm_diagnosis.log(engine, "x") == [words]
