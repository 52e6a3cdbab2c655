"""
What this host knows of deploys: which one it is in, what served before it, and what was taken back.

A deploy has a number, the one of its release. A host takes part in the deploy that has begun on
it last and in no other: what an older one left behind, such as a job that wakes up late, changes
nothing.
"""

import contextlib
import datetime
import pathlib
import time

import llm_engine
import llm_record
import llm_release
import llm_snapshot
import llm_spec
import llm_standstill
import llm_watch
from llm_world import LIVE
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_deploy"

SNAPSHOTS = 20  # releases whose live files are kept for going back
PATIENCE = 120  # seconds that another state run may still take
GOING_BACK = "going back"
LONGEST = 3600  # seconds; a deploy that has begun before was killed
ENDED = (llm_release.DONE, llm_release.TAKEN_BACK)  # what serves then is proved
FORWARD = ("state.*", "llm_deploy.start", "llm_deploy.go_to")  # what is taken back
CHANGE = (*FORWARD, "llm_deploy.take_back")  # what changes containers


def __virtual__():
    return __virtualname__


def _root():
    """Return the platform's folder; what is not of its catalogue needs no sound pillar."""
    site = (__pillar__.get("llm") or {}).get("site") or {}
    return pathlib.Path(site["root"]) if site.get("root") else None


def current():
    """
    Return what this host knows of the last deploy that has begun on it, or ``None``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.current

    Returns ``{"number": int, "state": "running" or how it ended, "since": ISO 8601, "touched":
    whether it has changed containers, "before": {service: {replica: {"container", "digest",
    "image", "parts"}}}}``.
    """
    return _read("deploy.json")


def fence(number):
    """
    Return why a state run of deploy ``number`` must change nothing here, or ``None``. It is asked
    before every step, as what was true at the first may not be at the next.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.fence 12
    """
    if (seconds := llm_standstill.longest()) > llm_standstill.LIMIT:
        return f"this host stood still for {seconds:.0f} s: who deploys may have given up"
    record = current()
    if not record or record["number"] < number:
        return None
    if record["number"] > number:
        return f"deploy {record['number']} has begun here since: deploy {number} changes nothing"
    if record["state"] != llm_release.RUNNING:
        return f"deploy {number} has ended ({record['state']}): it changes nothing any more"
    return None


def begin(number):
    """
    Take part in deploy ``number``: remember what serves now, to be able to go back. Where the last
    deploy has never come to its end, that is what served before it: the rest is not proved.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.begin 12

    Returns this host's clock, in seconds since 1970.

    Raises ``CommandExecutionError`` when a later deploy has begun here, or another state run does
    not come to its end.
    """
    if why := fence(number):
        raise CommandExecutionError(why)
    if runs := _wait_for_other_runs(*CHANGE):
        named = ", ".join(f"{run['fun']} (job {run['jid']})" for run in runs)
        raise CommandExecutionError(f"still at work here: {named}; wait, or saltutil.kill_job")
    with llm_watch.turn(_root(), PATIENCE) as mine:
        if not mine:
            raise CommandExecutionError("what was drift here is still being healed; try again")
        _snapshot(number).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unended = _unended(number)
        if not unended:
            llm_snapshot.take(_root() / "services", _snapshot(number, "before"))
        before = _serving()
        if before is None:  # the deploy starts the engine, for the first time or again
            before = __salt__["llm_watch.remembered"]()
        record = _record(number, llm_release.RUNNING, before=before) | unended
        if why := fence(number):  # called off meanwhile
            raise CommandExecutionError(why)
        _write("deploy.json", record)
    return time.time()


def under_way():
    """
    Return whether a deploy is under way on this host, or goes back.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.under_way
    """
    record = current()
    if not record or record["state"] not in (llm_release.RUNNING, GOING_BACK):
        return False
    since = datetime.datetime.fromisoformat(record["since"])
    return (datetime.datetime.now(datetime.UTC) - since).total_seconds() < LONGEST


def call_off(number):
    """
    Deploy ``number`` does not take place: what comes of it later changes nothing here.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.call_off 12

    Returns the number of the last deploy that this host knows of.
    """
    with llm_watch.turn(_root(), PATIENCE):  # `begin`, where it is late, is over or finds this
        known = (current() or {"number": 0})["number"]
        if number < known:
            return known
        unended = _unended(number)
        if not unended:
            llm_snapshot.remove(_snapshot(number))
        _write("deploy.json", _record(number, llm_release.REFUSED) | unended)
    return number


