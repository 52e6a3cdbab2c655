"""
The platform as data: units, defaults, tiers, and who carries what.

Plain functions on plain mappings, quick to import. What is wrong with a pillar is told by
``problems``, which alone needs pydantic.
"""

import ipaddress
import os
import re
import sys

# Salt takes its own entry for this folder off ``sys.path`` once a module is loaded; the siblings
# of this file are imported later, when they are needed.
_FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.append(_FOLDER)

VERIFYING = "verify"  # the client that proves that clients are served
OFTEN = {"unit": "minute", "requests": 60}  # what it may ask
BLOCK = 16  # addresses of the network for each slot
MASK = "**********"  # what Salt 3008 gives in place of a pillar value that it thinks secret
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgt])")
_SIZE_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
# What an encrypted message starts with, told apart from a key that happens to start with an h.
_PACKET = "hQ[A-Z]MA|hF4D|hI4D|hIwD|wV4D|wcBMA|wcDMA|wYwD"
_ARMOUR = re.compile(rf"BEGIN PGP|END PGP|^\s*({_PACKET})", re.MULTILINE)


def size(value):
    """
    Return ``512m`` as bytes. Raises ``ValueError`` for anything else.
    """
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError(value)
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def duration(value):
    """
    Return ``5s``, ``2m`` or plain seconds as seconds. Raises ``ValueError`` for anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError(value)
    return float(match[1]) * _DURATION_UNITS[match[2]]


def merged(base, over):
    """
    Return ``base`` with ``over`` laid upon it; mappings merge, all else is replaced.
    """
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merged(base[key], over[key]) if key in base else over[key] for key in over}


def secret_flaw(value):
    """
    Return what is wrong with the value of a secret, or an empty string. Never the value itself.
    """
    if value is None or value == "":
        return "is empty"
    if not isinstance(value, str):
        return "is not a string"
    if value == MASK:
        return "is Salt's own mask in place of a value"
    if _ARMOUR.search(value):
        return "is still encrypted"
    if value != value.strip():
        newline = value.rstrip(" \t").endswith("\n")
        return "ends with a newline" if newline else "has spaces at its ends"
    if "\n" in value or "\r" in value or "\0" in value:
        return "has more than one line"
    if re.fullmatch(r"(?i)change.?me.*|todo|xxx+|<.*>", value):
        return "is the example value"
    return ""


def secret(secrets, name):
    """
    Return the value of ``cache.password``, or the whole group for a name without a dot; ``None``
    where there is none.
    """
    for part in name.split(".", 1):
        secrets = secrets.get(part) if isinstance(secrets, dict) else None
    return secrets


def secret_names(secrets):
    """
    Return the names of all secrets in the mapping of groups, sorted.
    """
    return sorted(f"{group}.{name}" for group, values in secrets.items() for name in values or {})


def secret_flaws(secrets):
    """
    Return what is wrong with each secret of the mapping of groups, by name; never a value.
    """
    if not isinstance(secrets, dict):
        return {"": type(secrets).__name__}
    flaws = {}
    for group, values in secrets.items():
        flaws[str(group)] = type(values).__name__
        for name, value in values.items() if isinstance(values, dict) else ():
            flaws[f"{group}.{name}"] = secret_flaw(value)
    return flaws


def code_version():
    """
    Return what changes whenever one of these files does.
    """
    files = sorted(entry.path for entry in os.scandir(_FOLDER) if entry.name.endswith(".py"))
    return [[path, os.stat(path).st_mtime_ns, os.stat(path).st_size] for path in files]


def files_version(*folders):
    """
    Return what changes whenever anything below these folders does, or comes, or goes.
    """
    found, rest = [], list(folders)
    while rest:
        for entry in os.scandir(rest.pop()):
            status = entry.stat(follow_symlinks=False)
            found.append([entry.path, status.st_mtime_ns, status.st_ctime_ns, status.st_size])
            if entry.is_dir(follow_symlinks=False):
                rest.append(entry.path)
    return sorted(found)


def clients(site):
    """
    Return the clients of ``site`` and their own limits, first the one that proves that clients are
    served: it has a limit to itself, so that others who are above theirs do not end a deploy.
    """
    return {VERIFYING: OFTEN} | site["clients"]


def wanted_secrets(services, site, carried):
    """
    Return the names of the secrets that the services named by ``carried`` need, sorted. A whole
    group stands for one secret per client, or per provider that a model names.
    """
    wanted = set()
    for declared in (name for carrier in carried for name in services[carrier]["secrets"]):
        if declared == "clients":
            wanted.update(f"clients.{client}" for client in clients(site))
        elif declared == "providers":
            models = site["models"].values()
            wanted.update(model["secret"] for model in models if "secret" in model)
        else:
            wanted.add(declared)
    return sorted(wanted)


def carriers(services, site, name):
    """
    Return the ids of the hosts that carry service ``name``, in the order of the site.
    """
    every = services[name]["every_host"]
    return [host for host, carried in site["hosts"].items() if every or name in carried["roles"]]


def canaries(services):
    """
    Return the names of the services that a canary is possible of, sorted: those that the mesh
    speaks HTTP or gRPC to.
    """
    needed = {need for service in services.values() for need in service["needs"]}
    return sorted(name for name in needed if services[name]["protocol"] != "tcp")


def tiers(services, site):
    """
    Return the services of the site in the order in which they may start: a list of lists of
    names. What runs on every host comes first; after it, each service comes after all it needs.

    Raises ``ValueError`` with a cycle of names, when ``needs`` has one.
    """
    carried = {name for name in services if carriers(services, site, name)}
    needs = {name: set(services[name]["needs"]) & carried for name in carried}
    first = {name for name in carried if services[name]["every_host"]}
    order, rest = [sorted(first)] if first else [], carried - first
    while rest:
        tier = sorted(name for name in rest if not needs[name] & rest)
        if not tier:
            raise ValueError(cycle(needs))
        order.append(tier)
        rest -= set(tier)
    return order


def cycle(needs):
    """
    Return one cycle of a graph as a list of names that ends where it starts, or ``[]``.

    needs
        The names that each name needs.
    """
    rest = set(needs)
    while free := {name for name in rest if not rest & set(needs[name])}:
        rest -= free
    if not rest:
        return []
    trail = [min(rest)]
    while (following := min(rest & set(needs[trail[-1]]))) not in trail:
        trail.append(following)
    return trail[trail.index(following) :] + [following]


def addresses(subnet, slot):
    """
    Return the block of ``subnet`` that the service with this slot has for itself, as
    ``172.30.0.80/28``: from its callers' addresses the mesh knows who they are.
    """
    first = ipaddress.IPv4Network(subnet).network_address + slot * BLOCK
    return f"{first}/{32 - (BLOCK - 1).bit_length()}"


def model_file(name):
    """
    Return the name of the file that model ``name`` lies in on a host: ``org%2Fqwen.gguf``.
    """
    return f"{name.replace('/', '%2F')}.gguf"


def platform(pillar, host):
    """
    Return the platform of a valid pillar, merged and in plain units: bytes and seconds.

    pillar
        The ``llm`` part of a compiled pillar in which ``problems`` finds nothing.
    host
        The id of the minion that asks.
    """
    site = dict(pillar["site"])
    limits = pillar["limits"]
    site["clients"] = {name: limits | (own or {}) for name, own in clients(site).items()}
    site["models"] = {
        name: model | ({"file": model_file(name)} if "sha256" in model else {})
        for name, model in site["models"].items()
    }
    carried = site["hosts"].get(host)
    requests, mesh, preflight = pillar["requests"], pillar["mesh"], pillar["preflight"]
    tries = ("timeout", "per_try_timeout", "backoff", "max_backoff", "connection")
    return {
        "site": site,
        "host": host,
        "roles": list(carried["roles"]) if carried else [],
        "services": {
            name: _service(name, merged(pillar["defaults"], own), site["network"]["subnet"])
            for name, own in pillar["services"].items()
        },
        "requests": requests
        | {"max_bytes": size(requests["max_bytes"])}
        | {key: duration(requests[key]) for key in tries},
        "mesh": mesh
        | {key: duration(mesh[key]) for key in ("connect_timeout", "check_interval", "ejection")},
        "limits": dict(limits),
        "response_cache": pillar["response_cache"]
        | {"ttl": duration(pillar["response_cache"]["ttl"])},
        "log_level": pillar["log_level"],
        "certificates": dict(pillar["certificates"]),
        "preflight": preflight
        | {key: size(preflight[key]) for key in ("memory_reserve", "disk_free")}
        | {"clock_skew": duration(preflight["clock_skew"])},
        "secrets": secret_names(pillar.get("secrets") or {}),
    }


def _service(name, service, subnet):
    own_network = service["network"] == "platform"
    times = ("stop_timeout", "drain_timeout", "min_healthy", "healthy_deadline")
    return (
        service
        | {key: duration(service[key]) for key in (*times, "progress_deadline")}
        | {
            "name": name,
            "addresses": addresses(subnet, service["slot"]) if own_network else None,
            "memory": size(service["memory"]),
            "tmpfs": {path: size(limit) for path, limit in service["tmpfs"].items()},
            "log": service["log"] | {"max_size": size(service["log"]["max_size"])},
        }
    )


def problems(pillar, host=None, secrets=True):
    """
    Return all mistakes of a compiled pillar as a list of ``Problem``.

    pillar
        The ``llm`` part of a compiled pillar, whatever it is.
    host
        The id of the minion; with it, the host must be one of the site. Default: not checked.
    secrets
        Whether the secrets of this host must be there. Default: yes.
    """
    import llm_rules  # pydantic takes longer to import than all of this takes to run

    return llm_rules.problems(pillar, host=host, secrets=secrets)
