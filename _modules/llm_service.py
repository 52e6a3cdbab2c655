"""
The containers that the catalogue wants on this host.
"""

import pathlib

__virtualname__ = "llm_service"


def __virtual__():
    return __virtualname__


def specs(name):
    """
    Return the specs of the containers of service ``name`` on this host, one per replica.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.specs head

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
        **_network(platform, service),
        **{key: service[key] for key in COPIED},
    }
    digests = __salt__["llm_files.digests"](name)
    spec |= {"files": digests["files"], "secrets": digests["secrets"]}
    spec["edited"] = sorted(__salt__["llm_files.pending"](name).keys() & digests["files"].keys())
    return [spec | {"replica": replica} for replica in range(1, service["replicas"] + 1)]


def status():
    """
    Return how each service that this host carries is doing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_service.status

    Returns ``{service: {"image": reference, "version": of those that run or ``None``, "wanted":
    replicas, "running": replicas, "healthy": replicas, "since": start of the youngest as ISO 8601
    or ``None``, "restarts": int, "memory": bytes, "memory_limit": bytes, "cpus": cores in use,
    "cpus_limit": cores, "answers": {container: last answer}}}``; use and limits are sums over the
    replicas.
    """
    used = __salt__["llm_container.stats"]()
    services = __salt__["llm_config.platform"]()["services"]
    return {name: _status(services[name], used) for name in __salt__["llm_config.carried"]()}


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
        "running": len(running),
        "healthy": sum(answer["ok"] for answer in answers.values()),
        "since": max((each["started_at"] for each in running), default=None),
        "restarts": sum(each["restarts"] for each in containers),
        **{
            key: sum(each[key] for each in mine)
            for key in ("memory", "memory_limit", "cpus", "cpus_limit")
        },
        "answers": {name: answer["answer"] for name, answer in answers.items()},
    }


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
    "stop_timeout",
    "drain_timeout",
    "version",
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
