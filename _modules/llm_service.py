"""
The containers that the catalogue wants on this host.
"""

import os
import pathlib

import llm_spec
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_service"


def __virtual__():
    return __virtualname__


def specs(name, anew=False):
    """
    Return the specs of the containers of service ``name`` on this host, one per replica.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.specs head

    name
        Its name.
    anew
        Also of what was taken back, as a deploy tries it. Default: ``False``, see
        `llm_deploy.refused`.

    Each is a mapping as `llm_container.running` takes it: sizes in bytes, durations in seconds,
    mounts with their folders on the host, fingerprints in place of secrets.
    """
    platform = __salt__["llm_config.platform"]()
    service = platform["services"][name]
    command = [word.replace("{log_level}", platform["log_level"]) for word in service["command"]]
    spec = {
        "service": name,
        "command": command,
        "image": __salt__["llm_image.reference"](service["image"]),
        "user": f"{service['user']}:{service['user']}",
        "mounts": _mounts(platform, service),
        "volumes": {
            f"{platform['site']['name']}-{volume}": target
            for volume, target in service["volumes"].items()
        },
        "health": {
            "check": service["health"],
            "min_healthy": service["min_healthy"],
            "healthy_deadline": service["healthy_deadline"],
        },
        "smoke_test": _smoke_test(platform, service),
        "room": room(name),
        **_network(platform, service),
        **{key: service[key] for key in COPIED},
    }
    digests = __salt__["llm_files.digests"](name)
    spec |= {
        "files": digests["files"] | _models(platform, service),
        "secrets": digests["secrets"],
    }
    spec["edited"] = sorted(__salt__["llm_files.pending"](name).keys() & digests["files"].keys())
    specs = [spec | {"replica": replica} for replica in range(1, service["replicas"] + 1)]
    refused = None if anew else __salt__["llm_deploy.refused"](name)
    return list(_allowed(specs, refused)) if refused else specs


def _smoke_test(platform, service):
    """Return by which secret a new container is asked for which model, nothing where it is not."""
    local = service["models"]
    models = [
        name
        for name, model in platform["site"]["models"].items()
        if not (local and "provider" in model)
    ]
    if not service["smoke_test"] or not models:
        return None
    return {"secret": service["smoke_test"], "model": models[0]}


def _allowed(specs, refused):
    """Yield ``specs``; where one was taken back, the container that serves in its place."""
    for spec in specs:
        replica = str(spec["replica"])
        if llm_spec.wish(llm_spec.completed(spec)) != refused["wishes"].get(replica):
            yield spec
        elif digest := refused["digests"][replica]:
            yield spec | {"pinned": {"digest": digest, "why": refused["why"]}}


def room(name):
    """
    Return what of this host's memory there is for service ``name`` while it is replaced.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.room head

    Returns ``{"memory": bytes that all services together may have, "taken": {service: bytes that
    those may have which come before it}}``.
    """
    platform = __salt__["llm_config.platform"]()
    carried = __salt__["llm_config.carried"]()
    before = carried[: carried.index(name)] if name in carried else carried
    services = [platform["services"][each] for each in before]
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "memory": max(0, whole - platform["preflight"]["memory_reserve"]),
        "taken": {each["name"]: each["memory"] * each["replicas"] for each in services},
    }


def outside():
    """
    Return the names of the services that have containers or files on this host which the catalogue
    does not want here, sorted.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.outside
    """
    here = set(__salt__["llm_container.services"]())
    folders = pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"], "services")
    here |= {path.name for path in folders.glob("[!.]*") if path.is_dir()}
    return sorted(here.difference(__salt__["llm_config.carried"]()))


def withdrawal(name):
    """
    Return what `withdraw` would remove, ``{container or folder: [sentence]}``. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.withdrawal head

    name
        Its name.
    """
    changes = __salt__["llm_container.removal"](name)["changes"]
    folder = __salt__["llm_files.folder"](name)
    if os.path.isdir(folder):
        changes = changes | {folder: ["remove: it is not wanted"]}
    return changes


