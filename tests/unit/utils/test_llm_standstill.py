import os
import signal
import subprocess
import sys

PROGRAM = """
import time
import llm_standstill
llm_standstill.longest()
print("begun", flush=True)
input()
time.sleep(1.5)
print(llm_standstill.longest())
"""


def longest(repository, seconds):
    """Return what a process says that was frozen for so many ``seconds``."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repository / "_utils")},
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    try:
        subprocess.run(["sleep", str(seconds)], check=True)
    finally:
        process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("\n", timeout=60)
    return float(said)


def test_process_that_was_frozen(repository):
    assert longest(repository, 4) >= 2.9


def test_process_that_was_not(repository):
    assert longest(repository, 0) < 3
