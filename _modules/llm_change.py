"""
What a deploy would change on this host, and what that means for those who use it.
"""

import llm_outlook
import llm_watch
from llm_size import rounded
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_change"


def __virtual__():
    return __virtualname__


def foreseen(services=None):
    """
    Return what a deploy would do on this host, from the very plans that it carries out; it tries
    anew what was taken back. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_change.foreseen
        salt '*' llm_change.foreseen head,tail

    services
        Names, as a list or with commas between; what lies outside of the catalogue then counts
        only when it is named. Default: all.

    Returns ``{"preparations": [{"what", "name", "do", "causes"}], "services": {service: ...},
    "problems": [sentence]}``. With ``problems`` a deploy would fail. A service has:

    - ``tier``: in which it comes, from 1 on; ``None`` outside of the catalogue.
    - ``actions``: ``[{"action", "replica", "container", "causes"}]``; ``action`` is ``create``,
      ``replace`` (with ``old`` and ``strategy``), ``start``, ``resume``, ``update``, ``rename``,
      ``remove`` or ``none``.
    - ``files``, ``live_files``: those that would be written, ``{file: "create" | "change"}``; the
      latter replace nothing.
    - ``certificate``: why it would be made or renewed; ``routes``: whether requests would go
      elsewhere although no container changes.
    - ``maintenance``: why the watch leaves it alone, which a deploy does not heed, or ``None``.
    - ``traffic``: ``{"effect", "seconds"}``; the effect is ``none``, ``gap`` (for at most so many
      seconds), ``starts`` or ``ends``.
    - ``seconds``: how long it may take at most; ``digest``: what tells its plan from another.
    """
    wanted = llm_outlook.chosen_names(services)
    problems = []
    check = __salt__["llm_preflight.check"]
    problems += _attempt(problems, check, False) or []
    engine = _answers()
    if not engine and _deployed():
        problems.append("The container engine does not answer: what it runs cannot be told")
    tiers = {
        name: number
        for number, tier in enumerate(__salt__["llm_config.tiers"](), 1)
        for name in tier
    }
    carried = [each for each in __salt__["llm_config.carried"]() if each in (wanted or tiers)]
    found = {name: _attempt(problems, _service, name, tiers[name], engine) for name in carried}
    outside = __salt__["llm_service.outside"]() if engine else []
    for name in outside:
        if not wanted or name in wanted:
            found[name] = _attempt(problems, _outside, name)
    return {
        "preparations": _preparations(carried, engine, problems),
        "services": {name: each for name, each in found.items() if each},
        "problems": list(dict.fromkeys(problems)),
    }


def _attempt(problems, function, *arguments):
    """Return what ``function`` returns; where it cannot tell, the reason joins ``problems``."""
    try:
        found = function(*arguments)
    except CommandExecutionError as err:
        problems.append(str(err))
        return None
    if isinstance(found, dict):
        problems.extend(found.pop("conflicts", ()))
    return found


def _answers():
    """Return whether there is an engine to ask."""
    try:
        __salt__["llm_container.services"]()
    except CommandExecutionError:
        return False
    return True


def _deployed():
    """Return whether services were deployed on this host before."""
    root = __salt__["llm_config.platform"]()["site"]["root"]
    return __salt__["file.directory_exists"](f"{root}/services")


def _service(name, tier, engine):
    service = __salt__["llm_config.service"](name)
    specs = __salt__["llm_service.specs"](name, anew=True)
    plan = __salt__["llm_container.plan"](specs, engine_expected=False)
    here = __salt__["llm_container.list"](name) if engine else []
    wanted = {spec["replica"]: None for spec in specs} | {
        each["replica"]: each["name"] for each in here if each["replica"] <= len(specs)
    }
    running = {each["name"] for each in here if each["state"] == "running"}
    pending = __salt__["llm_files.pending"](name, anew=True)
    return {
        "tier": tier,
        **llm_outlook.service(plan, service, wanted, running),
        "files": {file: how for file, how in pending.items() if file in service["files"]},
        "live_files": {file: how for file, how in pending.items() if file in service["live_files"]},
        "certificate": __salt__["llm_certificate.flaws"](name) if service["certificate"] else [],
        "routes": engine and not plan["operations"] and _misrouted(service),
        "digest": __salt__["llm_container.digest"](plan),
        "maintenance": _maintained(name),
        "conflicts": plan["conflicts"],
    }


