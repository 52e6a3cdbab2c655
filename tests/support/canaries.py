"""
Values that are found again wherever they leak to: as they are, in base64, URL-encoded.
"""

import base64
import secrets
import urllib.parse
from pathlib import Path


def canary(number):
    """Return a value that occurs nowhere else, with characters that encodings change."""
    return f"LK-{number}-{secrets.token_hex(8)}+/{secrets.token_hex(8)}="


def traces(value):
    """Return what ``value`` may look like, as bytes: a part of each is enough to give it away."""
    found = {value, value.split("+")[0], urllib.parse.quote(value, safe="")}
    for shift in range(3):  # base64 of a longer text has it at one of three places
        encoded = base64.b64encode(b"x" * shift + value.encode()).decode()
        found.add(encoded[4 if shift else 0 : -4])
    return {text.encode() for text in found}


class Search:
    """
    A search for the values of ``canaries``, a mapping of name to value.
    """

    def __init__(self, canaries):
        self.traces = {name: traces(value) for name, value in canaries.items()}

    def named(self, content):
        """Return the names of the secrets in ``content``, text or bytes."""
        content = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        return [
            name for name, forms in self.traces.items() if any(map(content.__contains__, forms))
        ]

    def below(self, folder):
        """Return ``{path: [name]}`` of the files below ``folder`` that hold some."""
        found = {}
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink() and (names := self.named(_content(path))):
                found[path] = names
        return found


def _content(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:  # gone in the meantime
        return b""
