"""
The platform's containers: what runs, the plan that leads to what should run, and carrying it out.

What belongs to the platform is told by labels; nothing else is ever touched. A service has a
container for each replica and generation, called ``<site>-<service>-<replica>-g<generation>``; the
one before the current is kept, stopped, so that going back is a start.
"""

import concurrent.futures
import dataclasses
import datetime
import json
import os
import pathlib
import re
import time

import llm_catalogue
import llm_diagnosis
import llm_engine
import llm_execution
import llm_plan
import llm_spec
import llm_world
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_container"
__func_alias__ = {"list_": "list"}  # list is a word of Python's

SIDE_BY_SIDE = 6  # questions to the engine
LISTED = "llm_container.listed"
RECENT = 2  # seconds
SAMPLE = 0.5  # seconds between the two looks that tell the CPU's use
_ERROR = re.compile(r"\b(error|fatal|critical|panic|exception|traceback)\b", re.IGNORECASE)


def __virtual__():
    return __virtualname__


def _engine(expected=True):
    """Return the engine; where none need be there and none answers, one that has nothing."""
    engine = llm_engine.Engine(llm_engine.socket_path(__opts__))
    if not expected:
        try:
            engine.request("GET", "/_ping", timeout=10)
        except CommandExecutionError:
            return llm_engine.NoEngine()
    return engine


def _site():
    """Return the site's name, the first part of every name; containers need no catalogue."""
    return llm_world.site(__pillar__)


def list_(service=None, parked=False, parts=False):
    """
    Return the platform's containers on this host.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.list head parked=True

    service
        Only those of this service. Default: all.
    parked
        With those that were replaced and are kept for going back. Default: ``False``.
    parts
        With ``parts``, all that they were made of, and ``rollout``, how they took their place.
        Default: ``False``.

    Returns a list of mappings with ``name``, ``id``, ``service``, ``replica``, ``generation``,
    ``version`` (``None`` where unknown), ``image``, ``image_id``, ``state``, ``address``,
    ``started_at``, ``restarts``, ``exit_code``, ``out_of_memory``, ``memory`` (bytes), ``cpus``,
    ``spec`` (hash) and ``parked``.
    """
    engine = _engine()
    listed, _ = _ours(engine.containers())
    wanted = [each for each in listed if service in (None, each["Labels"].get(llm_world.SERVICE))]
    found = [_shown(each, parts) for each in _inspected(engine, wanted)]
    found.sort(key=lambda each: (each["service"], each["replica"], each["generation"]))
    return [each for each in found if parked or not each["parked"]]


def services():
    """
    Return the names of the services that have containers on this host, running or not.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.services

    Returns a sorted list.
    """
    ours, _ = _ours(_listed(_engine(), recent=True))
    return sorted({each["Labels"].get(llm_world.SERVICE, "") for each in ours} - {""})


def digest(plan):
    """
    Return what tells ``plan`` from another one, to see later whether it still stands.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.digest "$PLAN"

    plan
        As `plan` or `removal` returned it.
    """
    return llm_plan.digest(plan)


def _shown(found, parts):
    network = found.networks.get(found.parts.get("network"), {})
    kept = ("name", "id", "service", "replica", "generation", "image_id", "state", "started_at")
    kept += ("restarts", "exit_code", "out_of_memory", "spec")
    return {key: getattr(found, key) for key in kept} | {
        "image": found.parts.get("image"),
        "version": found.version or None,
        "address": network.get("address", ""),
        "memory": found.host["Memory"],
        "cpus": found.host["NanoCpus"] / 1e9,
        "parked": found.parked,
        **({"parts": found.parts, "rollout": found.rollout} if parts else {}),
    }


def _ours(listed):
    """Return our containers among those ``listed``, and the names of all others."""
    site = _site()
    ours = [each for each in listed if (each["Labels"] or {}).get(llm_world.SITE) == site]
    others = [each for each in listed if each not in ours]
    return ours, {name.lstrip("/") for each in others for name in each["Names"]}


