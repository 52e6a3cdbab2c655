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

# Salt puts the folder of its utils on sys.path while it loads a module, live and synced alike.
import llm_catalogue
import llm_completion
import llm_keyring
import llm_problem
import llm_report
import llm_review
import llm_secret
import llm_source
import salt.client
import salt.output
from salt.exceptions import CommandExecutionError, SaltClientError, SaltInvocationError

__virtualname__ = "llm"


def __virtual__():
    return __virtualname__


SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
MISTAKES = (
    CommandExecutionError,
    SaltClientError,
    SaltInvocationError,
    llm_keyring.KeyringError,
    llm_secret.SecretError,
)


def _told(command):
    """Make a command answer with one line where it cannot do what it is asked to."""

    @functools.wraps(command)
    def told(*arguments, **keywords):
        try:
            return command(*arguments, **keywords)
        except MISTAKES as err:
            return _answer({"error": str(err)}, str(err), retcode=1)

    return told


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
    found = llm_review.problems(
        _pillar_root(),
        salt_root=__opts__["file_roots"]["base"][0],
        keyring=_keyring(),
        compiled=llm_review.compiler(__opts__),
        keys=_keys(),
    )
    text = "\n".join([*found, f"{len(found)} mistakes" if found[1:] else "1 mistake"])
    if not found:
        text = "The configuration is sound"
    return _answer({"sound": not found, "problems": found}, text, retcode=1 if found else 0)


@_told
def secret(action, name=None):
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
    if action not in actions:
        raise SaltInvocationError(f'unknown action "{action}"; there are {", ".join(actions)}')
    return _answer(*actions[action](name))


@_told
def client(name="default"):
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
def logs(service, lines=50, errors=False, follow=False):
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
    text = "\n".join([*llm_report.log(found), *(f"{host}: no answer" for host in silent)])
    return _answer(found, text, retcode=1 if silent else 0)


@_told
def verify(model=None, client="default"):
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
        A client of ``site.yaml``, whose key is used. Default: ``default``.

    Exit code: 0 it answered, 1 it did not. JSON: ``{"model": name, "tokens": count, "total":
    seconds, "first_token": seconds of the streamed answer, "hops": {name: seconds}}``.
    """
    site = _pillar()["site"]
    model = model or next(iter(site["models"]))
    found = llm_completion.verify(**_settings(client), model=model, server_name=site["public_name"])
    return _answer(found, llm_report.completion(found))


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
    if name not in site["clients"]:
        known = ", ".join(site["clients"])
        raise SaltInvocationError(f'unknown client "{name}"; there are {known}')
    host = llm_catalogue.carriers(pillar["services"], site, "tail")[0]
    authority = os.path.join(site["root"], "trust", "ca.pem")
    if own := site["public_certificate"]:
        authority = own.get("authority", SYSTEM_AUTHORITIES)
    return {
        "base_url": f"https://{site['hosts'][host]['address']}:{site['public_port']}/v1",
        "ca_file": authority,
        "api_key": llm_secret.value(_pillar_root(), _keyring(), f"clients.{name}"),
    }


def _refreshed(hosts):
    """
    Return those of ``hosts`` that answer, and that now know the pillar as it is: a minion keeps
    the one that it started with for all that is no state, new passwords or not.
    """
    return list(_asked(hosts, "saltutil.refresh_pillar", wait=True))


def _asked(hosts, function, *arguments, **keywords):
    """Return what ``function`` returned, by host; a host that did not answer is left out."""
    if not hosts:
        return {}
    local = salt.client.get_local_client(__opts__["conf_file"])
    answers = local.cmd(
        hosts, function, arguments, kwarg=keywords, tgt_type="list", timeout=15, full_return=True
    )
    return {
        host: answer["ret"]
        for host, answer in answers.items()
        if answer and answer.get("retcode") == 0
    }


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
        hint = llm_problem.guess(name, wanted) or f"there are {', '.join(wanted)}"
        raise SaltInvocationError(f'nothing needs a secret "{name}"; {hint}')


def _pillar_root():
    return __opts__["pillar_roots"]["base"][0]


def _keyring():
    return llm_keyring.Keyring(__opts__["gpg_keydir"])


def _keys():
    """Return the ids of minions by the state of their keys; nothing before the first is there."""
    found = {}
    for state, folder in (("accepted", "minions"), ("pending", "minions_pre")):
        path = os.path.join(__opts__["pki_dir"], folder)
        found[state] = sorted(os.listdir(path)) if os.path.isdir(path) else []
    return found if found["accepted"] else None


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


def _answer(data, text, retcode=0, private=False):
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
    """
    __context__["retcode"] = retcode
    if __jid_event__.print_func:  # else an orchestration asks, which shows the answer itself
        __jid_event__.print_func = None
        structured = __opts__.get("output") not in (None, "", "nested", "txt")
        shown = data if structured else text
        salt.output.display_output(shown, None if structured else "txt", __opts__)
    return {"retcode": retcode} | ({} if private else data)
