"""
Twelve small containers on one network, made and then found as they should be: by this project and
by what somebody would use in its place.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

from tests.benchmarks.figures import Failed, run
from tests.support import tiny

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CACHE = pathlib.Path(sys.prefix, "benchmarks")  # goes with the virtual environment
IMAGE = "llm-benchmark/busybox:1"
SUBNET = "10.212.112.0/24"
PREFIX = "peer-"
OURS = "ours, a state each"
FLOOR = "Salt, twelve states that do nothing"
ABOVE = f"{OURS}: nothing to do, above Salt's own"
PAIRS = 3  # in each run, for a difference that small
SUITE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} trixie main\n"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = {
    "ansible": ["ansible==12.3.0", "docker==7.2.0", "requests"],
    "stock-salt": ["salt==3008.3", "docker==7.2.0", "saltext-dockermod==0.1.3"],
}


def measure(figures, runs=5):
    """
    Measure every peer ``runs`` times, in turns, and hold this project against them.
    """
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, images(folder, IMAGE):
        folder = pathlib.Path(folder)
        floor = _salt_call(folder, "floor", sys.prefix, HERE / "states", "nothing")
        peers = {name: make(folder) for name, make in _PEERS.items()}
        if not peers["docker compose"]:
            figures.note("docker compose was not measured: Debian 13's mirror does not answer")
        try:
            for _ in range(runs):
                for name, command in peers.items():
                    if command:
                        clean()
                        figures.add(f"{name}: first run", run(**command))
                        figures.add(f"{name}: nothing to do", run(**command))
                    if name == OURS:
                        _compare(figures, command, floor)
        finally:
            clean()
    _hold(figures)


def _compare(figures, command, floor):
    """Compare a run with nothing to do with Salt's floor, one right after the other."""
    for _ in range(PAIRS):
        least = run(**floor)
        figures.add(FLOOR, least)
        figures.add(ABOVE, run(**command) - least)


def _hold(figures):
    """Hold the figures against the project's aims."""
    figures.aim("nothing to do: seconds above Salt's own", figures.median(ABOVE), most=0.1)
    ours = figures.median(f"{OURS}: nothing to do")
    for peer, least in (("stock Salt", 3), ("Ansible", 7)):
        times = figures.median(f"{peer}: nothing to do") / ours
        figures.aim(f"nothing to do: times as fast as {peer}", times, least=least)
    compose = figures.median("docker compose: first run")
    if compose:
        figures.aim(
            "first run: seconds; docker compose takes, times 1.5 and with Salt's own",
            figures.median("ours, side by side: first run"),
            most=compose * 1.5 + figures.median(FLOOR),
        )


def clean():
    """Remove every container and network of the peers and of ours."""
    names = _docker("ps", "-aq", "--filter", f"name=^/?{PREFIX}")
    if names:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: _docker("rm", "-f", name), names))
    for network in _docker("network", "ls", "-q", "--filter", f"name=^{PREFIX}"):
        _docker("network", "rm", network)


def _docker(*arguments):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


@contextlib.contextmanager
def images(folder, *names):
    """Have images called so, each another one, for a while."""
    busybox = tiny.busybox(folder)
    for name in names:
        tiny.make_image(name, busybox, name)
    try:
        yield
    finally:
        subprocess.run(["docker", "rmi", "-f", *names], capture_output=True, check=False)


def _environment(name):
    """Return the folder of a virtual environment with the packages of peer ``name``."""
    folder = CACHE / name
    if not (folder / "made").exists():
        uv = [str(pathlib.Path(sys.prefix, "bin/uv")), "--cache-dir", str(CACHE / "uv")]
        run([*uv, "venv", "-q", "--clear", "-p", sys.executable, str(folder)])
        python = str(folder / "bin/python")
        run([*uv, "pip", "install", "-q", "-p", python, *PACKAGES[name]])
        (folder / "made").touch()
    return folder


def _salt_call(folder, name, environment, file_root, sls):
    """Return the command that applies ``sls`` on this machine without a master."""
    configuration = folder / f"{name}-{sls}"
    configuration.mkdir()
    options = {
        "id": "benchmark",
        "file_client": "local",
        "root_dir": str(configuration),
        "file_roots": {"base": [str(file_root)]},
        "module_dirs": [str(REPOSITORY)] if name != "stock-salt" else [],
        "log_level": "error",
    }
    (configuration / "minion").write_text(yaml.safe_dump(options))
    pillar = {"image": IMAGE, "subnet": SUBNET, "llm": {"site": {"name": PREFIX.rstrip("-")}}}
    salt_call = str(pathlib.Path(environment, "bin/salt-call"))
    configured = [salt_call, "--local", "-c", str(configuration), "--retcode-passthrough"]
    return {"command": [*configured, "state.apply", sls, f"pillar={pillar}"]}


def _ours(sls):
    return lambda folder: _salt_call(folder, "ours", sys.prefix, HERE / "states", sls)


def _stock_salt(folder):
    peer = HERE / "peers/stock-salt"
    return _salt_call(folder, "stock-salt", _environment("stock-salt"), peer, "twelve")


def ansible(playbook, image):
    """Return how to run a playbook of `peers/ansible` with an image."""
    environment = _environment("ansible")
    python = environment / "bin/python"
    extra = ["-e", f"image={image}", "-e", f"ansible_python_interpreter={python}"]
    command = [str(environment / "bin/ansible-playbook"), "-i", "localhost,", "-c", "local"]
    return {"command": [*command, *extra, str(HERE / "peers/ansible" / playbook)]}


def compose(file, image):
    """
    Return how to bring up a file of `peers/compose` with an image; ``None`` where compose is not to
    be had. That of Debian 13 runs on Debian 12, too.
    """
    program = CACHE / "compose/usr/libexec/docker/cli-plugins/docker-compose"
    if not program.exists():
        try:
            _fetch("docker-compose", CACHE / "compose")
        except Failed:
            return None
    project = ["-p", "peer", "-f", str(HERE / "peers/compose" / file)]
    command = [str(program), *project, "up", "-d", "--wait"]
    return {"command": command, "env": {**os.environ, "IMAGE": image}}


def _fetch(package, folder):
    """Unpack ``package`` of Debian 13 into ``folder``, with lists of packages of its own."""
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(SUITE.format(MIRROR))
    options = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    apt_get = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    run([*apt_get, "update"])
    run([*apt_get, "download", package], cwd=apt)
    run(["dpkg", "-x", str(next(apt.glob(f"{package}_*.deb"))), str(folder)])


# In the order in which they are measured, each under the name that the table has.
_PEERS = {
    OURS: _ours("each"),
    "ours, side by side": _ours("together"),
    "stock Salt": _stock_salt,
    "Ansible": lambda _: ansible("site.yml", IMAGE),
    "docker compose": lambda _: compose("compose.yaml", IMAGE),
}
