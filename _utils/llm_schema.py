"""
The shape of the pillar: which keys there are, of which type and range. No defaults stand here;
they are data, in ``llm:defaults``.
"""

import difflib
import ipaddress
import re
import typing
from typing import Annotated, Any, Literal

from llm_catalogue import duration, size
from llm_problem import Problem, described, guess, unknown
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
HOST_NAME = re.compile(r"(?=.{1,253}$)(?!-)[a-z0-9-]+(?<!-)(\.(?!-)[a-z0-9-]+(?<!-))*")
_KEYS = "key|token|secret|password|sig[a-z]*"  # how the names of keys in URLs end
_LOOSE_SIZE = re.compile(r"\s*([0-9.]+)\s*([kmgt])i?b?\s*", re.IGNORECASE)
_ADMINISTRATION = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE MAC_ADMIN MAC_OVERRIDE NET_ADMIN SYS_ADMIN"
_FILES = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID LEASE LINUX_IMMUTABLE MKNOD SETFCAP"
_PROCESSES = "CHECKPOINT_RESTORE IPC_LOCK IPC_OWNER KILL SETGID SETPCAP SETUID SYS_NICE SYS_PTRACE"
_SYSTEM = (
    "BLOCK_SUSPEND BPF NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SYSLOG SYS_BOOT SYS_CHROOT"
    " SYS_MODULE SYS_PACCT SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
)
CAPABILITIES = frozenset(f"{_ADMINISTRATION} {_FILES} {_PROCESSES} {_SYSTEM}".split())


def _wrong(expected, hint=""):
    return PydanticCustomError("llm", "wrong", {"expected": expected, "hint": hint})


def _like(pattern, expected):
    """Return a check that a string matches ``pattern`` as a whole."""

    def check(value):
        if not re.fullmatch(pattern, value):
            raise _wrong(expected)
        return value

    return AfterValidator(check)


def _size(value):
    hint = ""
    if isinstance(value, int) and not isinstance(value, bool):
        hint = f"write {value}m, or another unit"
    elif isinstance(value, str) and (near := _LOOSE_SIZE.fullmatch(value)):
        hint = f"write {near[1]}{near[2].lower()}"
    try:
        if size(value) > 0:
            return value
    except ValueError:
        pass
    raise _wrong("a size such as 512m or 2g", hint)


def _memory(value):
    if size(_size(value)) < 16 * 1024**2:
        raise _wrong("at least 16m")
    return value


def _duration(value):
    try:
        if duration(value) >= 0:
            return value
    except ValueError:
        pass
    raise _wrong("a duration such as 5s, 2m, or seconds")


def _positive_duration(value):
    if duration(_duration(value)) == 0:
        raise _wrong("a duration above 0")
    return value


def _address(value):
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        raise _wrong("an IPv4 address such as 10.0.0.5") from None
    return value


def _subnet(value):
    try:
        ipaddress.IPv4Network(value)
    except ValueError as err:
        hint = ""
        if "host bits" in str(err):
            hint = f"write {ipaddress.IPv4Network(value, strict=False)}"
        raise _wrong("a network such as 172.30.0.0/20", hint) from None
    return value


def _capability(value):
    if value not in CAPABILITIES:
        near = difflib.get_close_matches(value.upper().removeprefix("CAP_"), CAPABILITIES, 1, 0.7)
        hint = f'did you mean "{near[0]}"?' if near else ""
        raise _wrong("a Linux capability such as NET_BIND_SERVICE", hint)
    return value


def _url(value):
    if re.search(rf"//[^/]*@|[?&][^=&]*({_KEYS})=", value, re.IGNORECASE):
        raise _wrong("a URL without a password or key in it", "put it into pillar/secrets")
    if not re.fullmatch(r"(https?://[^\s/]+|file:///)[^\s]*", value):
        raise _wrong("a URL such as https://host/model.gguf, without spaces")
    return value


def _folder(value):
    if not re.fullmatch(r"/[\w./-]*[\w-]", value) or "/../" in f"{value}/" or "//" in value:
        raise _wrong("an absolute path such as /data")
    return value


def _unique(values):
    if doubled := sorted({str(value) for value in values if values.count(value) > 1}):
        raise _wrong("each name once", f"twice: {', '.join(doubled)}")
    return values


def _gpus(value):
    if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise _wrong("a number of GPUs, or all")
    return value


