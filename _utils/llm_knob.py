"""
Knobs of services in the file of an environment, for commands that turn them: what else stands
there, comments too, stays as it is.
"""

import contextlib
import io
import pathlib

import llm_catalogue
import llm_problem
from salt.exceptions import CommandExecutionError, SaltInvocationError


@contextlib.contextmanager
def turned(pillar_root, environment, knobs):
    """
    Have the file of ``environment`` say ``knobs``, and go on saying so when the block ends with
    its ``keep`` called; else the file becomes what it was before.

    pillar_root
        The folder of the pillar.
    environment
        Its name.
    knobs
        ``{service: {knob: value}}``. Without any, nothing is touched.

    Gives a mapping with ``keep``, a function, and ``file``, the path as people know it.

    Raises ``CommandExecutionError`` when the file cannot be read or written.
    """
    path = pathlib.Path(pillar_root, "environments", f"{environment}.sls")
    kept = not knobs
    before = None if kept else _read(path)

    def keep():
        nonlocal kept
        kept = True

    try:
        if not kept:
            _write(path, with_knobs(before, knobs))
        yield {"keep": keep, "file": f"pillar/environments/{environment}.sls"}
    finally:
        if not kept:
            _write(path, before)


def with_knobs(text, knobs):
    """
    Return ``text``, a file of an environment, with ``knobs`` of services in it.
    """
    import ruamel.yaml

    yaml = ruamel.yaml.YAML()
    yaml.preserve_quotes = True
    yaml.width = 100
    try:
        document = yaml.load(text)
        services = document["llm"].setdefault("services", {})
        for service, own in knobs.items():
            if services.get(service) is None:
                services[service] = ruamel.yaml.comments.CommentedMap()
                services[service].fa.set_flow_style()
            services[service].update({knob: _quoted(value) for knob, value in own.items()})
    except (ruamel.yaml.YAMLError, AttributeError, KeyError, TypeError) as err:
        raise CommandExecutionError(f"the environment's file: {err}; see llm.check") from None
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _quoted(value):
    """Return a text in quotes, for what one reader of YAML takes for a text is none to another."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    return DoubleQuotedScalarString(value) if isinstance(value, str) else value


def versions(text, services):
    """
    Return the knobs that ``head:1.2.3,cache:host/cache@sha256:...`` means: of each service the
    version, or an image by its digest.

    text
        Pairs with commas between, or nothing.
    services
        The names that there are.

    Raises ``SaltInvocationError`` for a name that is none of them, and for what is no pair.
    """
    found = {}
    for pair in filter(None, (text or "").replace(" ", "").split(",")):
        name, colon, version = pair.partition(":")
        if not colon or not version:
            raise SaltInvocationError(f'version: found "{pair}", expected SERVICE:VERSION')
        known(name, services)
        found[name] = {"image" if "@" in version else "version": version}
    return found


def check(knobs, pillar):
    """
    Raise ``SaltInvocationError`` with a line for each mistake that ``knobs`` would be, such as
    ``head.replicas: found 99; expected at most 7``: no file says it yet.

    knobs
        As of `turned`.
    pillar
        The ``llm`` part of a pillar that is sound without them.
    """
    if mistakes := llm_catalogue.problems(llm_catalogue.merged(pillar, {"services": knobs})):
        lines = [mistake.line().removeprefix("services.") for mistake in mistakes]
        raise SaltInvocationError("\n".join(lines))


def known(name, services):
    """
    Raise ``SaltInvocationError`` unless ``name`` is one of ``services``.
    """
    if name not in services:
        raise SaltInvocationError(f'unknown service "{name}"; {llm_problem.hint(name, services)}')


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as err:
        raise CommandExecutionError(f"{path}: {err}") from None


def _write(path, text):
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.chmod(path.stat().st_mode)
        new.replace(path)
    except OSError as err:
        raise CommandExecutionError(f"{path}: {err.strerror}") from None
