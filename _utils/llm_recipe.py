"""
What an image is made of: the files of its folder, what it stands on, and its name, which follows
from both.
"""

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass, field

import llm_mirror

_ARGUMENT = re.compile(r"^ARG\s+(\w+)(?:=(\S+))?", re.MULTILINE)
_FIRST_STAGE = re.compile(r"^FROM\s", re.MULTILINE)


@dataclass
class Recipe:
    """
    One folder of ``salt/images``. ``files`` maps paths in it to content; ``version`` is that of
    the software; ``needs`` are the recipes of the images that it stands on.
    """

    folder: str
    files: dict
    version: str = ""
    needs: list = field(default_factory=list)

    @property
    def reference(self):
        """``llm/<folder>:<hash>``: the same hash means the same image."""
        digest = hashlib.sha256(f"1 {self.version}".encode())
        for needed in self.needs:
            digest.update(f"\0{needed.reference}".encode())
        for path in sorted(self.files):
            content = hashlib.sha256(self.files[path]).hexdigest()
            digest.update(f"\0{path}\0{content}".encode())
        return f"llm/{self.folder}:{digest.hexdigest()[:12]}"

    def arguments(self, offered):
        """
        Return the build arguments: of ``offered`` those that the Dockerfile asks for and the
        proxies, for which none has to ask, its version, and the references of what it needs.
        """
        asked = {name for name, _ in _ARGUMENT.findall(self._dockerfile)}
        asked |= {name for name in offered if name.lower() in llm_mirror.PROXIES}
        given = offered | {"VERSION": self.version}
        given |= {_argument(needed.folder): needed.reference for needed in self.needs}
        return {name: value for name, value in given.items() if name in asked}

    def default(self, argument):
        """Return the default that the Dockerfile gives ``argument``, or an empty string."""
        return dict(_ARGUMENT.findall(self._dockerfile)).get(argument, "")

    @property
    def _dockerfile(self):
        return self.files["Dockerfile"].decode()

    def context(self, more=()):
        """
        Return the build context as the bytes of a tar archive, ``more`` being files that do not
        count for the hash. Times and owners are left out, so that the engine's cache sees the same.
        """
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path, content in sorted((self.files | dict(more)).items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                entry.mode = 0o755 if content.startswith(b"#!") else 0o644
                tar.addfile(entry, io.BytesIO(content))
        return archive.getvalue()


def _argument(folder):
    return folder.upper().replace("-", "_")


def needed(dockerfile, folders):
    """
    Return those of ``folders`` that ``dockerfile`` stands on: an argument before its first stage
    is named after each.
    """
    head = _FIRST_STAGE.split(dockerfile, maxsplit=1)[0]
    names = [name for name, _ in _ARGUMENT.findall(head)]
    by_argument = {_argument(folder): folder for folder in folders}
    return [by_argument[name] for name in names if name in by_argument]


def ordered(recipes):
    """Return ``recipes`` and all that they need, each once and after what it needs."""
    found = {}

    def add(recipe):
        for each in recipe.needs:
            add(each)
        found.setdefault(recipe.reference, recipe)

    for recipe in recipes:
        add(recipe)
    return list(found.values())
