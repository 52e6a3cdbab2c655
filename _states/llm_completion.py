"""
What clients get from the platform. For orchestrations: it asks the master's commands.
"""

__virtualname__ = "llm_completion"


def __virtual__():
    return __virtualname__


def answered(name):
    """
    Ensure that a client gets a real completion through the public port, as ``salt-run llm.verify``
    does. Changes nothing; under ``test=True`` nothing is asked.

    .. code-block:: yaml

        A client gets a completion:
          llm_completion.answered
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        ret["comment"] = "Would ask the platform for a completion"
        return ret
    answer = __salt__["saltutil.runner"]("llm.verify")
    if answer["retcode"]:
        ret["result"] = False
        ret["comment"] = answer["error"]
        return ret
    hops = ", ".join(f"{hop} {seconds * 1000:.1f}" for hop, seconds in answer["hops"].items())
    ret["comment"] = (
        f"{answer['model']} answered in {answer['total'] * 1000:.1f} ms ({hops}); "
        f"streamed, its first token came after {answer['first_token'] * 1000:.1f} ms"
    )
    return ret
