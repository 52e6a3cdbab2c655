"""
What is kept on this host for going back, and what of it may go: parked containers, and images that
no container and no service needs.
"""

import llm_builder
import llm_engine
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_retention"

UNNAMED = "<none>:<none>"  # what engines before 24 call an image without a name


def __virtual__():
    return __virtualname__


def unneeded(keep=None, kept=()):
    """
    Return what may go. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_retention.unneeded keep=1

    keep
        How many parked containers of each replica stay, at least 1. Default: as many as the
        catalogue says, so that none goes.
    kept
        Names of containers that stay in any case.

    Returns ``{"containers": {container: [sentence]}, "images": {reference: bytes}}``. Images share
    layers, so that less may come free than they come to.
    """
    plan = _plan(keep, kept)
    return {"containers": plan["changes"], "images": _images(plan["changes"])}


def prune(keep=None, kept=()):
    """
    Remove what `unneeded` returns, and nothing that is not ours.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_retention.prune keep=1

    keep, kept
        As of `unneeded`.

    Returns what was removed, as `unneeded` does.

    Raises ``CommandExecutionError`` with what could not be removed.
    """
    plan = _plan(keep, kept)
    errors = __salt__["llm_container.execute"](plan)["errors"] if plan["operations"] else []
    builder, removed = _builder(), {}
    for reference, size in _images(()).items():
        try:
            builder.remove_image(reference)
            removed[reference] = size
        except llm_engine.EngineError as err:
            errors.append(f"{reference}: {err}")
    if errors:
        raise CommandExecutionError("\n".join(errors))
    return {"containers": plan["changes"], "images": removed}


def _plan(keep, kept):
    """Return the plan that removes the parked containers which are too many."""
    operations = []
    for name in __salt__["llm_config.carried"]() if keep is not None else ():
        specs = [spec | {"keep": keep} for spec in __salt__["llm_service.specs"](name)]
        operations += [
            operation
            for operation in __salt__["llm_container.plan"](specs)["operations"]
            if operation["do"] == "remove" and operation["container"] not in kept
        ]
    changes = {operation["container"]: [operation["sentence"]] for operation in operations}
    return {"operations": operations, "changes": changes}


def _images(going):
    """Return our images that are needed by no service and by no container but those ``going``."""
    builder, carried = _builder(), __salt__["llm_config.carried"]()
    containers = [
        each for each in builder.containers() if each["Names"][0].lstrip("/") not in going
    ]
    needed = {each["ImageID"] for each in containers}
    wanted = set(__salt__["llm_image.needed"](carried))
    return {
        reference: image["Size"]
        for image in builder.images(label=[llm_builder.LABEL])
        for reference in image["RepoTags"] or ()
        if image["Id"] not in needed and reference not in {*wanted, UNNAMED}
    }


def _builder():
    return llm_builder.Builder(llm_engine.socket_path(__opts__))
