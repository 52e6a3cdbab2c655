"""Salt's configuration for this machine, from the templates in `conf/`."""

import os
from pathlib import Path
from string import Template

from . import variables
from .installation import REPOSITORY, write

TEMPLATES = Path(__file__).parent / "conf"
LINK = REPOSITORY / ".salt"  # what the Saltfile names
PRIVATE = (
    "conf", "cache", "cache/master", "cache/master/proc", "gpgkeys", "log", "pki", "run",
    "supervisor",
)  # fmt: skip


def values(installation):
    """Return what the templates ask for."""
    return {
        "repository": REPOSITORY,
        "pillar": installation.pillar,
        "root": installation.root,
        "salt": installation.salt,
        "name": installation.name,
        "id": installation.host(),
        "address": installation.address(),
        "publish_port": installation.publish_port,
        "return_port": installation.return_port,
    }


def ensure(installation):
    """Write what is missing or differs; return the files that changed."""
    installation.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    os.chmod(installation.root, 0o711)
    installation.remember()
    for folder in ("", *PRIVATE):
        (installation.salt / folder).mkdir(mode=0o700, exist_ok=True)
        os.chmod(installation.salt / folder, 0o700)
    filled = values(installation)
    changed = []
    for name in ("master", "minion", "Saltfile"):
        text = Template((TEMPLATES / name).read_text(encoding="utf-8")).substitute(filled)
        if write(installation.conf / name, text):
            changed.append(name)
    if write(installation.conf / "environment", variables.lines()):
        changed.append("environment")
    if installation.is_default and not points_to(LINK, installation.conf):
        LINK.unlink(missing_ok=True)
        LINK.symlink_to(installation.conf)
        changed.append(LINK.name)
    return changed


def points_to(link, target):
    """Whether ``link`` is a link to ``target``."""
    return link.is_symlink() and os.readlink(link) == str(target)
