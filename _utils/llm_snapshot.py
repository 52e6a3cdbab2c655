"""
Copies of the files that services read again whenever they change, to be able to go back.
"""

import filecmp
import os
import pathlib
import shutil

LIVE = "live"  # the folder of those files in the folder of each service


def take(services, target):
    """
    Copy the live files of every service in folder ``services`` to the new folder ``target``.
    """
    remove(target)
    for folder in pathlib.Path(services).glob(f"*/{LIVE}"):
        copy = pathlib.Path(target, folder.parent.name)
        copy.mkdir(mode=0o700, parents=True)
        for file in folder.iterdir():
            _copy(file, copy / file.name)


def differences(services, snapshot):
    """
    Return which live files in folder ``services`` are not as in ``snapshot``: ``{service:
    [file]}``.
    """
    found = {}
    names = {path.parent.name for path in pathlib.Path(services).glob(f"*/{LIVE}")}
    names |= {path.name for path in pathlib.Path(snapshot).glob("*")}
    for service in sorted(names):
        now, then = pathlib.Path(services, service, LIVE), pathlib.Path(snapshot, service)
        files = {path.name for folder in (now, then) for path in folder.glob("*")}
        changed = [file for file in sorted(files) if not _same(now / file, then / file)]
        if changed:
            found[service] = [f"{file} changed" for file in changed]
    return found


def restore(snapshot, services, service):
    """
    Move the live files of ``service`` into place as they are in ``snapshot``; return the names of
    those that differed.
    """
    then, now = pathlib.Path(snapshot, service), pathlib.Path(services, service, LIVE)
    changed = []
    for file in sorted(then.glob("*")):
        if not _same(now / file.name, file):
            new = now.parent / f".{file.name}.new"
            _copy(file, new)
            new.replace(now / file.name)
            changed.append(file.name)
    return changed


def retain(folder, number):
    """
    Remove from ``folder``, whose folders are called by the numbers of releases, all but the last
    ``number`` of them.
    """
    found = [path for path in pathlib.Path(folder).glob("[0-9]*") if path.name.isdecimal()]
    for path in sorted(found, key=lambda each: int(each.name))[:-number]:
        remove(path)


def remove(target):
    """
    Remove the folder ``target``, if it is there.
    """
    shutil.rmtree(target, ignore_errors=True)


def _same(one, other):
    return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)


def _copy(source, target):
    """Copy a file with its mode and its owner."""
    target.unlink(missing_ok=True)
    shutil.copy2(source, target)
    owner = os.stat(source)
    os.chown(target, owner.st_uid, owner.st_gid)
