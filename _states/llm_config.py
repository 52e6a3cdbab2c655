"""
That the platform's configuration is sound.
"""

__virtualname__ = "llm_config"


def __virtual__():
    return __virtualname__


def checked(name, keys=None):
    """
    Ensure that this minion's pillar describes a platform without mistakes, and that the deploy
    which applies it is not over. Changes nothing.

    .. code-block:: yaml

        The configuration is sound:
          llm_config.checked

    name
        The sentence in the state's output.
    keys
        Those that an orchestration takes from ``pillar=``, see ``llm_config.check``. Default: not
        looked at.

    All mistakes stand in the comment, one line each; see ``llm_config.check``.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The configuration is sound"}
    deploy = __pillar__.get("llm_deploy")
    found = __salt__["llm_config.check"](keys)
    if not found and deploy and (late := __salt__["llm_deploy.fence"](deploy)):
        found = [late]
    if found:
        ret["result"] = False
        ret["comment"] = "\n".join(found)
    return ret


def reviewed(name, keys=None):
    """
    Ensure that what stands in ``pillar/`` is sound, as ``salt-run llm.check`` finds it. Changes
    nothing. For orchestrations: only the master has the files.

    .. code-block:: yaml

        The pillar is sound:
          llm_config.reviewed

    name, keys
        As of `checked`.
    """
    answer = __salt__["saltutil.runner"]("llm.check")
    # With any of these, the orchestration is empty but for this state.
    mistakes = __salt__["llm_config.check"](keys)
    if answer["retcode"]:
        mistakes = answer.get("problems") or [answer.get("error", "salt-run llm.check failed")]
    comment = "\n".join(mistakes) or "The pillar is sound"
    return {"name": name, "result": not mistakes, "changes": {}, "comment": comment}
