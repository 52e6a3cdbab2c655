"""
What the pillar says of the platform, checked and merged.

The pillar is read from ``__pillar__``: ``__salt__["pillar.get"]`` gives a mask in place of what
it takes for a secret.
"""

import hashlib
import json
import os

# Salt puts the folder of its utils on sys.path while it loads a module, live and synced alike.
import llm_catalogue
import salt.utils.files
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_config"


def __virtual__():
    return __virtualname__


def check(keys=None):
    """
    Return every mistake of this minion's pillar, one line each; an empty list when it is sound.
    Where this host has the files of the pillar, they are reviewed as they are written; what a
    compiled pillar hides (``22:22`` is 1342, a secret in clear looks like any) is found there.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.check

    keys
        Those that an orchestration takes from ``pillar=``, which must give no others. Default: not
        looked at.
    """
    return _checked() or ([] if keys is None else _misgiven(keys))


def _misgiven(keys):
    """Return what is wrong with what ``pillar=`` has given to an orchestration."""
    from llm_problem import Problem, described, unknown

    strange, ours = [key for key in __pillar__ if key not in ("llm", *keys)], {}
    if strange:
        import llm_review  # few give what they must not

        compiled = llm_review.compiler(__opts__, __opts__.get("ext_pillar", ()))
        ours, _ = compiled(__opts__["id"], ())
    problems = [unknown(("pillar",), "key", keys, key) for key in strange if key not in ours]
    known, chosen = list(platform()["services"]), __pillar__.get("llm_services") or []
    if isinstance(chosen, list):
        problems += [
            unknown(("llm_services", index), "service", known, name)
            for index, name in enumerate(chosen)
            if name not in known
        ]
    else:
        problems.append(Problem(("llm_services",), described(chosen), "a list"))
    return [problem.line() for problem in problems]


def _checked():
    """Return the mistakes of the pillar itself, looked for once."""
    pillar = __pillar__.get("llm")
    digest = _digest(pillar)
    seal = os.path.join(__opts__["cachedir"], "llm_config.checked")
    if _read(seal) == digest:
        return []
    found = _mistakes(pillar)
    if not found:
        with salt.utils.files.fpopen(seal, "w", mode=0o600) as file:
            file.write(digest)
    return found


def _mistakes(pillar):
    """Return those of the files, or where they have none, those of what Salt made of them."""
    import llm_keyring  # a run that changes nothing does without
    import llm_review

    errors, found = __pillar__.get("_errors", ()), []
    if roots := _roots():
        found = llm_review.problems(
            *roots,
            keyring=llm_keyring.Keyring(__opts__["gpg_keydir"]),
            compiled=llm_review.compiler(__opts__) if errors else None,
        )
    if not found:
        found = [str(llm_review.compile_error(error)) for error in errors]
        problems = llm_catalogue.problems(pillar, host=__opts__["id"])
        found += [problem.text() for problem in problems]
    return found


def _roots():
    """
    Return the folder of the pillar, where this host has it, and that of the states, where it lies
    beside the code: ``file_roots`` is empty in what the master has a minion do.
    """
    pillars = __opts__.get("pillar_roots", {}).get("base", [])[:1]
    if not pillars or not os.path.isfile(os.path.join(pillars[0], "site.yaml")):
        return []
    states = [os.path.join(folder, "salt") for folder in __opts__.get("module_dirs", [])[:1]]
    return pillars + [folder for folder in states if os.path.isdir(folder)]


def _files_version(pillar):
    """Return that of the files, looked at once for a pillar: a run asks some forty times."""
    known = __context__.get("llm_config.files")
    if known is None or known["pillar"] is not pillar:
        version = repr(llm_catalogue.files_version(*_roots())).encode()
        known = {"pillar": pillar, "version": hashlib.sha256(version).hexdigest()}
        __context__["llm_config.files"] = known
    return known["version"]