def touch():
    """
    Note that the deploy under way changes containers of this host, if one is.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.touch
    """
    record = current() or {}
    if record.get("state") == llm_release.RUNNING and not record["touched"]:
        _write("deploy.json", record | {"touched": True})


def end(number, state):
    """
    Deploy ``number`` is over. Waits for what still goes back in its course.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.end 12 done

    state
        How it ended.

    Returns ``{"changes": {what: [cause]}, "services": {service: {replica: {"container",
    "digest", "image"}}}}``: what it did here, and what serves now.
    """
    _wait_for_other_runs("llm_deploy.take_back")
    record = _of(number)
    after = _serving() or {}
    changes = _changes(record["before"], after)
    changes |= {f"files of {service}": names for service, names in _changed(number).items()}
    _write("deploy.json", record | {"state": state, "touched": bool(changes)})
    if state == llm_release.DONE and (found := _read("refused.json")):
        # What this one has not gone back from is settled.
        _write("refused.json", {k: each for k, each in found.items() if each["number"] == number})
    if changes:
        llm_snapshot.take(_root() / "services", _snapshot(number, "after"))
    else:
        llm_snapshot.remove(_snapshot(number))
    llm_snapshot.retain(_root() / "deploys", SNAPSHOTS)
    shown = ("container", "digest", "image")
    return {
        "changes": changes,
        "services": {
            service: {replica: {key: one[key] for key in shown} for replica, one in found.items()}
            for service, found in after.items()
        },
    }


def take_back(number, services):
    """
    Bring back what served of ``services`` before deploy ``number``, in the order given: their
    containers by a start, with their configuration and secrets, and their live files. Waits for
    other state runs on this host to end; those of the deploy that come later change nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.take_back 12 '[tail, head]'

    number
        The deploy.
    services
        Names of services of this host.

    Returns ``{"begun": whether the deploy has changed anything here, "changes": {container:
    [cause]}, "errors": [sentence]}``. That it was taken back is remembered: no other way of
    applying brings the same again, until the pillar says something else or the next deploy tries.
    """
    record = current()
    if not record or record["number"] != number:
        return {"begun": False, "changes": {}, "errors": []}
    first = record["state"] != GOING_BACK
    _write("deploy.json", record | {"state": GOING_BACK})
    for run in _wait_for_other_runs(*FORWARD):
        __salt__["saltutil.kill_job"](run["jid"])
    wanted = {name: record["before"].get(name, {}) for name in services}
    why = f"release {number} was taken back"
    if not record["touched"] and not _changed(number):
        return {"begun": False, "changes": {}, "errors": []}
    errors = _end_canaries(wanted)
    if first:
        known = record["before"].keys() & __salt__["llm_config.carried"]()
        _start({name: record["before"][name] for name in known}, _snapshot(number, "before"), why)
    done = _go(wanted, _snapshot(number, "before"), number, why)
    return {"begun": True} | done | {"errors": errors + done["errors"]}


def _end_canaries(services):
    """Remove what was tried of ``services``; return what went wrong."""
    try:
        for name in sorted(set(__salt__["llm_canary.running"]()) & set(services)):
            __salt__["llm_canary.end"](name)
    except CommandExecutionError as err:
        return [f"canary: {err}"]
    return []


def start(number, release, wanted):
    """
    Start what served at the end of ``release``, in the course of deploy ``number``, before `go_to`
    lets it serve, so that no service waits for the start of another. What is found by name or port
    gets requests at once, the rest when `go_to` sends them.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.start 14 12 '{head: {"1": {digest: "v1:..."}}}'

    number, release, wanted
        As of `go_to`.

    What cannot be started so early is started by `go_to`, or refused.
    """
    if why := fence(number):
        raise CommandExecutionError(why)
    _start(wanted, _snapshot(release, "after"), _coming(release))


