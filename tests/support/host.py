"""
A host of its own on this machine: a container with its own file system, engine and network address,
as bare as Debian comes, for the tests that install things.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import tarfile
import tempfile
import time

import docker
from docker.errors import ImageNotFound, NotFound

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LABEL = "llm.test"
CHECKOUT = "/srv/llm"
CONTAINERS = f"""PYTHONPATH={CHECKOUT}/bin python3 -B -c '
import json
from bootstrap import engine
found = engine.ask("GET", "/containers/json", all=ALL)
states = [engine.ask("GET", "/containers/" + one["Id"] + "/json")["State"] for one in found]
print(json.dumps({{one["Names"][0]: state["StartedAt"] for one, state in zip(found, states)}}))'
"""
# What Debian's own programs write beside the files of packages.
THE_SYSTEMS = re.compile(
    r"/var/(lib/(dpkg|apt|systemd|ucf|python)|cache/(apt|debconf|ldconfig)|log/(apt|journal))/"
    r"|/var/log/(dpkg|alternatives)\.log$|/run/((credentials|systemd)/|adduser$)"
    r"|/etc/(alternatives|ssl/certs)/|/etc/(ld\.so\.cache|networks|(g?shadow|passwd|group)-?)$"
    r"|/etc/rc[0-6S]\.d/[SK][0-9]{2}\w+$"
    r"|/etc/systemd/(system|user)/[^/]*\.(wants|requires)$|/(var/)?tmp/systemd-private-"
    r"|/usr/(lib|share)/python3?[^ ]*/__pycache__"
)
MIRROR = "http://deb.debian.org/debian"
BARE = ("python3", "make", "ca-certificates")
# By number, as far as engines know them; where --privileged is refused, each is asked for by name.
CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
"""


def capabilities():
    """Return the names of the capabilities that this machine may give."""
    status = pathlib.Path("/proc/self/status").read_text()
    bounding = next(line for line in status.splitlines() if line.startswith("CapBnd:"))
    mask = int(bounding.split()[1], 16)
    return [name for number, name in enumerate(CAPABILITIES.split()) if mask >> number & 1]


def image(client, suite="trixie", packages=BARE):
    """Return the reference of a bare Debian, made with debootstrap where it is not there yet."""
    digest = hashlib.sha256(repr((suite, packages)).encode()).hexdigest()[:12]
    reference = f"llm-test/host:{suite}-{digest}"
    with contextlib.suppress(ImageNotFound):
        client.images.get(reference)
        return reference
    with tempfile.TemporaryDirectory(prefix="llm-test-") as folder:
        tree, archive = pathlib.Path(folder, "tree"), pathlib.Path(folder, "tree.tar")
        include = f"--include={','.join(packages)}"
        argv = ["debootstrap", "--variant=minbase", include, suite, str(tree), MIRROR]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        for cached in (tree / "var/cache/apt/archives").glob("*.deb"):
            cached.unlink()
        subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True)
        repository, tag = reference.split(":")
        client.api.import_image(
            str(archive), repository=repository, tag=tag, changes=[f"LABEL {LABEL}=host"]
        )
    return reference


