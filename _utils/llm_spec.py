"""
The spec of a container: what may stand in it, its defaults, its hash, how two of them differ, and
what the engine is asked for.
"""

import difflib
import hashlib
import ipaddress
import json
import math
import re

import llm_catalogue
import llm_size
from salt.exceptions import SaltInvocationError

VERSION = "v1"  # of the hash; a change of `parts` or `digest` wants the next one
ALL = 1000  # more of them than anybody keeps
SMALLEST = 6 * 1024**2  # bytes of memory; the engine takes no less
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,61}[a-z0-9]")

# What a change of makes a new container.
CONTAINER = {
    "image": None,
    "command": [],
    "environment": {},
    "memory": "256m",
    "cpus": 0.25,
    "pids": 256,
    "user": "65534:65534",
    "read_only": True,
    "capabilities": [],
    "mounts": [],
    "volumes": {},
    "tmpfs": {"/tmp": "64m"},
    "network": "bridge",
    "addresses": None,
    "aliases": [],
    "devices": [],
    "gpus": 0,
    "log": {"max_size": "10m", "max_files": 3},
    "stop_timeout": 10,
    "files": {},
    "secrets": {},
}
# How a new container takes the place of the old one; of no matter to the one that runs.
ROLLOUT = {
    "health": {},
    "smoke_test": None,  # {"secret", "model"}: a new one gives a completion before it serves
    "strategy": "start-first",
    "drain_timeout": 5,
    "progress_deadline": 180,  # seconds for all replicas together
    "routed": False,
    "keep": 1,  # of those that were replaced, how many are kept for going back
    "version": "",  # of the software, for people
    "when_tight": "refuse",  # where memory does not allow two generations at once
    "room": None,  # memory for that; nothing when it is of no interest
    "edited": [],  # files that are not on the host as they should be, until they are written
    "pinned": None,  # {"digest": of a kept container, "why": ...}: that one serves, not this spec
}
REMEMBERED = ("health", "strategy", "drain_timeout", "routed")  # what a container keeps
HEALTH = {"check": None, "min_healthy": 2, "healthy_deadline": 60}
DEFAULTS = {"service": None, "replica": 1, **CONTAINER, **ROLLOUT}


def _if(holds, value):
    if not holds:
        raise ValueError
    return value


def _text(value):
    return _if(isinstance(value, str) and value, value)


def _named(value):
    return _if(isinstance(value, str) and _NAME.fullmatch(value), value)


def _whole(value, least=0):
    return _if(type(value) is int and value >= least, value)


def _number(value):
    return _if(type(value) in (int, float) and 0 < value < math.inf, float(value))


def _truth(value):
    return _if(isinstance(value, bool), value)


def _size(value):
    return value if type(value) is int else llm_catalogue.size(value)


def _memory(value):
    return _if(_size(value) >= SMALLEST, _size(value))


def _texts(value):
    return [_text(entry) for entry in _if(isinstance(value, list), value)]


def _mapping(value, entry=_text):
    return {_text(key): entry(found) for key, found in _if(isinstance(value, dict), value).items()}


def _environment(value):
    return _mapping(value, lambda found: _if(isinstance(found, str), found))


def _known(value, known):
    """Return mapping ``value`` upon the defaults ``known``, which are all it may hold."""
    return known | _if(isinstance(value, dict) and value.keys() <= known.keys(), value)


def _mounts(value):
    known = {"source": None, "target": None, "read_only": True}
    mounts = [_known(entry, known) for entry in _if(isinstance(value, list), value)]
    for mount in mounts:
        _truth(mount["read_only"])
        for path in (mount["source"], mount["target"]):
            _if(_text(path).startswith("/") and ".." not in path.split("/"), path)
    return mounts


def _block(value):
    return value and str(ipaddress.ip_network(_text(value)))


def _log(value):
    log = _known(value, CONTAINER["log"])
    return {"max_size": _size(log["max_size"]), "max_files": _whole(log["max_files"], 1)}