def go_to(number, release, wanted):
    """
    Let what served at the end of ``release`` serve again, in the course of deploy ``number``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.go_to 14 12 '{head: {"1": {digest: "v1:..."}}}'

    number
        The deploy.
    release
        The release to go to.
    wanted
        Services in the order in which they go, and of each the replicas with the digest of their
        container's spec.

    Returns ``{"changes": {container: [cause]}, "errors": [sentence]}``.
    """
    if why := fence(number):
        raise CommandExecutionError(why)
    return _go(wanted, _snapshot(release, "after"), number, _coming(release))


def obstacles(release, wanted):
    """
    Return why what served at the end of ``release`` cannot serve again, nothing where it can.
    Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.obstacles 12 '{head: {"1": {digest: "v1:..."}}}'

    release, wanted
        As of `go_to`.

    Returns a list of sentences, of all services at once.
    """
    specs, found = [], []
    for service, replicas in wanted.items():
        try:
            specs += _pinned(service, replicas, _coming(release))[0]
        except CommandExecutionError as err:
            found.append(f"{service}: {err}")
    plan = __salt__["llm_container.plan"](specs)
    return found + plan["conflicts"] + plan["missing"]


def _coming(release):
    """Return why a container of ``release`` serves again."""
    return f"release {release} comes back"


def tell(text):
    """
    Tell whoever watches the deploy under way what this host is at. Nothing else hangs on it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.tell 'head starts'

    text
        For people, without secrets.
    """
    deploys = __pillar__.get("llm_deploy") or under_way()
    if deploys and __opts__.get("file_client") == "remote":
        __salt__["event.fire_master"]({"text": text}, f"llm/progress/{__opts__['id']}")


def refused(service):
    """
    Return what of ``service`` was taken back and must not come again unasked, or ``None``.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_deploy.refused head

    Returns ``{"why": str, "wishes": {replica: hash}, "digests": {replica: digest or None},
    "files": {file: fingerprint}}``: where the pillar still asks for one of the wishes, the
    container with that digest stays, or none. A deploy that is under way, or is only tested, tries
    all anew.
    """
    if __pillar__.get("llm_deploy") or (current() or {}).get("state") == llm_release.RUNNING:
        return None
    return (_read("refused.json") or {}).get(service)


def _changed(number):
    """Return the live files that are not as before deploy ``number``, ``{service: [sentence]}``."""
    return llm_snapshot.differences(_root() / "services", _snapshot(number, "before"))


def _start(wanted, snapshot, why):
    """
    Start the containers of ``wanted`` whose live files are those of ``snapshot``, if there is
    nothing in the way of any. `_go` is for the rest, and tells what is wrong.
    """
    changed = llm_snapshot.differences(_root() / "services", snapshot)
    with contextlib.suppress(CommandExecutionError):
        found = [_pinned(service, replicas, why) for service, replicas in wanted.items()]
        plan = __salt__["llm_container.plan"](sum((specs for specs, _ in found), []))
        if not plan["conflicts"] + plan["missing"]:
            ahead = [each for each in plan["ahead"] if each["service"] not in changed]
            if ahead:
                __salt__["llm_container.execute"](plan | {"operations": ahead}, heals=True)


def _go(wanted, snapshot, number, why):
    """
    Let the containers of ``wanted`` serve, with the live files of ``snapshot``: all of them side by
    side, or where something is in the way of one, each by itself.
    """
    changes, errors, specs, refusals = {}, [], {}, {}
    for service, replicas in wanted.items():
        if not replicas:
            errors.append(f"{service}: nothing of it served before, so there is no way back")
            continue
        try:
            fingerprints = __salt__["llm_files.fingerprints"](service)
            restored = llm_snapshot.restore(snapshot, _root() / "services", service)
            specs[service], wishes = _pinned(service, replicas, why)
        except CommandExecutionError as err:
            errors.append(f"{service}: {err}")
            continue
        files = {file: fingerprints[file] for file in restored if file in fingerprints}
        refusals[service] = _refusal(number, why, wishes, replicas, files)
        if restored:
            changes[f"files of {service}"] = [f"{file} as before" for file in restored]
    turns = [[*specs]] if specs else []
    while turns:
        services = turns.pop(0)
        try:
            plan = __salt__["llm_container.plan"](sum((specs[each] for each in services), []))
            moved = {operation["service"] for operation in plan["operations"]}
            _refuse({s: refusals[s] for s in services if s in moved or f"files of {s}" in changes})
            found = plan["conflicts"] + plan["missing"]
            if found and services[1:]:
                turns = [[each] for each in services]
            elif found:
                errors += found
            else:
                done = __salt__["llm_container.execute"](plan)
                changes |= done["changes"]
                errors += done["errors"]
        except llm_engine.NoAnswer as err:
            return {"changes": changes, "errors": [*errors, str(err)]}
        except CommandExecutionError as err:
            errors.append(f"{', '.join(services)}: {err}")
    return {"changes": changes, "errors": errors}


