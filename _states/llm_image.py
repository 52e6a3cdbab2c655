"""
Images that are there, or are not.
"""

import llm_engine
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_image"


def __virtual__():
    return __virtualname__


def built(name, images=None):
    """
    Ensure that this host has images. Those that it lacks are built side by side; one that the
    catalogue names by its digest is pulled.

    .. code-block:: yaml

        The images of this host are built:
          llm_image.built:
            - images: [head, cache]

    name
        The image, when ``images`` is left out.
    images
        A list of services, of folders of ``salt://images`` or of references with a digest.
        Default: ``name`` alone.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "All images are here"}
    images = [name] if images is None else images
    try:
        lacking = __salt__["llm_image.pending"](images)
        if not any(lacking.values()):
            return ret
        for kind in sorted(lacking):
            ret["changes"] |= {each: {"old": None, "new": PAST[kind]} for each in lacking[kind]}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = "; ".join(
                f"would {kind} {', '.join(lacking[kind])}"
                for kind in sorted(lacking)
                if lacking[kind]
            )
            return ret
        __salt__["llm_image.build"](images)
        ret["comment"] = f"Made {', '.join(sorted(ret['changes']))}"
    except (CommandExecutionError, SaltInvocationError) as err:
        ret |= llm_engine.failure(err, __opts__["test"])
    return ret


PAST = {"build": "built", "pull": "pulled"}


def absent(name):
    """
    Ensure that no image is here that this project made. Others are left alone.

    .. code-block:: yaml

        The images are gone:
          llm_image.absent: []

    name
        Any words; it selects nothing.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "No image of ours is here"}
    try:
        there = __salt__["llm_image.list"]()
        if not there:
            return ret
        ret["changes"] = {each: {"old": "present", "new": None} for each in there}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"{len(there)} images would be removed"
            return ret
        __salt__["llm_image.remove"]()
        ret["comment"] = f"{len(there)} images were removed"
    except CommandExecutionError as err:
        ret |= {"result": False, "comment": str(err)}
    return ret
