"""
A canary: one container of what a service is to become, beside those that serve. It takes a part of
the requests until it is known how it does.

On a host it is a service of its own, called ``<service>-canary``, which no catalogue wants: what is
left of one goes with the next run. Its share is a number in the memory of each mesh, which a mesh
that starts anew does not have; what it does not take, the others do.
"""

import time

import llm_canary
import llm_envoy
import llm_world
import salt.utils.event
from llm_size import rounded
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_canary"

POLL = 5  # seconds; so often an Envoy adds up its times
COLD = 1 / 4  # of the window, at most, in which times do not count yet
TIMEOUT = 15  # seconds until a host is asked whether it is still at it


def __virtual__():
    return __virtualname__


def start(service, weight):
    """
    Start a canary of ``service`` as the pillar wants it, and let it take requests once it is
    healthy.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_canary.start head 10

    service
        Its name; the mesh speaks HTTP or gRPC to it.
    weight
        Percent of the requests.

    Returns ``{container: [sentence]}``.

    Raises ``CommandExecutionError`` when it does not become healthy, or there is no room for it.
    """
    spec = _spec(service)
    taken = sum(each["memory"] for each in __salt__["llm_container.list"]())
    lacking = taken + spec["memory"] - spec["room"]["memory"]
    if lacking > 0:
        raise CommandExecutionError(
            f"there is no room for a canary of {service}: memory lacks {rounded(lacking)}; lower "
            "limits in pillar/environments, or deploy without"
        )
    plan = __salt__["llm_container.plan"]([spec])
    if problems := plan["conflicts"] + plan["missing"]:
        raise CommandExecutionError("\n".join(problems))
    done = __salt__["llm_container.execute"](plan)
    if done["errors"]:
        raise CommandExecutionError("\n".join(done["errors"]))
    health = spec["health"] | {"smoke_test": spec["smoke_test"]}
    container = __salt__["llm_container.list"](spec["service"])[0]["name"]
    __salt__["llm_health.wait"](health.pop("check"), container=container, **health)
    __salt__["llm_mesh.wait"](spec["service"])
    if not weigh(service, weight):
        raise CommandExecutionError(f"no mesh runs here that could send requests to {service}")
    return done["changes"]


def _spec(service):
    """Return the spec of a canary of ``service``."""
    spec = __salt__["llm_service.specs"](service)[0]
    return spec | {"service": f"{service}{llm_world.CANARY}", "keep": 1}


def weigh(service, weight):
    """
    Let the canary of ``service`` take ``weight`` percent of the requests.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_canary.weigh head 25

    service
        Its name.
    weight
        Percent; 0 for none.

    Returns how many meshes of this host were told.
    """
    order = f"/runtime_modify?canary.{service}={weight:d}"
    return sum(llm_envoy.told(admin, order) for admin in __salt__["llm_mesh.sockets"]("mesh"))


def figures(service):
    """
    Return how the canary of ``service`` does, and what serves beside it, by this host's mesh.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_canary.figures head

    Returns ``{"old": counts, "canary": counts}``, each with ``requests``, ``errors`` and ``times``
    since the mesh has started; ``_utils/llm_canary.py`` says more.

    Raises ``CommandExecutionError`` when the canary does not run, or was started again.
    """
    canaries = __salt__["llm_container.list"](f"{service}{llm_world.CANARY}")
    if not [each for each in canaries if each["state"] == "running" and not each["restarts"]]:
        raise CommandExecutionError(f"the canary of {service} has ended")
    meshes = __salt__["llm_mesh.sockets"]("mesh")
    answers = [llm_envoy.asked(admin, llm_canary.question(service)) for admin in meshes]
    return llm_canary.total(llm_canary.read(service, answer) for answer in answers if answer)


def running():
    """
    Return the names of the services that have a canary on this host, sorted.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_canary.running
    """
    names = __salt__["llm_container.services"]()
    return [
        name.removesuffix(llm_world.CANARY) for name in names if name.endswith(llm_world.CANARY)
    ]


def end(service):
    """
    Send no more requests to the canary of ``service``, let it finish those that it has, and remove
    it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_canary.end head

    Returns ``{container: [sentence]}``.
    """
    name = f"{service}{llm_world.CANARY}"
    weigh(service, 0)
    __salt__["llm_mesh.close"](name)
    timeout = __salt__["llm_config.service"](service)["drain_timeout"]
    for each in __salt__["llm_container.list"](name):
        if each["state"] == "running":
            __salt__["llm_drain.wait"](each["name"], timeout=timeout)
    return __salt__["llm_service.withdraw"](name)


def watch(service, hosts, window=60, least=20, errors=1.0, slower=2.0):
    """
    Watch from the master how the canaries of ``service`` do on ``hosts``, by the figures of their
    meshes. Errors count from the first request on, times once the canaries are warm: after 10
    requests each, or a quarter of the window. Both sides are judged by the same quantile, the
    highest of p99, p90 and median beyond which 10 requests of either lie.

    CLI Example:

    .. code-block:: bash

        salt-call llm_canary.watch head '[node1]' window=120

    service
        Its name.
    hosts
        Where its canaries run.
    window
        Seconds. Default: 60.
    least
        Requests that canaries must have had by then. Default: 20.
    errors
        Percentage points by which their share of errors may be higher. Default: 1.
    slower
        How many times as long they may take, at that quantile. Default: 2.

    Returns the figures, ``{"old": ..., "canary": {"requests", "errors", "quantile": its name,
    "time": milliseconds}}``.

    Raises ``CommandExecutionError`` when they do worse, as soon as errors leave no doubt of it.
    """
    before, end_ = _asked(hosts, service), time.monotonic() + window
    warm, is_warm = before, False
    while True:
        left = max(0.0, end_ - time.monotonic())
        time.sleep(min(POLL, left))
        now = _asked(hosts, service)
        if not is_warm and end_ - time.monotonic() > window * (1 - COLD):
            warm, is_warm = now, llm_canary.is_warm(before, now, len(hosts))
        found = llm_canary.since(before, now, warm)
        _tell(f"{service}: {llm_canary.words(found)}; {left:.0f} s left")
        # Times are added up late, and those of the last requests would be missed.
        if left == 0 or llm_canary.is_lost(found, errors):
            break
    reasons = llm_canary.flaws(found, errors, slower)
    if not reasons and found["canary"]["requests"] < least:
        reasons = [
            f"requests: found {found['canary']['requests']} in {window:g} s, expected at least "
            f"{least}; lengthen window=, or deploy without a canary"
        ]
    if reasons:
        raise CommandExecutionError(
            "\n".join([f"the canary of {service} is not as good as what serves:", *reasons])
        )
    return found


def _asked(hosts, service):
    """Return the figures of all ``hosts`` as one."""
    answers = __salt__["saltutil.cmd"](
        list(hosts), "llm_canary.figures", tgt_type="list", arg=[service], timeout=TIMEOUT
    )
    for host in hosts:
        said = answers.get(host, {}).get("ret", "does not answer")
        if isinstance(said, str):  # the text of an exception
            raise CommandExecutionError(f"{host}: {said}")
    return llm_canary.total(answers[host]["ret"] for host in hosts)


def _tell(text):
    """Tell whoever watches the deploy how it stands."""
    with salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=False) as bus:
        bus.fire_event({"id": "canary", "data": {"text": text}}, "llm/progress/canary")
