"""
Staying right between deploys: what was killed, removed or changed by hand is put back as it was
deployed, without the master and without a pillar.

What serves on this host is remembered whenever a deploy or a state run has changed it, with all
that each container was made of. That, and nothing that was edited since, is what is kept so. The
engine ``llm_watch`` of each minion looks after every event of ours, and every few minutes.
"""

import pathlib
import time

import llm_diagnosis
import llm_engine
import llm_record
import llm_watch
from llm_world import LIVE
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_watch"

AGAIN = 5  # seconds until the next look while others are at work
HELD = 10  # seconds until the next look for the end of what was asked to be left alone
LONGEST = 300  # characters of an error that are kept


def __virtual__():
    return __virtualname__


def _folder(root=None):
    """Return the platform's folder; ``None`` where nobody says which."""
    site = (__pillar__.get("llm") or {}).get("site") or {}
    return pathlib.Path(root or site["root"]) if root or site.get("root") else None


def _read(folder, name):
    """Return what a file of ours holds, ``None`` also when a power cut has left it broken."""
    try:
        return llm_record.read(folder / name)
    except CommandExecutionError:
        return None


def look(root=None):
    """
    Look at every service once, and put back what is not as it was deployed. Does nothing while a
    deploy or a state run is under way.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.look

    root
        The platform's folder. Default: what the pillar says.

    Returns the seconds after which it wants to look again, ``None`` when it has no need to.
    """
    folder = _folder(root)
    deployed = _deployed(folder)
    if not deployed["services"]:
        return None
    __salt__["llm_config.assume"](deployed["platform"])
    with llm_watch.turn(folder) as mine:
        if not mine or _others_are_at_work():
            return AGAIN
        return _Watch(folder, deployed).look()


def _others_are_at_work():
    """Whether what changes here is somebody's plan, and no drift."""
    return __salt__["llm_deploy.under_way"]() or bool(__salt__["saltutil.is_running"]("state.*"))


