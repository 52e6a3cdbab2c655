"""
Faults of a host and its files. Each is taken back at its end, also when the test fails.
"""

import contextlib
import json
import pathlib
import socket
import subprocess
import tempfile
import time
import uuid

import libfaketime
import psutil

from tests.support.platform import docker


@contextlib.contextmanager
def port_taken():
    """Listen on a port of the host in this very process; give the port."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def foreign_container(image, *options):
    """Run a container that is not the platform's; give its name."""
    name = f"llm-test-foreign-{uuid.uuid4().hex[:8]}"
    docker("run", "-d", "--name", name, *options, "--entrypoint", "sleep", image, "600")
    try:
        yield name
    finally:
        docker("rm", "-fv", name)


@contextlib.contextmanager
def small_disk(folder, size):
    """Have a file system of so many bytes at ``folder``, with what was there before."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder], check=True
    )
    try:
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def engine_on_a_small_disk(size):
    """
    Run a second engine, all of whose files are on a file system of so many bytes; give the address
    of its socket and a function that gives the disk another size.
    """
    with contextlib.ExitStack() as stack:
        # Names of sockets are short.
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-test-")))
        disk, log, address = folder / "disk", folder / "log", f"unix://{folder}/engine.sock"
        mount = ["mount", "-t", "tmpfs", "none", disk, "-o"]
        disk.mkdir()
        subprocess.run([*mount, f"size={size}"], check=True)
        stack.callback(subprocess.run, ["umount", disk], check=True)
        # With --bridge=none it would remove that of this machine's engine.
        network = docker("network", "create", f"llm-test-{uuid.uuid4().hex[:8]}")
        stack.callback(docker, "network", "rm", network)
        process = stack.enter_context(
            subprocess.Popen(
                ["dockerd", "--data-root", disk, "--exec-root", folder / "run",
                 "--pidfile", folder / "engine.pid", "--host", address,
                 "--bridge", f"br-{network[:12]}", "--iptables=false", "--ip-forward=false"],
                stdout=subprocess.DEVNULL, stderr=log.open("w"),
            )
        )  # fmt: skip
        stack.callback(process.terminate)
        deadline = time.monotonic() + 60
        while "API listen on " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield address, lambda size: subprocess.run([*mount, f"remount,size={size}"], check=True)


@contextlib.contextmanager
def events_of(platform):
    """Give a list that at the end holds every event of the platform's containers meanwhile."""
    found, since = [], time.time()
    yield found
    found += docker(
        "events", "--since", f"{since:.6f}", "--until", f"{time.time():.6f}",
        "--filter", f"label=llm.site={platform.name}",
        "--format", "{{.Action}} {{.Actor.Attributes.name}}",
    ).splitlines()  # fmt: skip


def completion(client, **options):
    """Ask for a few tokens that no cache knows; return how many came."""
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": uuid.uuid4().hex}],
        max_tokens=4,
        **options,
    )
    return answer.usage.completion_tokens


@contextlib.contextmanager
def frozen(pid):
    """Stop process ``pid`` and all its children for a while."""
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@contextlib.contextmanager
def own_clock(platform, path):
    """
    Start the minion again with a clock of its own, which file ``path`` tells; give a function that
    sets it so many seconds ahead of the machine's. What the minion runs has the same clock.
    """

    def ahead(seconds):
        new = path.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(path)

    def start(environ):
        platform.minion.environ = environ
        platform.kill_minion()

    ahead(0)
    usual = platform.minion.environ
    library = next(pathlib.Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
    own = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as a clock that is set wrong leaves it alone
    }
    try:
        start(usual | own)
        yield ahead
    finally:
        start(usual)


@contextlib.contextmanager
def taken_address(container, network):
    """
    Kill ``container``, and have another one, which is not the platform's, run the same program at
    its address on ``network``; give its name.
    """
    found = json.loads(docker("inspect", container))[0]
    name = f"llm-test-foreign-{uuid.uuid4().hex[:8]}"
    docker("kill", container)
    docker(
        "run", "-d", "--name", name, "--network", network, "--volumes-from", container,
        "--ip", found["NetworkSettings"]["Networks"][network]["IPAMConfig"]["IPv4Address"],
        "--user", found["Config"]["User"], found["Image"], *found["Config"]["Cmd"],
    )  # fmt: skip
    try:
        yield name
    finally:
        docker("rm", "-f", name)
