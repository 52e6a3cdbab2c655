"""
What a deploy would do, as data for people: what becomes of each replica, what its clients notice,
and how long it may take. Nothing here asks anybody.
"""

ROUTE = 10  # seconds that `llm_mesh.route` waits for the Envoys
UNLIMITED = ("build", "pull", "fetch", "install")  # nothing says how long these may take
# The gravest first.
RANK = ("create", "replace", "start", "resume", "park", "remove", "rename", "update")


def service(plan, service, wanted, running):
    """
    Return what ``plan`` means for one service.

    plan
        As `llm_plan.plan` returned it.
    service
        The service of the catalogue, merged; of one outside of it nothing (``None``).
    wanted
        The containers of its replicas as they shall be, ``{replica: container or None}``.
    running
        The names of its containers that serve now.

    Returns ``{"actions": [{"action", "replica", "container", "causes"}], "traffic": {"effect",
    "seconds"}, "seconds"}``; the actions of a replacement have ``old`` and ``strategy`` as well.
    """
    operations = plan["operations"]
    busy = {operation["replica"] for operation in operations}
    actions = [_action(operation) for operation in operations]
    actions += [
        {"action": "none", "replica": replica, "container": container, "causes": []}
        for replica, container in wanted.items()
        if replica not in busy
    ]
    return {
        "actions": sorted(actions, key=lambda each: each["replica"]),
        "traffic": _traffic(operations, service, running),
        "seconds": _seconds(operations, service),
    }


def _action(operation):
    found = {
        "action": operation["do"],
        "replica": operation["replica"],
        "container": operation["container"],
        "causes": operation["causes"] + operation.get("tight", []),
    }
    return found | {key: operation[key] for key in ("old", "strategy") if key in operation}


def _traffic(operations, service, running):
    """
    Return what clients notice: ``none``; ``gap`` for at most ``seconds``; ``starts``, for nothing
    serves until then; ``ends``, for nothing serves from then on.
    """
    effect, seconds = "none", 0
    if service is None:
        effect = "ends" if running else "none"
    elif any(each["do"] in ("create", "replace", "start", "resume") for each in operations):
        gaps = [each for each in operations if _stops_first(each) and not running - {each["old"]}]
        if not running:
            effect = "starts"
        elif gaps:
            effect = "gap"
            seconds = service["stop_timeout"] + _wait(service)
    return {"effect": effect, "seconds": seconds}


def _stops_first(operation):
    return operation["do"] == "replace" and operation["strategy"] == "stop-first"


def _wait(service):
    return min(service["healthy_deadline"], service["progress_deadline"])


def _seconds(operations, service):
    """Return how long operations take at most: those of one lane one after another."""
    lanes = {}
    for operation in operations:
        seconds = sum(_step_seconds(step) for step in operation["steps"])
        lanes[operation["lane"]] = lanes.get(operation["lane"], 0) + seconds
    awaited = any(operation["do"] in ("create", "start", "resume") for operation in operations)
    return max(lanes.values(), default=0) + (_wait(service) if awaited else 0)


def _step_seconds(step):
    if step["do"] == "wait":
        return step["health"]["healthy_deadline"]
    return ROUTE if step["do"] == "route" else step.get("seconds", 0)


def is_changed(found):
    """
    Return whether a deploy would change anything of one service as `llm_change.foreseen` has it.
    """
    acts = any(each["action"] != "none" for each in found["actions"])
    return acts or any(found[key] for key in ("files", "live_files", "certificate", "routes"))


def summary(hosts):
    """
    Return what a deploy of several hosts comes to.

    hosts
        ``{host: what llm_change.foreseen returned}``; ``None`` for a host that did not answer.

    Returns ``{"changes": whether there are any, "actions": {action: replicas}, "preparations":
    count, "unlimited": count of those that build, pull, fetch or install, "gaps": {service: seconds
    at most}, "ends": [service that no host serves any more], "seconds": at most}``. The time of
    what is unlimited is not in it.
    """
    answered = [host for host in hosts.values() if host]
    services = [pair for host in answered for pair in host["services"].items()]
    counts, gaps = {}, {}
    for name, found in services:
        for action in _gravest(found["actions"]).values():
            counts[action] = counts.get(action, 0) + 1
        if found["traffic"]["effect"] == "gap":
            gaps[name] = max(gaps.get(name, 0), found["traffic"]["seconds"])
    ends = {name for name, found in services if found["traffic"]["effect"] == "ends"}
    preparations = [each for host in answered for each in host["preparations"]]
    return {
        "changes": bool(preparations) or any(is_changed(found) for _, found in services),
        "actions": counts,
        "preparations": len(preparations),
        "unlimited": sum(each["do"] in UNLIMITED for each in preparations),
        "gaps": gaps,
        "ends": sorted(ends.difference(name for name, found in services if found["tier"])),
        "seconds": _longest(answered),
    }


def _gravest(actions):
    """Return of each replica the one action that it is counted by."""
    found = {}
    for each in sorted(actions, key=lambda each: (*RANK, "none").index(each["action"])):
        found.setdefault(each["replica"], each["action"])
    return found


def _longest(hosts):
    """Return the sum over the tiers, each as long as its slowest host: services come in turn."""
    tiers = {}
    for host in hosts:
        own = {}
        for found in host["services"].values():
            own[found["tier"]] = own.get(found["tier"], 0) + found["seconds"]
        for tier, seconds in own.items():
            tiers[tier] = max(tiers.get(tier, 0), seconds)
    return sum(tiers.values())


def announcement(hosts):
    """
    Return the plans that a deploy announces, ``{host: {service: digest}}``: what the pillar's
    ``llm_announced`` is made of, for `llm_container.running` to see whether they still stand.

    hosts
        As `summary` takes them.
    """
    return {
        host: {name: service["digest"] for name, service in found["services"].items()}
        for host, found in hosts.items()
        if found
    }


def chosen_names(services):
    """
    Return names as a list, whether they are one or a text with commas between.
    """
    if isinstance(services, str):
        services = services.split(",")
    return [name.strip() for name in services or () if name.strip()]