def _inspected(engine, listed):
    """Return the containers ``listed`` in full; those that went away meanwhile are left out."""
    found = []
    for each in listed:
        try:
            container = llm_world.container(engine.inspect(each["Id"]))
        except llm_engine.NotFound:
            continue
        container.edited = _edited(container)
        container.drained = _drained(container)
        found.append(container)
    return found


def _edited(container):
    """
    Return those files which ``container`` has read at its start, and somebody has changed since
    then. Even when they are put right again, nobody knows what it has read of them.
    """
    parts = container.parts
    if not container.live or not parts.get("files"):
        return []
    places = [mount["source"] for mount in parts["mounts"]]
    paths = [pathlib.Path(place, file) for place in places for file in parts["files"]]
    started = _started(container)
    # What is of the future was written before the clock was set back.
    changed = [path for path in paths if started < _written(path) < time.time()]
    return sorted(path.name for path in changed)


def _drained(container):
    """Return whether ``container`` was told since its start to be left."""
    if not container.live or not container.parts:
        return False
    name = llm_world.name(_site(), container.service, container.replica, container.generation)
    folders = llm_spec.folders(container.parts, name)
    marks = [pathlib.Path(folder, llm_world.DRAINED) for folder in folders]
    return any(_written(mark) > _started(container) for mark in marks)


def _started(container):
    """Return when ``container`` was started last as a Unix time."""
    return datetime.datetime.fromisoformat(container.started_at).timestamp()


