"""
The files of the pillar as people write them: encoding, syntax, traps of YAML, with their lines.
"""

import os
import re
from dataclasses import dataclass, field

import yaml
from llm_problem import is_private, key_path

_JINJA = re.compile(r"\{[{%#]")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_PADDED = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9]+_[0-9_]*")
FOLDERS = ("_modules", "_states", "_utils", "orch")  # where links of salt/ may end


@dataclass(frozen=True, order=True)
class Finding:
    """
    One mistake in one file.
    """

    file: str
    line: int  # 0: the file as a whole
    text: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass
class Source:
    """
    One file of the pillar.
    """

    name: str
    text: str = ""
    document: dict = None
    jinja: bool = False
    places: dict = field(default_factory=dict)  # path: (line, text as written)
    findings: list = field(default_factory=list)

    @property
    def private(self):
        """
        Whether the file holds secrets: then nothing of its text may be shown, in whatever shape.
        """
        return self.name.startswith("pillar/secrets/")

    def say(self, line, text):
        """
        Note a mistake of this file.
        """
        self.findings.append(Finding(self.name, line, text))


def read(pillar_root):
    """
    Return every file of the pillar as a ``Source``, by its path below ``pillar_root``.
    """
    files = sorted(
        os.path.relpath(os.path.join(folder, name), pillar_root)
        for folder, _, names in os.walk(pillar_root)
        for name in names
        if name.endswith((".sls", ".yaml")) and not name.startswith(".")
    )
    return {file: _source(os.path.join(pillar_root, file), f"pillar/{file}") for file in files}


def _source(path, name):
    source = Source(name)
    try:
        with open(path, "rb") as stream:
            raw = stream.read()
        source.text = raw.decode("utf-8")
    except OSError as err:
        source.say(0, f"cannot be read: {err.strerror}")
        return source
    except UnicodeDecodeError as err:
        source.say(
            raw[: err.start].count(b"\n") + 1, "found a byte that is not UTF-8; expected UTF-8"
        )
        return source
    if source.text.startswith("\ufeff"):
        source.say(1, "found a byte order mark; expected UTF-8 without one")
        source.text = source.text[1:]
    if "\r" in source.text:
        line = source.text[: source.text.index("\r")].count("\n") + 1
        source.say(line, "found CR LF at the end of a line; expected LF")
        source.text = source.text.replace("\r\n", "\n").replace("\r", "\n")
    if tabs := re.search(r"^ *\t+(?=\s*\S)", source.text, re.MULTILINE):
        line = source.text[: tabs.end()].count("\n") + 1
        source.say(line, "found a tab in the indentation; expected spaces")
        return source
    source.jinja = bool(_JINJA.search(source.text))
    if source.jinja:
        _check_jinja(source)
    else:
        _parse(source)
    return source


def _check_jinja(source):
    import jinja2
    from salt.utils.jinja import SerializerExtension

    extensions = [SerializerExtension, "jinja2.ext.do", "jinja2.ext.loopcontrols"]
    try:
        jinja2.Environment(extensions=extensions).parse(source.text)  # noqa: S701
    except jinja2.TemplateSyntaxError as err:
        words = "found a mistake" if source.private else err.message
        source.say(err.lineno, f"Jinja: {words}")


def _parse(source):
    """Parse as Salt does, after a look at what Salt would take without a word."""
    from salt.utils.yamlloader import SaltYamlSafeLoader

    loader = SaltYamlSafeLoader(source.text)
    try:
        node = loader.get_single_node()
        if node is None:
            source.document = {}
            return
        _walk(source, node, ())
        source.document = loader.construct_document(node)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        words = [] if source.private else filter(None, (err.context, err.problem))
        text = "; ".join(filter(None, (" ".join(words), "expected YAML")))
        source.say(mark.line + 1, f"column {mark.column + 1}: {text}")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as err:
        source.say(getattr(err, "lineno", 0), f"cannot be read as YAML ({type(err).__name__})")
        return
    if not isinstance(source.document, dict):
        if source.document is not None:
            source.say(1, "found no mapping; expected key: value")
        source.document = None


def _walk(source, node, path):
    """Note where everything stands; say and take out what must not be."""
    if isinstance(node, yaml.ScalarNode):
        source.places[path] = (node.start_mark.line + 1, node.value)
        _trap(source, node, path)
        return
    source.places[path] = (node.start_mark.line + 1, None)
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(source, child, (*path, index))
        return
    kept = {}
    for key, child in node.value:
        line, name = key.start_mark.line + 1, key.value
        where = _shown((*path, name if isinstance(key, yaml.ScalarNode) else "?"))
        if key.tag == "tag:yaml.org,2002:merge":
            kept[id(key)] = (key, child)
        elif not isinstance(key, yaml.ScalarNode):
            source.say(line, f"{where}: found a key that is no string")
        elif key.tag != "tag:yaml.org,2002:str":
            read = "found a key that YAML does not read as a string"
            shown = ("?", "it") if source.private else (name, f'"{name}"')
            source.say(line, f"{_shown((*path, shown[0]))}: {read}; write {shown[1]} in quotes")
        else:
            if name in kept:
                first = kept[name][0].start_mark.line + 1
                source.say(line, f"{where}: is there twice, first in line {first}")
            kept[name] = (key, child)
            _walk(source, child, (*path, name))
            source.places[(*path, name)] = (line, source.places[(*path, name)][1])
    node.value = list(kept.values())


def _shown(path):
    return key_path(path[1:] if path[:1] == ("llm",) and path[1:] else path)


def _trap(source, node, path):
    if node.style or not node.tag.endswith((":int", ":float")):
        return
    if _SEXAGESIMAL.fullmatch(node.value) or _PADDED.fullmatch(node.value):
        read = f'YAML reads {node.value} as another number; write "{node.value}" in quotes'
        if source.private or is_private(path):
            read = "YAML reads this as another value; quote it"
        source.say(node.start_mark.line + 1, f"{_shown(path)}: {read}")
