"""
The container engine of a host: installed where none is there, and answering.
"""

from salt.exceptions import CommandExecutionError


def __virtual__():
    return "llm_docker"


def installed(name):
    """
    Ensure that a container engine is installed; one that answers is left as it is.

    .. code-block:: yaml

        A container engine is installed:
          llm_docker.installed

    name
        A sentence, for people.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "An engine is installed"}
    packages = __salt__["llm_docker.missing"]()
    if not packages:
        return ret
    ret["changes"] = {"installed": packages}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"Would install {', '.join(packages)}"
        return ret
    try:
        __salt__["llm_docker.install"](packages)
    except CommandExecutionError as err:
        return ret | {"result": False, "changes": {}, "comment": str(err)}
    ret["comment"] = f"Installed {', '.join(packages)}"
    return ret


def running(name, timeout=60):
    """
    Ensure that the container engine answers.

    .. code-block:: yaml

        The container engine answers:
          llm_docker.running:
            - timeout: 120

    name
        A sentence, for people.
    timeout
        Seconds until an engine that had to be started must answer. Default: 60.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The engine answers"}
    if __salt__["llm_docker.answers"]():
        return ret
    ret["changes"] = {"engine": {"old": "stopped", "new": "running"}}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = "Would start the engine"
        return ret
    try:
        __salt__["llm_docker.start"](timeout=timeout)
    except CommandExecutionError as err:
        return ret | {"result": False, "changes": {}, "comment": str(err)}
    ret["comment"] = "The engine was started and answers"
    return ret
