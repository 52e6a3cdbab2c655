"""
Making a release on the master: one at a time, recorded, and taken back on every host when it fails.

Used by orchestrations and by ``salt-run llm.…``, which run on the master. Hosts are asked one tier
after another, in the order that is the reverse of a deploy's.
"""

import pathlib
import time

import llm_lock
import llm_release
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_release"

TIMEOUT = 15  # seconds until a host is asked whether it is still at it


def __virtual__():
    return __virtualname__


def _root():
    return pathlib.Path(__salt__["llm_config.platform"]()["site"]["root"])


def _lock():
    return llm_lock.Lock(_root() / "salt" / "lock.json")


def _releases():
    return llm_release.Releases(_root() / "salt" / "releases")


def next_number():
    """
    Return the number that the next release gets. Changes nothing.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.next_number
    """
    return _lock().next()


def lock(what):
    """
    Take the lock for this process, until it ends, for what is no release.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.lock teardown

    what
        What is done, for people.

    Raises ``CommandExecutionError`` when somebody else has it.
    """
    _lock().take(what)


def begin(number, what):
    """
    Take the lock and begin release ``number`` on every host.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.begin 12 deploy

    number
        What `next_number` gave.
    what
        What is done, for people: ``deploy``, ``rollback to 5``.

    Raises ``CommandExecutionError`` when somebody else has the lock, a host does not answer or
    its clock differs. Then nothing was changed, and the lock is free again.
    """
    releases = _releases()
    _lock().take(what, number)
    releases.abandon()
    commit = llm_release.commit(pathlib.Path(__opts__["file_roots"]["base"][0]).parent)
    process = llm_lock.this_process()
    releases.write(llm_release.begun(number, what, llm_lock.who(), commit, process))
    started = time.time()
    answers, silent = _ask(_hosts(), "llm_deploy.begin", number)
    problems = [f"{host} does not answer: is its minion running?" for host in silent]
    problems += [f"{host}: {answer}" for host, answer in answers.items() if _failed(answer)]
    problems += _skewed(answers, started)
    if problems:
        _end(number, llm_release.REFUSED, problems)
        raise CommandExecutionError("\n".join(problems))


def _skewed(answers, started):
    """Return which hosts' clocks differ from the master's, given what they said since then."""
    limit = __salt__["llm_config.platform"]()["preflight"]["clock_skew"]
    found = []
    for host, clock in answers.items():
        if isinstance(clock, float) and not started - limit <= clock <= time.time() + limit:
            where = "behind" if clock < started else "ahead of"
            found.append(
                f"{host}: clock: found it {abs(clock - time.time()):.0f} s {where} the master's, "
                f"needed at most {limit:g} s; set the clock (chrony, systemd-timesyncd)"
            )
    return found


def finish(number):
    """
    Record release ``number``, which has passed its verification, and free the lock.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.finish 12

    Returns ``{host: {what: [cause]}}``, what it changed. One that changed nothing is forgotten.

    Raises ``CommandExecutionError`` when a host does not answer.
    """
    answers, silent = _ask(_hosts(), "llm_deploy.end", number, llm_release.DONE)
    problems = [f"{host} does not say what serves there" for host in silent]
    problems += [f"{host}: {answer}" for host, answer in answers.items() if _failed(answer)]
    if problems:
        raise CommandExecutionError("\n".join(problems))
    changes = {host: answer["changes"] for host, answer in answers.items() if answer["changes"]}
    hosts = {host: answer["services"] for host, answer in answers.items()}
    if changes or not _releases().current():
        _end(number, llm_release.DONE, changes=changes, hosts=hosts)
    else:
        _releases().remove(number)
        _lock().free()
    return changes


