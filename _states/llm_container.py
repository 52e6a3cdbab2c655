"""
Containers that run as declared, and no others of their service.
"""

import llm_engine
from salt.exceptions import CommandExecutionError, SaltInvocationError

MOVED = "The world has moved since the plan; planned again"

__virtualname__ = "llm_container"


def __virtual__():
    return __virtualname__


def running(name, spec=None, containers=None, **keywords):
    """
    Ensure that the containers of service ``name`` run, with exactly their spec.

    .. code-block:: yaml

        head:                       # as the catalogue says
          llm_container.running

        A benchmark runs:
          llm_container.running:
            - name: bench
            - image: busybox
            - memory: 128m
            - environment: {INDEX: "1"}

        Twelve containers run, started side by side:
          llm_container.running:
            - image: busybox
            - containers:
                bench-1: {environment: {INDEX: "1"}}
                bench-2: {environment: {INDEX: "2"}}

    name
        The service.
    spec
        The whole spec, or a list of them, one per replica. Default: the keywords; without any,
        the catalogue's.
    containers
        Several services at once: a mapping of name to what differs from the keywords.
    keywords
        The keys of a spec: ``_utils/llm_spec.py`` has them with their defaults.

    A container that is not as declared is replaced, and the reason is among the changes. When the
    new one does not become healthy, the old one serves on and the state fails. A first container
    is not waited for: that is for the states of ``llm_health``.

    Where the pillar has ``llm_announced: {host: {service: digest}}``, as ``llm_change.foreseen``
    gave them, and the plan is another by now, the comment says so.
    """
    keywords = {key: value for key, value in keywords.items() if not key.startswith("__")}
    return _applied(
        name,
        "llm_container.plan",
        lambda: _specs(name, spec, containers, keywords),
        f"{name} is running",
        announced=(__pillar__.get("llm_announced") or {}).get(__opts__["id"], {}).get(name),
    )


def _specs(name, spec, containers, keywords):
    """Return the list of specs that a state's arguments mean."""
    if containers is not None:
        if not isinstance(containers, dict):
            raise SaltInvocationError(f"{name}: containers: expected a mapping of name to spec")
        return [{"service": each, **keywords, **(own or {})} for each, own in containers.items()]
    if spec is None and not keywords:
        return __salt__["llm_service.specs"](name)
    several = spec if isinstance(spec, list) else [spec or {}]
    return [{"service": name, **keywords, **each} for each in several]


def absent(name, volumes=False):
    """
    Ensure that no container of service ``name`` is left.

    .. code-block:: yaml

        head:
          llm_container.absent

    name
        The service.
    volumes
        With its volumes and what they hold. Default: ``False``.
    """
    return _applied(
        name, "llm_container.removal", lambda: name, f"{name} is absent", volumes=volumes
    )


def _applied(name, planner, wanted, comment, announced=None, **arguments):
    """Plan, and unless this is a test carry the plan out; say when another was ``announced``."""
    ret = {"name": name, "result": True, "changes": {}, "comment": comment}
    try:
        __salt__["llm_watch.wait"]()
        plan = __salt__[planner](wanted(), **arguments)
        moved = announced and announced != __salt__["llm_container.digest"](plan)
        _carry_out(plan, ret)
        if moved:
            __salt__["llm_deploy.tell"](f"{name}: {MOVED}")
            ret["comment"] = f"{ret['comment']}\n{MOVED}"
    except (CommandExecutionError, SaltInvocationError) as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret


def _carry_out(plan, ret):
    """Carry ``plan`` out where it may be; put into ``ret`` what came of it."""
    if plan["conflicts"]:
        ret["result"] = False
        ret["comment"] = "\n".join(plan["conflicts"])
        return
    ret["comment"] = "\n".join([ret["comment"], *plan["notes"]])
    if not plan["operations"]:
        if not __opts__["test"]:
            __salt__["llm_watch.remember"](ret["name"], changed=False)
            __salt__["llm_container.tidy"](ret["name"])  # after a wish that never came true
        return
    if __opts__["test"]:
        ret["result"] = None
        ret["changes"] = plan["changes"]
        ret["comment"] = "\n".join(["Containers would be changed", *plan["missing"]])
        return
    if plan["missing"]:
        ret["result"] = False
        ret["comment"] = "\n".join(plan["missing"])
        return
    done = __salt__["llm_container.execute"](plan)
    ret["changes"] = done["changes"]
    if done["errors"]:
        ret["result"] = False
        ret["comment"] = "\n".join(done["errors"])
