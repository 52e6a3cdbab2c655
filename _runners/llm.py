"""
The operator's commands: ``salt-run llm.<command>``.

Each shows text for people, or with ``--out=json`` data for scripts, and ends with an exit code
that scripts can trust.
"""

import contextlib
import functools
import getpass
import os
import sys
import time
from typing import Annotated, Literal

# Salt puts the folder of its utils on sys.path while it loads a module, live and synced alike.
import llm_argument
import llm_catalogue
import llm_completion
import llm_interruption
import llm_keyring
import llm_knob
import llm_lock
import llm_outcome
import llm_outlook
import llm_problem
import llm_progress
import llm_release
import llm_report
import llm_review
import llm_secret
import llm_source
import llm_watch
import salt.client
import salt.output
import salt.utils.crypt
from annotated_types import Ge, Gt, Le, MinLen
from salt.exceptions import CommandExecutionError, SaltClientError, SaltInvocationError

__virtualname__ = "llm"


def __virtual__():
    return __virtualname__


Some = Annotated[int, Ge(1)]
Seconds = Annotated[float, Ge(0)]
Text = Annotated[str, MinLen(1)]
Names = Text | Annotated[list[Text], MinLen(1)]

PATIENCE = 40  # seconds; a plan that fails for want of them would stop a deploy
SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
LOCKED = 3
ENDS = {  # of a release, and what the exit code says of it
    llm_release.DONE: 0,
    llm_release.REFUSED: 1,
    llm_release.TAKEN_BACK: 4,
    llm_release.NOT_TAKEN_BACK: 5,
    llm_release.INTERRUPTED: 6,
    llm_release.RUNNING: 6,
    llm_release.UNKNOWN: 6,
}
MISTAKES = (
    CommandExecutionError,
    SaltClientError,
    SaltInvocationError,
    llm_keyring.KeyringError,
    llm_secret.SecretError,
)


def _told(command):
    """
    Make a command answer with a line for each mistake where it cannot do what it is asked to, also
    where Salt would answer to wrong arguments with its help, as if nothing were wrong.
    """

    @functools.wraps(command)
    def told(*arguments, **keywords):
        given = {name: each for name, each in keywords.items() if not name.startswith("__")}
        event = __jid_event__  # the runners that an orchestration calls put theirs in its place
        answer = functools.partial(_answer, event=event, retcode=1)
        try:
            arguments, given = llm_argument.checked(command, arguments, given)
            return command(*arguments, **given)
        except llm_lock.Locked as err:
            return answer({"error": str(err), "holder": err.holder}, str(err), retcode=LOCKED)
        except MISTAKES as err:
            return answer({"error": str(err)}, str(err))
        except (KeyboardInterrupt, SystemExit):
            if not event.print_func:  # an orchestration asks, and goes back
                raise
            return answer({"error": "interrupted"}, "Interrupted")  # Salt would end with 0
        except TypeError as err:  # a fault of ours, which Salt would take for a wrong argument
            raise RuntimeError(str(err)) from err

    del told.__wrapped__  # whose parameters Salt would check
    return told


def _sound(command):
    """Make a command answer with the mistakes that stand in ``pillar/``, where there are any."""

    @functools.wraps(command)
    def sound(*arguments, **keywords):
        mistakes = _reviewed()
        return _verdict(mistakes) if mistakes else command(*arguments, **keywords)

    return sound


@_told
def check():
    """
    Check everything that stands in ``pillar/``, before any host is touched: encoding, syntax,
    names, types and ranges, what the parts say of one another, the secrets, the links of
    ``salt/``. Lists all mistakes at once, each with file and line. Never shows a secret.

    CLI Example:

    .. code-block:: bash

        salt-run llm.check

    Exit code: 0 sound, 1 mistakes. JSON: ``{"sound": true, "problems": []}``.
    """
    return _verdict(_reviewed())


def _reviewed():
    """Return every mistake that stands in ``pillar/``."""
    return llm_review.problems(
        _pillar_root(),
        salt_root=__opts__["file_roots"]["base"][0],
        keyring=_keyring(),
        compiled=llm_review.compiler(__opts__),
        keys=_keys(),
    )


def _verdict(found):
    """Answer with the mistakes that were ``found``."""
    text = "\n".join([*found, f"{len(found)} mistakes" if found[1:] else "1 mistake"])
    if not found:
        text = "The configuration is sound"
    return _answer({"sound": not found, "problems": found}, text, retcode=1 if found else 0)


