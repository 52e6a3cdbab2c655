"""
From what runs on a host and what should run there to the operations that lead from one to the
other. Nothing here touches anything; carrying out a plan needs no further decision.

A service has several containers per replica: the one that serves, and the one before it, stopped
and without a restart policy ("parked"), so that going back is a start.
"""

import hashlib
import ipaddress
from dataclasses import dataclass

import llm_room
import llm_size
import llm_spec
import llm_world

# What `docker update` may have set and cannot take back.
_STICKY = {
    "CpuShares": "CPU shares",
    "CpusetCpus": "CPU set",
    "CpusetMems": "memory nodes",
    "MemoryReservation": "memory reservation",
    "BlkioWeight": "disk weight",
}
_ALWAYS = {"RestartPolicy": {"Name": "always"}}
_NEVER = {"RestartPolicy": {"Name": "no"}}
_SHOWN = {
    "Memory": ("memory", llm_size.exact),
    "MemorySwap": ("swap", llm_size.exact),
    "NanoCpus": ("cpus", lambda value: f"{value / 1e9:g}"),
    "PidsLimit": ("pids", str),
}


def plan(specs, world):
    """
    Return what leads from ``world`` to the completed ``specs``, which name every replica of each
    of their services.

    Returns ``{"operations": [...], "ahead": [...], "changes": {container: [sentence]}, "missing":
    [sentence], "conflicts": [sentence], "notes": [sentence]}``. Operations of one ``lane`` come one
    after another, all of them ``within`` so many seconds; lanes do not wait for each other.
    ``ahead`` are operations that only start what the others let serve; carried out before, they
    spare the wait for it. ``missing`` is what must be there before the plan can be carried out,
    ``conflicts`` what stands in its way and is not ours to remove, ``notes`` what a reader should
    know.
    """
    planner = _Planner(world)
    for service in dict.fromkeys(spec["service"] for spec in specs):
        planner.service(service, [spec for spec in specs if spec["service"] == service])
    return planner.result()


def digest(plan):
    """
    Return what tells one plan from another: a hash of what its operations say, in their order.
    """
    words = [[operation["container"], operation["sentence"]] for operation in plan["operations"]]
    return hashlib.sha256(llm_spec.canonical(words).encode()).hexdigest()[:16]


def removal(service, world):
    """
    Return the plan, as of `plan`, that leaves no container of ``service``.
    """
    planner = _Planner(world)
    planner.service(service, [])
    return planner.result()


def with_volumes(plan, service, volumes):
    """
    Return a removal's ``plan`` with the removal of ``volumes`` after it.
    """
    operations = [operation | {"lane": service} for operation in plan["operations"]]
    changes = dict(plan["changes"])
    for volume in volumes:
        operation = {
            "do": "remove",
            "service": service,
            "replica": 0,
            "container": f"volume {volume}",
            "causes": ["it is not wanted"],
            "sentence": "remove: it is not wanted",
            "steps": [_step("remove volume", volume)],
            "sources": [],
            "volumes": [],
            "lane": service,
            "within": None,
        }
        operations.append(operation)
        changes[operation["container"]] = [operation["sentence"]]
    return plan | {"operations": operations, "changes": changes}


@dataclass
class _Replica:
    """
    The containers of one replica by the part they play.
    """

    spec: dict
    image: dict  # {"id": ..., "create": ...} of World
    target: llm_world.Container | None  # is as it should be, running or not
    old: llm_world.Container | None  # has served until now, and is to be replaced
    parked: list  # stopped ones besides, the last to have run first
    surplus: list  # running ones besides
    unusable: list  # never started, or half removed


