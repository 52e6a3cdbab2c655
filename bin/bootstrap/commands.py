"""The commands behind the Makefile: up, down, purge, environment, test, soak."""

import argparse
import fcntl
import os
import signal
import sys

from . import down, testing, up
from .installation import REPOSITORY, Installation
from .progress import Failure

ENDINGS = signal.SIGTERM, signal.SIGHUP


def main():
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="bootstrap", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring the platform up")
    commands.add_parser("down", help="stop the platform, keep its data")
    purge = commands.add_parser("purge", help="remove every trace of the platform")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    packages = commands.add_parser("environment", help="bring .venv to a lock of requirements/")
    packages.add_argument("lock", choices=("platform", "tests"), nargs="?", default="platform")
    tests = commands.add_parser("test", help="run the tests")
    tests.add_argument("suites", nargs="*", metavar="suite", help="unit, functional, integration")
    soak = commands.add_parser("soak", help="change and break a platform at random, under load")
    soak.add_argument("--minutes", type=float, default=10)
    soak.add_argument("--seed", type=int, help="which steps; without it another one each time")
    soak.add_argument("--steps", type=int, help="how many, in place of minutes")
    arguments = parser.parse_args()
    os.umask(0o022)
    hear_endings()
    try:
        with only_one():
            return run(arguments)
    except Failure as failure:
        print(
            f"\nmake {arguments.command} stopped:", *failure.problems, sep="\n  ", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. `make {arguments.command}` goes on from here.", file=sys.stderr)
        return 130


def hear_endings():
    """
    Let a time limit or a terminal that goes away end this as Ctrl-C does: else the command at work
    would go on without anybody.
    """
    heard = [each for each in ENDINGS if signal.getsignal(each) != signal.SIG_IGN]  # as of `nohup`

    def interrupt(*_):
        for each in heard:
            signal.signal(each, signal.SIG_IGN)  # `make` says it as well
        raise KeyboardInterrupt

    for each in heard:
        signal.signal(each, interrupt)


def run(arguments):
    """Do what ``arguments`` say."""
    if arguments.command == "environment":
        return up.environment_alone(arguments.lock)
    if arguments.command == "up":
        return up.up(Installation())
    if arguments.command == "test":
        return testing.test(arguments.suites or testing.SUITES)
    if arguments.command == "soak":
        return testing.soak(arguments.minutes, arguments.seed, arguments.steps)
    if arguments.command == "down":
        return down.down(Installation(forgiving=True))
    return down.purge(Installation(forgiving=True), arguments.yes)


class only_one:
    """Let one of these commands run at a time in a checkout."""

    def __enter__(self):
        self.handle = os.open(REPOSITORY / "Makefile", os.O_RDONLY)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure("another `make` of this checkout is at work: wait for its end") from None

    def __exit__(self, *_):
        os.close(self.handle)