def _pinned(service, replicas, why):
    """Return specs that name the containers of ``replicas``, and what the pillar asks for."""
    specs = __salt__["llm_service.specs"](service, anew=True)
    asked = {str(spec["replica"]): spec for spec in specs}
    wishes = {replica: llm_spec.wish(llm_spec.completed(spec)) for replica, spec in asked.items()}
    any_of_them = next(iter(asked.values()))
    specs = []
    for replica, kept in replicas.items():
        pinned = {"digest": kept["digest"], "why": why}
        spec = asked.get(replica, any_of_them)
        specs.append(spec | {"replica": int(replica), "pinned": pinned})
    return specs, wishes


def _refusal(number, why, wishes, replicas, fingerprints):
    """Return what must not come again of itself, as `refused` does."""
    digests = {
        replica: replicas[replica]["digest"] if replica in replicas else None for replica in wishes
    }
    return {
        "number": number,
        "why": why,
        "wishes": wishes,
        "digests": digests,
        "files": fingerprints,
    }


def _refuse(refusals):
    """Remember the ``refusals``, by service."""
    if refusals:
        _write("refused.json", (_read("refused.json") or {}) | refusals)


def _serving():
    """
    Return the newest container that runs of each replica, ``{service: {replica: {...}}}``, or
    ``None`` where no engine answers.
    """
    try:
        listed = __salt__["llm_container.list"](parts=True)
    except CommandExecutionError:
        return None
    found = {}
    for each in listed:  # the newest generation comes last
        if each["state"] in LIVE:
            found.setdefault(each["service"], {})[str(each["replica"])] = {
                "container": each["name"],
                "digest": each["spec"],
                "image": each["image"],
                "parts": each["parts"],
            }
    return found


def _changes(before, after):
    """Return what became of the containers, ``{container: [cause]}``."""
    found = {}
    for service in sorted(before.keys() | after.keys()):
        old, new = before.get(service, {}), after.get(service, {})
        for replica in sorted(old.keys() | new.keys()):
            was, now = old.get(replica), new.get(replica)
            if not now:
                found[was["container"]] = ["stopped"]
            elif not was:
                found[now["container"]] = ["started: there was none"]
            elif was["container"] != now["container"]:
                causes = llm_spec.causes(was["parts"], now["parts"])
                found[now["container"]] = causes or [f"in place of {was['container']}"]
    return found


def _wait_for_other_runs(*functions):
    """
    Return the runs of ``functions`` that are under way here, after they had time to come to their
    end.
    """
    deadline = time.monotonic() + PATIENCE
    while runs := [run for each in functions for run in __salt__["saltutil.is_running"](each)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return runs


def _record(number, state, before=None):
    """Return what this host remembers of a deploy."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"number": number, "state": state, "since": since, "touched": False}
    return record | {"before": before or {}}


def _unended(number):
    """
    Return what deploy ``number`` takes over of an earlier one that has changed containers and has
    come to no end, and hand its snapshot on; an empty mapping where there is none.
    """
    last = current()
    if not last or not (last["touched"] and last["before"]) or last["state"] in ENDED:
        return {}
    if last["number"] != number and _snapshot(last["number"]).exists():
        llm_snapshot.remove(_snapshot(number))
        _snapshot(last["number"]).rename(_snapshot(number))
    return {"touched": True, "before": last["before"]}


def _of(number):
    record = current()
    if not record or record["number"] != number:
        raise CommandExecutionError(f"deploy {number} is not the one that has begun here last")
    return record


def _snapshot(number, *when):
    return _root().joinpath("deploys", str(number), *when)


def _read(name):
    root = _root()
    return llm_record.read(root / name) if root else None


def _write(name, data):
    llm_record.write(_root() / name, data)