class _Watch:
    """One look."""

    def __init__(self, folder, deployed):
        self.folder = folder
        self.platform = deployed["platform"]
        self.deployed = deployed["services"]
        self.maintenance = maintenance(folder)
        self.known = _read(folder, llm_watch.TROUBLES) or llm_watch.NONE
        self.troubles = dict(self.known["services"])
        self.again = []  # seconds after which there is something to do

    def look(self):
        made = {name: each["made"] for name, each in self.deployed.items()}
        plans = __salt__["llm_container.restoration"](made)
        containers = __salt__["llm_container.list"]()
        for service in self.deployed:
            mine = [each for each in containers if each["service"] == service]
            self.attend(service, plans[service], mine)
        # Of what was started just now, none of the restarts is missed.
        self.keep(self.restarts(__salt__["llm_container.list"]()))
        return min(self.again, default=None)

    def keep(self, restarts):
        """Write down what is known by now."""
        found = {"services": self.troubles, "restarts": restarts}
        if found != self.known:
            llm_record.write(self.folder / llm_watch.TROUBLES, found)
            self.known = found

    def attend(self, service, plan, containers):
        """Do for one service what is to be done now."""
        now, since = time.time(), self.deployed[service]["since"]
        trouble = dict(self.troubles.get(service) or llm_watch.fresh(since))
        if trouble["since"] != since:
            trouble = llm_watch.fresh(since)
        findings = _findings(service, plan) or self.misrouted(service, containers)
        if not findings:
            if llm_watch.is_over(trouble, now):
                self.troubles.pop(service, None)
            return
        if held := self.held(service):
            self.tell(trouble, findings, "left alone", held)
            self.again.append(HELD)
        elif trouble["ended"] != llm_watch.GIVEN_UP:
            self.heal(service, plan, findings, trouble, now)
        self.troubles[service] = trouble

    def held(self, service):
        """Return why ``service`` is to be left alone, or ``None``."""
        return llm_watch.held(self.maintenance, service, self.platform["host"])

    def misrouted(self, service, containers):
        """Return what is wrong with where requests for ``service`` go, while all of it runs."""
        if self.platform["services"][service]["every_host"]:
            return []
        if not containers or any(each["state"] != "running" for each in containers):
            return []
        if __salt__["llm_mesh.said"](service, __salt__["llm_mesh.serving"](service)):
            return []
        seen = "requests did not go to the containers that run"
        return [{"service": service, "container": None, "seen": seen, "do": "route"}]

    def heal(self, service, plan, findings, trouble, now):
        """Try to put ``service`` right when its time has come, and a few times only."""
        if wanting := plan["conflicts"] + plan["missing"]:
            trouble["ended"] = llm_watch.WANTING
            self.tell(trouble, findings, "nothing", f"{llm_watch.WANTING}: {'; '.join(wanting)}")
            return
        if wait := llm_watch.patience(trouble, now):
            self.again.append(wait)
            return
        if trouble["tries"] >= llm_watch.TRIES:
            trouble["ended"] = llm_watch.GIVEN_UP
            result = f"crash loop: {llm_watch.GIVEN_UP} after {llm_watch.TRIES} tries"
            self.tell(trouble, findings, "nothing", result)
            return
        trouble |= {"tries": trouble["tries"] + 1, "last": now, "told": "", "ended": ""}
        self.troubles[service] = trouble
        self.keep(self.known["restarts"])  # before: what ends this process must not end the count
        error = self.mend(service, plan)
        result = f"failed: {error}" if error else "done"
        self.note([each | {"result": result} for each in findings])
        self.again.append(llm_watch.patience(trouble, time.time()))

    def mend(self, service, plan):
        """Carry ``plan`` out and send requests to what serves then; return what went wrong."""
        try:
            errors = __salt__["llm_container.execute"](plan, heals=True)["errors"]
            if not errors and not self.platform["services"][service]["every_host"]:
                __salt__["llm_mesh.route"](service, __salt__["llm_mesh.serving"](service))
        except CommandExecutionError as err:
            errors = [str(err)]
        # What comes after the first line may be a log, and nobody here knows the secrets.
        return "; ".join(str(error).splitlines()[0][:LONGEST] for error in errors)

    def restarts(self, containers):
        """
        Return what is known of the containers' restarts by the engine; tell of crash loops. The
        engine starts them again at longer and longer intervals, which nothing here shortens.
        """
        found, now = {}, time.time()
        for each in containers:
            if each["state"] not in LIVE:
                continue
            known = self.known["restarts"].get(each["id"])
            counts = llm_watch.counted(known, each["restarts"], now)
            if counts["looping"] and not counts["told"] and not self.held(each["service"]):
                counts["told"] = True
                self.note([self.crashing(each)])
            found[each["id"]] = counts | {"service": each["service"]}
        return found

    def crashing(self, container):
        engine = llm_engine.Engine(llm_engine.socket_path(__opts__))
        try:
            how = llm_diagnosis.describe(engine, engine.inspect(container["id"]))
        except CommandExecutionError as err:
            how = str(err)
        return {
            "service": container["service"],
            "container": container["name"],
            "seen": f"crash loop: {how}",
            "do": "nothing",
            "result": "the engine starts it again, ever more seldom",
        }

    def tell(self, trouble, findings, do, result):
        """Note once that nothing is done."""
        said = "; ".join([*(f"{each['container']}: {each['seen']}" for each in findings), result])
        if trouble["told"] != said:
            trouble["told"] = said
            self.note([each | {"do": do, "result": result} for each in findings])

    def note(self, entries):
        moment = llm_watch.written(time.time())
        llm_watch.note(self.folder, [{"time": moment, **each} for each in entries])


def _findings(service, plan):
    """Return what ``plan`` finds wrong, as entries of the history."""
    found = [
        {
            "service": service,
            "container": operation["container"],
            "seen": ", ".join(operation["causes"]),
            "do": operation["do"],
        }
        for operation in plan["operations"]
    ]
    if not found and plan["conflicts"]:
        seen = "something stands in its way"
        found = [{"service": service, "container": None, "seen": seen, "do": "nothing"}]
    return found


def remember(service, changed=True):
    """
    Remember what serves of ``service`` on this host now: that is what will be kept so.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.remember head

    service
        Its name. What is in no catalogue is left to those who made it.
    changed
        Whether something was changed just now; then what could not be healed before is tried again.
        Default: ``True``.
    """
    folder = _folder()
    path = folder and folder / llm_watch.DEPLOYED
    known = _deployed(folder)
    services, made = dict(known["services"]), _serving(service)
    if not made:
        if services.pop(service, None):
            llm_record.write(path, known | {"services": services})
        return
    before = services.get(service, {"since": None, "made": None})
    since = time.time() if changed or before["made"] != made else before["since"]
    services[service] = {"since": since, "made": made}
    platform = __salt__["llm_config.platform"]()
    # Of the others it counts what was said when they were deployed.
    others = {
        name: known["platform"]["services"][name] for name in known["services"].keys() - {service}
    }
    found = {
        "platform": platform | {"services": platform["services"] | others},
        "services": services,
    }
    if found != known:
        llm_record.write(path, found)