@_told
def secret(action: Literal["list", "generate", "set"], name: Text | None = None):
    """
    Keep the secrets of ``pillar/secrets``, encrypted for this installation's keyring, which is
    made where there is none.

    CLI Example:

    .. code-block:: bash

        salt-run llm.secret list
        salt-run llm.secret generate
        salt-run llm.secret generate cache.password
        salt-run llm.secret set providers.openai < key.txt

    action
        ``list`` shows the names; ``generate`` makes each one that is missing, or the one that is
        named anew; ``set`` takes the value from standard input, or asks for it.
    name
        The name of one secret: ``<group>.<name>``.

    Exit code: 0 done, 1 not. JSON: ``{"secrets": [...]}`` of the names listed, made or set, and
    of ``generate`` also ``missing``: those that only a provider can give.
    """
    actions = {"list": _secret_list, "generate": _secret_generate, "set": _secret_set}
    return _answer(*actions[action](name))


@_told
def client(name: Text = "default"):
    """
    Show what a client needs to talk to the platform. Nothing else shows a key; it is printed,
    and neither returned to the master's job cache nor to its event bus.

    CLI Example:

    .. code-block:: bash

        salt-run llm.client
        salt-run llm.client batch --out=json

    name
        A client of ``site.yaml``. Default: ``default``.

    Exit code: 0 shown, 1 not. JSON: ``{"base_url": ..., "ca_file": ..., "api_key": ...}``.
    """
    data = _settings(name)
    text = "\n".join(f"{label:9} {value}" for label, value in data.items())
    return _answer(data, text, private=True)


@_told
def status():
    """
    Show how every service of every host is doing: what runs, since when, how much of its limits
    it uses.

    CLI Example:

    .. code-block:: bash

        salt-run llm.status
        salt-run llm.status --out=json

    Exit code: 0 all replicas healthy, 1 not, or a host did not answer. JSON: ``{host: {service:
    ...}}`` as `llm_service.status` returns it, ``null`` for a host that did not answer.
    """
    hosts = _pillar()["site"]["hosts"]
    found = dict.fromkeys(hosts) | _asked(_refreshed(list(hosts)), "llm_service.status")
    well = all(
        services and all(each["healthy"] == each["wanted"] for each in services.values())
        for services in found.values()
    )
    return _answer(found, llm_report.status(found), retcode=0 if well else 1)


@_told
@_sound
def plan(services: Names | None = None):
    """
    Show what a deploy would do, and why: on every host, for each service and replica, with what
    clients would notice and how long it may take at most. Touches nothing; a deploy carries out
    these very plans.

    CLI Example:

    .. code-block:: bash

        salt-run llm.plan
        salt-run llm.plan services=head,tail
        salt-run llm.plan --out=json

    services
        Names with commas between, or a list. Default: all, and what lies outside of the catalogue.

    Exit code: 0 nothing to do, 2 changes, 1 a mistake in the pillar, a host that did not answer, or
    something for which the deploy would fail. JSON: ``{"hosts": {host: ...}, "silent": [host],
    "problems": [sentence], "summary": ...}`` with each host as `llm_change.foreseen` returns it and
    ``summary`` as `llm_outlook.summary` does; after a mistake in the pillar that of `check`.
    """
    data = _foreseen(_chosen(services, _pillar()["services"]))
    retcode = 1 if data["problems"] else 2 if data["summary"]["changes"] else 0
    return _answer(data, llm_report.plan(data), retcode=retcode)


def _chosen(services, known):
    """Return the names of ``services``, a text or a list, which are all ``known``."""
    names = llm_outlook.chosen_names(services)
    for name in names:
        llm_knob.known(name, known)
    return names


def _foreseen(names, timeout=PATIENCE):
    """Return what every host foresees of the services called ``names``, and what that comes to."""
    hosts = list(_pillar()["site"]["hosts"])
    arguments = {"services": names}
    there = _refreshed(hosts, timeout=timeout)
    answers = _answers(there, "llm_change.foreseen", timeout=timeout, **arguments)
    found = {host: _good(answers.get(host)) for host in hosts}
    problems = [
        problem if problem.startswith(f"{host}: ") else f"{host}: {problem}"
        for host in hosts
        for problem in (found[host] or {"problems": [_failure(answers.get(host))]})["problems"]
    ]
    return {
        "hosts": {host: each for host, each in found.items() if each},
        "silent": [host for host in hosts if host not in answers],
        "problems": problems,
        "summary": llm_outlook.summary(found),
    }


