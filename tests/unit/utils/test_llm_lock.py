import json
import os
import signal
import subprocess
import sys
import time

import llm_lock
import pytest
from salt.exceptions import CommandExecutionError

TAKE = """
import sys, time
import llm_lock
try:
    llm_lock.Lock(sys.argv[1]).take("deploy", int(sys.argv[2]))
except llm_lock.Locked as err:
    raise SystemExit(3)
except Exception as err:
    print(err)
    raise SystemExit(4)
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deploys" / "lock.json"


@pytest.fixture
def lock(path):
    return llm_lock.Lock(path)


@pytest.fixture
def start(path, repository):
    """A function that starts a process which takes the lock and keeps it; ended afterwards."""
    started = []

    def start(number=1):
        environment = {**os.environ, "PYTHONPATH": str(repository / "_utils")}
        argv = [sys.executable, "-c", TAKE, str(path), str(number)]
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def other(start):
    """Another process, which has the lock."""
    process = start()
    assert process.stdout.readline() == "taken\n"
    return process


def test_lock_that_nobody_has_taken(lock, path):
    assert lock.holder() is None
    assert lock.next() == 1
    assert not lock.is_mine()
    assert lock.free() is None
    assert not path.exists()


def test_take_names_its_owner(lock):
    record = lock.take("deploy", 1)
    assert lock.holder() == record
    assert (record["number"], record["what"], record["pid"]) == (1, "deploy", os.getpid())
    assert record["who"]
    assert lock.is_mine()
    assert lock.next() == 2


def test_take_of_one_that_is_taken(lock, other):
    with pytest.raises(llm_lock.Locked) as refused:
        lock.take("deploy", 2)
    assert f"deploy (release 1) of {llm_lock.who()} since " in str(refused.value)
    assert f"process {other.pid} on " in str(refused.value)
    assert str(refused.value).endswith("; llm.deploy waits for that with wait=SECONDS")
    assert refused.value.holder["pid"] == other.pid
    assert not lock.is_mine()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_lock_of_one_who_is_dead_is_free(lock, other, how):
    other.send_signal(how)
    other.wait()
    assert lock.holder() is None
    assert lock.take("deploy", 2)["number"] == 2


def test_lock_of_one_who_is_frozen_is_not_free(lock, other):
    other.send_signal(signal.SIGSTOP)
    with pytest.raises(llm_lock.Locked):
        lock.take("deploy", 2)


def test_lock_of_an_earlier_boot_is_free(lock, path):
    lock.take("deploy", 1)
    text = path.read_text()
    path.write_text(text.replace(json.loads(text)["holder"]["started"], "earlier:1"))
    assert lock.holder() is None


def test_lock_by_hand_outlives_its_process(path, repository):
    program = f"import llm_lock; llm_lock.Lock({str(path)!r}).take('audit', by_hand=True)"
    environment = {**os.environ, "PYTHONPATH": str(repository / "_utils")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    lock = llm_lock.Lock(path)
    with pytest.raises(llm_lock.Locked, match="audit of .*, by hand"):
        lock.take("deploy", 1)
    assert lock.free()["what"] == "audit"
    assert lock.take("deploy", 1)


def test_take_of_a_number_that_another_release_has(lock):
    number = lock.next()
    lock.take("deploy", number)
    lock.free()
    with pytest.raises(CommandExecutionError, match="release 1 came in between"):
        lock.take("deploy", number)
    assert lock.holder() is None


def test_two_at_once_twenty_times(lock, start):
    for number in range(1, 21):
        both = [start(number), start(number)]
        deadline = time.monotonic() + 30
        while sum(each.poll() is None for each in both) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        (loser,) = (each for each in both if each.poll() is not None)
        (winner,) = (each for each in both if each is not loser)
        assert winner.stdout.readline() == "taken\n"
        assert loser.returncode == 3
        assert lock.holder()["pid"] == winner.pid
        winner.kill()
        winner.wait()


def test_shorter_record_over_a_longer_one(lock):
    lock.take("a deploy with a name that is long" * 20, 1)
    lock.free()
    lock.take("x", 2)
    assert lock.holder()["what"] == "x"


@pytest.mark.parametrize("text", ["what?", "[]", "\0\xff"])
def test_file_that_is_something_else(lock, path, text):
    path.parent.mkdir()
    path.write_text(text)
    for asked in (lock.holder, lambda: lock.take("deploy", 1)):
        with pytest.raises(CommandExecutionError, match=f"{path} is damaged: .*; remove it"):
            asked()


def test_folder_in_place_of_the_file(lock, path):
    path.mkdir(parents=True)
    with pytest.raises(CommandExecutionError, match=f"{path}: Is a directory"):
        lock.holder()


def test_who_is_behind_sudo(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "ada")
    assert llm_lock.who() == "ada"