Size = Annotated[Any, AfterValidator(_size)]
Memory = Annotated[Any, AfterValidator(_memory)]
Duration = Annotated[Any, AfterValidator(_duration)]
PositiveDuration = Annotated[Any, AfterValidator(_positive_duration)]
Name = Annotated[str, _like(NAME, "a name: 2 to 63 of a-z, 0-9 and -, from a letter on")]
MinionId = Annotated[
    str, _like(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!_master)", "a minion id such as node1")
]
ModelName = Annotated[  # a file is called after it
    str,
    _like(
        r"(?a)(?!.*[./]{2})[A-Za-z0-9]([\w.:/-]{0,94}[\w:-])?",
        "a name such as qwen-2.5:7b or org/qwen",
    ),
]
SecretName = Annotated[
    str, _like(r"[a-z][a-z0-9-]*(\.[\w-]+)?", "<group>.<name>, or a group of secrets")
]
FileName = Annotated[str, _like(r"[\w-][\w.-]*", "the name of a file, without folders")]
Path = Annotated[str, AfterValidator(_folder)]
Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[int, Field(ge=1)]
Percent = Annotated[int, Field(ge=0, le=100)]
Variable = Annotated[str, _like(r"[A-Za-z_]\w*", "the name of an environment variable")]
Image = Annotated[
    str,
    _like(
        r"[a-z0-9]+(-[a-z0-9]+)*|[a-z0-9][\w./:-]*@sha256:[0-9a-f]{64}",
        "a folder of salt/images, or an image by its digest (name@sha256:...)",
    ),
]


class Closed(BaseModel):
    """
    A mapping with these keys and no others. A key with ``= None`` may be left out.
    """

    model_config = ConfigDict(extra="forbid", strict=True)


class Log(Closed):
    max_size: Size
    max_files: Positive


class Health(Closed):
    http: Annotated[str, _like(r"/\S*", "a path such as /health")] = None
    json_: Annotated[dict[str, Any], Field(alias="json")] = None
    tcp: Literal[True] = None
    redis: SecretName = None
    grpc: str = None
    container: Literal[True] = None
    socket: FileName = None
    port: Port = None


class Defaults(Closed):
    version: str
    replicas: Annotated[int, Field(ge=1, le=7)]
    every_host: bool
    needs: Annotated[list[str], AfterValidator(_unique)]
    network: Literal["platform", "host"]
    protocol: Literal["http", "grpc", "tcp"]
    command: list[str]
    environment: dict[Variable, str]
    secrets: Annotated[list[SecretName], AfterValidator(_unique)]
    files: Annotated[list[FileName], AfterValidator(_unique)]
    live_files: Annotated[list[FileName], AfterValidator(_unique)]
    endpoints: bool
    models: bool
    certificate: Literal["", "internal", "public"]
    volumes: dict[Name, Path]
    tmpfs: dict[Path, Size]
    devices: list[Annotated[str, _like(r"/dev/[\w./-]+", "a device such as /dev/dri")]]
    gpus: Annotated[Any, AfterValidator(_gpus)]
    capabilities: list[Annotated[str, AfterValidator(_capability)]]
    memory: Memory
    cpus: Annotated[float, Field(ge=0.01, le=1024)]
    pids: Annotated[int, Field(ge=8, le=4194304)]
    read_only: bool
    strategy: Literal["start-first", "stop-first"]
    when_tight: Literal["refuse", "stop-first"]
    stop_timeout: PositiveDuration
    drain_timeout: Duration
    min_healthy: Duration
    healthy_deadline: PositiveDuration
    smoke_test: Literal[""] | SecretName
    progress_deadline: PositiveDuration
    keep: Annotated[int, Field(ge=1, le=14)]
    log: Log


class Service(Defaults):
    image: Image
    slot: Annotated[int, Field(ge=1, le=4095)]
    port: Port
    user: Annotated[int, Field(ge=1, le=65533)]
    health: Health


class Network(Closed):
    name: Annotated[str, _like(r"[a-zA-Z0-9][\w.-]{1,62}", "a name such as llm-network")]
    subnet: Annotated[str, AfterValidator(_subnet)]


class Host(Closed):
    address: Annotated[str, AfterValidator(_address)]
    roles: Annotated[list[str], AfterValidator(_unique)]


class Model(Closed):
    generated: Literal[True] = None
    url: Annotated[str, AfterValidator(_url)] = None
    path: Path = None
    sha256: Annotated[str, _like(r"[0-9a-f]{64}", "64 hex digits")] = None
    context: Positive = None
    provider: Annotated[str, _like(r"[a-z][a-z0-9_]*", "a provider such as openai")] = None
    model: Annotated[str, _like(r"\S+", "the provider's name of the model")] = None
    secret: Annotated[str, _like(r"providers\.[\w-]+", "providers.<name>")] = None
    api_base: Annotated[str, AfterValidator(_url)] = None
    fallbacks: Annotated[list[str], AfterValidator(_unique)] = None


class Client(Closed):
    unit: Literal["second", "minute", "hour", "day"] = None
    requests: Positive = None


class PublicCertificate(Closed):
    certificate: Path = None
    key: Path = None
    authority: Path = None


class Authority(Closed):
    certificate: Annotated[str, _like(r"(?s)-----BEGIN CERTIFICATE-----.*", "a PEM certificate")]


