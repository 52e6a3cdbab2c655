"""
Whether a host has what its services need, asked before anything is changed. Changes nothing.
"""

import glob
import json
import os
import pathlib
import re
import shutil

import llm_engine
import llm_room
import llm_world
import psutil
from llm_size import rounded as _size
from salt.exceptions import CommandExecutionError
from salt.utils.state import job_queue_dir, state_queue_dir

__virtualname__ = "llm_preflight"

OLDEST = (20, 10)  # version of the engine: Debian 12's
LIMITS = {"MemoryLimit": "memory", "CpuCfsQuota": "CPU", "PidsLimit": "pids"}
PROC = "/proc"
NVIDIA = "nvidia-container-runtime-hook"
CONTAINER = re.compile(r"[0-9a-f]{64}")


def __virtual__():
    return __virtualname__


def check(engine_expected=True):
    """
    Return what this host lacks, one line for each: what was found, what is needed, what to do.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_preflight.check

    engine_expected
        Whether the engine must answer already. Default: ``True``.
    """
    platform = __salt__["llm_config.platform"]()
    services = [platform["services"][name] for name in __salt__["llm_config.carried"]()]
    engine, problems = _engine_facts(engine_expected)
    containers = _containers(engine)
    problems += _memory(platform, services, containers)
    problems += _generations(platform, services, containers)
    problems += _processors(platform, services, engine)
    models, missing = _models(platform, services)
    problems += missing
    problems += _disk(platform, services, engine, models)
    problems += _certificate(platform, services)
    problems += _ports(platform, services, containers)
    problems += _devices(services, engine)
    problems += _queues()
    return [
        f"{platform['host']}: {what}: found {found}, needed {needed}; {remedy}"
        for what, found, needed, remedy in problems
    ]


def _engine():
    return llm_engine.Engine(llm_engine.socket_path(__opts__))


def _engine_facts(expected):
    """Return what the engine says of itself (nothing when it is away), and what is wrong there."""
    try:
        engine = json.loads(_engine().request("GET", "/info", timeout=10))
    except CommandExecutionError as err:
        words = [("engine", str(err), "an engine that answers", "state.apply docker starts it")]
        return {}, words if expected else []
    problems = []
    version = engine["ServerVersion"]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        problems.append(("engine", f"version {version}", f"{oldest} or later", "upgrade Docker"))
    if engine["OSType"] != "linux":
        problems.append(("engine", f"one for {engine['OSType']}", "one for linux", "use another"))
    for key, limit in LIMITS.items():
        if not engine.get(key):
            found = f"no support for {limit} limits"
            problems.append(("engine", found, "all limits", f"enable the kernel's {limit} cgroup"))
    return engine, problems


def _containers(engine):
    """Return the containers of this host, ours and others'."""
    return _engine().containers() if engine else []


def _memory(platform, services, containers):
    reserve = platform["preflight"]["memory_reserve"]
    memory = psutil.virtual_memory()
    needed = sum(service["memory"] * service["replicas"] for service in services)
    if needed + reserve > memory.total:
        limits = f"{_size(needed)} for its services' limits and {_size(reserve)} in reserve"
        lower = "lower limits in pillar/environments, or move a role to another host in site.yaml"
        return [("memory", f"{_size(memory.total)} in all", limits, lower)]
    missing = {
        service["name"]: max(0, service["replicas"] - _running(platform, service, containers))
        for service in services
    }
    more = sum(service["memory"] * missing[service["name"]] for service in services)
    if more and more + reserve > memory.available:
        limits = f"{_size(more)} for containers that do not run yet and {_size(reserve)} in reserve"
        stop = "stop what else runs there, or lower limits in pillar/environments"
        return [("memory", f"{_size(memory.available)} available", limits, stop)]
    return []


