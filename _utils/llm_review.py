"""
Everything that can be said of the platform's files before any host is touched.
"""

import logging
import os
import re

import llm_catalogue
import llm_secret
import llm_source
from llm_problem import Problem, guess, unknown
from llm_source import Finding

_ENVIRONMENT = re.compile(r"environments/([^/]+)\.sls")
_SHEBANG = re.compile(r"#!.*\n")


def problems(pillar_root, salt_root=None, keyring=None, compiled=None, keys=None):
    """
    Return every mistake as a line, in the order of files and lines.

    pillar_root
        The folder of the pillar.
    salt_root
        The folder that minions read, for images, templates and links. Default: not looked at.
    keyring
        The ``llm_keyring.Keyring`` of the secrets. Default: secrets are not looked at.
    compiled
        What ``compiler`` returns. Default: the files are merged without Salt, which does for files
        without Jinja.
    keys
        The keys that the master has of minions: ``accepted``, ids, and ``pending``, a fingerprint
        by id. Default: not looked at.
    """
    sources = llm_source.read(pillar_root)
    pillar, whole = merged(sources)
    found = [finding for source in sources.values() for finding in source.findings]
    if "site.yaml" not in sources:
        found.append(Finding("pillar/site.yaml", 0, "no such file"))
    found.extend(_environment(pillar, sources))
    found.extend(_top(sources, pillar_root))
    known = [problem for problem in llm_catalogue.problems(pillar) if _of(problem, pillar, whole)]
    found.extend(located(problem, sources) for problem in known)
    if keyring:
        found.extend(_secrets(sources, keyring))
        found.extend(_missing_secrets(pillar, sources, whole and not known))
    if salt_root:
        found.extend(_links(salt_root))
        found.extend(_templates(pillar, salt_root, sources))
    if keys:
        found.extend(_keys(pillar, keys, sources))
    if compiled and not found:
        found.extend(_compiled(pillar, compiled, sources))
    return [str(finding) for finding in sorted(set(found))]


def merged(sources):
    """
    Return the ``llm`` part of the files merged without Salt, and whether that is all of it.
    """
    pillar, whole = {}, True
    site = sources["site.yaml"].document if "site.yaml" in sources else None
    environment = site.get("environment") if isinstance(site, dict) else None
    for file in ("services.sls", f"environments/{environment}.sls"):
        source = sources.get(file)
        document = source.document if source else None
        whole = whole and document is not None
        if whole and isinstance(document.get("llm"), dict):
            pillar = llm_catalogue.merged(pillar, document["llm"])
    if site is not None:
        pillar["site"] = site
    return pillar, whole and site is not None


def _of(problem, pillar, whole):
    """Tell whether a problem is one of what could be read, and not of what could not."""
    return whole or (problem.path[:1] and problem.path[0] in pillar)


def located(problem, sources):
    """
    Return a problem as a ``Finding``: with file and line, and the text that YAML read.
    """
    file, line, raw = _place(problem.path, sources)
    text = problem.text(file=file or problem.file(), raw=raw)
    name, _, text = text.partition(": ")
    return Finding(name, line or 0, text)


def _place(path, sources):
    """Return file, line and text of what stands at ``path``, or of the nearest around it."""
    if path[:1] == ("site",):
        files, path = ["site.yaml"], path[1:]
    else:
        environments = [file for file in sources if _ENVIRONMENT.fullmatch(file)]
        active = (sources.get("site.yaml") and sources["site.yaml"].document or {}).get(
            "environment"
        )
        files = [file for file in environments if file == f"environments/{active}.sls"]
        files.append("services.sls")
        path = ("llm", *path)
    for length in range(len(path), 0, -1):
        near = [sources[file] for file in files if file in sources]
        near = [source for source in near if path[:length] in source.places]
        # A value is the environment's, what holds values the catalogue's.
        if near:
            source = near[0] if near[0].places[path[:length]][1] is not None else near[-1]
            line, raw = source.places[path[:length]]
            return source.name, line, raw if length == len(path) else None
    return None, None, None