class SaltPorts(Closed):
    publish_port: Port
    return_port: Port


class Site(Closed):
    name: Annotated[str, _like(NAME, "a name: 2 to 63 of a-z, 0-9 and -, from a letter on")]
    environment: Annotated[str, _like(r"[a-z][a-z0-9_-]*", "a file of pillar/environments")]
    root: Path
    public_name: Annotated[str, _like(HOST_NAME, "a host name such as llm.example.com")]
    public_port: Port
    hosts_port: Port
    authority: str
    public_certificate: PublicCertificate
    network: Network
    salt: SaltPorts
    hosts: Annotated[dict[MinionId, Host], Field(min_length=1)]
    models: Annotated[dict[ModelName, Model], Field(min_length=1)]
    clients: Annotated[dict[Name, Client], Field(min_length=1)]


class Requests(Closed):
    max_bytes: Size
    timeout: PositiveDuration
    per_try_timeout: PositiveDuration
    retries: Annotated[int, Field(ge=0, le=10)]
    backoff: PositiveDuration
    max_backoff: PositiveDuration
    connection: PositiveDuration


class Mesh(Closed):
    connect_timeout: PositiveDuration
    max_connections: Positive
    max_pending: Positive
    max_requests: Positive
    retry_budget: Percent
    min_retries: Annotated[int, Field(ge=0)]
    check_interval: PositiveDuration
    failures: Positive
    ejection: PositiveDuration
    max_ejected: Percent


class Limits(Closed):
    unit: Literal["second", "minute", "hour", "day"]
    requests: Positive


class ResponseCache(Closed):
    enabled: bool
    ttl: PositiveDuration


class Certificates(Closed):
    days: Positive
    renew_days: Positive
    authority_days: Positive


class Preflight(Closed):
    cpu_overcommit: Annotated[float, Field(gt=0)]
    memory_reserve: Size
    disk_free: Size
    clock_skew: PositiveDuration


SECTIONS = {
    "defaults": Defaults,
    "requests": Requests,
    "mesh": Mesh,
    "limits": Limits,
    "response_cache": ResponseCache,
    "log_level": TypeAdapter(Literal["debug", "info", "warning", "error"]),
    "certificates": Certificates,
    "preflight": Preflight,
    "site": Site,
}


def flaws(section, value, path):
    """
    Return what is wrong with ``value`` as a list of ``Problem``.

    section
        A model of this file, or a ``TypeAdapter``.
    value
        What the pillar says, whatever it is.
    path
        Where it stands in the pillar, as a tuple of keys.
    """
    validate = getattr(section, "model_validate", None) or section.validate_python
    try:
        validate(value)
    except ValidationError as errors:
        return [_problem(section, error, path) for error in errors.errors(include_url=False)]
    return []


def _problem(section, error, path):
    where = tuple(path) + tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return Problem(where, "is missing", "")
    if error["type"] == "extra_forbidden":
        return unknown(where, "key", _keys(section, error["loc"][:-1]))
    return problem(error, where)


def problem(error, where):
    """
    Return what is wrong with a value as a ``Problem``.

    error
        As pydantic tells it.
    where
        Its place, as a tuple of keys.
    """
    kind, context, found = error["type"], error.get("ctx", {}), error["input"]
    if kind == "llm":
        return Problem(where, described(found, where), context["expected"], context["hint"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|(True)", context["expected"])
        choices = [name or flag.lower() for name, flag in choices]
        hint = guess(found, choices)
        return Problem(where, described(found, where), f"one of {', '.join(choices)}", hint)
    limits = {key: f"{of:g}" if isinstance(of, float) else of for key, of in context.items()}
    expected = _EXPECTED.get(kind, error["msg"]).format(**limits)
    if kind in _CONTAINERS and isinstance(found, str):  # perhaps a secret in the wrong place
        return Problem(where, "found a string", expected)
    hint = ""
    if kind == "string_type" and isinstance(found, bool | int | float):
        read = described(found, where).replace("found", "read")
        hint = f"write {{raw}} in quotes (YAML {read})"
    elif kind.endswith("_type") and isinstance(found, str) and re.fullmatch("[0-9.]+", found):
        hint = "write it without quotes"
    return Problem(where, described(found, where), expected, hint)


_CONTAINERS = ("dict_type", "model_type", "model_attributes_type", "list_type")
_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "list_type": "a list ([one, two])",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "string_too_short": "some text",
}


def _keys(section, where):
    """Return the keys that the mapping at ``where`` may have."""
    for part in where:
        if isinstance(section, type) and issubclass(section, Closed):
            names = {field.alias or name: field for name, field in section.model_fields.items()}
            section = names[part].annotation
        else:
            section = typing.get_args(section)[-1]
        while typing.get_origin(section) is Annotated:
            section = typing.get_args(section)[0]
    return [field.alias or name for name, field in section.model_fields.items()]