def _generations(platform, services, containers):
    """What may have no gap needs room for two of it while it is replaced."""
    site, problems = platform["site"]["name"], []
    ours = [each for each in containers if (each["Labels"] or {}).get(llm_world.SITE) == site]
    limits = llm_world.limits(ours)
    for service in services:
        may_stop = "stop-first" in (service["strategy"], service["when_tight"])
        if may_stop or service["name"] not in limits:
            continue
        room = __salt__["llm_service.room"](service["name"])
        lacking = llm_room.lacking({"room": room, "memory": service["memory"]}, limits)
        if not lacking:  # what it would cost to plan is spared
            continue
        plan = __salt__["llm_container.plan"](__salt__["llm_service.specs"](service["name"]))
        if any(operation.get("tight") for operation in plan["operations"]):
            found = f"{_size(lacking)} too little"
            needed = f"room for two generations of {service['name']}"
            problems.append(("memory", found, needed, llm_room.REMEDY))
    return problems


def _running(platform, service, containers):
    """Return how many containers of ``service`` run here."""
    ours = {"llm.site": platform["site"]["name"], "llm.service": service["name"]}
    return sum(
        each["State"] == "running" and ours.items() <= (each["Labels"] or {}).items()
        for each in containers
    )


def _processors(platform, services, engine):
    there = engine.get("NCPU") or os.cpu_count()
    lower = "lower cpus in pillar/environments"
    problems = [
        ("CPU", f"{there}", f"{service['cpus']:g} for one container of {service['name']}", lower)
        for service in services
        if service["cpus"] > there
    ]
    overcommit = platform["preflight"]["cpu_overcommit"]
    wanted = sum(service["cpus"] * service["replicas"] for service in services)
    if wanted > there * overcommit:
        found = f"{there} (with cpu_overcommit {overcommit:g}: {there * overcommit:g})"
        move = f"{lower}, raise preflight:cpu_overcommit, or move a role to another host"
        problems.append(("CPU", found, f"{wanted:g} for its services' limits", move))
    return problems


def _models(platform, services):
    """Return how many bytes of models are still to come, and those that cannot be had."""
    size, problems = 0, []
    if not any(service["models"] for service in services):
        return size, problems
    for name, model in platform["site"]["models"].items():
        if "file" not in model or __salt__["llm_model.checksum"](name) == model["sha256"]:
            continue
        place = {key: model[key] for key in ("url", "path") if key in model}
        try:
            size += __salt__["llm_model.need"](name, **place)["size"] or 0
        except CommandExecutionError as err:
            remedy = f"put it there, or change models:{name} in pillar/site.yaml"
            problems.append((f"model {name}", str(err), "its file", remedy))
    return size, problems


def _certificate(platform, services):
    """The files of the user's own certificate, where a service shows it to the world."""
    if not any(service["certificate"] == "public" for service in services):
        return []
    own = platform["site"]["public_certificate"]
    remedy = "put it there, or change public_certificate in pillar/site.yaml"
    return [
        (part, f"source file {own[part]} missing on host {platform['host']}", "it", remedy)
        for part in ("certificate", "key")
        if part in own and not os.path.isfile(own[part])
    ]


def _disk(platform, services, engine, models):
    """``models`` is how many bytes of them are still to come."""
    wanted, root = platform["preflight"]["disk_free"], platform["site"]["root"]
    folders = {}
    for folder in (engine.get("DockerRootDir", "/var/lib/docker"), root):
        there = pathlib.Path(folder)
        while not there.exists():
            there = there.parent
        folders.setdefault(there.stat().st_dev, {})[folder] = shutil.disk_usage(there).free
    disks = [
        (" and ".join(shared), min(shared.values()), models if root in shared else 0)
        for shared in folders.values()
    ]
    short = any(free < wanted + more for _, free, more in disks)
    # A host that has its images already needs only a tenth, for logs and data.
    if short and engine and _has_images(services):
        wanted //= 10
    room = "make room (salt-run llm.prune), or lower preflight:disk_free"
    return [
        (
            "disk",
            f"{_size(free)} free for {names}",
            f"{_size(wanted)}{f' and {_size(more)} for models' if more else ''}",
            room,
        )
        for names, free, more in disks
        if free < wanted + more
    ]


