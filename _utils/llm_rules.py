"""
What must hold between the parts of the pillar, beyond the shape of each.
"""

import ipaddress
import re
import urllib.parse

import llm_schema
from llm_catalogue import (
    BLOCK,
    cycle,
    duration,
    merged,
    secret,
    secret_flaw,
    wanted_secrets,
)
from llm_problem import Problem, described, guess, unknown
from llm_schema import flaws
from llm_world import CANARY

LINGERING = 6  # seconds that a client's idle connection to an Envoy may outlive its time


def problems(pillar, host=None, secrets=True):
    """
    Return all mistakes of the ``llm`` part of a compiled pillar; see ``llm_catalogue.problems``.
    """
    if not isinstance(pillar, dict) or not pillar:
        return [Problem((), described(pillar), "the platform's pillar (llm:)")]
    known = {*llm_schema.SECTIONS, "services", "host", "roles", "names", "secrets"}
    found = [unknown((key,), "key", known) for key in pillar if key not in known]
    good = {}
    for name, section in llm_schema.SECTIONS.items():
        if name not in pillar:
            found.append(Problem((name,), "is missing", ""))
        elif wrong := flaws(section, pillar[name], (name,)):
            found.extend(wrong)
        else:
            good[name] = pillar[name]
    if "authority" in pillar:
        found.extend(flaws(llm_schema.Authority, pillar["authority"], ("authority",)))
    services = _services(pillar, found)
    names = [name for name in _mapping(pillar, "services") if isinstance(name, str)]
    site = good.get("site")
    rules = (_names, _ports, _users, _images, _timing, _volumes, _generations, _health)
    for rule in (*rules, _environment):
        found.extend(rule(services))
    found.extend(_needs(services, names))
    found.extend(_requests(good, services))
    found.extend(_hosts(pillar, names))
    if site:
        found.extend(_site(site, services))
        found.extend(_network(site["network"]["subnet"], site["hosts"], services))
        found.extend(_models(site["models"]))
        found.extend(_generated(site["models"], services))
        if host is not None and host not in site["hosts"] and not host.endswith("_master"):
            found.append(unknown(("site", "hosts", host), "host", site["hosts"]))
    found.extend(_carried(pillar, names))
    if secrets and site and host in site["hosts"]:
        found.extend(_secrets(pillar, site, services, site["hosts"][host]["roles"]))
    return list(dict.fromkeys(found))


def _services(pillar, found):
    """Return the services whose shape is good, merged; append the mistakes of the others."""
    services, defaults = pillar.get("services"), pillar.get("defaults")
    if not isinstance(services, dict) or not services:
        found.append(Problem(("services",), described(services), "a mapping of services"))
        return {}
    defaults = defaults if isinstance(defaults, dict) else {}

    def inherited(flaw):
        return flaw.path[2] in llm_schema.Defaults.model_fields or flaw.path[2] in defaults

    good = {}
    for name, service in services.items():
        path = ("services", name)
        if not isinstance(name, str) or not llm_schema.NAME.fullmatch(name):
            expected = "a name: 2 to 63 of a-z, 0-9 and -, from a letter on"
            found.append(Problem(path, described(name).replace("found", "found name"), expected))
            continue
        if not isinstance(service, dict):
            found.append(Problem(path, described(service), "a mapping (key: value)"))
            continue
        whole = merged(defaults, service)
        wrong = flaws(llm_schema.Service, whole, path)
        # What a service has from the defaults is told once, there.
        found.extend(flaw for flaw in wrong if flaw.path[2] in service or not inherited(flaw))
        if not wrong:
            good[name] = whole
    return good


def _names(services):
    for name, service in services.items():
        if name.endswith(CANARY):
            expected = f"no name that ends in {CANARY}: what is tried of a service is called so"
            yield Problem(("services", name), "found this name", expected)
        for key in ("files", "live_files"):
            for index, file in enumerate(service[key]):
                if file.endswith(".jinja"):
                    path = ("services", name, key, index)
                    yield Problem(path, described(file), "the name without .jinja")