def take_back(number, why=()):
    """
    Bring back on every host what served before release ``number``, the last tier first, and see
    whether clients are served. Then the lock is free.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.take_back 12

    number
        The release that failed.
    why
        What went wrong, as a list of lines. Default: not known.

    Returns ``{"result": str, "changes": {host: {container: [cause]}}, "errors": [line]}`` with one
    of these results: ``refused`` (it had not begun), ``taken back``, ``not taken back``,
    ``unknown`` (a host does not answer).
    """
    if not _is_mine(number):
        return {"result": llm_release.REFUSED, "changes": {}, "errors": []}
    changes, silent, begun = {}, set(), []
    # What is no state runs with the pillar that the minion started with.
    _ask(_hosts(), "saltutil.refresh_pillar", wait=True)

    def back(hosts, services):
        said, missing = _ask(hosts, "llm_deploy.take_back", number, services)
        silent.update(missing)
        found = [f"{host}: {answer}" for host, answer in said.items() if _failed(answer)]
        for host, answer in said.items():
            if not _failed(answer):
                begun.append(answer["begun"])
                changes.setdefault(host, {}).update(answer["changes"])
                found += [f"{host}: {error}" for error in answer["errors"]]
        return found

    tiers = reversed(__salt__["llm_config.tiers"]())
    errors = _in_turn([step for tier in tiers for step in _carriers(tier).items()], back)
    errors += [f"{host} does not answer: nobody knows what serves there" for host in sorted(silent)]
    if any(begun) and not errors:
        errors += _unverified()
    result = _result(any(begun), silent, errors)
    _ask(_hosts(), "llm_deploy.end", number, result)
    _end(number, result, [*why, *errors])
    return {
        "result": result,
        "changes": {host: found for host, found in changes.items() if found},
        "errors": errors,
    }


def go_to(number, release):
    """
    Let what served at the end of ``release`` serve again on every host, the last tier first.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.go_to 14 12

    number
        The release that is made of it.
    release
        The release to go to.

    Returns ``{host: {container: [cause]}}``.

    Raises ``CommandExecutionError`` with what cannot go back; `take_back` is for the rest.
    """
    hosts = _releases().target(release, force=True)["hosts"]
    changes = {}
    _ask(_hosts(), "saltutil.refresh_pillar", wait=True)

    def go(host, wanted):
        said, silent = _ask([host], "llm_deploy.go_to", number, release, wanted)
        answer = said.get(host)
        if silent or _failed(answer):
            raise CommandExecutionError(f"{host}: {answer or 'does not answer'}")
        changes.setdefault(host, {}).update(answer["changes"])
        return [f"{host}: {error}" for error in answer["errors"]]

    steps = [
        (host, wanted)
        for tier in reversed(__salt__["llm_config.tiers"]())
        for host, served in hosts.items()
        if (wanted := {service: served[service] for service in tier if service in served})
    ]
    if errors := _in_turn(steps, go):
        raise CommandExecutionError("\n".join(errors))
    return {host: found for host, found in changes.items() if found}


def _in_turn(steps, act):
    """
    Return the errors of ``act`` for each of ``steps``, where what failed is tried once more, the
    last first: something that needs another, such as a cache with its old password, may start only
    once that is back.
    """
    failed = [step for step in steps if act(*step)]
    return [error for step in reversed(failed) for error in act(*step)]


def _result(begun, silent, errors):
    if silent:
        return llm_release.UNKNOWN
    if not begun:
        return llm_release.REFUSED
    return llm_release.NOT_TAKEN_BACK if errors else llm_release.TAKEN_BACK


def _unverified():
    """Return why clients are not served, nothing when they are."""
    answer = __salt__["saltutil.runner"]("llm.verify")
    return [f"after going back: {answer['error']}"] if answer["retcode"] else []


def _is_mine(number):
    """Whether release ``number`` has begun and is this process's, or nobody's any more."""
    record, lock = _releases().read(number), _lock()
    running = bool(record) and record["result"] == llm_release.RUNNING
    return running and (lock.is_mine() or not lock.holder())


def _end(number, result, why=(), **more):
    """Record how release ``number`` has ended, and free the lock."""
    releases = _releases()
    releases.write(llm_release.ended(releases.read(number), result, why, **more))
    _lock().free()


def _hosts():
    return list(__salt__["llm_config.platform"]()["site"]["hosts"])


def _carriers(tier):
    """Return the services of a tier by those who carry them: ``{(host, ...): [service]}``."""
    found = {}
    for service in tier:
        found.setdefault(tuple(__salt__["llm_config.hosts"](service)), []).append(service)
    return found


def _ask(hosts, function, *arguments, **keywords):
    """Return what ``hosts`` answered, and which of them did not."""
    answers = __salt__["saltutil.cmd"](
        list(hosts), function, tgt_type="list", arg=arguments, kwarg=keywords, timeout=TIMEOUT
    )
    said = {host: each["ret"] for host, each in answers.items() if "ret" in each}
    return said, [host for host in hosts if host not in said]


def _failed(answer):
    """Whether a host answered with the text of an exception."""
    return isinstance(answer, str)