def remembered():
    """
    Return what is kept serving on this host, as `remember` left it. No engine is asked.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.remembered

    Returns ``{service: {replica: {"container", "digest", "parts", "rollout", "version"}}}``: how
    each container was made.
    """
    return {
        service: {
            # The name is not there where it was remembered by an earlier version.
            replica: {"container": f"{service} {replica}"} | one
            for replica, one in each["made"].items()
        }
        for service, each in _deployed(_folder())["services"].items()
    }


def _deployed(folder):
    """Return what was remembered in ``folder``, and the platform that it was deployed with."""
    known = folder and _read(folder, llm_watch.DEPLOYED)
    return known or {"platform": None, "services": {}}


def _serving(service):
    """Return of each replica how the container was made that serves, ``{replica: {...}}``."""
    if service not in ((__pillar__.get("llm") or {}).get("services") or {}):
        return {}
    found = {}
    containers = __salt__["llm_container.list"](service, parts=True)
    # The newest generation comes last; one that runs counts before one that should.
    for each in sorted(containers, key=lambda each: each["state"] in LIVE):
        if each["parts"] and each["state"] in (*LIVE, "exited"):
            found[str(each["replica"])] = {
                "container": each["name"],
                "digest": each["spec"],
                "parts": each["parts"],
                "rollout": each["rollout"],
                "version": each["version"] or "",
            }
    return found


def wait(timeout=300):
    """
    Return once nothing is being healed on this host; as long as a state run or a deploy is under
    way, nothing is.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.wait

    timeout
        Seconds until giving up. Default: 300.

    Raises ``CommandExecutionError`` when the time is over.
    """
    folder = _folder()
    if not folder or not (folder / llm_watch.LOCK).exists():
        return
    with llm_watch.turn(folder, timeout) as mine:
        if not mine:
            raise CommandExecutionError("what was drift here is still being healed; try again")


def history(lines=20):
    """
    Return what was found between deploys on this host, and what was done about it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.history lines=100

    lines
        How many entries at most. Default: 20.

    Returns a list of ``{"time": ISO 8601, "service", "container", "seen", "do", "result"}``, the
    last one last; of a crash loop also ``log``: the last lines that the container wrote, without
    secrets, as long as it serves.
    """
    found = llm_watch.noted(_folder(), lines)
    for each in found:
        if each["seen"].startswith("crash loop"):
            logs = __salt__["llm_container.logs"](each["service"], lines=10)
            each["log"] = logs.get(each["container"], [])
    return found


def maintain(name, reason, hours=2):
    """
    Leave a service, or this host, alone for a while.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.maintain head 'looking for a leak' hours=1

    name
        A service, or the host's id.
    reason
        For those who wonder.
    hours
        After so many it ends by itself. Default: 2.

    Returns ``{"reason": str, "until": Unix time}``.
    """
    entry = {"reason": str(reason), "until": time.time() + float(hours) * 3600}
    llm_record.write(_folder() / llm_watch.MAINTENANCE, maintenance() | {name: entry})
    return entry


def resume(name):
    """
    Look after a service, or this host, again; return whether that was not done.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.resume head

    name
        As of `maintain`.
    """
    found = maintenance()
    ended = found.pop(name, None)
    if ended:
        llm_record.write(_folder() / llm_watch.MAINTENANCE, found)
    return bool(ended)


def maintenance(root=None):
    """
    Return what is left alone on this host.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.maintenance

    root
        The platform's folder. Default: what the pillar says.

    Returns ``{service or host: {"reason": str, "until": Unix time}}``.
    """
    return llm_watch.in_force(_read(_folder(root), llm_watch.MAINTENANCE), time.time())


def notes():
    """
    Return in words for which services of this host nothing is done, and why.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_watch.notes

    Returns ``{service: sentence}``.
    """
    known = _read(_folder(), llm_watch.TROUBLES) or llm_watch.NONE
    found = {
        each["service"]: "crash loop" for each in known["restarts"].values() if each["looping"]
    }
    for service, trouble in known["services"].items():
        if trouble["ended"]:
            found[service] = trouble["ended"]
    left = maintenance()
    for service in __salt__["llm_config.carried"]():
        if why := llm_watch.held(left, service, __opts__["id"]):
            found[service] = why
    return found
