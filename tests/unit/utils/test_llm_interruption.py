"""Signals that reach a block, whatever it is at."""

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time

import llm_interruption
import pytest


def interrupt(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


class Closed:
    """Is interrupted while it is taken away, where an exception would be dropped."""

    whole = False

    def __del__(self):
        interrupt()
        time.sleep(0.1)
        Closed.whole = True


@pytest.fixture(autouse=True)
def handlers():
    """Are as before when the block is left."""
    before = [signal.getsignal(each) for each in llm_interruption.SIGNALS]
    yield
    assert [signal.getsignal(each) for each in llm_interruption.SIGNALS] == before


def ends(action):
    """Assert that the interruption in ``action`` ends the block in which that is run."""
    with pytest.raises(SystemExit), llm_interruption.heard():
        _run(action)


def _run(action):
    action()
    time.sleep(5)
    pytest.fail("was not heard")


def test_block_without_a_signal():
    with llm_interruption.heard():
        pass


@pytest.mark.parametrize("number", llm_interruption.SIGNALS)
def test_signal_ends_the_block(number):
    ends(lambda: interrupt(number))


class Made:
    """Is interrupted while it is made, and could not be taken away without all of it."""

    def __init__(self):
        interrupt()
        time.sleep(0.1)
        self.whole = True

    def __del__(self):
        assert self.whole


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_signal_while_something_is_made_ends_the_block_after_that():
    ends(Made)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_signal_while_something_is_closed_ends_the_block_after_that():
    ends(Closed)
    assert Closed.whole


def test_signal_in_a_callback_of_an_event_loop_ends_the_block_after_that(caplog):
    async def question():
        interrupt()
        time.sleep(0.1)

    def asked():
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.call_later(0.2, loop.stop)
            task = loop.create_task(question())
            loop.run_forever()
        assert task.done()

    ends(asked)
    gc.collect()
    assert not caplog.messages


def test_signal_is_raised_during_a_close_that_does_not_end(monkeypatch):
    monkeypatch.setattr(llm_interruption, "PATIENCE", 0.1)

    def close():
        interrupt()
        time.sleep(5)

    ends(close)


def test_signal_that_somebody_has_caught_comes_again(monkeypatch):
    monkeypatch.setattr(llm_interruption, "AGAIN", 0.1)

    def caught():
        with contextlib.suppress(SystemExit):
            interrupt()

    ends(caught)


def test_signal_that_somebody_has_caught_is_raised_at_the_end_of_the_block():
    with pytest.raises(SystemExit), llm_interruption.heard(), contextlib.suppress(SystemExit):
        interrupt()


def test_failure_that_comes_of_a_signal_that_somebody_has_caught_is_none():
    def fails():
        with contextlib.suppress(SystemExit):
            interrupt()
        raise KeyError("state.sls")

    ends(fails)


def test_failure_without_a_signal_is_raised():
    with pytest.raises(KeyError, match="other"), llm_interruption.heard():
        raise KeyError("other")


def test_signal_in_a_block_that_is_carried_through():
    with llm_interruption.ignored():
        interrupt()
        ends(interrupt)
        interrupt()


def test_block_in_another_thread_is_run_as_it_is():
    done = []

    def run():
        with llm_interruption.heard():
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done