def _seconds(value):
    return _if(llm_catalogue.duration(value) > 0, llm_catalogue.duration(value))


def _pinned(value):
    return value and _mapping(_known(value, {"digest": None, "why": None}))


def _smoke_test(value):
    return value and _mapping(_known(value, {"secret": None, "model": None}))


def _room(value):
    """Return what is left of the host's memory, and what of it other services take by then."""
    if value is None:
        return None
    room = _known(value, {"memory": 0, "taken": {}})
    return {"memory": _whole(room["memory"]), "taken": _mapping(room["taken"], _whole)}


def _health(value):
    health = _known(value, HEALTH)
    seconds = {key: llm_catalogue.duration(health[key]) for key in HEALTH if key != "check"}
    return health | _if(seconds["min_healthy"] < seconds["healthy_deadline"], seconds)


# key: what makes its value canonical, or raises ValueError; what is expected
_FIELDS = {
    "service": (_named, "a name: 2 to 63 of a-z, 0-9 and -"),
    "replica": (lambda value: _whole(value, 1), "a number from 1 on"),
    "image": (_text, "the reference of an image"),
    "command": (_texts, "a list of words, each in quotes where YAML would read something else"),
    "environment": (_environment, "a mapping of strings; put quotes around numbers and yes or no"),
    "memory": (_memory, "a size of at least 6m, such as 512m"),
    "cpus": (_number, "a number above 0, such as 0.5"),
    "pids": (lambda value: _whole(value, 1), "a number from 1 on"),
    "user": (_text, 'a user in quotes, such as "10005:10005"'),
    "read_only": (_truth, "true or false"),
    "capabilities": (_texts, "a list of names such as NET_BIND_SERVICE"),
    "mounts": (_mounts, "a list of {source: /folder, target: /folder, read_only: true}"),
    "volumes": (_mapping, "a mapping of volume to path"),
    "tmpfs": (lambda value: _mapping(value, _size), "a mapping of path to size, such as 64m"),
    "network": (_text, "the name of a network, or host"),
    "addresses": (_block, "a block of addresses such as 172.30.0.80/28, or nothing"),
    "aliases": (_texts, "a list of names"),
    "devices": (_texts, "a list of devices such as /dev/dri"),
    "gpus": (lambda value: value if value == "all" else _whole(value), "a number, or all"),
    "log": (_log, "{max_size: 10m, max_files: 3}"),
    "stop_timeout": (lambda value: math.ceil(llm_catalogue.duration(value)), "a time such as 10s"),
    "files": (_mapping, "a mapping of file to digest"),
    "secrets": (_mapping, "a mapping of secret to fingerprint"),
    "health": (_health, "{check: ..., min_healthy: 2s, healthy_deadline: 60s}, the first shorter"),
    "smoke_test": (_smoke_test, "{secret: ..., model: ...}, or nothing"),
    "strategy": (
        lambda value: _if(value in ("start-first", "stop-first"), value),
        "start-first or stop-first",
    ),
    "drain_timeout": (llm_catalogue.duration, "a time such as 5s"),
    "progress_deadline": (_seconds, "a time such as 180s"),
    "routed": (_truth, "true or false"),
    "keep": (lambda value: _whole(value, 1), "a number from 1 on"),
    "version": (lambda value: _if(isinstance(value, str), value), "a version in quotes"),
    "when_tight": (
        lambda value: _if(value in ("refuse", "stop-first"), value),
        "refuse or stop-first",
    ),
    "room": (_room, "{memory: bytes, taken: {service: bytes}}, or nothing"),
    "edited": (_texts, "a list of files"),
    "pinned": (_pinned, "{digest: of a kept container, why: in words}"),
}