@_told
def logs(service: Text, lines: Some = 50, errors: bool = False, follow: bool = False):
    """
    Show what the containers of ``service`` wrote last, on every host that carries it. Secrets are
    left out.

    CLI Example:

    .. code-block:: bash

        salt-run llm.logs head
        salt-run llm.logs tail lines=200 errors=True
        salt-run llm.logs model-proxy follow=True

    service
        Its name.
    lines
        How many of each container. Default: 50.
    errors
        Only those that speak of an error. Default: ``False``.
    follow
        Go on until Ctrl-C. Default: ``False``.

    Exit code: 0 shown, 1 not. JSON: ``{container: [line]}``.
    """
    pillar = _pillar()
    if service not in pillar["services"]:
        known = ", ".join(pillar["services"])
        raise SaltInvocationError(f'unknown service "{service}"; there are {known}')
    hosts = llm_catalogue.carriers(pillar["services"], pillar["site"], service)
    arguments = {"lines": lines, "errors": errors}
    there = _refreshed(hosts)
    if follow:
        _follow(there, service, arguments)
        return _answer({}, "")
    answers = _asked(there, "llm_container.logs", service, **arguments)
    found = {name: said for answer in answers.values() for name, said in answer.items()}
    silent = sorted(set(hosts) - answers.keys())
    told = llm_report.errors(found, lines) if errors else llm_report.log(found)
    text = "\n".join([*told, *(f"{host}: no answer" for host in silent)])
    return _answer(found, text, retcode=1 if silent else 0)


@_told
def verify(model: Text | None = None, client: Text | None = None):
    """
    Ask the platform through its public port for a real completion, as a client does, plain and
    streamed, and show where the time went.

    CLI Example:

    .. code-block:: bash

        salt-run llm.verify
        salt-run llm.verify model=qwen client=batch

    model
        A model of ``site.yaml``. Default: the first.
    client
        A client of ``site.yaml``, whose key is used. Default: ``verify``, which is there without
        being named, or where tail goes by older keys the first that it knows.

    Exit code: 0 it answered, 1 it did not. JSON: ``{"model": name, "tokens": count, "total":
    seconds, "first_token": seconds of the streamed answer, "hops": {name: seconds}}``.
    """
    pillar = _pillar()
    site = pillar["site"]
    model = model or next(iter(site["models"]))
    server = {"base_url": _base_url(site, _address(pillar)), "server_name": site["public_name"]}
    names = [client] if client else list(llm_catalogue.clients(site))
    for name in names:
        try:
            found = llm_completion.verify(**_settings(name) | server, model=model)
            break
        except llm_completion.KeyRefused:
            if name == names[-1]:
                raise
    return _answer(found, llm_report.completion(found))


@_told
@_sound
def deploy(
    services: Names | None = None,
    version: Text | None = None,
    wait: Seconds = 0,
    test: bool = False,
):
    """
    Deploy what the pillar says, and tell all the time what happens: ``salt-run state.orchestrate
    orch.deploy`` with its progress, with a paragraph at its end and an exit code for each end.

    CLI Example:

    .. code-block:: bash

        salt-run llm.deploy
        salt-run llm.deploy services=head,tail wait=300
        salt-run llm.deploy version=rate-limiter:1.4.2
        salt-run llm.deploy version=head:registry.example/head@sha256:...
        salt-run llm.deploy test=True

    services
        Deploy only these: names with commas between, or a list. Default: all, and what lies
        outside of the catalogue is removed.
    version
        First set the version of a service, or its image by its digest, in the file of the
        environment, where it stays when the deploy succeeds: pairs ``SERVICE:VERSION`` with commas
        between. Default: what the pillar says.
    wait
        Seconds to wait for somebody else's deploy to end. Default: 0, it is refused.
    test
        Only say what would be done. Default: ``False``.

    Ctrl-C: what is in flight comes to its end, then all goes back that was switched.

    Exit code: 0 done, 1 refused before anything was changed, 3 locked, 4 failed and taken back, 5
    failed and not taken back, 6 unknown. JSON: the record of the release as `release` returns it,
    an empty mapping where nothing was to do.
    """
    known = _pillar()["services"]
    names = _chosen(services, known)
    knobs = llm_knob.versions(version, known)
    if names and (left := [name for name in knobs if name not in names]):
        raise SaltInvocationError(f"version: {', '.join(left)} is not among services")
    what = " ".join(["deploy", version] if version else ["deploy", *names])
    return _release("orch.deploy", wait, test, knobs, llm_services=names, llm_what=what)


