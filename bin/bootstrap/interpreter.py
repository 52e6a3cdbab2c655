"""Which Python this may be. Every Python 3 reads this file: an old one is to be told so."""

import sys

READS = (3, 9)  # the oldest that can read the other files here
OLDEST, NEWEST = (3, 11), (3, 13)  # that Salt runs on


def problem(version):
    """Return why Salt does not run on the Python of this ``version``, or an empty string."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return ""
    return (
        f"python3 is {version[0]}.{version[1]} ({sys.executable}): Salt needs 3.11, 3.12 or 3.13;"
        " name one with `make up PYTHON=/usr/bin/python3.13`"
    )