def _digest(pillar):
    """
    Return what the verdict on ``pillar`` hangs on: the code, the files, the pillar, and of its
    secrets only the names and what is wrong with each. A second check of the same is spared: it
    would cost longer (to import pydantic, to decrypt) than all else in a run that changes nothing.
    """
    parts = [__opts__["id"], llm_catalogue.code_version(), bool(__pillar__.get("_errors"))]
    parts.append(_files_version(pillar))
    if isinstance(pillar, dict):
        parts.append({key: value for key, value in pillar.items() if key != "secrets"})
        parts.append(llm_catalogue.secret_flaws(pillar.get("secrets")))
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path):
    try:
        with salt.utils.files.fopen(path) as file:
            return file.read()
    except OSError:
        return None


def platform():
    """
    Return the platform as this minion's pillar describes it, merged, in bytes and seconds:
    ``site``, ``host``, ``roles``, ``services`` (each with the defaults and its ``name``),
    ``requests``, ``limits``, ``response_cache``, ``log_level``, ``certificates``, ``preflight``
    and ``secrets`` (the names of those that are there, never a value).

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.platform

    Raises ``CommandExecutionError`` with every mistake when the pillar is not sound.
    """
    pillar, known = __pillar__.get("llm"), __context__.get("llm_config.platform")
    if known is None or known["pillar"] is not pillar:  # a refresh brings another one
        if found := check():
            raise CommandExecutionError("the pillar is not sound:\n" + "\n".join(found))
        platform_ = llm_catalogue.platform(pillar, __opts__["id"])
        known = __context__["llm_config.platform"] = {"pillar": pillar, "platform": platform_}
    return known["platform"]


def assume(found):
    """
    Go by ``found`` in this process, whatever the pillar says by now: for what keeps on a host what
    was deployed there.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.assume "$PLATFORM"

    found
        What `platform` returned when that was deployed.
    """
    pillar = {"site": found["site"], "services": found["services"]}
    __pillar__["llm"] = pillar
    __context__["llm_config.platform"] = {"pillar": pillar, "platform": found}


def service(name):
    """
    Return one service of the platform, with the defaults.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.service head

    Raises ``CommandExecutionError`` when there is no such service.
    """
    services = platform()["services"]
    if name not in services:
        known = ", ".join(sorted(services))
        raise CommandExecutionError(f'unknown service "{name}"; there are {known}')
    return services[name]


def tiers():
    """
    Return the services of the site in the order in which they start, as a list of lists of
    names: what runs on every host first, then each after what it needs.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.tiers
    """
    return llm_catalogue.tiers(platform()["services"], platform()["site"])


def carried():
    """
    Return the names of the services that this host carries, in the order of the tiers.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.carried
    """
    host = platform()["host"]
    return [name for tier in tiers() for name in tier if host in hosts(name)]


def hosts(service):
    """
    Return the ids of the hosts that carry ``service``, in the order of the site.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_config.hosts head

    Raises ``CommandExecutionError`` when there is no such service.
    """
    name = globals()["service"](service)["name"]
    return llm_catalogue.carriers(platform()["services"], platform()["site"], name)


def secret(name, **called):
    """
    Return the value of a secret of this host: a string for ``cache.password``; for a group such
    as ``clients`` a mapping of names to values (of clients, those of site.yaml alone).

    For other modules. A call from a command line is refused: its answer would lie in the job
    cache and pass over the event bus.

    Raises ``CommandExecutionError`` when the secret is missing or unfit.
    """
    if any(key.startswith("__pub_") for key in called):
        raise CommandExecutionError("secrets are not shown; salt-run llm.client shows a client's")
    value = llm_catalogue.secret(__pillar__.get("llm", {}).get("secrets"), name)
    if isinstance(value, dict):
        wanted = platform()["site"]["clients"] if name == "clients" else value
        return {key: secret(f"{name}.{key}") for key in wanted}
    if flaw := llm_catalogue.secret_flaw(value):
        raise CommandExecutionError(f"secret {name} {flaw}; salt-run llm.secret set {name}")
    return value