@_told
@_sound
def scale(service: Text, replicas: Some, wait: Seconds = 0, test: bool = False):
    """
    Have another number of replicas of a service on each host that carries it. The number is written
    to the file of the environment, and that service is deployed, no other.

    CLI Example:

    .. code-block:: bash

        salt-run llm.scale head 3

    service
        Its name.
    replicas
        How many on each host.
    wait, test
        As of `deploy`.

    Exit code and JSON: as of `deploy`.
    """
    llm_knob.known(service, _pillar()["services"])
    knobs, what = {service: {"replicas": replicas}}, f"scale {service} to {replicas}"
    return _release("orch.deploy", wait, test, knobs, llm_services=[service], llm_what=what)


@_told
@_sound
def canary(
    service: Text,
    weight: Annotated[int, Ge(1), Le(100)] = 10,
    window: Annotated[float, Gt(0)] = 60,
    errors: Annotated[float, Ge(0)] = 1,
    slower: Annotated[float, Ge(1)] = 2,
    least: Some = 20,
    version: Text | None = None,
    wait: Seconds = 0,
):
    """
    Try what the pillar wants of a service before it takes the place of what serves: a canary on
    each host takes a part of the requests and is compared by the mesh's own figures with the
    replicas beside it. Then the service is deployed, or the canary taken back.

    CLI Example:

    .. code-block:: bash

        salt-run llm.canary head
        salt-run llm.canary head weight=25 window=300 version=head:1.107.0

    service
        Its name. The mesh has to speak HTTP or gRPC to it.
    weight
        Percent of the requests that the canary takes. Default: 10.
    window
        Seconds that it is watched. Default: 60.
    errors
        Percentage points by which its share of errors may be higher. Default: 1.
    slower
        How many times as long it may take, at the quantile that its requests bear (see
        `llm_canary.watch`). Default: 2.
    least
        Requests that it must have had by the end. Default: 20.
    version, wait
        As of `deploy`.

    Exit code and JSON: as of `deploy`.
    """
    known = _pillar()["services"]
    possible = llm_catalogue.canaries(known)
    if service not in possible:
        llm_knob.known(service, known)
        raise SaltInvocationError(
            f"no canary of {service}: the mesh has to speak HTTP or gRPC to it, as it does to "
            + ", ".join(possible)
        )
    tried = {"service": service, "weight": weight, "window": window, "least": least}
    tried |= {"errors": errors, "slower": slower}
    given = {"llm_services": [service], "llm_canary": tried, "llm_what": f"canary of {service}"}
    return _release("orch.deploy", wait, False, llm_knob.versions(version, known), **given)


@_told
@_sound
def rollback(
    number: Some | None = None, force: bool = False, wait: Seconds = 0, test: bool = False
):
    """
    Let an earlier release serve again, or a later one: by a start of the containers that are kept,
    with their configuration and secrets. Then a client's completion proves it.

    CLI Example:

    .. code-block:: bash

        salt-run llm.rollback
        salt-run llm.rollback 12

    number
        The release. Default: the last stable one before the current.
    force
        Also to one that was not stable. Default: ``False``.
    wait, test
        As of `deploy`.

    What the pillar says, and was gone back from, does not come again of itself: edit the pillar, or
    deploy. Exit code and JSON: as of `deploy`.
    """
    target = _releases().target(number, force)
    return _release("orch.rollback", wait, test, llm_release=target["number"])


@_told
def releases(lines: Some = 20):
    """
    Show the last releases: when, who, which commit, how each ended.

    CLI Example:

    .. code-block:: bash

        salt-run llm.releases

    lines
        How many. Default: 20.

    Exit code: 0. JSON: a list of records as `release` returns them, the last one first.
    """
    found = [_as_it_stands(each) for each in _releases().all()[::-1][:lines]]
    return _answer({"releases": found}, llm_report.releases(found))


@_told
def release(number: Some):
    """
    Show one release in full: what it changed on which host and why, what served afterwards.

    CLI Example:

    .. code-block:: bash

        salt-run llm.release 12

    number
        The release.

    Exit code: 0 shown, 1 there is none. JSON: ``{"number", "what", "who", "when", "commit",
    "process", "result", "stable", "why": [line], "seconds", "changes": {host: {what: [cause]}},
    "hosts": {host: {service: {replica: {"container", "digest", "image"}}}}}``.
    """
    found = _releases().read(number)
    if not found:
        raise SaltInvocationError(f"there is no release {number}; salt-run llm.releases lists them")
    found = _as_it_stands(found)
    return _answer(found, llm_report.release(found))