def completed(spec):
    """
    Return ``spec`` with its defaults, everything in its canonical form: sizes in bytes, times in
    seconds. Raises ``SaltInvocationError`` with every mistake there is.
    """
    named = spec.get("service") or "container"
    mistakes = []
    for key in spec.keys() - DEFAULTS.keys():
        close = difflib.get_close_matches(str(key), DEFAULTS, n=1)
        meant = f'; did you mean "{close[0]}"?' if close else ""
        mistakes.append(f'{named}: unknown key "{key}"{meant}')
    full = DEFAULTS | {key: value for key, value in spec.items() if key in DEFAULTS}
    for key, (canonical, expected) in _FIELDS.items():
        try:
            full[key] = canonical(full[key])
        except (ValueError, TypeError):
            mistakes.append(f"{named}: {key}: expected {expected}")
    if mistakes:
        raise SaltInvocationError("\n".join(sorted(mistakes)))
    return full


def parts(spec, image_id):
    """
    Return what of a completed ``spec`` makes a container what it is; ``image_id`` is what the
    image's reference stands for.
    """
    return {key: spec[key] for key in CONTAINER} | {"image_id": image_id}


def wish(spec):
    """
    Return the hash of what a completed ``spec`` asks for, whatever its image stands for.
    """
    return digest(parts(spec, None))


def pinned(spec, kept):
    """
    Return ``spec`` as the container ``kept`` was made and took its place: that is how it is mended,
    asked and switched to when it serves again. It has served before, by secrets that may be others
    today.

    kept
        A `llm_world.Container`.
    """
    made = {key: kept.parts[key] for key in CONTAINER if key in kept.parts}
    back = spec | made | kept.rollout | {"edited": [], "smoke_test": None}
    check = back["health"]["check"] or {}
    if "redis" in check and made.get("secrets") != spec["secrets"]:
        # Its password is not today's; that it listens is what can be asked.
        back["health"] = back["health"] | {"check": {"container": "running"}}
    return back


def remade(service, replica, made):
    """
    Return the completed spec of a container that is to be as it was made, and nothing else.

    made
        Of a container that was there: ``{"digest": hash, "parts": what it was made of, "rollout":
        how it took its place, "version": of its software}``.
    """
    parts = {key: made["parts"][key] for key in CONTAINER if key in made["parts"]}
    spec = DEFAULTS | parts | made["rollout"] | {"service": service, "replica": replica}
    if "redis" in (spec["health"]["check"] or {}):
        # Whoever makes it again need not know its password; that it runs is what can be asked.
        spec["health"] = spec["health"] | {"check": {"container": "running"}}
    return spec | {"version": made["version"], "keep": ALL, "made": made}


def digest(found):
    """
    Return the hash of what `parts` gave, with its version.
    """
    return f"{VERSION}:{hashlib.sha256(canonical(found).encode()).hexdigest()}"


