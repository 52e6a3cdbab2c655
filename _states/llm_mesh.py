"""
Where requests go is where the services run.
"""

import llm_engine
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_mesh"


def __virtual__():
    return __virtualname__


def routed(name):
    """
    Ensure that requests for service ``name`` go to its running containers on this host, and to
    none where there is none yet.

    .. code-block:: yaml

        Requests for head go to its replicas:
          llm_mesh.routed:
            - name: head
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        new = __salt__["llm_mesh.serving"](name)
        if __salt__["llm_mesh.said"](name, new):
            ret["comment"] = f"Requests for {name} go to {_listed(new)}"
            return ret
        if __opts__["test"] and _would_change(name):
            ret["comment"] = f"Requests for {name} will go to its containers"
            return ret
        old = __salt__["llm_mesh.endpoints"](name)
        ret["changes"] = {name: {"old": "other ports" if old == new else old, "new": new}}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"Requests for {name} would go to {_listed(new)}"
            return ret
        __salt__["llm_mesh.route"](name, new)
        ret["comment"] = f"Requests for {name} now go to {_listed(new)}"
    except CommandExecutionError as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret


def unrouted(name):
    """
    Ensure that no request for service ``name`` goes to a container on this host.

    .. code-block:: yaml

        No request for head goes here:
          llm_mesh.unrouted:
            - name: head
    """
    comment = f"Requests for {name} go to no replica"
    ret = {"name": name, "result": True, "changes": {}, "comment": comment}
    try:
        old = __salt__["llm_mesh.endpoints"](name)
        if not old:
            return ret
        ret["changes"] = {name: {"old": old, "new": []}}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"Requests for {name} would go to no replica"
            return ret
        __salt__["llm_mesh.route"](name, [])
        ret["comment"] = f"Requests for {name} now go to no replica"
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def known(name, services):
    """
    Ensure that there is a file for the replicas of each of ``services``, be it an empty one: an
    Envoy does not start without. One that was lost names those that serve.

    .. code-block:: yaml

        There is a file for the replicas of each service:
          llm_mesh.known:
            - services: [head, cache]

    services
        Names of services of the catalogue.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "All files are there"}
    missing = [each for each in services if __salt__["llm_mesh.endpoints"](each) is None]
    if not missing:
        return ret
    ret["changes"] = {each: {"old": None, "new": _serving(each)} for each in missing}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"Would make a file for {', '.join(missing)}"
        return ret
    ret["comment"] = f"Made a file for {', '.join(missing)}"
    try:
        for each in missing:
            __salt__["llm_mesh.route"](each, ret["changes"][each]["new"])
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def _serving(service):
    """Return the addresses that serve; none where there is no engine yet."""
    try:
        return __salt__["llm_mesh.serving"](service)
    except CommandExecutionError:
        return []


def _would_change(service):
    """Return whether the service's containers would change; then requests follow them."""
    plan = __salt__["llm_container.plan"](__salt__["llm_service.specs"](service))
    return bool(plan["operations"])


def _listed(addresses):
    return ", ".join(addresses) or "no replica"