def _doubled(services, key, word):
    """Yield a problem for each service that has the ``key`` of one before it."""
    first = {}
    for name, service in services.items():
        other = first.setdefault(service[key], name)
        if other != name:
            path = ("services", name, key)
            yield Problem(
                path, f"{word} {service[key]} is {other}'s already", f"a {word} of its own"
            )


def _ports(services):
    yield from _doubled(services, "port", "port")
    yield from _doubled(services, "slot", "slot")


def _users(services):
    yield from _doubled(services, "user", "user")


def _images(services):
    for name, service in services.items():
        if "@" not in service["image"] and not service["version"]:
            yield Problem(("services", name, "version"), "is missing", 'a version such as "1.10"')


def _timing(services):
    for name, service in services.items():
        times = [(key, service[key]) for key in ("min_healthy", "healthy_deadline")]
        times.append(("progress_deadline", service["progress_deadline"]))
        for (less, low), (more, high) in zip(times, times[1:], strict=False):
            if duration(low) > duration(high) or (
                less == "min_healthy" and duration(low) == duration(high)
            ):
                path = ("services", name, more)
                yield Problem(path, described(high), f"more than {less} ({low})")


def _volumes(services):
    for name, service in services.items():
        path = ("services", name)
        if service["volumes"] and service["strategy"] != "stop-first":
            expected = "stop-first: two containers must not hold one volume at once"
            yield Problem((*path, "strategy"), described(service["strategy"]), expected)
        if service["volumes"] and service["replicas"] > 1:
            expected = "1: two containers must not hold one volume at once"
            yield Problem((*path, "replicas"), described(service["replicas"]), expected)
        targets = [*service["volumes"].values(), *service["tmpfs"]]
        for target in sorted({target for target in targets if targets.count(target) > 1}):
            yield Problem(path, f"{target} is mounted twice", "each path once")
        for target in targets:
            if re.match(
                r"/(etc/llm|etc/llm-live|etc/llm-tls|etc/llm-endpoints|run/llm)(/|$)", target
            ):
                yield Problem(path, f"{target} is mounted by the platform", "another path")


def _generations(services):
    """Yield what needs more addresses than a service has: kept containers keep theirs."""
    for name, service in services.items():
        replicas, most = service["replicas"], BLOCK - 1  # one for the next that comes
        if service["network"] == "platform" and replicas * (1 + service["keep"]) > most:
            expected = f"at most {most // replicas - 1} with {replicas} replicas"
            yield Problem(("services", name, "keep"), described(service["keep"]), expected)


def _health(services):
    checks = ("http", "tcp", "redis", "grpc", "container")
    for name, service in services.items():
        health, path = service["health"], ("services", name, "health")
        kinds = [check for check in checks if check in health]
        if len(kinds) != 1:
            found = f"found {' and '.join(kinds) or 'no check'}"
            yield Problem(path, found, f"one of {', '.join(checks)}")
        if "json" in health and "http" not in health:
            yield Problem((*path, "json"), "found without http", "a check of http")
        asked = {(*path, "redis"): health.get("redis")}
        asked[("services", name, "smoke_test")] = service["smoke_test"]
        single = [secret for secret in service["secrets"] if "." in secret]  # no whole group
        for where, wanted in asked.items():
            if wanted and wanted not in single:
                hint = guess(wanted, single)
                yield Problem(where, f'found "{wanted}"', "one of the service's secrets", hint)
        if service["smoke_test"] and service["protocol"] != "http":
            found = f"does not go with protocol {service['protocol']}"
            yield Problem(("services", name, "smoke_test"), found, "protocol http")


def _environment(services):
    for name, service in services.items():
        for variable in service["environment"]:
            if re.search(r"(?i)(^|_)(key|password|secret|token)$", variable):
                path = ("services", name, "environment", variable)
                hint = "put it into pillar/secrets: salt-run llm.secret set"
                yield Problem(path, "looks like a secret", "nothing secret in environment", hint)


