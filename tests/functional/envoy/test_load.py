"""
The load generator sees what fails; without this, no failed request would mean nothing.
"""

import pytest

from tests.support.load import Load, flaw_of

WHOLE = 'data: {"choices": []}\n\ndata: [DONE]\n\n'


@pytest.fixture
def settings(edge):
    """The settings of a client."""
    return {
        "base_url": f"https://localhost:{edge.ports['public']}/v1",
        "ca_file": str(edge.folder / "tls/tail/ca.pem"),
        "api_key": "canary-1",
    }


@pytest.mark.parametrize(
    ("status", "text", "streamed", "flaw"),
    [
        (200, '{"choices": []}', False, ""),
        (200, WHOLE, True, ""),
        (503, '{"error": {}}', False, '503: {"error": {}}'),
        (200, "", False, "no answer: "),
        (200, "", True, "cut off: "),
        (200, WHOLE.replace("data: [DONE]\n\n", ""), True, 'cut off: data: {"choices": []}\n\n'),
        (200, 'data: {"error": {}}\n\n' + WHOLE, True, 'broken off: {"error": {}}'),
    ],
)
def test_flaw_of_an_answer(status, text, streamed, flaw):
    assert flaw_of(status, text, streamed) == flaw


def test_load_of_what_is_well(edge, settings):
    edge.head.delay = 0.01
    with Load(settings, rate=50) as load:
        load.flow(40)
    assert load.failures == []
    assert len(load.latencies) == len(load.outcomes) >= 40
    assert {outcome.streamed for outcome in load.outcomes} == {True, False}
    assert {outcome.kept for outcome in load.outcomes} == {True, False}


@pytest.mark.parametrize("mode", ["fail", "reset"])
def test_load_of_what_fails(edge, settings, mode):
    edge.head.mode = mode
    with Load(settings, rate=50) as load:
        load.flow(10)
    assert len(load.failures) == len(load.outcomes)
    assert load.latencies == []
    assert load.failures[0].request_id


def test_load_of_nobody(settings):
    with Load(settings | {"base_url": "https://localhost:9/v1"}, rate=50) as load:
        load.flow(10)
    assert load.failures[0].flaw.startswith("ConnectError")