def _as_it_stands(record):
    """Return ``record`` of a release as it stands, also when its process was killed since then."""
    running = record["result"] == llm_release.RUNNING
    ended = running and not llm_lock.lives(record["process"])
    return llm_release.abandoned(record) if ended else record


@_told
def prune(keep: Some | None = None, test: bool = False):
    """
    Remove from every host what nobody goes back to: images that no container and no service needs,
    and kept containers beyond a number. What serves, and what served in the last stable release
    before, stays in any case.

    CLI Example:

    .. code-block:: bash

        salt-run llm.prune test=True
        salt-run llm.prune keep=1

    keep
        How many of the replaced containers of each replica stay. Default: as many as the catalogue
        says, so that none goes.
    test
        Only say what would be removed. Default: ``False``.

    Exit code: 0 done, 1 not everywhere, 3 locked. JSON: ``{"hosts": {host: {"containers":
    {container: [sentence]}, "images": {reference: bytes}}}, "problems": [sentence]}``.
    """
    hosts, function = list(_pillar()["site"]["hosts"]), "llm_retention.unneeded"
    with contextlib.ExitStack() as stack:
        if not test:
            _lock().take("prune")
            stack.callback(_lock().free)
            function = "llm_retention.prune"
        kept = _releases().containers()
        there = _refreshed(hosts)
        answers = _answers(there, function, timeout=PATIENCE, keep=keep, kept=kept)
    found = {host: _good(answers.get(host)) for host in hosts}
    problems = [f"{host}: {_failure(answers.get(host))}" for host in hosts if not found[host]]
    data = {"hosts": {host: each for host, each in found.items() if each}, "problems": problems}
    return _answer(data, llm_report.pruned(data, test), retcode=1 if problems else 0)


@_told
def lock(reason: Text):
    """
    Keep everybody from changing the platform by deploys and rollbacks, until `unlock`.

    CLI Example:

    .. code-block:: bash

        salt-run llm.lock 'audit until noon'

    reason
        For those who meet the lock.

    Exit code: 0 locked, 3 somebody else has it. JSON: ``{"holder": {...}}``.
    """
    holder = _lock().take(reason, by_hand=True)
    return _answer({"holder": holder}, f"Locked: {llm_lock.told(holder)}")


@_told
def unlock(force: bool = False):
    """
    Free the lock that `lock` took. One of a deploy that has died is free already.

    CLI Example:

    .. code-block:: bash

        salt-run llm.unlock

    force
        Also that of a deploy which is still at work. Default: ``False``.

    Exit code: 0 free, 1 a deploy is at work. JSON: ``{"freed": {...} or null}``.
    """
    holder = _lock().holder()
    if holder and not holder["by_hand"] and not force:
        raise SaltInvocationError(
            f"a process is at work: {llm_lock.told(holder)}; end it, or force=True"
        )
    _lock().free()
    text = f"Freed: {llm_lock.told(holder)}" if holder else "Nobody had it"
    return _answer({"freed": holder}, text)


@_told
def history(lines: Some = 20):
    """
    Show what was found amiss between deploys on every host, and what was done about it.

    CLI Example:

    .. code-block:: bash

        salt-run llm.history
        salt-run llm.history lines=100 --out=json

    lines
        How many entries at most. Default: 20.

    Exit code: 0 shown, 1 a host did not answer. JSON: ``{"history": [...], "silent": [host]}``, the
    entries as `llm_watch.history` returns them, each with its ``host``, the last one last.
    """
    hosts = list(_pillar()["site"]["hosts"])
    answers = _asked(_refreshed(hosts), "llm_watch.history", lines=lines)
    found = [{"host": host, **each} for host, entries in answers.items() for each in entries]
    found = sorted(found, key=lambda each: each["time"])[-lines:]
    silent = [host for host in hosts if host not in answers]
    data = {"history": found, "silent": silent}
    return _answer(data, llm_report.history(data), retcode=1 if silent else 0)


@_told
def maintenance(
    name: Text | None = None,
    reason: Text = "not said",
    hours: Annotated[float, Gt(0)] = 2,
    end: bool = False,
):
    """
    Leave a service or a host alone for a while: what is stopped, removed or changed there by hand
    stays so. Deploys are not held off; `lock` does that. Without a name, show what is left alone.

    CLI Example:

    .. code-block:: bash

        salt-run llm.maintenance
        salt-run llm.maintenance head reason='looking for a leak' hours=1
        salt-run llm.maintenance node1 end=True

    name
        A service, on every host that carries it, or a host. Default: none.
    reason
        For those who wonder. Default: ``not said``.
    hours
        After so many it ends by itself. Default: 2.
    end
        End it. Default: ``False``.

    Exit code: 0 done, 1 not, or a host did not answer. JSON: ``{"maintenance": {host: {name:
    {"reason", "until": ISO 8601}}}, "silent": [host]}``, after what was asked is done.
    """
    hosts = list(_pillar()["site"]["hosts"])
    asked = _concerned(name) if name else []
    if end:
        done = _asked(asked, "llm_watch.resume", name)
    else:
        done = _asked(asked, "llm_watch.maintain", name, reason, hours=hours)
    found = _asked(hosts, "llm_watch.maintenance")
    silent = [host for host in hosts if host not in found or host in set(asked) - done.keys()]
    text = llm_report.maintenance({"maintenance": found, "silent": silent})
    shown = {
        host: {
            what: each | {"until": llm_watch.written(each["until"])}
            for what, each in entries.items()
        }
        for host, entries in found.items()
    }
    return _answer({"maintenance": shown, "silent": silent}, text, retcode=1 if silent else 0)


def _concerned(name):
    """Return the hosts that carry service ``name``, or that host."""
    pillar = _pillar()
    services, hosts = pillar["services"], pillar["site"]["hosts"]
    if name in services:
        return llm_catalogue.carriers(services, pillar["site"], name)
    if name in hosts:
        return [name]
    known = [*services, *hosts]
    hint = llm_problem.hint(name, known)
    raise SaltInvocationError(f'unknown service or host "{name}"; {hint}')


def _release(orchestration, wait, test, knobs=None, **pillar):
    """
    Make a release by an orchestration, with ``knobs`` turned that stay so if it is done; return the
    answer of the command.
    """
    # As in `_told`.
    shown = functools.partial(_answer, event=__jid_event__)
    wanted = _pillar()
    if knobs:
        llm_knob.check(knobs, wanted)
    number = max(_free(wait).next(), _releases().next())
    knob = llm_knob.turned(_pillar_root(), wanted["site"]["environment"], knobs)
    with contextlib.ExitStack() as to_the_end, knob as turned:
        outcome, interrupted = _orchestrated(orchestration, number, test, pillar, to_the_end)
        if test:
            text, retcode = llm_report.foreseen(outcome), outcome.get("retcode", 0)
            return shown(outcome, text, retcode=retcode)
        answer = _ended(number, outcome, interrupted)
        if not answer["retcode"]:
            turned["keep"]()
        elif knobs:
            answer["text"] += f"\n{turned['file']} is as before"
        return shown(**answer)


def _ended(number, outcome, interrupted):
    """Return what came of release ``number``: ``{"data", "text", "retcode"}``."""
    record = _releases().read(number)
    if record and record["process"] == llm_lock.this_process():
        text, retcode = llm_report.ended(record), ENDS[record["result"]]
        return {"data": record, "text": text, "retcode": retcode}
    failures = llm_outcome.failures(llm_outcome.found(outcome))
    if interrupted and not failures:
        failures = ["Interrupted: nothing was changed"]
    if not failures:
        return {"data": {}, "text": "Nothing to do: all is as declared", "retcode": 0}
    # A record under this number is that of somebody who was quicker.
    if record and (holder := _lock().holder()):
        raise llm_lock.Locked(holder)
    text = "\n".join(failures)
    return {"data": {"error": text}, "text": text, "retcode": LOCKED if record else 1}


def _free(wait):
    """Return the lock once nobody has it; raise ``Locked`` after ``wait`` seconds."""
    lock_, deadline = _lock(), time.monotonic() + wait
    while holder := lock_.holder():
        if time.monotonic() >= deadline:
            raise llm_lock.Locked(holder)
        print(f"waits for {llm_lock.told(holder)}", file=sys.stderr, flush=True)
        time.sleep(min(2, wait))
    return lock_