def canonical(value):
    """
    Return ``value`` as the one JSON text that it has.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_SHOWN = {"memory": llm_size.exact, "cpus": "{:g}".format, "pids": str, "gpus": str}
_SHOWN |= {"user": str, "network": str}
_ENTRIES = {"files": "file", "secrets": "secret", "environment": "environment"}


def causes(old, new, versions=("", "")):
    """
    Return why a container made of ``old`` is not one made of ``new``, as phrases; both are what
    `parts` gave, and ``versions`` are those of their software. Values of the environment, of files
    and of secrets are never among them.
    """
    if not old:
        return ["its spec is unknown"]
    found = []
    for key in sorted((old.keys() | new.keys()) - {"image_id", "mounts"}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if key == "image" and None not in (before, after):
            found.append(_image_cause(before, after, *versions))
        elif key in _ENTRIES:
            found += _entry_causes(_ENTRIES[key], before or {}, after or {})
        elif key in _SHOWN and None not in (before, after):
            found.append(f"{key} {_SHOWN[key](before)} → {_SHOWN[key](after)}")
        else:
            found.append(f"{key.replace('_', ' ')} changed")
    if old.get("mounts") != new.get("mounts") and not (
        old.get("files") != new.get("files") or old.get("secrets") != new.get("secrets")
    ):
        found.append("mounts changed")  # files and secrets lie in a folder named by their content
    if old.get("image_id") != new.get("image_id") and old.get("image") == new.get("image"):
        found.append(f"image {new['image']} was made anew")
    return found


def _image_cause(before, after, old, new):
    """Return how the image differs: by the versions that people know, where they tell it apart."""
    if old and new and old != new:
        return f"image {old} → {new}"
    return f"image {before} → {after}" + (f", both {new}" if new and new == old else "")


def _entry_causes(kind, before, after):
    words = []
    for entry in sorted(before.keys() | after.keys()):
        if entry not in before:
            words.append(f"{kind} {entry} added")
        elif entry not in after:
            words.append(f"{kind} {entry} removed")
        elif before[entry] != after[entry]:
            words.append(f"{kind} {entry} changed")
    return words


def folders(spec, name):
    """
    Return the folders that a container called ``name`` has for itself.
    """
    return [
        mount["source"].replace("{name}", name)
        for mount in spec["mounts"]
        if "{name}" in mount["source"]
    ]


def limits(spec):
    """
    Return the limits of ``spec`` as the engine's update call takes them.
    """
    return {
        "Memory": spec["memory"],
        "MemorySwap": spec["memory"],  # memory and swap together: no swap
        "NanoCpus": round(spec["cpus"] * 1e9),
        "PidsLimit": spec["pids"],
    }


def body(spec, name, image, labels, address=None):
    """
    Return what the engine's create call takes for a completed ``spec``.

    ``image`` is a reference or id, ``address`` a fixed one on the spec's network. Restarted
    always, nothing published, nothing allowed beyond what ``spec`` names.
    """
    host = {
        **limits(spec),
        "ReadonlyRootfs": spec["read_only"],
        "CapDrop": ["ALL"],
        "CapAdd": spec["capabilities"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Init": True,
        "RestartPolicy": {"Name": "always"},
        "LogConfig": {
            "Type": "json-file",
            "Config": {
                "max-size": str(spec["log"]["max_size"]),
                "max-file": str(spec["log"]["max_files"]),
            },
        },
        "Mounts": _engine_mounts(spec, name),
        "Tmpfs": {path: f"size={size}" for path, size in spec["tmpfs"].items()},
        "NetworkMode": spec["network"],
        "Devices": [_device(device) for device in spec["devices"]],
        "DeviceRequests": _gpus(spec["gpus"]),
    }
    found = {
        "Image": image,
        "Env": [f"{key}={value}" for key, value in sorted(spec["environment"].items())],
        "User": spec["user"],
        "Labels": labels,
        "StopTimeout": spec["stop_timeout"],
        "HostConfig": host,
    }
    if spec["command"]:
        found["Cmd"] = spec["command"]
    if address or spec["aliases"]:
        endpoint = {"Aliases": spec["aliases"]}
        if address:
            endpoint["IPAMConfig"] = {"IPv4Address": address}
        found["NetworkingConfig"] = {"EndpointsConfig": {spec["network"]: endpoint}}
    return found


def _engine_mounts(spec, name):
    binds = [
        {
            "Type": "bind",
            "Source": mount["source"].replace("{name}", name),
            "Target": mount["target"],
            "ReadOnly": mount["read_only"],
        }
        for mount in spec["mounts"]
    ]
    volumes = [
        {"Type": "volume", "Source": volume, "Target": target}
        for volume, target in spec["volumes"].items()
    ]
    return binds + volumes


def _device(text):
    host, inside, permissions = (text.split(":") + ["", ""])[:3]
    return {
        "PathOnHost": host,
        "PathInContainer": inside or host,
        "CgroupPermissions": permissions or "rwm",
    }


def _gpus(gpus):
    if not gpus:
        return []
    return [{"Driver": "", "Count": -1 if gpus == "all" else gpus, "Capabilities": [["gpu"]]}]
