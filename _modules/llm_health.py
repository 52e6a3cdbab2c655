"""
Whether containers are well: asked once, or waited for until it has lasted. What a *check* may ask:
``_utils/llm_check.py``.
"""

import base64
import concurrent.futures
import contextvars
import datetime
import json
import pathlib
import threading
import time
import urllib.parse

import llm_check
import llm_completion
import llm_diagnosis
import llm_engine
import llm_world
from salt.exceptions import CommandExecutionError

__virtualname__ = "llm_health"

HIDDEN = "[redacted]"
LIVE = "/etc/llm-live"  # where a container has the files that it reads again when they change
TOLD = 2  # seconds between two words of what is waited for
TRIES = 3  # to get a completion
PAUSE = 1  # seconds between two of them
SILENT = 60  # seconds that one may take to begin
LONGEST = 400  # characters of an answer or a log line that are shown


def __virtual__():
    return __virtualname__


class _Hopeless(CommandExecutionError):
    """Waiting any longer is of no use."""


def probe(check, container=None, timeout=3):
    """
    Ask ``check`` once. Changes nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_health.probe '{http: "http://127.0.0.1:4000/health", json: {status: ok}}'
        salt '*' llm_health.probe '{http: /ready, port: 9901}' container=llm-head-1-g1

    check
        What to ask; see `llm_check`.
    container
        Name of the container that answers. Default: none.
    timeout
        Seconds until giving up. Default: 3.

    Returns ``{"ok": bool, "answer": str}``.
    """
    found = _inspected(container) if container else None
    if container and not found:
        return {"ok": False, "answer": "there is no such container"}
    return _asked(_completed(check, found), found, timeout)


def wait(check, container=None, min_healthy=2, healthy_deadline=60, smoke_test=None):
    """
    Return once ``check`` has answered well for ``min_healthy`` seconds on end.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_health.wait '{http: /health}' container=llm-head-1-g1 healthy_deadline=120

    check
        What to ask; see `llm_check`.
    container
        Name of the container that answers: a restart starts the time anew, and a container that has
        been up for longer needs to answer only once. Default: none.
    min_healthy
        Seconds that it must stay well. Default: 2.
    healthy_deadline
        Seconds until giving up. Default: 60.
    smoke_test
        ``{"secret": name, "model": name}``: by then the container, which is one of a service of
        the catalogue, must give a completion of that model, plain and streamed, with that secret
        as its key. Default: it is not asked.

    Returns the last answer.

    Raises ``CommandExecutionError`` when the time is over, and at once when the container has
    exited, crashed, is not there or gives no completion: with the check, its last answer, the exit
    code, whether memory ran out, the number of restarts and the end of the log, without secrets.
    """
    watch, end = _Watch(check, container, min_healthy), time.monotonic() + healthy_deadline
    _wait_for_all([watch], healthy_deadline)
    if smoke_test:
        _test(watch, **smoke_test, seconds=max(1.0, min(SILENT, end - time.monotonic())))
    return watch.answer


def wait_for(name):
    """
    Return once each container of service ``name`` on this host is healthy, and found so by every
    Envoy of this host that sends requests to it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_health.wait_for head

    Check and ``min_healthy`` are the catalogue's, and so are ``healthy_deadline`` for the
    containers and ``progress_deadline`` for all of it. Returns ``{container: answer}``.

    Raises ``CommandExecutionError`` as `wait` does, and when a replica is missing.
    """
    service = __salt__["llm_config.service"](name)
    end = time.monotonic() + service["progress_deadline"]
    containers = _containers(service)
    if missing := _missing(service, containers):
        raise CommandExecutionError(_too_few(service, missing))
    watches = [
        _Watch(service["health"], each["name"], service["min_healthy"]) for each in containers
    ]
    _wait_for_all(watches, service["healthy_deadline"])
    try:
        __salt__["llm_mesh.wait"](name, timeout=max(0.0, end - time.monotonic()))
    except CommandExecutionError as err:
        raise CommandExecutionError(watches[0].failure(err)) from None
    __salt__["llm_files.approve"](name)
    return {watch.container: watch.answer for watch in watches}


def well(name):
    """
    Return whether service ``name`` is healthy on this host, asked once: each replica by its check,
    and by every Envoy that sends requests to it.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_health.well head
    """
    service = __salt__["llm_config.service"](name)
    if _missing(service, _containers(service)):
        return False
    answers = ask(name).values()
    return all(each["ok"] for each in answers) and not __salt__["llm_mesh.unhealthy"](name)


def ask(name):
    """
    Ask each container of service ``name`` on this host once. Changes nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' llm_health.ask head

    Returns ``{container: {"ok": bool, "answer": str}}``; containers not yet there are left out.
    """
    service = __salt__["llm_config.service"](name)
    names = [each["name"] for each in _containers(service)]
    return {each: probe(service["health"], each) for each in names}


