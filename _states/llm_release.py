"""
Releases, for orchestrations: one at a time, recorded when they are proved, taken back when not.
"""

import copy

import llm_outcome
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_release"


def __virtual__():
    return __virtualname__


def locked(name, what):
    """
    Ensure that nobody else changes the platform until this run has ended.

    .. code-block:: yaml

        Nobody else changes the platform:
          llm_release.locked:
            - what: teardown

    name
        A sentence.
    what
        What is done, for people.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Locked for {what}"}
    if __opts__["test"]:
        ret["comment"] = f"Would be locked for {what}"
        return ret
    try:
        __salt__["llm_release.lock"](what)
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def begun(name, number, what="deploy"):
    """
    Ensure that nobody else changes the platform, and that every host answers and takes part.

    .. code-block:: yaml

        Nobody else deploys, and every host is there:
          llm_release.begun:
            - number: 12

    name
        A sentence.
    number
        What ``llm_release.next_number`` gave.
    what
        What is done, for people. Default: ``deploy``.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Release {number} has begun"}
    if __opts__["test"]:
        ret["comment"] = f"Release {number} would begin"
        return ret
    try:
        __salt__["llm_release.begin"](number, what)
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def recorded(name, number):
    """
    Ensure that a release which has passed its verification is recorded, unless it changed nothing.

    .. code-block:: yaml

        The release is recorded:
          llm_release.recorded:
            - number: 12

    name
        A sentence.
    number
        The release.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "Nothing was changed"}
    if __opts__["test"]:
        ret["comment"] = f"Release {number} would be recorded if it changed anything"
        return ret
    try:
        if __salt__["llm_release.finish"](number):
            ret["changes"] = {"release": number}
            ret["comment"] = f"Release {number} is stable"
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def returned(name, number, release):
    """
    Ensure that what served at the end of an earlier release serves on every host.

    .. code-block:: yaml

        Release 9 serves again:
          llm_release.returned:
            - number: 12
            - release: 9

    name
        A sentence.
    number
        The release that is made of it.
    release
        The release to go to.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Release {release} serves"}
    try:
        if not __opts__["test"]:
            ret["changes"] = __salt__["llm_release.go_to"](number, release)
        elif found := __salt__["llm_release.obstacles"](release):
            ret["result"] = False
            ret["comment"] = "\n".join(found)
        else:
            ret["result"] = None
            ret["changes"] = {"release": release}
            ret["comment"] = f"Release {release} would serve"
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
    return ret


def taken_back(name, number, why=()):
    """
    Ensure that what a failed release has switched serves no more; for ``onfail``. True where all
    is as it was before, which a client's completion has proved.

    .. code-block:: yaml

        What was switched goes back:
          llm_release.taken_back:
            - number: 12
            - onfail:
              - llm_completion: A client gets a completion

    name
        A sentence.
    number
        The release.
    why
        What went wrong, as a list of lines, beside what has failed in this run. Default: nothing.
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        ret["comment"] = "What was switched would go back"
        return ret
    states = copy.deepcopy(dict(__running__))
    truths = llm_outcome.truths(__opts__["id"], states)
    try:
        done = __salt__["llm_release.take_back"](number, [*why, *llm_outcome.failures(truths)])
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] = str(err)
        return ret
    ret["changes"] = done["changes"]
    if done["errors"]:
        ret["result"] = False
    ret["comment"] = "\n".join([SENTENCES[done["result"]].format(number), *done["errors"]])
    return ret


SENTENCES = {
    "refused": "Nothing was changed",
    "taken back": "Release {} was taken back: what served before serves again",
    "not taken back": "Release {} was not taken back whole",
    "unknown": "Nobody knows what serves on every host after release {}",
}
