"""
What must be true of a `Platform` whenever nothing is at work on it, whatever happened before.
"""

import json

import yaml
from llm_lock import Lock

from tests.support.platform import REPOSITORY, docker

CATALOGUE = yaml.safe_load((REPOSITORY / "pillar" / "services.sls").read_text())
KEEP = CATALOGUE["llm"]["defaults"]["keep"]


def hold(platform):
    """Assert everything that is told below."""
    nothing_is_left_over(platform)
    requests_go_to_what_runs(platform)
    assert Lock(platform.root / "salt" / "lock.json").holder() is None


def wanted(platform):
    """Return the services of the pillar, each as often as it asks for it."""
    changed = yaml.safe_load((platform.pillar / "environments" / "dev.sls").read_text())
    knobs = changed["llm"]["services"]
    services = CATALOGUE["llm"]["services"]
    return sorted(
        service for service in services for _ in range(knobs.get(service, {}).get("replicas", 1))
    )


def nothing_is_left_over(platform):
    """
    Of each service as many run as the pillar asks for, at most ``keep`` of each replica that there
    ever was are parked, and no file is without container.
    """
    found = _containers(platform)
    parked = []
    for name, each in found.items():
        state, policy = each["State"]["Status"], each["HostConfig"]["RestartPolicy"]["Name"]
        assert (state, policy) in (("running", "always"), ("exited", "no")), (name, state, policy)
        if state == "exited":
            parked.append(name.rpartition("-g")[0])
    assert platform.services() == wanted(platform)
    assert not [replica for replica in parked if parked.count(replica) > KEEP]
    assert not list(platform.root.rglob(".unfinished-*"))
    assert not list(platform.root.rglob(".*.new"))
    folders = platform.root.glob("services/*/run/*")
    assert {folder.name for folder in folders} <= found.keys()
    configured = platform.root.glob("services/*/config/*")
    assert {str(folder) for folder in configured} == _mounted(found, platform)


def requests_go_to_what_runs(platform):
    """Requests for a service go to its running containers, all of them and nothing else."""
    addresses = {}
    for each in _containers(platform).values():
        if each["State"]["Running"]:
            networks = each["NetworkSettings"]["Networks"].values()
            own = {network["IPAddress"] for network in networks} - {""}
            addresses.setdefault(each["Config"]["Labels"]["llm.service"], set()).update(own)
    for path in (platform.root / "endpoints").glob("[!.]*.yaml"):
        assert _named(path) == addresses.get(path.stem, set()), path.name


def _named(path):
    """Return the addresses in a file with endpoints."""
    groups = json.loads(path.read_text())["resources"][0]["endpoints"]
    return {
        entry["endpoint"]["address"]["socket_address"]["address"]
        for group in groups
        for entry in group["lb_endpoints"]
    }


def _containers(platform):
    """Return every container of the platform in full, by name."""
    found = docker("ps", "-aq", "--filter", f"label=llm.site={platform.name}").split()
    return {each["Name"].lstrip("/"): each for each in json.loads(docker("inspect", *found))}


def _mounted(containers, platform):
    """Return the folders with configuration that ``containers`` mount, running or parked."""
    sources = {mount.get("Source", "") for each in containers.values() for mount in each["Mounts"]}
    place = f"{platform.root}/services/"
    return {path for path in sources if path.startswith(place) and "/config/" in path}