class _Planner:
    def __init__(self, world):
        self.world = world
        self.addresses = set(world.addresses)
        self.limits = dict(world.limits)
        self.operations = []
        self.kept = []  # spec and operation of each kept container that is to start beside another
        self.missing = []
        self.conflicts = []
        self.notes = []

    def result(self):
        """Return the plan."""
        changes = {}
        for operation in self.operations:
            changes.setdefault(operation["container"], []).append(operation["sentence"])
        return {
            "operations": self.operations,
            "ahead": self.ahead(),
            "changes": changes,
            "missing": sorted(set(self.missing)),
            "conflicts": sorted(set(self.conflicts)),
            "notes": self.notes,
        }

    def ahead(self):
        """
        Return the starts of kept containers that nothing has to come before; none where memory
        does not allow all of them at once.
        """
        memory = sum(spec["memory"] for spec, _ in self.kept)
        if any(
            llm_room.lacking(spec | {"memory": memory}, self.world.limits) for spec, _ in self.kept
        ):
            return []
        return [
            operation
            | {
                "do": "start",
                "sentence": "start: its turn to serve comes",
                "steps": [step for step in operation["steps"] if step["do"] == "start"],
                "lane": operation["container"],
            }
            for _, operation in self.kept
        ]

    def service(self, service, specs):
        """Plan everything about one service."""
        ours = [found for found in self.world.containers if found.service == service]
        wanted = {spec["replica"]: spec for spec in specs}
        if len(wanted) < len(specs):
            self.conflicts.append(f"Service {service} has the same replica twice")
        first = len(self.operations)
        self.rename(ours)
        replicas = [
            self.cast(spec, [found for found in ours if found.replica == replica])
            for replica, spec in sorted(wanted.items())
        ]
        serving = {}
        for replica in replicas:
            server = next((c for c in (replica.old, replica.target) if c and c.live), None)
            if server:
                serving[server.replica] = self.name(server)
        for replica in replicas:
            self.replica(replica, serving)
        self.reduce(ours, wanted, serving)
        self.lanes(service, specs, self.operations[first:])

    def lanes(self, service, specs, operations):
        """
        Let replicas go side by side unless one must not wait for what happens to another, and all
        come to their end within the time for the whole service.
        """
        in_turn = any(spec["routed"] for spec in specs) or any(
            operation["do"] in ("replace", "rename") for operation in operations
        )
        within = min((spec["progress_deadline"] for spec in specs), default=None)
        for operation in operations:
            lane = service if in_turn else f"{service}-{operation['replica']}"
            operation |= {"lane": lane, "within": within}

    def name(self, found):
        """Return the name that one of our containers should have."""
        return llm_world.name(self.world.site, found.service, found.replica, found.generation)

    def add(self, do, found, why, steps, sentence=None, starts=None):
        """
        Add an operation on ``found``, a container or the mapping that stands for a new one.
        ``starts`` is the spec of what it starts, for what that needs on the host.
        """
        if isinstance(found, llm_world.Container):
            found = {"service": found.service, "replica": found.replica, "name": self.name(found)}
        needs = {"sources": [], "volumes": []}
        if starts:
            mounts = [mount["source"] for mount in starts["mounts"]]
            devices = [device.split(":")[0] for device in starts["devices"]]
            needs["sources"] = [path for path in mounts + devices if "{name}" not in path]
            needs["volumes"] = sorted(starts["volumes"])
            self.require_network(starts["network"])
        self.operations.append(
            {
                "do": do,
                "service": found["service"],
                "replica": found["replica"],
                "container": found["name"],
                "causes": why,
                "sentence": f"{do}: {sentence or ', '.join(why)}",
                "steps": steps,
                **needs,
            }
        )

    def require_network(self, network):
        """Note that ``network`` has to exist."""
        if self.world.networks is not None and network not in self.world.networks:
            self.missing.append(f"network {network} does not exist")

    def rename(self, ours):
        """Give every container its own name back."""
        wrong = [found for found in ours if found.name != self.name(found)]
        claimed = {}
        for found in ours:
            right = self.name(found)
            if right in claimed:
                self.conflicts.append(
                    f"Containers {claimed[right]} and {found.name} both claim to be {right}: "
                    "remove one of them"
                )
            claimed[right] = found.name
        # Those whose wrong name is another's right one have to make room first.
        rights = {self.name(found) for found in wrong}
        steps = [
            _step("rename", found.id, name=f"{found.name}-renamed")
            for found in wrong
            if found.name in rights
        ]
        for found in wrong:
            self.claim(self.name(found))
            steps.append(_step("rename", found.id, name=self.name(found)))
            self.add("rename", found, [f"it was called {found.name}"], steps)
            steps = []

    def claim(self, wanted):
        """Note a conflict when somebody else's container has the name ``wanted``."""
        if wanted in self.world.foreign:
            self.conflicts.append(
                f"Container {wanted} is not ours and has the name that we need: rename or remove it"
            )

    def cast(self, spec, mine):
        """Return who plays which part among the containers ``mine`` of one replica."""
        unusable = [found for found in mine if found.state not in (*llm_world.LIVE, "exited")]
        usable = [found for found in mine if found not in unusable]
        latest = _latest(usable)
        live, stopped = [c for c in latest if c.live], [c for c in latest if not c.live]
        made = spec.get("made")
        reference = made["parts"]["image_id"] if made else spec["image"]
        image = self.world.images.get(reference) or {"id": None, "create": reference}
        _, digest = _identity(spec, image)
        if spec["pinned"]:
            digest = spec["pinned"]["digest"]
            kept = next((c for c in live + stopped if c.spec == digest), None)
            spec = llm_spec.pinned(spec, kept) if kept else spec
            if kept:
                name, why = self.name(kept), spec["pinned"]["why"]
                self.notes.append(f"{name} serves, not what the pillar says: {why}")
        fitting = [c for c in live + stopped if c.spec == digest and not self.spoilt(c, spec)]
        target = next(iter(fitting), None)
        olds = [c for c in live if c is not target]
        if not target:
            # What was made once is made again, and no older one takes its place.
            olds += [c for c in stopped if not (made and c.parked)]
        old = next(iter(olds), None)
        rest = [c for c in live + stopped if c not in (target, old)]
        return _Replica(
            spec=spec,
            image=image,
            target=target,
            old=old,
            parked=[c for c in rest if not c.live],
            surplus=[c for c in rest if c.live],
            unusable=unusable,
        )

    def spoilt(self, found, spec):
        """Return why ``found`` cannot be kept although it may be as ``spec`` says."""
        reasons = [f"{text} set by hand" for key, text in _STICKY.items() if found.host.get(key)]
        reasons += [f"{file} was changed by hand" for file in self.edited(found, spec)]
        if found.drained:
            reasons.append("it was told to be left")
        return reasons + (self.astray(found) if found.parts.get("network") else [])

    def astray(self, found):
        """Return what is wrong with how ``found`` is connected to its network."""
        network, block = found.parts["network"], found.parts.get("addresses")
        end = found.networks.get(network)
        if not end:
            return [f"not connected to network {network}"]
        reasons = []
        known = self.world.networks
        if not found.live and known is not None and known.get(network) != end["id"]:
            reasons.append(f"network {network} was made anew")
        holder = self.world.addresses.get(end["address"])
        if not found.live and holder not in (None, "", found.name):  # it may have ended just now
            reasons.append(f"container {holder} has taken its address")
        if block and not _within(end["address"], block):
            reasons.append(f"its address on network {network} is not of {block}")
        if lost := sorted(set(found.parts.get("aliases", ())) - set(end["aliases"])):
            reasons.append(f"network {network} does not know it as {', '.join(lost)}")
        return reasons

    def edited(self, found, spec):
        """
        Return the files that ``found`` may have read otherwise than they should be. One that is to
        be another anyway was not changed by hand.
        """
        if not found.live:
            return []
        meant = dict(found.parts.get("files", {}).items() & spec["files"].items())
        # It has read nothing of a folder that it does not mount.
        here = spec["edited"] if found.parts.get("mounts") == spec["mounts"] else []
        return sorted({*found.edited, *here} & meant.keys())

    def replica(self, replica, serving):
        """Plan one replica; ``serving`` maps replicas to the containers that serve by then."""
        spec, target, old = replica.spec, replica.target, replica.old
        for found in replica.unusable:
            self.add("remove", found, ["it was never started"], self.removed(found))
        if target:
            self.mend(spec, target, policy=target.live and not old)
        elif spec["pinned"]:
            self.lost(replica)
            return
        if not target:
            self.create(replica, serving)
        elif not old and not target.live:
            steps = [_step("update", target.id, body=_ALWAYS), _step("start", target.id)]
            steps = self.announced(spec, target, steps, serving)
            self.add("start", target, [_end(target)], steps, starts=spec)
            self.grow(spec)
        elif old:
            kept = spec["pinned"] or not target.live
            why = self.again(spec) if kept else f"{self.name(old)} still runs"
            causes = [why, *self.causes(old, target.parts, spec)]
            start = [
                _step("update", target.id, body=_ALWAYS),
                _step("start", target.id, undo=_parking(target.id, spec)),
            ]
            self.replace(spec, target, [], start, old, causes, serving)
        last = replica.parked[: spec["keep"] - bool(old)]
        for found in last:
            if found.restart != "no":
                why = [f"restart policy {found.restart} → no, for it is parked"]
                self.add("update", found, why, [_step("update", found.id, body=_NEVER)])
        for found in replica.surplus:
            self.add("remove", found, ["another serves in its place"], self.removed(found))
        for found in replica.parked[len(last) :]:
            why = [f"only {spec['keep']} kept to go back to"]
            self.add("remove", found, why, self.removed(found))

    def again(self, spec):
        """Return why a kept container serves again."""
        return spec["pinned"]["why"] if spec["pinned"] else "its spec is wanted again"

    def lost(self, replica):
        """Note that the container which shall serve again is not there, or not fit to."""
        spec = replica.spec
        kept = [c for c in (replica.old, *replica.parked, *replica.surplus) if c]
        names = ", ".join(sorted(map(self.name, kept))) or "none"
        unfit = [
            f"{self.name(found)} is not fit to ({', '.join(self.spoilt(found, spec))})"
            for found in kept
            if found.spec == spec["pinned"]["digest"]
        ]
        self.conflicts.append(
            f"Replica {spec['replica']} of {spec['service']} cannot go back "
            f"({spec['pinned']['why']}): "
            f"{'; '.join(unfit) or 'its container is not kept any more'}; there are: {names}"
        )

    def mend(self, spec, target, policy):
        """Put back what `docker update` and `docker pause` have changed."""
        wanted = llm_spec.limits(spec)
        if target.host.get("MemorySwap") == -1:
            del wanted["MemorySwap"]  # the kernel does not count swap
        wrong = [key for key in wanted if (target.host.get(key) or 0) != wanted[key]]
        causes = []
        for key in wrong:
            text, shown = _SHOWN[key]
            causes.append(f"{text} {shown(target.host.get(key) or 0)} → {shown(wanted[key])}")
        body = wanted if wrong else {}
        if policy and target.restart != "always":
            causes.append(f"restart policy {target.restart} → always")
            body = body | _ALWAYS
        if body:
            self.add("update", target, causes, [_step("update", target.id, body=body)])
        if target.state == "paused":
            self.add("resume", target, ["it was paused"], [_step("resume", target.id)])

    def create(self, replica, serving):
        """Plan a new container, in place of ``replica.old`` where there is one."""
        spec, old = replica.spec, replica.old
        kept = [c for c in (old, *replica.parked, *replica.surplus) if c]
        generation = max((found.generation for found in kept), default=0) + 1
        new = {"service": spec["service"], "replica": spec["replica"]}
        new["name"] = llm_world.name(self.world.site, spec["service"], spec["replica"], generation)
        self.claim(new["name"])
        parts, digest = _identity(spec, replica.image)
        if not replica.image["id"]:
            self.missing.append(f"image {spec['image']} is not on this host")
        labels = {
            llm_world.SITE: self.world.site,
            llm_world.SERVICE: spec["service"],
            llm_world.REPLICA: str(spec["replica"]),
            llm_world.GENERATION: str(generation),
            llm_world.SPEC: digest,
            llm_world.PARTS: llm_spec.canonical(parts),
            llm_world.ROLLOUT: llm_spec.canonical({k: spec[k] for k in llm_spec.REMEMBERED}),
            llm_world.VERSION: spec["version"],
        }
        folders = llm_spec.folders(spec, new["name"])
        create = _step(
            "create",
            new["name"],
            body=llm_spec.body(
                spec, new["name"], replica.image["create"], labels, self.address(spec)
            ),
            folders=folders,
            user=spec["user"],
            volumes=sorted(spec["volumes"]),
            undo=[_step("remove", new["name"], folders=folders)],
        )
        start = [_step("start", new["name"])]
        if old:
            causes = self.causes(old, parts, spec)
            self.replace(spec, new, [create], start, old, causes, serving)
        else:
            steps = self.announced(spec, new, [create, *start], serving)
            self.add("create", new, ["there is none"], steps, starts=spec)
            self.grow(spec)

    def causes(self, old, parts, spec):
        """Return why ``old`` is replaced."""
        versions = (old.version, spec["version"])
        return llm_spec.causes(old.parts, parts, versions) + self.spoilt(old, spec)

    def replace(self, spec, new, create, start, old, causes, serving):
        """Plan that ``new`` takes the place of ``old``, which is parked."""
        seconds = spec["stop_timeout"]
        revive = [_step("update", old.id, body=_ALWAYS), _step("start", old.id)]
        park = [_step("update", old.id, body=_NEVER, undo=revive)]
        if old.state == "paused":
            park.append(_step("resume", old.id))
        park.append(_step("stop", old.id, seconds=seconds))
        serving[spec["replica"]] = self.name(old)
        back = self.route(spec, serving)
        smoke = {"smoke_test": spec["smoke_test"]} if spec["smoke_test"] else {}
        wait = _step("wait", self.called(new), health=spec["health"] | smoke, undo=back)
        serving[spec["replica"]] = self.called(new)
        route = self.route(spec, serving)
        strategy, tight = self.strategy(spec, new, old)
        if strategy == "stop-first" and create:
            # What the old one comes back to, a volume, a port or memory, is free by then.
            stop = _step("stop", self.called(new), seconds=seconds)
            start = [_step("start", self.called(new), undo=[stop])]
        if strategy == "stop-first" or not old.live:
            # Callers of what is not there are better told so than left waiting for it.
            del serving[spec["replica"]]
            away = [step | {"undo": back} for step in self.route(spec, serving)]
            steps = [*create, *away, *park, *start, wait, *route]
        else:
            steps = [*create, *start, wait, *route, *self.drain(spec, old), *park]
        serving[spec["replica"]] = self.called(new)
        sentence = f"{self.name(old)}: {', '.join([*causes, *tight])}"
        self.add("replace", new, causes, steps, sentence, starts=spec)
        self.operations[-1] |= {"old": self.name(old), "strategy": strategy, "tight": tight}
        if strategy == "start-first" and old.live and not create and not new.live:
            self.kept.append((spec, self.operations[-1]))

    def strategy(self, spec, new, old):
        """
        Return how ``new`` replaces ``old``, and in words where want of memory has a say in it: two
        generations at once take more than one.
        """
        runs = isinstance(new, llm_world.Container) and new.live
        lacking = 0 if runs else llm_room.lacking(spec, self.limits)
        freed = old.parts.get("memory", 0) if old.live else 0
        self.grow(spec, without=freed + spec["memory"] * runs)
        if spec["strategy"] == "stop-first" or not old.live or not lacking:
            return spec["strategy"], []
        if spec["when_tight"] == "refuse":
            self.conflicts.append(llm_room.refusal(spec, lacking))
            return "start-first", [llm_room.words(lacking)]
        return "stop-first", [llm_room.words(lacking)]

    def grow(self, spec, without=0):
        """Note that a container of ``spec`` runs, and what took ``without`` bytes does no more."""
        service = spec["service"]
        self.limits[service] = self.limits.get(service, 0) + spec["memory"] - without

    def drain(self, spec, old):
        """Return the step in which ``old``, in whose place others serve, finishes its requests."""
        socket = (spec["health"]["check"] or {}).get("socket")
        folders = llm_spec.folders(old.parts, self.name(old)) if socket and old.parts else []
        if not (spec["routed"] or folders):
            return []
        admin, again = None, []
        if folders:
            admin = f"{folders[0]}/{socket}"
            # An Envoy takes back only by a start that it was told to be left.
            again = [_step("stop", old.id, seconds=spec["stop_timeout"]), _step("start", old.id)]
        how = {"seconds": spec["drain_timeout"], "admin": admin, "routed": spec["routed"]}
        return [_step("drain", old.id, **how, undo=again)]

    def called(self, found):
        """Return the name of a container, or of the mapping that stands for a new one."""
        return self.name(found) if isinstance(found, llm_world.Container) else found["name"]

    def announced(self, spec, new, steps, serving):
        """
        Return ``steps``, which start ``new``, with traffic sent to it. Those that are gone are
        taken out first: to take them out together would wait until the new one is healthy.
        """
        before = self.route(spec, serving)
        serving[spec["replica"]] = self.called(new)
        return [*before, *steps, *self.route(spec, serving)]

    def route(self, spec, serving):
        """Return the step that sends traffic to the containers of ``serving`` and nowhere else."""
        if not spec["routed"]:
            return []
        return [_step("route", spec["service"], to=sorted(serving.values()))]

    def address(self, spec):
        """Return the lowest address of the spec's block that nobody has."""
        if not spec["addresses"]:
            return None
        for address in map(str, ipaddress.ip_network(spec["addresses"])):
            if address not in self.addresses:
                self.addresses.add(address)
                return address
        self.conflicts.append(
            f"Every address of {spec['addresses']}, the block of {spec['service']}, is taken"
        )
        return None

    def removed(self, found, before=()):
        """Return the steps that remove a container and its own folders."""
        folders = llm_spec.folders(found.parts, self.name(found)) if found.parts else []
        stop = [_step("update", found.id, body=_NEVER)] if found.live else []
        if found.live:
            seconds = found.parts.get("stop_timeout", 10)
            stop.append(_step("stop", found.id, seconds=seconds))
        return [*before, *stop, _step("remove", found.id, folders=folders)]

    def reduce(self, ours, wanted, serving):
        """
        Take away the replicas that nobody wants any more. Of a service that is wanted, they are
        parked as those are that were replaced.
        """
        spec = next(iter(wanted.values()), None)
        why = [f"only {len(wanted)} wanted" if wanted else "it is not wanted"]
        keep = spec["keep"] if spec else 0
        for replica in sorted({found.replica for found in ours} - wanted.keys()):
            for place, found in enumerate(_latest(c for c in ours if c.replica == replica)):
                before = []
                if spec and spec["routed"] and found.live:
                    before = [*self.route(spec, serving), *self.drain(spec, found)]
                if place >= keep or found.state not in (*llm_world.LIVE, "exited"):
                    self.add("remove", found, why, self.removed(found, before))
                elif not found.parked:
                    self.add("park", found, why, [*before, *_parking(found.id, spec)])


def _identity(spec, image):
    """Return what a container of ``spec`` is made of, and the hash of that."""
    if made := spec.get("made"):
        return made["parts"], made["digest"]
    parts = llm_spec.parts(spec, image["id"])
    return parts, llm_spec.digest(parts)


def _latest(containers):
    """Return ``containers``, those that run first, then the last to have run."""

    def age(found):
        return (found.live, "" if found.live else found.finished_at, found.generation)

    return sorted(containers, key=age, reverse=True)


def _within(address, block):
    return bool(address) and ipaddress.ip_address(address) in ipaddress.ip_network(block)


def _step(do, container, undo=(), **more):
    return {"do": do, "container": container, **more, "undo": list(undo)}


def _parking(container, spec):
    return [
        _step("update", container, body=_NEVER),
        _step("stop", container, seconds=spec["stop_timeout"]),
    ]


def _end(found):
    """Return how a stopped container came to its end."""
    if found.out_of_memory:
        return f"it was killed: out of memory (limit {llm_size.exact(found.host['Memory'])})"
    if found.exit_code == 137:
        return "it was killed"
    return f"it had stopped (exit code {found.exit_code})"
