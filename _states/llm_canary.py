"""
Canaries: a service's next version takes a part of the requests, and is compared with what serves.
"""

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_canary"


def __virtual__():
    return __virtualname__


def running(name, weight):
    """
    Ensure that a canary of service ``name``, as the pillar wants it, takes a part of the requests.

    .. code-block:: yaml

        A canary of head runs:
          llm_canary.running:
            - name: head
            - weight: 10

    name
        The service.
    weight
        Percent of the requests.
    """
    ret = {"name": name, "result": True, "changes": {}}
    ret["comment"] = f"A canary takes {weight} % of the requests for {name}"
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"A canary would take {weight} % of the requests for {name}"
        return ret
    try:
        ret["changes"] = __salt__["llm_canary.start"](name, weight)
    except (CommandExecutionError, SaltInvocationError) as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def absent(name):
    """
    Ensure that there is no canary of service ``name``.

    .. code-block:: yaml

        There is no canary of head:
          llm_canary.absent:
            - name: head

    name
        The service.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} has no canary"}
    try:
        if name not in __salt__["llm_canary.running"]():
            return ret
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"The canary of {name} would be removed"
            return ret
        ret["changes"] = __salt__["llm_canary.end"](name)
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def proved(name, hosts, **limits):
    """
    Ensure that the canaries of service ``name`` do as well as what serves beside them.

    .. code-block:: yaml

        The canary of head is compared with what serves:
          llm_canary.proved:
            - name: head
            - hosts: [node1]
            - window: 60
            - errors: 1
            - slower: 2

    name
        The service.
    hosts
        Where its canaries run.
    limits
        As of ``llm_canary.watch``: ``window``, ``least``, ``errors``, ``slower``.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        ret["comment"] = f"The canary of {name} would be watched"
        return ret
    limits = {key: value for key, value in limits.items() if not key.startswith("__")}
    try:
        found = __salt__["llm_canary.watch"](name, hosts, **limits)
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
        return ret
    ret["comment"] = f"The canary of {name} does as well as what serves: {found}"
    return ret
