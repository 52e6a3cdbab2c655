"""Tell a Python that cannot read the rest, in words that it can read; else run the command."""

import sys

from . import interpreter


def main():
    """Run one command; return the exit code."""
    if sys.version_info < interpreter.READS:
        print("\nmake stopped:\n  " + interpreter.problem(sys.version_info), file=sys.stderr)
        return 1
    from . import commands

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