def _needs(services, names):
    for name, service in services.items():
        for index, needed in enumerate(service["needs"]):
            path = ("services", name, "needs", index)
            if needed not in names:
                yield unknown(path, "service", names, needed)
            elif service["every_host"]:
                yield Problem(path, f'found "{needed}"', "no needs of what runs on every host")


def _requests(good, services):
    if requests := good.get("requests"):
        for less, more in (("per_try_timeout", "timeout"), ("backoff", "max_backoff")):
            if duration(requests[less]) > duration(requests[more]):
                expected = f"at most {more} ({requests[more]})"
                yield Problem(("requests", less), described(requests[less]), expected)
        anew = requests["connection"]
        for name, service in services.items():
            drain, path = service["drain_timeout"], ("services", name, "drain_timeout")
            # A client may ask on its connection until that time, and then leave it idle as long.
            if service["network"] == "host" and duration(drain) < 2 * duration(anew):
                yield Problem(
                    path, described(drain), f"at least twice requests.connection ({anew})"
                )
            edge = "socket" in service["health"] and not service["every_host"]
            if edge and duration(drain) < duration(anew) + LINGERING:
                expected = f"at least {LINGERING}s more than requests.connection ({anew})"
                yield Problem(path, described(drain), expected)
    if certificates := good.get("certificates"):
        for less, more in (("renew_days", "days"), ("days", "authority_days")):
            if certificates[less] >= certificates[more]:
                path, expected = ("certificates", less), f"less than {more} ({certificates[more]})"
                yield Problem(path, described(certificates[less]), expected)


def _hosts(pillar, names):
    """Yield the unknown roles, even where another part of the site is wrong."""
    hosts = _mapping(pillar, "site", "hosts")
    for host in hosts if names else ():
        roles = _mapping(hosts, host).get("roles")
        for index, role in enumerate(roles if isinstance(roles, list) else ()):
            if isinstance(role, str) and role not in names:
                yield unknown(("site", "hosts", host, "roles", index), "service", names, role)


def _site(site, services):
    taken = {
        service["port"]: f"{name}'s"
        for name, service in services.items()
        if service["network"] == "host"
    }
    for *path, key in (
        ("site", "salt", "publish_port"),
        ("site", "salt", "return_port"),
        ("site", "public_port"),
        ("site", "hosts_port"),
    ):
        port = (site["salt"] if "salt" in path else site)[key]
        if (owner := taken.setdefault(port, key)) != key:
            yield Problem((*path, key), f"port {port} is {owner} already", "a port of its own")
    if site["authority"] not in site["hosts"]:
        yield unknown(("site", "authority"), "host", site["hosts"], site["authority"])
    own = site["public_certificate"]
    for part in ("certificate", "key"):
        if own and part not in own:
            yield Problem(("site", "public_certificate", part), "is missing", "")
    for host, carried in site["hosts"].items():
        for index, role in enumerate(carried["roles"]):
            if role in services and services[role]["every_host"]:
                path = ("site", "hosts", host, "roles", index)
                yield Problem(path, f'found "{role}"', "", "it runs on every host: leave it out")


def _network(subnet, hosts, services):
    network = ipaddress.IPv4Network(subnet)
    path = ("site", "network", "subnet")
    slots = {service["slot"]: name for name, service in services.items()}
    if slots and (max(slots) + 1) * BLOCK > network.num_addresses:
        least = 32 - ((max(slots) + 1) * BLOCK - 1).bit_length()
        hint = f"slot {max(slots)} is {slots[max(slots)]}'s"
        yield Problem(path, f"found {subnet}", f"room for every slot: /{least} or larger", hint)
    if network.is_multicast or network.is_loopback or network.is_unspecified:
        yield Problem(path, f"found {subnet}", "a private network such as 172.30.0.0/20")
    first = {}
    for host, carried in hosts.items():
        path = ("site", "hosts", host, "address")
        address = ipaddress.IPv4Address(carried["address"])
        if address in network:
            yield Problem(
                path, f"{address} is inside network.subnet ({subnet})", "an address outside"
            )
        if address.is_loopback and len(hosts) > 1:
            yield Problem(path, f"found {address}", "an address that the other hosts reach")
        if (other := first.setdefault(address, host)) != host:
            yield Problem(path, f"{address} is {other}'s already", "an address of its own")


