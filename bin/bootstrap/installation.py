"""Where this installation keeps what, read from its pillar's site.yaml."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

from .progress import Failure

REPOSITORY = Path(__file__).resolve().parents[2]
VENV = REPOSITORY / ".venv"
PYTHON = VENV / "bin" / "python"
MARKER = "installation.json"  # in <root>/salt: this root is ours, and what we put on the machine


class Installation:
    """
    One installation of the platform: a pillar, a root and the Salt between them.

    forgiving
        Whether a site.yaml with mistakes will do, as for removing what is there.

    Its pillar folder is the environment's ``LLM_PILLAR``, else the checkout's. A second
    installation beside the first has a copy with a name, root, network and ports of its own.
    """

    def __init__(self, forgiving=False):
        self.pillar = Path(os.environ.get("LLM_PILLAR") or REPOSITORY / "pillar").resolve()
        self.path = self.pillar / "site.yaml"
        self.site = self._read(forgiving)
        self.name = str(self.site.get("name") or "llm")
        self.root = Path(str(self.site.get("root") or "/var/lib/llm"))
        self.salt = self.root / "salt"
        self.conf = self.salt / "conf"
        self.log = self.salt / "log"
        self.run = self.salt / "run"
        self.pki = self.salt / "pki"
        self.publish_port, self.return_port = self._ports()

    @property
    def is_default(self):
        """Whether the checkout's own pillar describes it."""
        return self.pillar == REPOSITORY / "pillar"

    @property
    def hosts(self):
        """The hosts of site.yaml: id to what it says of each."""
        hosts = self.site.get("hosts")
        if not isinstance(hosts, dict) or not all(
            isinstance(host, dict) for host in hosts.values()
        ):
            raise Failure(
                f"{self.path}: hosts must be a mapping: node1: {{address: .., roles: ..}}"
            )
        return hosts

    def _ports(self):
        ports = self.site.get("salt") or {}
        try:
            return int(ports.get("publish_port", 4505)), int(ports.get("return_port", 4506))
        except (AttributeError, ValueError):
            problem = "salt must be a mapping: {publish_port: 4505, return_port: 4506}"
            raise Failure(f"{self.path}: {problem}") from None

    def _read(self, forgiving):
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            if forgiving:
                return {}
            raise Failure(f"{self.path} cannot be read: {err}") from err
        try:
            site = parsed(text)
        except ValueError as err:
            if forgiving:
                return scalars(text)
            raise Failure(f"{self.path} is not YAML: {err}") from err
        if not isinstance(site, dict):
            raise Failure(f"{self.path} must be a mapping")
        return site

    def host(self):
        """Return the id of the host of ``site.yaml`` that is this machine."""
        here = [name for name, host in self.hosts.items() if is_local(host.get("address"))]
        if len(here) == 1:
            return here[0]
        which = "several hosts have" if here else "no host has"
        raise Failure(
            f"{self.path}: {which} an address of this machine"
            f" ({', '.join(here or self.hosts)}): give each host its own and run this on one"
        )

    def address(self):
        """Return where the master listens: on the loopback where it is the only host."""
        return "127.0.0.1" if len(self.hosts) < 2 else self.hosts[self.host()]["address"]

    def marker(self):
        """Return what we put on this machine, or None where root is not ours."""
        try:
            return json.loads((self.salt / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def has_served(self):
        """Whether a `make up` has come to its end here."""
        return (self.log / "up.json").exists()

    def remember(self, **facts):
        """Keep facts for ``make purge``; lists grow."""
        known = self.marker() or {}
        for key, value in facts.items():
            old = known.get(key, [])
            known[key] = old + [item for item in value if item not in old]
        write(self.salt / MARKER, json.dumps(known, indent=2) + "\n")

    def command(self, program, *arguments):
        """Return the command line of one of Salt's programs."""
        return [str(VENV / "bin" / program), "-c", str(self.conf), *arguments]


def parsed(text):
    """
    Return the YAML in ``text``, by the environment's library; a rough reading without one.

    Raises ``ValueError`` with the place of a mistake, without the text around it.
    """
    program = (
        "import json, sys, yaml\n"
        "try: found = yaml.safe_load(sys.stdin)\n"
        "except yaml.MarkedYAMLError as err:\n"
        "    mark = err.problem_mark\n"
        "    sys.exit(f'{err.problem}, line {mark.line + 1}, column {mark.column + 1}')\n"
        "print(json.dumps(found, default=str))"
    )
    try:
        reading = subprocess.run(
            [str(PYTHON), "-c", program], input=text, capture_output=True, text=True, check=False
        )
    except OSError:
        return scalars(text)
    if reading.returncode == 0:
        return json.loads(reading.stdout)
    if "Traceback" in reading.stderr:  # the environment is broken: to be mended, or to go
        return scalars(text)
    raise ValueError(reading.stderr.strip())


def is_local(address):
    """Whether this machine has ``address``."""
    try:
        found = socket.getaddrinfo(str(address), 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(where)
            return True
        except OSError:
            continue
    return False


def scalars(text):
    """
    Return the plain values of a YAML mapping, one level of nesting included.

    For a machine that has no YAML library yet: enough for names, root and ports.
    """
    found, parent = {}, None
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        match = re.match(r"^(\s*)([A-Za-z_][\w-]*):\s*(.*)$", line)
        if not match:
            continue
        indent, key, value = match.groups()
        if indent:
            if isinstance(found.get(parent), dict) and value and value[0] not in "{[":
                found[parent][key] = value.strip("\"'")
        elif value.startswith("{"):
            pairs = re.findall(r"([\w-]+):\s*([^,{}]+)", value)
            found[key] = {name: inner.strip().strip("\"'") for name, inner in pairs}
        else:
            found[key] = value.strip("\"'") if value else {}
            parent = key
    return found


def write(path, text, mode=0o600):
    """Put ``text`` into the file at ``path`` at once; return whether that changed anything."""
    path = Path(path)
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except OSError:
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    new.replace(path)
    return True
