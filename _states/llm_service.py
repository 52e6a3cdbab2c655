"""
Services that are on a host because the catalogue wants them there.
"""

from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_service"


def __virtual__():
    return __virtualname__


def pruned(name):
    """
    Ensure that no service is on this host which the catalogue does not want here. Volumes stay.

    .. code-block:: yaml

        Nothing outside of the catalogue is here:
          llm_service.pruned

    name
        A sentence.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "No other services are here"}
    try:
        outside = __salt__["llm_service.outside"]()
        if not outside:
            return ret
        names = ", ".join(outside)
        if __opts__["test"]:
            ret["result"] = None
            for service in outside:
                ret["changes"] |= __salt__["llm_service.withdrawal"](service)
            ret["comment"] = f"Would remove {names}"
            return ret
        ret["changes"] = __salt__["llm_service.prune"]()
        ret["comment"] = f"Removed {names}"
    except CommandExecutionError as err:
        ret |= {"result": False, "changes": {}, "comment": str(err)}
    return ret