def _environment(pillar, sources):
    site = pillar.get("site")
    name = site.get("environment") if isinstance(site, dict) else None
    known = [match[1] for file in sources if (match := _ENVIRONMENT.fullmatch(file))]
    if isinstance(name, str) and name not in known:
        yield located(unknown(("site", "environment"), "environment", known, name), sources)


def _top(sources, pillar_root):
    """Yield the files that top.sls names and that are not there; a mistake of Jinja aside."""
    top = sources.get("top.sls")
    if top is None:
        yield Finding("pillar/top.sls", 0, "no such file")
        return
    for number, line in enumerate(top.text.split("\n"), 1):
        if match := re.fullmatch(r"\s*- +['\"]?([\w.-]+)['\"]?\s*(#.*)?", line):
            path = os.path.join(pillar_root, *match[1].split("."))
            if not os.path.exists(f"{path}.sls") and not os.path.exists(f"{path}/init.sls"):
                yield Finding(top.name, number, f'no such file "{match[1]}"')


def _secrets(sources, keyring):
    """Yield the secrets that are not as they should be. Never a value."""
    for file, source in sources.items():
        if not file.startswith("secrets/") or source.document is None:
            continue
        group = os.path.basename(file).removesuffix(".sls")
        if flaw := llm_secret.renderer_flaw(source.text):
            yield Finding(source.name, 1, flaw)
        values = source.document
        for key in ("llm", "secrets", group):
            values = values.get(key) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            expected = f"llm: {{secrets: {{{group}: {{name: value}}}}}}"
            yield Finding(source.name, 0, f"found another shape; expected {expected}")
            continue
        for name, message in values.items():
            if flaw := llm_secret.flaw_of(keyring, message):
                line = source.places[("llm", "secrets", group, name)][0]
                hint = f"salt-run llm.secret set {group}.{name}"
                yield Finding(source.name, line, f"{group}.{name}: {flaw}; {hint}")


def _missing_secrets(pillar, sources, sound):
    """Yield the secrets that are wanted and not there, if the rest says which are wanted."""
    if not sound:
        return
    services = {
        name: llm_catalogue.merged(pillar["defaults"], service)
        for name, service in pillar["services"].items()
    }
    for group in sorted(
        {name.split(".")[0] for one in services.values() for name in one["secrets"]}
    ):
        if f"secrets/{group}.sls" not in sources:
            text = "no such file; salt-run llm.secret generate"
            yield Finding(f"pillar/secrets/{group}.sls", 0, text)
    for name in llm_catalogue.wanted_secrets(services, pillar["site"], services):
        group, _, key = name.partition(".")
        source = sources.get(f"secrets/{group}.sls")
        if source is None or source.jinja or source.findings:
            continue
        if ("llm", "secrets", group, key) not in source.places:
            yield Finding(source.name, 0, f"{name}: is missing; salt-run llm.secret set {name}")


def _links(salt_root):
    """
    Yield the links of the tree that are none, and those that would let minions read what they must
    not.
    """
    for name in llm_source.FOLDERS:
        path = os.path.join(salt_root, name)
        if not os.path.islink(path):
            kind = "a file" if os.path.isfile(path) else "a folder"
            found = f"found {kind}" if os.path.exists(path) else "is missing"
            hint = "clone again with links (git config core.symlinks true)"
            yield Finding(f"salt/{name}", 0, f"{found}; expected a link to ../{name}; {hint}")
    allowed = {os.path.realpath(os.path.join(salt_root, "..", name)) for name in llm_source.FOLDERS}
    for folder, names, files in os.walk(salt_root):
        for name in sorted(names + files):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                continue
            end = os.path.realpath(path)
            if end not in allowed:
                shown = os.path.relpath(path, os.path.dirname(os.path.abspath(salt_root)))
                expected = f"one to {', '.join(llm_source.FOLDERS)} alone"
                yield Finding(shown, 0, f"found a link to {os.readlink(path)}; expected {expected}")