def _written(path):
    """Return when ``path`` was written last as a Unix time, 0 when it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0


def _listed(engine, recent):
    """
    Return the engine's list of containers, which the states of one run share when ``recent`` will
    do: it only tells which there are, what they are like is asked of each.
    """
    when, listed = __context__.get(LISTED, (0, None))
    if not recent or listed is None or time.monotonic() - when > RECENT:
        listed = engine.containers()
        __context__[LISTED] = (time.monotonic(), listed)
    return listed


def _world(engine, services, references, recent=False):
    """
    Return what a plan for ``services`` starts from. What is not needed when there is nothing to do
    is not asked for.
    """
    listed = _listed(engine, recent)
    ours, foreign = _ours(listed)
    concerned = [each for each in ours if each["Labels"].get(llm_world.SERVICE) in services]
    return llm_world.World(
        site=_site(),
        containers=_inspected(engine, concerned),
        foreign=foreign,
        addresses=llm_world.addresses(listed),
        images={
            reference: {"id": llm_world.pinned(reference, ours), "create": reference}
            for reference in references
        },
        limits=llm_world.limits(ours),
    )


def plan(specs, engine_expected=True):
    """
    Return what has to be done for exactly the containers of ``specs`` to run. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.plan '[{service: bench, image: busybox, memory: 64m}]'

    specs
        A list of mappings, one per replica, with every replica of each service among them. Keys
        and defaults: ``_utils/llm_spec.py``.
    engine_expected
        Whether the engine must answer already; else a host without one has no containers. Default:
        ``True``.

    Returns ``{"operations": [...], "ahead": [...], "changes": {container: [sentence]}, "missing":
    [sentence], "conflicts": [sentence], "notes": [sentence]}`` for `execute`. ``ahead`` are
    operations that may come before all others, see ``_utils/llm_plan.py``; ``missing`` is what an
    earlier state may still bring: images, networks, folders to mount; ``conflicts`` is what a
    person has to remove.

    Raises ``SaltInvocationError`` with every mistake in ``specs``, and ``CommandExecutionError``
    when the engine does not answer.
    """
    wanted = _completed(specs)
    engine = _engine(engine_expected)
    services = {spec["service"] for spec in wanted}
    references = {spec["image"] for spec in wanted}
    found = llm_plan.plan(wanted, _world(engine, services, references, recent=True))
    if not found["operations"]:
        return found
    world = _world(engine, services, references)
    world = dataclasses.replace(
        world,
        networks={network["Name"]: network["Id"] for network in engine.networks()},
        images={
            reference: _image(engine, reference, world.images[reference]["id"])
            for reference in references
        },
    )
    found = llm_plan.plan(wanted, world)
    return _checked(engine, found)


def restoration(made):
    """
    Return what has to be done for containers to run as they were made, their images and all. No
    pillar is asked, no file is looked at. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.restoration "$MADE"

    made
        ``{service: {replica: {"digest", "parts", "rollout", "version"}}}`` with every replica of
        each service, as `llm_watch` remembers it.

    Returns ``{service: plan}``, each for `execute`, as `plan` returns it.
    """
    engine = _engine()
    world = _world(engine, set(made), ())
    for container in world.containers:
        container.edited = []  # of use to those only who know what should be in it
    ids = {each["parts"]["image_id"] for replicas in made.values() for each in replicas.values()}
    world = dataclasses.replace(
        world,
        networks={network["Name"]: network["Id"] for network in engine.networks()},
        images={each: _image(engine, each, None) for each in ids},
    )
    plans = {}
    for service, replicas in made.items():
        specs = [llm_spec.remade(service, int(number), one) for number, one in replicas.items()]
        plans[service] = _checked(engine, llm_plan.plan(specs, world))
    return plans


def _checked(engine, found):
    """Return the plan ``found`` with all that is missing or in its way."""
    _check_volumes(engine, found)
    for operation in found["operations"]:
        for path in operation["sources"]:
            if not os.path.exists(path):
                found["missing"].append(f"{path}, which {operation['container']} needs, is missing")
    return found


def _completed(specs):
    """Return ``specs`` with their defaults; all mistakes come at once."""
    wanted, mistakes = [], []
    for spec in specs:
        try:
            wanted.append(llm_spec.completed(spec))
        except SaltInvocationError as err:
            mistakes.append(str(err))
    if mistakes:
        raise SaltInvocationError("\n".join(mistakes))
    return wanted


def _image(engine, reference, pinned):
    """Return the id that ``reference`` stands for, and what to create containers from."""
    try:
        now = engine.image(reference)["Id"]
    except llm_engine.NotFound:
        now = None
    if pinned in (None, now):
        return {"id": now, "create": reference}
    try:
        engine.image(pinned)
    except llm_engine.NotFound:
        return {"id": now, "create": reference}
    return {"id": pinned, "create": pinned}


def _check_volumes(engine, found):
    """Note volumes that have the name we need and are not ours."""
    needed = {name for operation in found["operations"] for name in operation["volumes"]}
    if not needed:
        return
    for volume in engine.volumes():
        labels = volume["Labels"] or {}
        if volume["Name"] in needed and labels.get(llm_world.SITE) != _site():
            found["conflicts"].append(
                f"Volume {volume['Name']} is not ours and has the name that we need: remove it"
            )


def removal(service, volumes=False):
    """
    Return what has to be done for nothing of ``service`` to be left. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.removal head

    service
        Its name.
    volumes
        With its volumes and what they hold. Default: ``False``.

    Returns a plan as `plan` does.
    """
    engine = _engine()
    world = _world(engine, {service}, ())
    found = llm_plan.removal(service, world)
    if volumes:
        labels = {llm_world.SITE: world.site, llm_world.SERVICE: service}
        names = [
            volume["Name"]
            for volume in engine.volumes()
            if labels.items() <= (volume["Labels"] or {}).items()
        ]
        found = llm_plan.with_volumes(found, service, sorted(names))
    return found


def execute(plan, heals=False):
    """
    Carry out what `plan` or `removal` returned, independent operations side by side.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.execute "$PLAN"

    plan
        As it was returned. An operation that fails takes back what it did, and ends its lane.
    heals
        Whether all is to be as it was. If not, what serves afterwards is what the host will keep
        so, and configuration that nobody needs any more goes. Default: ``False``.

    Returns ``{"changes": {container: [sentence]}, "errors": [sentence]}``: what was done, what
    went wrong.
    """
    __salt__["llm_deploy.touch"]()
    for operation in plan["operations"]:
        __salt__["llm_deploy.tell"](f"{operation['container']}: {operation['sentence']}")
    try:
        execution = llm_execution.Execution(_engine(), _wait, _route, _drain, _permit)
        done = execution.carry_out(plan["operations"])
    finally:
        __context__.pop(LISTED, None)
    try:
        for service in sorted({operation["service"] for operation in plan["operations"]}):
            if not heals:
                __salt__["llm_watch.remember"](service)
                tidy(service)
    except CommandExecutionError as err:
        done["errors"].append(str(err))
    return done


def tidy(service):
    """
    Remove the configuration, with older secrets in it, that neither ``service`` nor a container
    of it needs any more. What is in no catalogue has none.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.tidy head

    service
        Its name.
    """
    if service not in ((__pillar__.get("llm") or {}).get("services") or {}):
        return
    ours, _ = _ours(_listed(_engine(), recent=True))
    parts = [json.loads(each["Labels"].get(llm_world.PARTS, "{}")) for each in ours]
    mounted = {mount["source"] for found in parts for mount in found.get("mounts", ())}
    __salt__["llm_files.clear"](service, mounted)


def _permit():
    """Go on only as long as the deploy that this run belongs to does."""
    deploy = __pillar__.get("llm_deploy")
    if deploy and (why := __salt__["llm_deploy.fence"](deploy)):
        raise CommandExecutionError(why)


def _wait(container, check, **how):
    check = check or {"container": "running"}
    __salt__["llm_health.wait"](check, container=container, **how)


def _route(service, addresses):
    __salt__["llm_mesh.route"](service, addresses)


def _drain(container, timeout, admin, routed):
    __salt__["llm_drain.wait"](container, timeout=timeout, admin=admin, routed=routed)


def logs(service, lines=50, errors=False, since=None, times=False):
    """
    Return what the containers of ``service`` wrote last, without secrets and without colours.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.logs head lines=100 errors=True

    service
        Its name.
    lines
        How many of each container. Default: 50.
    errors
        Only those among them that speak of an error. Default: ``False``.
    since
        Only those written after this Unix time. Default: any.
    times
        Each after the time at which it was written, as the engine has it. Default: ``False``.

    Returns ``{container: [line]}``.
    """
    engine = _engine()
    secrets = (__pillar__.get("llm") or {}).get("secrets") or {}
    values = [llm_catalogue.secret(secrets, name) for name in llm_catalogue.secret_names(secrets)]
    found = {}
    for each in list_(service):
        said = "\n".join(engine.logs(each["id"], lines, since, times)).splitlines()
        text = "\n".join(map(llm_diagnosis.plain, said))
        read = __salt__["llm_health.redacted"](text, values).splitlines()
        found[each["name"]] = [line for line in read if not errors or _ERROR.search(line)]
    return found


def stats(service=None):
    """
    Return how much of its limits each running container uses.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_container.stats head

    service
        Only containers of this service. Default: all.

    Returns ``{container: {"memory": bytes, "memory_limit": bytes, "cpus": cores in use,
    "cpus_limit": cores}}``. Takes about half a second, for the CPU's use is a difference.
    """
    engine = _engine()
    running = [each for each in list_(service) if each["state"] == "running"]
    if not running:
        return {}
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        ids = [each["id"] for each in running]
        before = list(pool.map(engine.stats, ids))
        time.sleep(SAMPLE)
        after = list(pool.map(engine.stats, ids))
    return {
        each["name"]: _used(each, *samples)
        for each, *samples in zip(running, before, after, strict=True)
    }


def _used(found, before, after):
    memory = after["memory_stats"]
    cache = memory.get("stats", {})
    times = [datetime.datetime.fromisoformat(sample["read"]) for sample in (before, after)]
    seconds = (times[1] - times[0]).total_seconds()
    spent = [sample["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9 for sample in (before, after)]
    return {
        # As `docker stats` counts: what the kernel may drop at any time is not used.
        "memory": memory.get("usage", 0)
        - cache.get("total_inactive_file", cache.get("inactive_file", 0)),
        "memory_limit": found["memory"],
        "cpus": round((spent[1] - spent[0]) / seconds, 3) if seconds > 0 else 0.0,
        "cpus_limit": found["cpus"],
    }