def redacted(text, secrets):
    """
    Return ``text`` without any of ``secrets``, as they are, in base64, JSON or a URL. For code: on
    a command line they would show.

    text
        What somebody will read.
    secrets
        The values to hide.
    """
    forms = set()
    for secret in filter(None, secrets):
        lines = secret.splitlines() if "\n" in secret else []
        for value in [secret, secret.strip(), *(line for line in lines if len(line) > 7)]:
            forms |= {
                value,
                base64.b64encode(value.encode()).decode().rstrip("="),
                urllib.parse.quote(value, safe=""),
                json.dumps(value)[1:-1],
            }
    for form in sorted(filter(None, forms), key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


class _Watch:
    """What is known of one container, or one address, while it is waited for."""

    def __init__(self, check, container, min_healthy):
        self.check = check
        self.container = container
        self.min_healthy = min_healthy
        self.answer = "not asked yet"
        self.since = None  # when it began to be well
        self.found = None  # what the engine said of the container last
        self.completed = None  # the check with the address of that
        self.told = time.monotonic()

    def look(self):
        """Ask once; return whether it is well and has been for long enough."""
        before = self.found
        if self.container:
            try:
                self.found = _inspected(self.container)
            except CommandExecutionError as err:
                self.answer, self.since = str(err), None
                return False
            if why := llm_diagnosis.fate(_engine(), self.found, before):
                raise _Hopeless(why)
        another = bool(before) and _run(before) != _run(self.found)
        if self.completed is None or another:
            self.completed = _completed(self.check, self.found)
        result = _asked(self.completed, self.found, timeout=3)
        self.answer = result["answer"]
        now = time.monotonic()
        if another or not result["ok"]:
            self.since = None
        elif self.since is None:
            first = before is None and self.found is not None
            self.since = now - (_uptime(self.found) if first else 0)
        content = self.since is not None and now - self.since >= self.min_healthy
        if content and (files := self._refused()):
            back = __salt__["llm_files.take_back"](_service(self.found))
            then = f"; put back as before: {', '.join(back)}" if back else ""
            raise _Hopeless(f"it refuses {' and '.join(files)}{then}")
        return content

    def _refused(self):
        """Return the live files that an Envoy does not take, ready as it is with what it had."""
        if not self.found or "socket" not in self.completed:
            return []
        places = {mount["Destination"]: mount["Source"] for mount in self.found["Mounts"]}
        if LIVE not in places:
            return []
        return __salt__["llm_mesh.refused"](self.completed["socket"], places[LIVE])

    def tell(self, end):
        """Tell who watches a deploy what is waited for, not too often."""
        now = time.monotonic()
        if now - self.told > TOLD:
            self.told = now
            left = f"waits {max(0, end - now):.0f} s more at most"
            __salt__["llm_deploy.tell"](f"{self.container or self.check}: {left}: {self.answer}")

    def failure(self, why):
        """Return all that is known, in words, without secrets."""
        question = llm_check.question(self.completed or self.check)
        who = _service(self.found) or self.container or question
        lines = [f"{who} is not healthy: {why}"]
        if self.found:
            described = llm_diagnosis.describe(_engine(), self.found)
            lines.append(f"  container: {self.container} ({described})")
        lines += [f"  check: {question}", f"  last answer: {self.answer}"]
        if self.found:
            said = llm_diagnosis.log(_engine(), self.found["Id"])
            lines += ["  last log lines:", *(f"    {line}" for line in said or ["(none)"])]
        return _shown("\n".join(lines))


def _wait_for_all(watches, deadline):
    """
    Return once all ``watches`` are content: at once when they are at the first look, else side by
    side; the first failure ends it for all.
    """
    end, abandoned = time.monotonic() + deadline, threading.Event()
    waiting = [watch for watch in watches if not _looked(watch)]
    if len(waiting) == 1:
        _wait(waiting[0], deadline, end, abandoned)
    elif waiting:
        with concurrent.futures.ThreadPoolExecutor(len(waiting)) as pool:
            # A copy of the context for each: __pillar__ and its like live in it.
            waits = [
                pool.submit(contextvars.copy_context().run, _wait, watch, deadline, end, abandoned)
                for watch in waiting
            ]
            try:
                for each in concurrent.futures.as_completed(waits):
                    each.result()
            finally:
                abandoned.set()


def _looked(watch):
    try:
        return watch.look()
    except _Hopeless as err:
        raise CommandExecutionError(watch.failure(err)) from None


def _wait(watch, deadline, end, abandoned):
    """Return once ``watch`` is content, until ``end``; ``abandoned`` is an event that ends it."""
    # Not imported before something has to be waited for.
    import tenacity

    backoff = tenacity.wait_random_exponential(multiplier=0.1, max=1.5, min=0.05)

    def pause(state):
        watch.tell(end)
        steady = max(0.05, min(watch.min_healthy / 5, 1))
        wanted = backoff(state) if watch.since is None else steady
        return max(0.01, min(wanted, end - time.monotonic()))

    def give_up(state):
        raise _Hopeless(_too_late(watch, deadline))

    abandoned.wait(0.1)
    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda content: not content),
            stop=lambda state: abandoned.is_set() or time.monotonic() >= end,
            wait=pause,
            sleep=tenacity.sleep_using_event(abandoned),
            retry_error_callback=give_up,
        )(watch.look)
    except _Hopeless as err:
        raise CommandExecutionError(watch.failure(err)) from None


