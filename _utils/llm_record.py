"""
Small files of JSON that are there whole or not at all, for root alone.
"""

import json

from salt.exceptions import CommandExecutionError


def read(path):
    """
    Return what the file at ``path`` holds, ``None`` when there is none.

    Raises ``CommandExecutionError`` when it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise CommandExecutionError(f"{path}: {err}") from None


def write(path, data):
    """
    Let the file at ``path`` hold ``data`` from now on.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(data, indent=1) + "\n")
    new.replace(path)
