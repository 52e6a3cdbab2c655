"""
What a host must have before anything is deployed on it.
"""

from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_preflight"


def __virtual__():
    return __virtualname__


def ready(name, engine_expected=True):
    """
    Ensure that this host has memory, CPU, disk, ports, devices, an engine and source files for
    the services that it carries. Changes nothing; the result is the same in test mode.

    .. code-block:: yaml

        This host has what its services need:
          llm_preflight.ready

    name
        A sentence.
    engine_expected
        Whether the engine must answer already, or may be installed later. Default: ``True``.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "Nothing is missing"}
    try:
        problems = __salt__["llm_preflight.check"](engine_expected=engine_expected)
    except CommandExecutionError as err:
        problems = [str(err)]
    if problems:
        ret["result"] = False
        ret["comment"] = "\n".join(problems)
    return ret