def _maintained(name):
    host = __salt__["llm_config.platform"]()["host"]
    return llm_watch.held(__salt__["llm_watch.maintenance"](), name, host)


def _misrouted(service):
    if service["every_host"]:
        return False
    routes = __salt__["llm_mesh.endpoints"](service["name"])
    return routes != __salt__["llm_mesh.serving"](service["name"])


def _outside(name):
    plan = __salt__["llm_container.removal"](name)
    here = __salt__["llm_container.list"](name)
    running = {each["name"] for each in here if each["state"] == "running"}
    return {
        "tier": None,
        **llm_outlook.service(plan, None, {}, running),
        "files": {__salt__["llm_files.folder"](name): "remove"},
        "live_files": {},
        "certificate": [],
        "routes": False,
        "maintenance": None,
        "digest": __salt__["llm_container.digest"](plan),
        "conflicts": plan["conflicts"],
    }


def _preparations(carried, engine, problems):
    """Return what is done before the first service's turn comes."""
    found = []
    for each in (_engine, _network, _authority, _images, _models, _routes):
        found += _attempt(problems, each, carried, engine) or []
    return [
        {"what": what, "name": name, "do": do, "causes": causes} for what, name, do, causes in found
    ]


def _engine(_, engine):
    if engine:
        return []
    missing = __salt__["llm_docker.missing"]()
    packages = [("engine", name, "install", ["there is none"]) for name in missing]
    return [*packages, ("engine", "the container engine", "start", ["it does not answer"])]


def _network(_, engine):
    network = __salt__["llm_config.platform"]()["site"]["network"]
    name, subnet = network["name"], network["subnet"]
    found = __salt__["llm_network.find"](name) if engine else None
    if found and (not found["ours"] or found["subnets"] != [subnet]):
        raise CommandExecutionError(
            f"Network {name} is not as declared; state.apply docker.network test=True says more"
        )
    if found:
        return []
    if engine and (taken := __salt__["llm_network.overlaps"](subnet, name)):
        raise CommandExecutionError(f"{subnet} overlaps with {', '.join(taken)}: choose another")
    return [("network", name, "create", ["there is none"])]


def _authority(_, __):
    platform = __salt__["llm_config.platform"]()
    if platform["host"] != platform["site"]["authority"]:
        return []
    flaws = __salt__["llm_certificate.authority_flaws"]()
    return [("authority", platform["site"]["name"], "make", flaws)] if flaws else []


def _images(carried, engine):
    """Return the images that this host lacks, each with the services that it is for."""
    services = {name: __salt__["llm_config.service"](name) for name in carried}
    references = {}
    for name, service in services.items():
        references.setdefault(__salt__["llm_image.reference"](service["image"]), []).append(name)
    lacking = __salt__["llm_image.pending"](carried) if engine and carried else {}
    found = []
    for reference, names in references.items():
        service = services[names[0]]
        how = "pull" if "@" in service["image"] else "build"
        if not engine or reference in lacking[how]:
            text = f"{service['image'].partition('@')[0]} {service['version']}".strip()
            found.append(("image", text, how, [f"for {', '.join(names)}"]))
    return found


def _models(_, __):
    site, found = __salt__["llm_config.platform"]()["site"], []
    if not __salt__["file.directory_exists"](f"{site['root']}/models"):
        found.append(("folder", f"{site['root']}/models", "create", ["there is none"]))
    for name, model in site["models"].items():
        place = {key: model[key] for key in ("url", "path") if key in model}
        here = __salt__["llm_model.checksum"](name) if place else None
        if not place or here == model.get("sha256", "").lower():
            continue
        need = __salt__["llm_model.need"](name, **place)
        if need["size"] and need["size"] > need["free"]:
            raise CommandExecutionError(
                f"Model {name} from {need['source']} needs {rounded(need['size'])}, "
                f"{rounded(max(0, need['free']))} are free"
            )
        size = rounded(need["size"]) if need["size"] is not None else "an unknown size"
        why = "it is another" if here else "it is not here"
        found.append(("model", name, "fetch", [why, f"{size} from {need['source']}"]))
    return found


def _routes(_, __):
    """Return the files without which no Envoy starts."""
    names = [
        name
        for name in __salt__["llm_mesh.services"]()
        if __salt__["llm_mesh.endpoints"](name) is None
    ]
    return [("routes", name, "create", ["there are none"]) for name in names]
