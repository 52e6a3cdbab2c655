"""
Making a release on the master: one at a time, recorded, and taken back on every host when it fails.

Used by orchestrations and by ``salt-run llm.…``, which run on the master. Hosts are asked one tier
after another, in the order that is the reverse of a deploy's.
"""

import pathlib
import time

import llm_lock
import llm_release
from salt.exceptions import CommandExecutionError, SaltClientError

__virtualname__ = "llm_release"

TIMEOUT = 15  # seconds until a host is asked whether it is still at it
PATIENCE = 15  # seconds in which a host that was away may come back


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
    return max(_lock().next(), _releases().next())


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
        # Who has begun ends it; who is frozen and begins late finds that it is over.
        told, _ = _ask(_hosts(), "llm_deploy.call_off", number, timeout=1)
        # Hosts may know of later deploys than a lock whose file was lost.
        last = max(answer for answer in (number, *told.values()) if not _failed(answer))
        _end(number, llm_release.REFUSED, problems, last)
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
    answers, silent = _taken_back(number)
    begun, changes, errors = False, {}, []
    for host, answer in answers:
        if _failed(answer):
            errors.append(f"{host}: {answer}")
            continue
        begun = begun or answer["begun"]
        errors += [f"{host}: {error}" for error in answer["errors"]]
        changes.setdefault(host, {}).update(answer["changes"])
    errors += [f"{host} does not answer: nobody knows what serves there" for host in silent]
    if begun and not errors:
        errors += _unverified()
    result = _result(begun, silent, errors)
    # Who is frozen goes back late, and ends it then.
    _ask(_hosts(), "llm_deploy.end", number, result, timeout=1 if silent else TIMEOUT)
    _end(number, result, [*why, *errors])
    return {
        "result": result,
        "changes": {host: found for host, found in changes.items() if found},
        "errors": errors,
    }


def _taken_back(number):
    """
    Let every host go back from release ``number``; return what each answered, and who is silent.
    """
    answers, failed, tiers = [], [], _tiers_back()
    # What is no state runs with the pillar that the minion started with.
    _, away = _ask(_hosts(), "saltutil.refresh_pillar", wait=True)

    def ask(hosts, services):
        said, silent = _ask(hosts, "llm_deploy.take_back", number, services)
        for host, answer in said.items():
            if _failed(answer) or answer["errors"]:
                failed.append((host, services))
            else:
                answers.append((host, answer))
        return silent

    for tier in tiers:
        there = [host for host in _hosts() if host not in away]
        for hosts, services in _carriers([tier], there):
            away += ask(hosts, services)
    end = time.monotonic() + PATIENCE
    while away:
        # Minions and the master's daemon come back by themselves; a frozen host hears it later.
        _ask(away, "saltutil.refresh_pillar", timeout=1, wait=True)
        for hosts, services in _carriers(tiers, away):
            silent = ask(hosts, services)
            away = [host for host in away if host in silent or host not in hosts]
        if time.monotonic() >= end:
            break
        time.sleep(1)
    for host, services in reversed(failed):
        # It may have needed another, such as a cache with its old password, that is back by now.
        said, silent = _ask([host], "llm_deploy.take_back", number, services)
        answers += said.items()
        away += silent
    return answers, list(dict.fromkeys(away))


