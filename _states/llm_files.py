"""
The configuration files of a service, on the host that runs it.
"""

from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_files"


def __virtual__():
    return __virtualname__


def present(name):
    """
    Ensure that the files of service ``name`` are on this host as its templates render them.

    ``changes`` names the files and never shows their content, since it may hold secrets.

    .. code-block:: yaml

        Head is configured:
          llm_files.present:
            - name: head
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is configured"}
    try:
        ret["changes"] = __salt__["llm_files.pending"](name)
        if not ret["changes"]:
            return ret
        files = ", ".join(sorted(ret["changes"]))
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"{name} is not configured; would write {files}"
            return ret
        __salt__["llm_files.write"](name)
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
        ret["changes"] = {}
        return ret
    ret["comment"] = f"Wrote {files} of {name}"
    return ret


def absent(name):
    """
    Ensure that no file of service ``name`` is left on this host but its certificate.

    .. code-block:: yaml

        head has no configuration:
          llm_files.absent:
            - name: head
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} has no files here"}
    paths = __salt__["llm_files.removable"](name)
    if not paths:
        return ret
    ret["changes"] = {"removed": paths}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"Would remove {', '.join(paths)}"
        return ret
    __salt__["llm_files.remove"](name)
    ret["comment"] = f"Removed {', '.join(paths)}"
    return ret
