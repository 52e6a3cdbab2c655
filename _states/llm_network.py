"""
Networks that exist as declared. One that containers are connected to is never changed.
"""

import ipaddress

import llm_engine
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_network"


def __virtual__():
    return __virtualname__


def present(name, subnet):
    """
    Ensure that Docker network ``name`` exists with ``subnet``.

    .. code-block:: yaml

        llm-network:
          llm_network.present:
            - subnet: 172.30.0.0/20

    name
        Its name.
    subnet
        Its addresses. Of a network that exists they are not changed, for its containers would lose
        them: the state fails and says what to do.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Network {name} exists"}
    try:
        wanted = _checked(subnet)
        found = __salt__["llm_network.find"](name)
        if found:
            if found["ours"] and found["subnets"] == [wanted]:
                return ret
            raise CommandExecutionError(_difference(name, found, wanted))
        if taken := __salt__["llm_network.overlaps"](wanted, name):
            raise CommandExecutionError(
                f"{wanted} overlaps with {', '.join(taken)}: choose another subnet for {name}"
            )
        ret["changes"] = {name: {"old": None, "new": wanted}}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"Network {name} would be created"
            return ret
        __salt__["llm_network.create"](name, wanted)
        ret["comment"] = f"Network {name} was created"
    except (CommandExecutionError, SaltInvocationError) as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret


def _checked(subnet):
    try:
        return str(ipaddress.ip_network(subnet))
    except (ValueError, TypeError):
        raise SaltInvocationError(
            f"subnet: found {subnet!r}, expected a network such as 172.30.0.0/20"
        ) from None


def _difference(name, found, wanted):
    if not found["ours"]:
        return f"Network {name} exists and is not ours: choose another name, or remove it"
    has = ", ".join(found["subnets"])
    return (
        f"Network {name} has {has} instead of {wanted}, and a network is never changed under its "
        "containers. To change it: make down, then salt-call llm_network.remove "
        f"{name}, then make up"
    )


def absent(name):
    """
    Ensure that there is no Docker network ``name`` of ours. One that is not ours is left alone.

    .. code-block:: yaml

        llm-network:
          llm_network.absent

    name
        Its name.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Network {name} is absent"}
    try:
        found = __salt__["llm_network.find"](name)
        if not found:
            return ret
        if not found["ours"]:
            ret["comment"] = f"Network {name} is not ours and stays"
            return ret
        ret["changes"] = {name: {"old": ", ".join(found["subnets"]), "new": None}}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"Network {name} would be removed"
            return ret
        __salt__["llm_network.remove"](name)
        ret["comment"] = f"Network {name} was removed"
    except CommandExecutionError as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret
