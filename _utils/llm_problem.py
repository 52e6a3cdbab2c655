"""
Mistakes as people read them: where, what was found, what is expected, what was perhaps meant.
"""

import difflib
import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """
    One mistake in the pillar: where it is, what was found, what is expected instead.
    """

    path: tuple
    found: str
    expected: str
    hint: str = ""

    def text(self, file=None, line=None, raw=None):
        """
        Return the mistake as one line, as people read it. ``raw`` is the text that YAML read.
        """
        file = file or self.file()
        path = self.path[1:] if file.endswith("site.yaml") else self.path
        where = f"{file}:{line}" if line else file
        return f"{where}: {self.line(path, raw)}"

    def line(self, path=None, raw=None):
        """
        Return the mistake as `text` does, without a file.
        """
        shown = raw and not is_private(self.path)
        hint = self.hint.replace("{raw}", f'"{raw}"' if shown else "it")
        parts = [self.found, f"expected {self.expected}" if self.expected else "", hint]
        path = self.path if path is None else path
        return f"{key_path(path)}: " + "; ".join(part for part in parts if part)

    def file(self):
        """
        Return the file that most probably holds the mistake.
        """
        if self.path[:1] == ("site",):
            return "pillar/site.yaml"
        if self.path[:1] == ("secrets",) and len(self.path) > 1:
            return f"pillar/secrets/{self.path[1]}.sls"
        return "pillar/services.sls"


def key_path(path):
    """
    Return ``("hosts", "node1", "roles", 0)`` as ``hosts.node1.roles[0]``.
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def unknown(path, kind, names, name=None):
    """
    Return the problem of a name that is none of ``names``. ``name`` is the end of ``path`` if
    not given.
    """
    name = path[-1] if name is None else name
    return Problem(path, f'unknown {kind} "{name}"', "", hint(name, sorted(map(str, names))))


def hint(name, names):
    """
    Return what was perhaps meant by ``name``, or which ``names`` there are.
    """
    return guess(name, names) or f"there are {', '.join(names) or 'none'}"


def guess(name, names):
    """
    Return ``did you mean "head"?`` for ``hed``, or an empty string.
    """
    lowered = {str(known).lower(): known for known in names}
    name = str(name).lower()
    near = difflib.get_close_matches(name, lowered, 1, 0.7)
    if len(name) > 2:
        near += [
            one for one in sorted(lowered) if one.startswith(name) or name.startswith(one + ".")
        ]
    return f'did you mean "{lowered[near[0]]}"?' if near else ""


def is_private(path):
    """
    Return whether what stands at ``path`` may be secret: it is not to be shown.
    """
    return "environment" in path[:-1] or any(_PRIVATE.search(str(part)) for part in path)


def described(value, path=()):
    """
    Return what was found, in words; of what may be secret only its type.
    """
    if value is None:
        return "found nothing"
    if isinstance(value, dict):
        return "found a mapping"
    if isinstance(value, list | tuple):
        return "found a list"
    if is_private(path):
        return f"found {_KINDS.get(type(value), 'something else')} (not shown)"
    if isinstance(value, bool):
        return f"found {str(value).lower()}"
    if isinstance(value, int | float):
        return f"found {value}"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return f"found {text}" if len(text) <= 60 else f'found {text[:56]}..."'
    return f"found a {type(value).__name__}"


_KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number"}
_PRIVATE = re.compile(r"(?i)secret|password|passwd|token|key|url|api_base")
