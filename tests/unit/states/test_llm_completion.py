import pytest

from _states import llm_completion as llm_completion_state

ANSWER = {
    "retcode": 0,
    "model": "tiny",
    "tokens": 8,
    "total": 0.05,
    "first_token": 0.02,
    "hops": {"tail": 0.01, "head": 0.04},
}


@pytest.fixture
def ask(configure_loader):
    def ask(answer, test=False):
        asked = []
        runner = {"saltutil.runner": lambda name: asked.append(name) or answer}
        module = configure_loader(llm_completion_state, salt=runner, test=test)
        return module.answered("A client gets a completion"), asked

    return ask


def test_answered_says_where_the_time_went(ask):
    ret, asked = ask(ANSWER)
    assert (ret["result"], ret["changes"], asked) == (True, {}, ["llm.verify"])
    assert "50.0 ms (tail 10.0, head 40.0)" in ret["comment"]


def test_answered_fails_with_what_went_wrong(ask):
    ret, _ = ask({"retcode": 1, "error": "mesh cannot reach head: 503"})
    assert (ret["result"], ret["comment"]) == (False, "mesh cannot reach head: 503")


def test_answered_asks_nothing_in_test_mode(ask):
    ret, asked = ask(ANSWER, test=True)
    assert (ret["result"], ret["changes"], asked) == (True, {}, [])