class Host:
    """
    A nested host, without systemd: that would mount hierarchies of its own into this machine's
    cgroups, after which the engine hears of no want of memory any more.

    name
        Of its container; also of its cgroup.
    memory
        Limit in bytes. Default: none.
    suite
        The Debian release. Default: trixie.
    network
        Name of the engine's network that it joins. Default: the engine's own bridge.
    """

    def __init__(self, name, memory=None, suite="trixie", network=None):
        self.name = name
        self.memory = memory
        self.suite = suite
        self.network = network
        self.client = docker.from_env(timeout=600)
        self.container = None

    def start(self):
        """Start it, with the certificates of this machine and room for an engine; return it."""
        self.stop()
        api = self.client.api
        settings = api.create_host_config(
            init=True,
            cap_add=capabilities(),
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            device_cgroup_rules=["a *:* rwm"],
            binds=["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
            tmpfs={"/run": "mode=755", "/tmp": "mode=1777,exec"},
            mem_limit=self.memory,
            network_mode=self.network or "bridge",
        )
        settings |= {"MaskedPaths": [], "ReadonlyPaths": []}
        created = api.create_container(
            image(self.client, self.suite),
            command=["sleep", "infinity"],
            environment={"container": "docker"},
            name=self.name,
            hostname=self.name,
            host_config=settings,
            volumes=["/var/lib/docker", "/var/lib/containerd"],
            labels={LABEL: "host"},
        )
        self.container = self.client.containers.get(created["Id"])
        self.container.start()
        self.run("mount -o remount,rw /sys; mount -o remount,rw /proc/sys; mkdir -p /etc/docker")
        self.write("/etc/docker/daemon.json", f'{{"cgroup-parent": "/{self.name}"}}')
        extra = pathlib.Path("/usr/local/share/ca-certificates")
        if extra.is_dir() and any(extra.iterdir()):
            self.copy(extra, "/usr/local/share/ca-certificates")
            self.run("update-ca-certificates")
        return self

    def execute(self, command, environment=None, folder=None):
        """Run ``command`` in a shell; return its exit code and its output, both streams as one."""
        code, output = self.container.exec_run(
            ["sh", "-c", command], environment=environment, workdir=folder
        )
        return code, output.decode(errors="replace")

    def run(self, command, **how):
        """Run ``command`` in a shell, which must end well; return its output."""
        code, output = self.execute(command, **how)
        assert code == 0, f"{command} ended with {code} on {self.name}:\n{output}"
        return output

    def begin(self, command, environment=None, folder=None):
        """Start ``command`` in a shell and do not wait for it."""
        self.container.exec_run(
            ["sh", "-c", command], environment=environment, workdir=folder, detach=True
        )

    def wait_for(self, command, timeout=60):
        """Return the output of ``command`` once it ends well."""
        deadline = time.monotonic() + timeout
        while True:
            code, output = self.execute(command)
            if code == 0:
                return output
            assert time.monotonic() < deadline, f"{command}: still {code} on {self.name}: {output}"
            time.sleep(0.5)

    def write(self, path, text):
        """Write a short ``text`` into the file at ``path``, whose folder exists."""
        self.run(f"printf %s {shlex.quote(text)} > {path}")

    def copy(self, source, target):
        """Copy what is in folder ``source`` of this machine into ``target``."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(source, arcname=".")
        self.run(f"mkdir -p {target}")
        self.container.put_archive(target, buffer.getvalue())

    def clone(self, target=CHECKOUT):
        """Copy the checkout with its uncommitted changes, without secrets of this machine."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in filter(None, listed.stdout.split("\0")):
                if name.startswith("pillar/secrets/"):
                    continue
                if (REPOSITORY / name).is_symlink() or (REPOSITORY / name).exists():
                    archive.add(REPOSITORY / name, arcname=name)
        self.run(f"mkdir -p {target}")
        self.container.put_archive(target, buffer.getvalue())
        return target

    def make(self, words, **environment):
        """Run `make` in the clone; return its exit code and its output."""
        return self.execute(f"make {words}", environment=environment, folder=CHECKOUT)

    def files(self):
        """Return all its files, but for those of its packages and what the system keeps of them."""
        links = "! -lname '/etc/alternatives/*' ! -lname '*/lib/systemd/*'"  # to what packages have
        found = set(self.run(f"find / /run /tmp -xdev {links}").splitlines())
        found -= set(self.run("cat /var/lib/dpkg/info/*.list").splitlines())
        return {path for path in found if not THE_SYSTEMS.match(path)}

    def containers(self, parked=True):
        """Return when each container of its engine was started, by name; or but the running."""
        return json.loads(self.run(CONTAINERS.replace("ALL", str(int(parked)))))

    def lend_images(self):
        """
        Load the images of the platform that this machine has. The engine that this needs goes
        again, and what it holds stays.
        """
        listed = subprocess.run(
            ["docker", "image", "ls", "--filter", "label=llm.image",
             "--format", "{{.Repository}} {{.Tag}}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        newest_last = [line.split() for line in reversed(listed.stdout.splitlines())]
        tags = {name: f"{name}:{tag}" for name, tag in newest_last if tag != "<none>"}
        if not tags:
            return
        self.run("apt-get install -y --no-install-recommends docker.io")
        with subprocess.Popen(["docker", "save", *tags.values()], stdout=subprocess.PIPE) as saved:
            load = ["docker", "exec", "-i", self.name, "docker", "load"]
            subprocess.run(load, stdin=saved.stdout, stdout=subprocess.DEVNULL, check=True)
        self.run("systemctl stop docker.socket docker containerd")
        self.run("apt-get remove -y --autoremove docker.io")

    def stop(self):
        """Remove it with its volumes and its cgroups; nothing happens where there is none."""
        with contextlib.suppress(NotFound):
            self.client.containers.get(self.name).remove(force=True, v=True)
        for root in pathlib.Path("/sys/fs/cgroup").glob(f"*/{self.name}"):
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()