def _test(watch, secret, model, seconds):
    """Ask the container of ``watch``, which is well, for a completion of ``model``."""
    # Not imported before something has to be asked for.
    import tenacity

    url = llm_check.addressed({"http": "/v1"}, watch.found, _port(watch.found))["http"]
    __salt__["llm_deploy.tell"](f"{watch.container}: is asked for a completion of {model}")
    ask = tenacity.retry(
        retry=tenacity.retry_if_exception_type(CommandExecutionError),
        stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(PAUSE),
        reraise=True,
    )(llm_completion.ask)
    try:
        ask(url, model, _password(secret), _service(watch.found), timeout=seconds)
    except CommandExecutionError as err:
        why = f"it gives no completion: {err}"
        raise CommandExecutionError(watch.failure(why)) from None


def _too_late(watch, deadline):
    well = "" if watch.since is None else f", only for {time.monotonic() - watch.since:.1f} s"
    return f"it was not well for {watch.min_healthy:g} s on end within {deadline:g} s{well}"


def _engine():
    return llm_engine.Engine(llm_engine.socket_path(__opts__))


def _inspected(container):
    """Return what the engine says of ``container``, or ``None`` when there is none."""
    try:
        return _engine().inspect(container)
    except llm_engine.NotFound:
        return None


def _completed(check, found):
    """Return ``check`` with the container's address and the password."""
    if found and llm_check.is_short(check):
        check = llm_check.addressed(check, found, check.get("port") or _port(found))
    if "secret" not in check and "password_file" not in check:
        return check
    rest = {key: value for key, value in check.items() if key not in ("secret", "password_file")}
    return rest | {"password": _password(check.get("secret"), check.get("password_file"))}


def _port(found):
    service = (_service(found) or "").removesuffix(llm_world.CANARY)
    return __salt__["llm_config.service"](service)["port"] if service else None


def _service(found):
    return ((found or {}).get("Config", {}).get("Labels") or {}).get("llm.service")


def _asked(check, found, timeout):
    result = llm_check.ask(check, found, timeout)
    return result if result["ok"] else {"ok": False, "answer": _shown(result["answer"])}


def _password(secret, password_file=None):
    if secret:
        return __salt__["llm_config.secret"](secret)
    try:
        return pathlib.Path(password_file).read_text().rstrip("\n")
    except OSError as err:
        raise CommandExecutionError(f"{password_file}: {err.strerror}") from None


def _run(found):
    """Return what tells one run of a container from the next."""
    return (found["Id"], found["State"]["StartedAt"], found["RestartCount"])


def _uptime(found):
    started = datetime.datetime.fromisoformat(found["State"]["StartedAt"])
    return max(0.0, time.time() - started.timestamp())


def _containers(service):
    """Return the current containers of ``service`` on this host, as the engine lists them."""
    return __salt__["llm_container.list"](service["name"])


def _missing(service, containers):
    """Return the numbers of the replicas of ``service`` that none of ``containers`` is."""
    return set(range(1, service["replicas"] + 1)) - {each["replica"] for each in containers}


def _too_few(service, missing):
    """Return in words that replicas are missing, and whether that is for want of an image."""
    wanted = service["replicas"]
    here = wanted - len(missing)
    text = f"{service['name']} is not healthy: {here} of {wanted} replicas are on this host"
    image = __salt__["llm_image.reference"](service["image"])
    try:
        _engine().image(image)
    except llm_engine.NotFound:
        return f"{text}, and its image {image} is missing"
    return text


def _shown(text):
    """Return ``text`` without secrets, long lines cut."""
    lines = redacted(text, _secrets()).splitlines()
    return "\n".join(line if len(line) <= LONGEST else f"{line[:LONGEST]}..." for line in lines)


def _secrets():
    """Return the values of all secrets that this host has."""
    return list(_values(__pillar__.get("llm", {}).get("secrets")))


def _values(named):
    if isinstance(named, dict):
        for value in named.values():
            yield from _values(value)
    elif isinstance(named, str):
        yield named