def go_to(number, release):
    """
    Let what served at the end of ``release`` serve again on every host, the last tier first. Where
    something of it is no longer there, nothing is switched anywhere.

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
    if found := obstacles(release):
        raise CommandExecutionError("\n".join(found))
    changes, tiers = {}, _tiers_back()
    for host, wanted in _ways(release):
        _ask([host], "llm_deploy.start", number, release, wanted)

    def go(host, wanted):
        answer = _answered(host, "llm_deploy.go_to", number, release, wanted)
        changes.setdefault(host, {}).update(answer["changes"])
        return [f"{host}: {error}" for error in answer["errors"]]

    if errors := _in_turn(_ways(release, tiers), go):
        raise CommandExecutionError("\n".join(errors))
    return {host: found for host, found in changes.items() if found}


def obstacles(release):
    """
    Return why what served at the end of ``release`` cannot serve again on every host, nothing where
    it can. Touches nothing.

    CLI Example:

    .. code-block:: bash

        salt-call llm_release.obstacles 12

    release
        The release to go to.

    Returns a list of sentences, of all hosts and services at once.
    """
    _ask(_hosts(), "saltutil.refresh_pillar", wait=True)
    found = []
    for host, wanted in _ways(release):
        try:
            said = _answered(host, "llm_deploy.obstacles", release, wanted)
        except CommandExecutionError as err:
            found.append(str(err))
        else:
            found += [f"{host}: {sentence}" for sentence in said]
    return found


def _ways(release, tiers=None):
    """
    Return for each of ``tiers`` and each host what served of it at the end of ``release``. Default:
    all services as one tier, in the order in which they go back.
    """
    tiers = tiers or [sum(_tiers_back(), [])]
    hosts = _releases().target(release, force=True)["hosts"]
    return [
        (host, wanted)
        for tier in tiers
        for host, served in hosts.items()
        if (wanted := {service: served[service] for service in tier if service in served})
    ]


def _answered(host, function, *arguments):
    """Return what ``host`` answered; raise ``CommandExecutionError`` where it failed or did not."""
    said, silent = _ask([host], function, *arguments)
    answer = said.get(host)
    if silent or _failed(answer):
        raise CommandExecutionError(f"{host}: {answer or 'does not answer'}")
    return answer


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
    if errors:
        return llm_release.NOT_TAKEN_BACK
    return llm_release.TAKEN_BACK if begun else llm_release.REFUSED


def _unverified():
    """Return why clients are not served, nothing when they are."""
    answer = __salt__["saltutil.runner"]("llm.verify")
    return [f"after going back: {answer['error']}"] if answer["retcode"] else []


def _is_mine(number):
    """Whether release ``number`` has begun and is this process's, or nobody's any more."""
    record, lock = _releases().read(number), _lock()
    running = bool(record) and record["result"] == llm_release.RUNNING
    return running and (lock.is_mine() or not lock.holder())


def _end(number, result, why=(), last=0, **more):
    """Record how release ``number`` has ended, and free the lock: see there for ``last``."""
    releases = _releases()
    releases.write(llm_release.ended(releases.read(number), result, why, **more))
    _lock().free(last)


def _hosts():
    return list(__salt__["llm_config.platform"]()["site"]["hosts"])


def _tiers_back():
    """
    Return the services in the order in which they go back, as a list of lists: the reverse of a
    deploy's, but for what needs no other. That goes side by side with the Envoys that carry calls,
    for it makes none, and all who call are back by then.
    """
    tiers, services = __salt__["llm_config.tiers"](), __salt__["llm_config.platform"]()["services"]
    last = [name for tier in tiers for name in tier if not services[name]["needs"]]
    rest = [[name for name in tier if name not in last] for tier in tiers]
    return [*filter(None, reversed(rest)), last]


def _carriers(tiers, hosts):
    """Return which of ``hosts`` carry which services of ``tiers``: ``[([host], [service])]``."""
    found = {}
    for host in hosts:
        names = [name for tier in tiers for name in tier]
        services = [name for name in names if host in __salt__["llm_config.hosts"](name)]
        if services:
            found.setdefault(tuple(services), []).append(host)
    return [(there, list(services)) for services, there in found.items()]


def _ask(hosts, function, *arguments, timeout=TIMEOUT, **keywords):
    """Return what ``hosts`` answered, and which of them did not."""
    if not hosts:
        return {}, []
    try:
        answers = __salt__["saltutil.cmd"](
            list(hosts), function, tgt_type="list", arg=arguments, kwarg=keywords, timeout=timeout
        )
    except SaltClientError:  # the master's own daemon is away, and with it every answer
        answers = {}
    said = {host: each["ret"] for host, each in answers.items() if "ret" in each}
    return said, [host for host in hosts if host not in said]


def _failed(answer):
    """Whether a host answered with the text of an exception."""
    return isinstance(answer, str)