def withdraw(name):
    """
    Take service ``name`` off this host: it gets no more requests, its containers and its files are
    removed. Its volumes stay.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.withdraw head

    name
        Its name.

    Returns what `withdrawal` said before.

    Raises ``CommandExecutionError`` with what could not be removed.
    """
    changes, plan = withdrawal(name), __salt__["llm_container.removal"](name)
    __salt__["llm_mesh.close"](name)
    if errors := __salt__["llm_container.execute"](plan)["errors"]:
        raise CommandExecutionError("\n".join(errors))
    __salt__["llm_files.remove"](name)
    return changes


def prune():
    """
    Take every service off this host that the catalogue does not want here, as `withdraw` does.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.prune

    Returns what was removed, ``{container or folder: [sentence]}``.
    """
    changes = {}
    for name in outside():
        changes |= withdraw(name)
    return changes


def status():
    """
    Return how each service that this host carries is doing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.status

    Returns ``{service: {"image": reference, "version": of those that run or ``None``, "wanted":
    replicas, "running": replicas, "healthy": replicas, "since": start of the youngest as ISO 8601
    or ``None``, "restarts": int, "memory": bytes, "memory_limit": bytes, "cpus": cores in use,
    "cpus_limit": cores, "answers": {container: last answer}, "watch": why it is not looked after
    between deploys, or ``None``}}``; use and limits are sums over the replicas.
    """
    used = __salt__["llm_container.stats"]()
    services = __salt__["llm_config.platform"]()["services"]
    notes = __salt__["llm_watch.notes"]()
    carried = __salt__["llm_config.carried"]()
    return {name: _status(services[name], used) | {"watch": notes.get(name)} for name in carried}


def _status(service, used):
    containers = __salt__["llm_container.list"](service["name"])
    answers = __salt__["llm_health.ask"](service["name"])
    running = [each for each in containers if each["state"] == "running"]
    versions = sorted({each["version"] for each in running if each["version"]})
    mine = [used[each["name"]] for each in containers if each["name"] in used]
    return {
        "image": next((each["image"] for each in containers), None),
        "version": ", ".join(versions) or None,
        "wanted": service["replicas"],
        "running": len({each["replica"] for each in running}),
        "healthy": len({each["replica"] for each in containers if _is_well(each, answers)}),
        "since": max((each["started_at"] for each in running), default=None),
        "restarts": sum(each["restarts"] for each in containers),
        **{
            key: sum(each[key] for each in mine)
            for key in ("memory", "memory_limit", "cpus", "cpus_limit")
        },
        "answers": {name: answer["answer"] for name, answer in answers.items()},
    }


def _is_well(container, answers):
    return answers.get(container["name"], {}).get("ok", False)


COPIED = (
    "environment",
    "memory",
    "cpus",
    "pids",
    "read_only",
    "capabilities",
    "tmpfs",
    "devices",
    "gpus",
    "log",
    "strategy",
    "when_tight",
    "version",
    "stop_timeout",
    "drain_timeout",
    "progress_deadline",
    "keep",
)


def _mounts(platform, service):
    """Return the folders that a container of ``service`` sees, and where."""
    root = pathlib.Path(platform["site"]["root"])
    folder = root / "services" / service["name"]
    digests = __salt__["llm_files.digests"](service["name"])
    wanted = [
        (service["files"], digests["directory"], "/etc/llm", True),
        (service["live_files"], folder / "live", "/etc/llm-live", True),
        (service["certificate"], folder / "tls", "/etc/llm-tls", True),
        (service["certificate"], root / "trust", "/etc/llm-trust", True),
        (service["endpoints"], root / "endpoints", "/etc/llm-endpoints", True),
        (service["models"], root / "models", "/models", True),
        (service["health"].get("socket"), folder / "run" / "{name}", "/run/llm", False),
    ]
    return [
        {"source": str(source), "target": target, "read_only": read_only}
        for used, source, target, read_only in wanted
        if used
    ]


def _models(platform, service):
    """Return the model files that ``service`` reads at its start, with their checksums."""
    if not service["models"]:
        return {}
    models = platform["site"]["models"].values()
    return {model["file"]: model["sha256"] for model in models if "file" in model}


def _network(platform, service):
    """Return how a container of ``service`` is connected."""
    if service["network"] == "host":
        return {"network": "host", "addresses": None, "aliases": []}
    network = platform["site"]["network"]
    routes = service["every_host"]
    return {
        "network": network["name"],
        "addresses": service["addresses"],
        "aliases": sorted(set(platform["services"])) if routes else [],
        "routed": not routes,
    }