def _models(models):
    for name, model in models.items():
        path = ("site", "models", name)
        kinds = [kind for kind in ("generated", "url", "path", "provider") if kind in model]
        if len(kinds) != 1:
            found = f"found {' and '.join(kinds) or 'none of them'}"
            yield Problem(path, found, "one of generated, url, path, provider")
            continue
        allowed = {
            "generated": {"context"},
            "url": {"sha256", "context"},
            "path": {"sha256", "context"},
            "provider": {"model", "secret", "api_base"},
        }[kinds[0]] | {kinds[0], "fallbacks"}
        for key in sorted(set(model) - allowed):
            yield Problem((*path, key), f"does not go with {kinds[0]}", "")
        required = {"url": "sha256", "path": "sha256", "provider": "model"}.get(kinds[0])
        if required and required not in model:
            yield Problem((*path, required), "is missing", "")
        if "secret" in model and _is_overheard(model.get("api_base", "")):
            expected = "https://, or a private network's server: the secret would travel in clear"
            yield Problem((*path, "api_base"), "found http://", expected)
        for index, other in enumerate(model.get("fallbacks", ())):
            where = (*path, "fallbacks", index)
            if other == name:
                yield Problem(where, f'found "{other}"', "another model than itself")
            elif other not in models:
                yield unknown(where, "model", models, other)


def _is_overheard(url):
    """Return whether what is sent to ``url`` can be read on its way through public networks."""
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme == "http" and not ipaddress.ip_address(parts.hostname).is_private
    except ValueError:  # a name, if not an address in brackets that are none
        return url.startswith("http://") and "." in re.split("[:/?#]", url[7:])[0]


def _generated(models, services):
    foreign = [name for name, each in services.items() if each["models"] and "@" in each["image"]]
    for name, model in models.items():
        if foreign and "generated" in model:
            hint = "generated models are part of the platform's own model-proxy image"
            found = f"found generated, and {foreign[0]} has an image of your own"
            yield Problem(("site", "models", name), found, "a url or path", hint)


def _carried(pillar, names):
    """Yield what no host carries and cycles, even where another part of the pillar is wrong."""
    raw = {name: service for name, service in _mapping(pillar, "services").items() if name in names}
    hosts = _mapping(pillar, "site", "hosts")
    roles = [role for host in hosts for role in _strings(_mapping(hosts, host).get("roles"))]
    if roles and set(roles) <= set(names):  # a misspelt role is told already
        for name in names:
            if _mapping(raw, name).get("every_host") is not True and name not in roles:
                expected = "its name among the roles of a host"
                yield Problem(("services", name), "no host of site.yaml carries it", expected)
    needs = {name: _strings(_mapping(raw, name).get("needs")) for name in names}
    if found := cycle(needs):
        yield Problem(("services", found[0], "needs"), " → ".join(found), "no cycle")


def _mapping(value, *keys):
    """Return the mapping at ``keys`` of ``value``, or an empty one."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _strings(value):
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _secrets(pillar, site, services, roles):
    """Yield the secrets of this host that are missing or unfit. Never a value."""
    carried = [name for name in services if services[name]["every_host"] or name in roles]
    secrets = pillar.get("secrets")
    for name in wanted_secrets(services, site, carried):
        value, path = secret(secrets, name), ("secrets", *name.split(".", 1))
        if value is None:
            yield Problem(path, "is missing", "", f"salt-run llm.secret set {name}")
        elif isinstance(value, dict):
            yield Problem(path, "found a mapping", "a string")
        elif flaw := secret_flaw(value):
            yield Problem(path, flaw, "", f"salt-run llm.secret set {name}")