def _has_images(services):
    """Return whether the engine has an image for each of ``services``, of whatever version."""
    there = set()
    for image in json.loads(_engine().request("GET", "/images/json")):
        there.add((image["Labels"] or {}).get("llm.image"))
        there.update(image["RepoTags"] or [])
        there.update(image["RepoDigests"] or [])
    return {service["image"] for service in services} <= there


def _ports(platform, services, containers):
    """What listens on the host is the ingress; its own hold on the ports is fine."""
    if "ingress" not in [service["name"] for service in services]:
        return []
    site = platform["site"]
    wanted = {site["public_port"]: "public_port", site["hosts_port"]: "hosts_port"}
    holders = {port: [] for port in wanted}
    for each in containers:
        for published in each["Ports"]:
            if published.get("PublicPort") in wanted and published["Type"] == "tcp":
                holders[published["PublicPort"]].append(f"container {each['Names'][0][1:]}")
    for connection in psutil.net_connections("tcp"):
        port = connection.laddr.port
        if connection.status == psutil.CONN_LISTEN and port in wanted:
            holder = _holder(connection.pid, site["name"], containers)
            # A published port is held by the engine's proxy in the container's name.
            if holder and not (holders[port] and "docker-proxy" in holder):
                holders[port].append(holder)
    return [
        (
            f"port {port}",
            f"it held by {' and '.join(dict.fromkeys(found))}",
            f"it for the ingress ({wanted[port]})",
            f"stop that, or change {wanted[port]} in pillar/site.yaml",
        )
        for port, found in holders.items()
        if found
    ]


def _holder(pid, site, containers):
    """Return who process ``pid`` is in words, or ``None`` when it is our own ingress."""
    if pid is None:
        return "a process that cannot be seen"
    try:
        groups = set(CONTAINER.findall(pathlib.Path(PROC, str(pid), "cgroup").read_text()))
        process = psutil.Process(pid)
        # Without its arguments, which may hold a secret.
        command = process.exe() or process.name()
    except (OSError, psutil.Error):
        return f"process {pid}"
    for each in containers:
        if each["Id"] in groups:
            labels = each["Labels"] or {}
            if (labels.get("llm.site"), labels.get("llm.service")) == (site, "ingress"):
                return None
            return f"container {each['Names'][0][1:]}"
    return f"process {pid} ({process.name()}, {command})"


def _devices(services, engine):
    problems = []
    for service in services:
        for device in service["devices"]:
            if not os.path.exists(device.split(":")[0]):
                needed = f"{device} for {service['name']}"
                drop = f"load its driver, or take it out of {service['name']}'s devices"
                problems.append(("device", "none", needed, drop))
    wanted = {service["name"]: service["gpus"] for service in services if service["gpus"]}
    there = len(glob.glob("/dev/nvidia[0-9]*"))
    for name, gpus in wanted.items():
        if there < (1 if gpus == "all" else gpus):
            needed = f"{gpus} for {name}"
            problems.append(("GPU", str(there), needed, f"install the driver, or change {name}'s"))
    prepared = "nvidia" in engine.get("Runtimes", {}) or shutil.which(NVIDIA)
    if wanted and not prepared:
        install = "install nvidia-container-toolkit and restart the engine"
        needed = f"one for {' and '.join(wanted)}"
        problems.append(("GPU", "no runtime for containers", needed, install))
    return problems


def _queues():
    """A state run that was queued long ago starts with the minion and undoes what came since."""
    left = [
        path
        for folder in (state_queue_dir(__opts__), job_queue_dir(__opts__))
        for path in sorted(glob.glob(f"{glob.escape(folder)}/queued_*.p"))
    ]
    if not left:
        return []
    runs = f"{len(left)} queued run{'s' if len(left) > 1 else ''} that may start at any time"
    return [("queue", runs, "none", f"remove: rm {' '.join(left)}")]
