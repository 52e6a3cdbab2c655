"""
Which model files lie on a host.
"""

from llm_size import rounded as _size
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_model"


def __virtual__():
    return __virtualname__


def present(name, sha256, url=None, path=None):
    """
    Ensure that model ``name`` is on this host and is the one that is meant.

    .. code-block:: yaml

        qwen:
          llm_model.present:
            - url: https://example.org/qwen.gguf
            - sha256: 4b1f...

    name
        What it is called here.
    sha256
        Its checksum.
    url, path
        Where it comes from, one of them.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Model {name} is here"}
    try:
        found = __salt__["llm_model.checksum"](name)
        if found == sha256.lower():
            if not __opts__["test"]:
                __salt__["llm_model.note"](name)
            return ret
        ret["changes"] = {name: {"old": found, "new": sha256.lower()}}
        if __opts__["test"]:
            return _foretold(ret, name, __salt__["llm_model.need"](name, url=url, path=path))
        __salt__["llm_model.bring"](name, sha256, url=url, path=path)
    except (CommandExecutionError, SaltInvocationError) as err:
        return ret | {"result": False, "changes": {}, "comment": str(err)}
    ret["comment"] = f"Model {name} was brought here"
    return ret


def _foretold(ret, name, need):
    size = need["size"]
    if size is not None and size > need["free"]:
        ret |= {"result": False, "changes": {}}
        room = f"{_size(size)}, {_size(need['free'])} are free"
        ret["comment"] = f"Model {name} from {need['source']} needs {room}"
        return ret
    ret["result"] = None
    much = {None: "an unknown size", 0: "nothing to copy"}.get(size) or _size(size)
    ret["comment"] = f"Would bring model {name} here: {much} from {need['source']}"
    return ret


def absent(name):
    """
    Ensure that model ``name`` is not on this host.

    .. code-block:: yaml

        qwen:
          llm_model.absent
    """
    return _without(name, [name], f"Model {name} is not here")


def pruned(name, keep):
    """
    Ensure that no models but those of ``keep`` are on this host.

    .. code-block:: yaml

        No other models are here:
          llm_model.pruned:
            - keep: [qwen]

    name
        A sentence.
    keep
        Names of models.
    """
    others = [each for each in __salt__["llm_model.list"]() if each not in keep]
    return _without(name, others, "No other models are here")


def _without(name, models, comment):
    ret = {"name": name, "result": True, "changes": {}, "comment": comment}
    there = __salt__["llm_model.list"]()
    surplus = [model for model in models if model in there]
    if not surplus:
        return ret
    ret["changes"] = {model: {"old": "present", "new": None} for model in surplus}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"Would remove {', '.join(surplus)}"
        return ret
    for model in surplus:
        __salt__["llm_model.remove"](model)
    ret["comment"] = f"Removed {', '.join(surplus)}"
    return ret
