"""
Small records on disk, a file of JSON each, written whole or not at all.
"""

import json
import pathlib

from salt.exceptions import CommandExecutionError


def read(path):
    """
    Return the record in the file at ``path``, or ``None`` where there is no file.

    Raises ``CommandExecutionError`` with what to do where the file holds something else.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise CommandExecutionError(f"{path} is damaged: {err}; remove it") from None
    if not isinstance(found, dict):
        raise CommandExecutionError(f"{path} is damaged: it holds no record; remove it")
    return found


def write(path, record):
    """
    Keep ``record`` in the file at ``path``, for its owner alone.
    """
    pathlib.Path(path).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    new = pathlib.Path(path).with_name(f".{pathlib.Path(path).name}.new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(path)