def _templates(pillar, salt_root, sources):
    """Yield the images and templates that the catalogue names and the tree does not hold."""
    folder = os.path.join(salt_root, "images")
    images = [entry.name for entry in os.scandir(folder)] if os.path.isdir(folder) else []
    services = pillar.get("services")
    for name, service in services.items() if isinstance(services, dict) else ():
        service = service if isinstance(service, dict) else {}
        image = service.get("image")
        if isinstance(image, str) and re.fullmatch("[a-z0-9-]+", image) and image not in images:
            yield located(unknown(("services", name, "image"), "image", images, image), sources)
        for key, below in (("files", "files"), ("live_files", "files/live")):
            wanted = service.get(key)
            for index, file in enumerate(wanted if isinstance(wanted, list) else ()):
                template = os.path.join(salt_root, str(name), below, f"{file}.jinja")
                if isinstance(file, str) and not os.path.isfile(template):
                    expected = f"salt/{name}/{below}/{file}.jinja"
                    problem = Problem(("services", name, key, index), "no such template", expected)
                    yield located(problem, sources)


def _keys(pillar, keys, sources):
    """Yield the hosts whose key the master has not accepted."""
    site = pillar.get("site")
    hosts = site.get("hosts") if isinstance(site, dict) else None
    hosts = hosts if isinstance(hosts, dict) else {}
    pending = keys["pending"]
    others = [name for name in (*keys["accepted"], *pending) if name not in hosts]
    for host in hosts:
        if host not in keys["accepted"]:
            waits = f"yes, fingerprint {pending[host]}" if host in pending else "no"
            hint = "" if host in pending else guess(host, others)
            found = f"no accepted key (pending: {waits})"
            yield located(Problem(("site", "hosts", host), found, "", hint), sources)


def _compiled(pillar, compiled, sources):
    """Yield what Salt makes of the files for each host, where they alone looked sound."""
    read = ("services", f"environments.{pillar['site']['environment']}")
    for host in pillar["site"]["hosts"]:
        whole, errors = compiled(host, read)
        for error in errors:
            yield compile_error(error)
        if not errors:
            for problem in llm_catalogue.problems(whole.get("llm"), host=host):
                yield located(problem, sources)


def compile_error(error):
    """
    Return an error of Salt's about the pillar as a ``Finding``: what and where, none of the file's
    text.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    named = re.search(r"SLS '([\w./-]+)'", lines[0])
    file = f"{named[1].replace('.', '/')}.sls" if named else "top.sls"
    words = lines[1] if len(lines) > 1 and lines[0].rstrip().endswith("error:") else lines[0]
    number = re.search(r";? ?line (\d+)", words)
    text = words.replace(number[0], "") if number else words
    if file.startswith("secrets/"):
        text = "Salt cannot render it"
    elif "see master log" in text:
        text = "Salt cannot render it; salt-run llm.check says why"
    return Finding(f"pillar/{file}", int(number[1]) if number else 0, text[:200])


def compiler(opts, external=()):
    """
    Return a function that compiles the pillar of a host as the master does, for ``problems``. It
    takes the host's id and the SLS files that others read, and returns the pillar and its errors:
    those of a file that others read, where it has some, in place of those of its readers.

    opts
        The configuration of a master, or of a minion.
    external
        What Salt asks for more pillar, as its ``ext_pillar``. Default: nothing, it is not ours.
    """
    import salt.pillar

    def compiled(host, read):
        own = dict(opts, pillar_safe_render_error=False, pillar_cache=False)
        own["ext_pillar"] = list(external)
        own |= {"file_client": "local", "pillar": {}}  # Salt would lay it under what it compiles
        # Salt logs the lines around a mistake, which are not for everyone's eyes.
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            compiler_ = salt.pillar.Pillar(own, {"id": host}, host, "base")
            pillar = compiler_.compile_pillar()
            errors = pillar.pop("_errors", [])
            alone = [compiler_.render_pstate(sls, "base", {})[2] for sls in read if errors]
        finally:
            logging.disable(before)
        return pillar, [error for found in alone for error in found] or errors

    return compiled
