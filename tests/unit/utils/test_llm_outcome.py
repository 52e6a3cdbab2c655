"""
What an orchestration's answer says of what changed and what failed.
"""

import json

import llm_outcome
import pytest


def state(run, identity, result=True, changes=None, comment="as it was"):
    """One state of Salt's answer."""
    return {
        "__run_num__": run,
        "__id__": identity,
        "result": result,
        "changes": changes or {},
        "comment": comment,
    }


@pytest.fixture
def answer(tmp_path):
    """A function that writes an orchestration's answer and returns what is read from it."""

    def write(inner):
        changes = {"out": "highstate", "ret": {"node1": inner}} if inner else {}
        result = all(one["result"] is not False for one in (inner or {}).values())
        steps = {
            "salt_|-second_|-second_|-state": state(
                1, "second step", result, changes, "Run failed"
            ),
            "salt_|-first_|-first_|-state": state(0, "first step"),
        }
        path = tmp_path / "answer.json"
        path.write_text(json.dumps({"data": {"here_master": steps}, "retcode": 0}))
        return llm_outcome.read(path)

    return write


def test_read_without_an_answer_is_empty(tmp_path):
    assert llm_outcome.read(tmp_path / "none") == []
    (tmp_path / "broken").write_text("Exception occurred in runner")
    assert llm_outcome.read(tmp_path / "broken") == []


def test_nothing_changed(answer):
    found = answer({"x": state(0, "the engine answers")})
    assert [truth.id for truth in found] == ["first step", "second step", "the engine answers"]
    assert not any(truth.changed for truth in found)


def test_changes_count_where_they_happened(answer):
    found = answer({"x": state(0, "the engine answers", changes={"engine": "started"})})
    assert [truth.id for truth in found if truth.changed] == ["the engine answers"]


def test_failures_name_the_cause_and_not_what_was_left_out(answer):
    inner = {
        "a": state(0, "head runs", False, comment="exit code 1\nlast line"),
        "b": state(1, "tail runs", False, comment="One or more requisite failed: head runs"),
    }
    said = "\n".join(llm_outcome.failures(answer(inner)))
    assert "node1: head runs:\n    exit code 1\n    last line" in said
    assert "tail" not in said
    assert "second step" not in said


def test_failures_of_a_runner_are_what_it_returned(answer):
    returned = {"retcode": 1, "problems": ["services.head: unknown key", "site.yaml: no hosts"]}
    step = state(0, "The configuration is valid", False, {"return": returned}, "Runner failed")
    found = llm_outcome.truths("here_master", {"salt_|-a_|-a_|-runner": step})
    said = llm_outcome.failures(found)
    assert "    services.head: unknown key" in said
    assert "    site.yaml: no hosts" in said


def test_failures_keep_the_end_of_a_traceback(answer):
    comment = "An exception: Traceback (most recent call last):\n  File x\nKeyError: 'head'\n"
    said = llm_outcome.failures(answer({"a": state(0, "head runs", False, comment=comment)}))
    assert said == ["node1: head runs:", "    KeyError: 'head'"]


def test_what_a_runner_returns_is_no_change():
    step = state(0, "A client gets a completion", True, {"return": {"retcode": 0}})
    (found,) = llm_outcome.truths("here_master", {"salt_|-a_|-a_|-runner": step})
    assert found.changed is False


def test_host_that_does_not_say_what_came_of_its_states(answer):
    step = state(0, "head is healthy", False, {"out": "highstate", "ret": {"node1": False}})
    found = llm_outcome.truths("here_master", {"salt_|-a_|-a_|-state": step})
    (host, *why) = llm_outcome.failures(found)
    assert host == "node1: no answer:"
    assert why == ["    it may still be at what it was told to do"]


def test_states_that_do_not_render_are_a_failure(answer):
    found = llm_outcome.truths("node1", ["Rendering SLS 'base:head' failed"])
    assert "Rendering SLS" in "\n".join(llm_outcome.failures(found))