def _orchestrated(orchestration, number, test, pillar, to_the_end):
    """
    Run an orchestration with its progress. When it is interrupted, what it has switched goes back.
    What comes then, and until ``to_the_end`` is closed, is carried through.

    Returns what the last orchestration returned, and whether there was an interruption.
    """
    orchestrate = functools.partial(__salt__["state.orchestrate"], test=test)
    with llm_progress.Progress(__opts__, number) as progress:
        try:
            to_the_end.enter_context(llm_interruption.ignored())
            with llm_interruption.heard():
                if orchestration == "orch.deploy" and not test:
                    pillar = pillar | _announced(pillar, progress)
                return orchestrate(orchestration, pillar=pillar), False
        except (KeyboardInterrupt, SystemExit):
            progress.say("interrupted: what is in flight ends, then all goes back")
            given = {"llm_number": number, "llm_why": ["it was interrupted"]}
            return orchestrate("orch.recover", pillar=given), True


def _announced(pillar, progress):
    """
    Return the plan that a deploy carries out, as its hosts take it; say what it comes to.

    Raises ``SaltInvocationError`` when a canary has nothing to try.
    """
    data = _foreseen(pillar["llm_services"], timeout=15)  # who is silent is missed later on
    for said in (llm_report.outcome(data["summary"], data["problems"]), *data["problems"]):
        progress.say(f"plan: {said}")
    hosts = data["hosts"]
    for line in llm_report.unheeded(hosts):
        progress.say(line)
    if canary_ := pillar.get("llm_canary"):
        tried = [host["services"].get(canary_["service"], {}) for host in hosts.values()]
        if not any(each["action"] == "replace" for of in tried for each in of.get("actions", ())):
            raise SaltInvocationError(
                f"nothing to try: {canary_['service']} runs as the pillar says; edit the pillar "
                "first, or give version="
            )
    return {"llm_announced": llm_outlook.announcement(hosts)}


def _root():
    return os.path.join(_pillar()["site"]["root"], "salt")


def _lock():
    return llm_lock.Lock(os.path.join(_root(), "lock.json"))


def _releases():
    return llm_release.Releases(os.path.join(_root(), "releases"))


def _follow(hosts, service, arguments):
    """Print what is new in the logs until Ctrl-C, which Salt turns into ``SystemExit``."""
    arguments, shown = arguments | {"times": True}, {}
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        while True:
            asked = time.time()
            answers = _asked(hosts, "llm_container.logs", service, **arguments)
            found = {name: said for answer in answers.values() for name, said in answer.items()}
            # What was written between `asked` and the answer comes a second time.
            found = {name: llm_report.unseen(name, said, shown) for name, said in found.items()}
            if lines := llm_report.log(found):
                print(*lines, sep="\n", flush=True)
            time.sleep(1)
            arguments |= {"since": asked, "lines": 1000}


def _settings(name):
    """
    Return what client ``name`` needs: ``base_url``, ``ca_file``, ``api_key``.

    Raises ``SaltInvocationError`` when site.yaml does not know it.
    """
    pillar = _pillar()
    site = pillar["site"]
    if name not in (known := llm_catalogue.clients(site)):
        raise SaltInvocationError(f'unknown client "{name}"; there are {", ".join(known)}')
    host, authority = _address(pillar), os.path.join(site["root"], "trust", "ca.pem")
    if own := site["public_certificate"]:  # which names no address
        host, authority = site["public_name"], own.get("authority", SYSTEM_AUTHORITIES)
    return {
        "base_url": _base_url(site, host),
        "ca_file": authority,
        "api_key": llm_secret.value(_pillar_root(), _keyring(), f"clients.{name}"),
    }


def _address(pillar):
    """Return where the public port is."""
    host = llm_catalogue.carriers(pillar["services"], pillar["site"], "tail")[0]
    return pillar["site"]["hosts"][host]["address"]


def _base_url(site, host):
    return f"https://{host}:{site['public_port']}/v1"


def _refreshed(hosts, timeout=15):
    """
    Return those of ``hosts`` that answer, and that now know the pillar as it is: a minion keeps
    the one that it started with for all that is no state, new passwords or not.
    """
    return list(_asked(hosts, "saltutil.refresh_pillar", timeout=timeout, wait=True))


def _asked(hosts, function, *arguments, **keywords):
    """Return what ``function`` returned, by host; a host that did not answer is left out."""
    answers = _answers(hosts, function, *arguments, **keywords)
    return {host: answer["ret"] for host, answer in answers.items() if _good(answer) is not None}


def _answers(hosts, function, *arguments, timeout=15, **keywords):
    """
    Return what came of ``function``, by host: ``{"ret": ..., "retcode": ...}``. A host that gives
    no sign of life for ``timeout`` seconds is left out.
    """
    if not hosts:
        return {}
    local = salt.client.get_local_client(__opts__["conf_file"])
    answers = local.cmd(
        hosts,
        function,
        arguments,
        kwarg=keywords,
        tgt_type="list",
        timeout=timeout,
        full_return=True,
    )
    return {host: answer for host, answer in answers.items() if answer}


