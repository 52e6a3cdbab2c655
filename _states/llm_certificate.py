"""
Certificates that are there, fit their keys, and are renewed in time.
"""

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "llm_certificate"


def __virtual__():
    return __virtualname__


def authority(name):
    """
    Ensure that this host has the platform's certificate authority.

    .. code-block:: yaml

        This host is the authority:
          llm_certificate.authority
    """
    flaws = __salt__["llm_certificate.authority_flaws"]
    make = __salt__["llm_certificate.make_authority"]
    return _applied(name, "The authority", flaws, make)


def valid(name):
    """
    Ensure that service ``name`` has a valid certificate on this host, with the names that it
    should bear, and renew it in time. The service reads the new one by itself. One of the user's
    own that is unfit is refused; one that runs out soon is warned of.

    .. code-block:: yaml

        tail has a valid certificate:
          llm_certificate.valid:
            - name: tail
    """

    def flaws():
        return __salt__["llm_certificate.flaws"](name)

    def renew():
        return __salt__["llm_certificate.renew"](name)

    ret = _applied(name, f"The certificate of {name}", flaws, renew)
    if ret["result"] is not False:
        warnings = __salt__["llm_certificate.warnings"](name)
        ret["comment"] = "; ".join([ret["comment"], *warnings])
    return ret


def _applied(name, what, flaws, renew):
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{what} is valid"}
    try:
        found = flaws()
        if not found:
            return ret
        ret["changes"] = {"certificate": {"old": found, "new": "valid"}}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = f"{what} would be made: {'; '.join(found)}"
            return ret
        renew()
        ret["comment"] = f"{what} was made: {'; '.join(found)}"
    except (CommandExecutionError, SaltInvocationError, OSError) as err:
        ret["result"] = False
        ret["changes"] = {}
        ret["comment"] = f"{what}: {err}"
    return ret
