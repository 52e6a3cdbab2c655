"""
A container engine in memory, with the manners of the real one that plans rely on.
"""

import copy
import itertools

import llm_engine


class Interrupted(BaseException):
    """The process that used the engine was killed."""


class ModelEngine:
    """
    As `llm_engine.Engine`, for images and networks that are given by name. ``calls`` holds what
    was changed; with ``interrupt_after`` set, the process dies after so many changes.
    """

    def __init__(self, images=(), networks=("llm-network", "bridge", "host")):
        self.ids = itertools.count(1)
        self.clock = itertools.count(1)
        self.images = {name: f"sha256:{name}" for name in images}
        self.network_ids = {name: f"net-{name}" for name in networks}
        self.found = {}
        self.found_volumes = {}
        self.calls = []
        self.interrupt_after = None

    def _change(self, *call):
        if self.interrupt_after is not None and len(self.calls) >= self.interrupt_after:
            raise Interrupted
        self.calls.append(call)

    def _get(self, key):
        for each in self.found.values():
            if key in (each["Id"], each["Name"]):
                return each
        raise llm_engine.NotFound(f"No such container: {key}", 404)

    def _now(self):
        return f"2026-01-01T00:00:00.{next(self.clock):09d}Z"

    def named(self, name):
        """The container called ``name``, or ``None``."""
        return next((each for each in self.found.values() if each["Name"] == name), None)

    def containers(self):
        return [
            {
                "Id": each["Id"],
                "Names": [f"/{each['Name']}"],
                "ImageID": each["Image"],
                "Labels": each["Labels"],
                "State": each["State"]["Status"],
                "Created": each["Created"],
                "NetworkSettings": {"Networks": copy.deepcopy(each["Networks"])},
            }
            for each in self.found.values()
        ]

    def inspect(self, container):
        found = copy.deepcopy(self._get(container))
        return found | {
            "Name": f"/{found['Name']}",
            "Config": {"Labels": found["Labels"]},
            "NetworkSettings": {"Networks": found["Networks"]},
        }

    def create(self, name, body):
        if self.named(name):
            raise llm_engine.EngineError(f"Conflict. The name {name} is in use", 409)
        image = self.image(body["Image"])["Id"]
        self._change("create", name)
        network = body["HostConfig"]["NetworkMode"]
        endpoint = body.get("NetworkingConfig", {}).get("EndpointsConfig", {}).get(network, {})
        created = {
            "Id": f"id{next(self.ids)}",
            "Name": name,
            "Image": image,
            "Labels": dict(body["Labels"]),
            "Created": next(self.clock),
            "HostConfig": copy.deepcopy(body["HostConfig"]),
            "RestartCount": 0,
            "Networks": {
                network: {
                    "NetworkID": "",
                    "IPAddress": "",
                    "IPAMConfig": endpoint.get("IPAMConfig"),
                    "Aliases": endpoint.get("Aliases"),
                }
            },
            "State": {
                "Status": "created",
                "ExitCode": 0,
                "OOMKilled": False,
                "StartedAt": "",
                "FinishedAt": "",
            },
        }
        self.found[created["Id"]] = created
        return created["Id"]

    def start(self, container):
        found = self._get(container)
        if found["State"]["Status"] in ("running", "restarting"):
            return
        for network, endpoint in found["Networks"].items():
            known = self.network_ids.get(network)
            if not known or endpoint["NetworkID"] not in ("", known):
                raise llm_engine.NotFound(f"network {network} not found", 404)
            if _fixed(endpoint) in self._addresses():
                raise llm_engine.EngineError("Address already in use", 403)
        self._change("start", found["Name"])
        for network, endpoint in found["Networks"].items():
            known = self.network_ids[network]
            endpoint |= {"NetworkID": known, "IPAddress": _fixed(endpoint)}
        found["State"] |= {"Status": "running", "StartedAt": self._now()}

    def _addresses(self):
        endpoints = (end for each in self.found.values() for end in each["Networks"].values())
        return {end["IPAddress"] for end in endpoints} - {""}

    def stop(self, container, seconds=10):
        found = self._get(container)
        if found["State"]["Status"] not in ("running", "restarting", "paused"):
            return
        self._change("stop", found["Name"])
        self._end(found, 143)

    def _end(self, found, code, out_of_memory=False):
        ended = {"Status": "exited", "ExitCode": code, "OOMKilled": out_of_memory}
        found["State"] |= ended | {"FinishedAt": self._now()}
        for endpoint in found["Networks"].values():
            endpoint["IPAddress"] = ""

    def kill(self, container):
        """Kill ``container``, as somebody at the keyboard would."""
        self._end(self._get(container), 137)

    def resume(self, container):
        found = self._get(container)
        if found["State"]["Status"] != "paused":
            raise llm_engine.EngineError("Container is not paused", 409)
        self._change("resume", found["Name"])
        found["State"]["Status"] = "running"

    def update(self, container, body):
        found = self._get(container)
        self._change("update", found["Name"])
        found["HostConfig"] |= copy.deepcopy(body)

    def rename(self, container, name):
        found = self._get(container)
        if self.named(name):
            raise llm_engine.EngineError(f"Conflict. The name {name} is in use", 409)
        self._change("rename", found["Name"], name)
        found["Name"] = name

    def remove(self, container):
        found = self._get(container)
        self._change("remove", found["Name"])
        del self.found[found["Id"]]

    def logs(self, container, lines=50, since=None, times=False):
        self._get(container)
        time = "2026-01-01T00:00:00.000000001Z " if times else ""
        return [f"{time}one", f"{time}an error: two"]

    def image(self, reference):
        if reference in self.images:
            return {"Id": self.images[reference]}
        if reference in self.images.values():
            return {"Id": reference}
        raise llm_engine.NotFound(f"No such image: {reference}", 404)

    def networks(self):
        return [{"Name": name, "Id": id_} for name, id_ in self.network_ids.items()]

    def volumes(self):
        return list(self.found_volumes.values())

    def create_volume(self, name, labels):
        known = {"Name": name, "Labels": labels, "Mountpoint": "/"}
        return self.found_volumes.setdefault(name, known)

    def remove_volume(self, name):
        self._change("remove volume", name)
        del self.found_volumes[name]


def _fixed(endpoint):
    return (endpoint["IPAMConfig"] or {}).get("IPv4Address", "")