def _good(answer):
    """Return what a function returned, or ``None`` when it failed or did not answer."""
    return answer["ret"] if answer and answer.get("retcode") == 0 else None


def _failure(answer):
    """Return why there is nothing of a host."""
    if not answer:
        return "no answer"
    said = str(answer["ret"]).strip()
    return said.splitlines()[-1] if "Traceback" in said else said


def _secret_list(_):
    names = llm_secret.names(_pillar_root())
    none = "There are no secrets; salt-run llm.secret generate"
    return {"secrets": names}, "\n".join(names) or none


def _secret_generate(name):
    pillar = _pillar()
    wanted = (pillar["services"], pillar["site"])
    if name:
        _known(name, *wanted)
        llm_secret.renew(_pillar_root(), _keyring(), name)
        return {"secrets": [name], "missing": []}, f"made {name}"
    made, given = llm_secret.generate(_pillar_root(), _keyring(), *wanted)
    lines = [f"made {name}" for name in made] or ["Nothing to make: every secret is there"]
    lines += [f"missing: {name}; salt-run llm.secret set {name}" for name in given]
    return {"secrets": made, "missing": given}, "\n".join(lines)


def _secret_set(name):
    if not name:
        raise SaltInvocationError("no name given; expected salt-run llm.secret set NAME")
    pillar = _pillar()
    _known(name, pillar["services"], pillar["site"])
    value = getpass.getpass(f"Value of {name}: ") if sys.stdin.isatty() else sys.stdin.read()
    llm_secret.put(_pillar_root(), _keyring(), name, value)
    return {"secrets": [name]}, f"{name} is set"


def _known(name, services, site):
    """Raise ``SaltInvocationError`` for a name that nothing needs; a provider's may come first."""
    wanted = llm_catalogue.wanted_secrets(services, site, services)
    if name not in wanted and not name.startswith("providers."):
        hint = llm_problem.hint(name, wanted)
        raise SaltInvocationError(f'nothing needs a secret "{name}"; {hint}')


def _pillar_root():
    return __opts__["pillar_roots"]["base"][0]


def _keyring():
    return llm_keyring.Keyring(__opts__["gpg_keydir"])


def _keys():
    """Return the keys of minions as ``llm_review`` takes them; none before the first is there."""
    found = {}
    for state, folder in (("accepted", "minions"), ("pending", "minions_pre")):
        path = os.path.join(__opts__["pki_dir"], folder)
        found[state] = sorted(os.listdir(path)) if os.path.isdir(path) else []
    found["pending"] = {name: _fingerprint(path, name) for name in found["pending"]}
    return found if found["accepted"] else None


def _fingerprint(folder, name):
    """Return the fingerprint of a key as ``salt-key`` shows it."""
    return salt.utils.crypt.pem_finger(os.path.join(folder, name), sum_type=__opts__["hash_type"])


def _pillar():
    """
    Return the ``llm`` part of the pillar as the files say it, the services with their defaults.

    Raises ``SaltInvocationError`` when it is not sound.
    """
    pillar, _ = llm_review.merged(llm_source.read(_pillar_root()))
    if found := llm_catalogue.problems(pillar):
        count = f"{len(found)} mistakes" if found[1:] else "1 mistake"
        raise SaltInvocationError(f"{count} in the pillar; see salt-run llm.check")
    services = pillar["services"].items()
    merged = {name: llm_catalogue.merged(pillar["defaults"], own) for name, own in services}
    return pillar | {"services": merged}


def _answer(data, text, retcode=0, private=False, event=None):
    """
    Show the answer of a command, once, and return what the master may keep of it.

    data
        For scripts: what ``--out=json`` (or ``yaml``) shows.
    text
        The same for people.
    retcode
        The exit code of ``salt-run``, and what makes a step of an orchestration fail.
    private
        The answer holds a secret: neither job cache nor event bus may have it.
    event
        The job's own. Default: that of the last job of this process.
    """
    __context__["retcode"] = retcode
    event = __jid_event__ if event is None else event
    if event.print_func:  # else an orchestration asks, which shows the answer itself
        event.print_func = None
        structured = __opts__.get("output") not in (None, "", "nested", "txt")
        shown = data if structured else text
        salt.output.display_output(shown, None if structured else "txt", __opts__)
    return {"retcode": retcode} | ({} if private else data)
