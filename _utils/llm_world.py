"""
What runs on a host, as plans see it. The labels of our containers say whose they are, and all that
they were made of.
"""

import json
from dataclasses import dataclass, field

from salt.exceptions import CommandExecutionError

SITE = "llm.site"
SERVICE = "llm.service"
REPLICA = "llm.replica"
GENERATION = "llm.generation"
SPEC = "llm.spec"
PARTS = "llm.parts"
ROLLOUT = "llm.rollout"
VERSION = "llm.version"

CANARY = "-canary"  # behind the name of a service, the name of what is tried of it
LIVE = ("running", "restarting", "paused")
DRAINED = "drained"  # file in the own folder of an Envoy that was told to be left


@dataclass
class Container:
    """
    A container of ours as it is now.
    """

    id: str
    name: str
    service: str
    replica: int
    generation: int
    spec: str
    parts: dict
    image_id: str
    state: str
    networks: dict  # name: {"id": ..., "address": ..., "aliases": [name]}
    host: dict = field(default_factory=dict)  # of the engine's HostConfig: limits, restart policy
    exit_code: int = 0
    out_of_memory: bool = False
    started_at: str = ""
    finished_at: str = ""
    restarts: int = 0
    rollout: dict = field(default_factory=dict)  # how it took its place
    version: str = ""  # of its software, for people
    edited: list = field(default_factory=list)  # files that changed since it read them
    drained: bool = False  # was told since its start to be left

    @property
    def live(self):
        """Whether it runs, or the engine is about to start it again."""
        return self.state in LIVE

    @property
    def parked(self):
        """Whether it was replaced and is kept for going back."""
        return not self.live and self.restart == "no"

    @property
    def restart(self):
        """The name of its restart policy."""
        return self.host.get("RestartPolicy", {}).get("Name") or "no"


@dataclass
class World:
    """
    What a plan starts from: our containers, the names of the others, the addresses that are taken
    on this host (each with the container that runs there now, if one does), its networks (``None``
    while nobody asked), what image references stand for, and how much memory the running containers
    of each of our services may take.
    """

    site: str
    containers: list
    foreign: set
    addresses: dict  # address: name or ""
    networks: dict | None = None  # name: id
    images: dict = field(default_factory=dict)  # reference: {"id": ..., "create": reference or id}
    limits: dict = field(default_factory=dict)  # service: bytes


def site(pillar):
    """
    Return the name of the site in ``pillar``, by which we know what is ours. Without it nothing is,
    or the containers of another site on this host would be.
    """
    try:
        return pillar["llm"]["site"]["name"]
    except (KeyError, TypeError):
        raise CommandExecutionError("llm.site.name is missing from this host's pillar") from None


def name(site, service, replica, generation):
    """
    Return the name of a container.
    """
    return f"{site}-{service}-{replica}-g{generation}"


def container(inspected):
    """
    Return the `Container` that the engine's inspect call describes.
    """
    labels, state = inspected["Config"]["Labels"], inspected["State"]
    return Container(
        id=inspected["Id"],
        name=inspected["Name"].lstrip("/"),
        service=labels.get(SERVICE, ""),
        replica=int(labels.get(REPLICA, 0)),
        generation=int(labels.get(GENERATION, 0)),
        spec=labels.get(SPEC, ""),
        parts=json.loads(labels.get(PARTS, "{}")),
        image_id=inspected["Image"],
        state=state["Status"],
        networks={
            network: {
                "id": found["NetworkID"],
                "address": address_of(found),
                "aliases": found.get("Aliases") or [],
            }
            for network, found in inspected["NetworkSettings"]["Networks"].items()
        },
        host=inspected["HostConfig"],
        exit_code=state["ExitCode"],
        out_of_memory=state["OOMKilled"],
        started_at=state["StartedAt"],
        finished_at=state["FinishedAt"],
        restarts=inspected["RestartCount"],
        rollout=json.loads(labels.get(ROLLOUT, "{}")),
        version=labels.get(VERSION, ""),
    )


def address_of(endpoint):
    """
    Return the address that a container has, or will have again, on one of its networks.
    """
    fixed = (endpoint.get("IPAMConfig") or {}).get("IPv4Address")
    return endpoint.get("IPAddress") or fixed or ""


def addresses(listed):
    """
    Return ``{address: name}`` of the containers ``listed``: who runs at each address, "" for one
    that a stopped container will have again.
    """
    found = {}
    for each in listed:
        name_ = each["Names"][0].lstrip("/") if each["State"] in LIVE else ""
        for endpoint in each["NetworkSettings"]["Networks"].values():
            address = address_of(endpoint)
            found[address] = name_ or found.get(address, "")
    found.pop("", None)
    return found


def limits(listed):
    """
    Return ``{service: bytes}``: how much memory our live containers among those ``listed`` may
    take together.
    """
    found = {}
    for each in listed:
        if each["State"] in LIVE:
            service = each["Labels"].get(SERVICE, "")
            memory = json.loads(each["Labels"].get(PARTS, "{}")).get("memory", 0)
            found[service] = found.get(service, 0) + memory
    return found


def pinned(reference, listed):
    """
    Return the id of the image that ``reference`` already stands for in our containers among
    ``listed``, or ``None``. A tag that was moved since then changes nothing; a new reference does.
    """
    newest = sorted(listed, key=lambda found: (found["State"] not in LIVE, -found["Created"]))
    for found in newest:
        if json.loads(found["Labels"].get(PARTS, "{}")).get("image") == reference:
            return found["ImageID"]
    return None
