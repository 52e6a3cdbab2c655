"""
The project's own images, built where they are missing, and their services with the configuration
of dev: alone, on a network of the test, called by their names.
"""

import contextlib
import json
import os
import time

import jinja2
import llm_builder
import llm_catalogue
import llm_engine
import pytest
from salt.utils.jinja import SerializerExtension
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_image as llm_image_module

NETWORK = f"llm-test-{os.getpid()}-images"
SECRETS = {
    "cache.password": 'canary "cache" pässword',
    "model-proxy.key": "canary-model-proxy-key",
    "head.key": "canary-head-key",
    "providers": {"openai": "canary-provider-key"},
}


class Service:
    """
    A running container of one service.
    """

    def __init__(self, engine, name, container, folder, render):
        self.engine, self.name, self.container, self.folder = engine, name, container, folder
        self.render = render
        networks = engine.inspect(container)["NetworkSettings"]["Networks"]
        self.address = networks[NETWORK]["IPAddress"]

    def log(self):
        return "\n".join(self.engine.logs(self.container, lines=2000))

    def run(self, *command):
        """Run ``command`` in the container and return what it writes."""
        body = {"Cmd": command, "AttachStdout": True, "AttachStderr": True}
        path = f"/containers/{self.container}/exec"
        exec_id = json.loads(self.engine.request("POST", path, body))["Id"]
        answer = self.engine.request("POST", f"/exec/{exec_id}/start", {"Tty": False})
        return llm_engine._unframed(answer).decode()

    def until(self, check, seconds=60):
        """Return what ``check`` returns once it is true and raises nothing."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):
                if found := check():
                    return found
            state = self.engine.inspect(self.container)["State"]
            assert state["Running"], f"{self.name} ended\n{self.log()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready\n{self.log()}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def images(repository, tmp_path_factory):
    """References of the images of all services, by folder."""
    files = [str(path) for path in (repository / "salt/images").rglob("*") if path.is_file()]
    files = [path for path in files if not path.endswith((".in", ".sls", "/overrides.txt"))]
    pillar = _pillar(repository)
    services = llm_catalogue.platform(pillar, "node1")["services"]
    dunders = {
        "__salt__": {
            "cp.cache_dir": lambda *_, **__: files,
            "llm_config.platform": lambda: {"services": services},
        },
        "__opts__": {"cachedir": str(tmp_path_factory.mktemp("cache")), "saltenv": "base"},
        "__context__": {},
    }
    with LoaderModuleMock({llm_image_module: dunders}):
        llm_image_module.build(sorted(services))
        folders = {service["image"] for service in services.values()}
        return {folder: llm_image_module.reference(folder) for folder in folders}


def _pillar(repository):
    import yaml

    pillar = yaml.safe_load((repository / "pillar/services.sls").read_text())
    dev = yaml.safe_load((repository / "pillar/environments/dev.sls").read_text())
    pillar = llm_catalogue.merged(pillar, dev)["llm"]
    return pillar | {
        "site": yaml.safe_load((repository / "pillar/site.yaml").read_text()),
        "host": "node1",
    }


@pytest.fixture(scope="module")
def start(repository, engine, images, tmp_path_factory):
    """
    A function that starts a service as the platform would, and returns it:
    ``start("head", models={...})``; other keys go over the pillar's.
    """
    network = engine.create_network({"Name": NETWORK, "CheckDuplicate": True})
    started = []

    def start_(name, models=None, mounts=(), **keys):
        pillar = _pillar(repository)
        pillar["site"]["models"] = models or pillar["site"]["models"]
        pillar |= keys
        platform = llm_catalogue.platform(pillar, "node1")
        service = platform["services"][name]
        folder = tmp_path_factory.mktemp(name)

        def render(**changed):
            context = {"service": service, "platform": platform | changed, "secrets": SECRETS}
            for kind, where in (("files", "files"), ("live_files", "files/live")):
                _put(repository, folder / kind, f"{name}/{where}", service, kind, context)

        render()
        body = {
            "Image": images[service["image"]],
            "Cmd": service["command"],
            "User": f"{service['user']}:{service['user']}",
            "HostConfig": {
                "NetworkMode": NETWORK,
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "Memory": service["memory"],
                "NanoCpus": int(service["cpus"] * 1e9),
                "PidsLimit": service["pids"],
                "Tmpfs": {path: f"size={size}" for path, size in service["tmpfs"].items()},
                "Binds": [
                    f"{folder}/files:/etc/llm:ro",
                    f"{folder}/live_files:/etc/llm-live:ro",
                    *mounts,
                ],
            },
            "NetworkingConfig": {"EndpointsConfig": {NETWORK: {"Aliases": [name]}}},
        }
        container = engine.create(f"{NETWORK}-{name}-{len(started)}", body)
        started.append(container)
        engine.start(container)
        return Service(engine, name, container, folder, render)

    yield start_
    for container in started:
        engine.remove(container)
    engine.remove_network(network)


def _put(repository, folder, templates, service, kind, context):
    """Render the files of ``service`` into ``folder``, each moved into place."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(repository / "salt"),
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do", SerializerExtension],
        keep_trailing_newline=True,
    )
    folder.mkdir(exist_ok=True)
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and "pytest" in str(parent):
            parent.chmod(0o755)
    for file in service[kind]:
        text = environment.get_template(f"{templates}/{file}.jinja").render(**context)
        fresh = folder.parent / f"{file}.fresh"
        fresh.write_text(text)
        os.chown(fresh, service["user"], service["user"])
        fresh.chmod(0o400)
        fresh.replace(folder / file)


@pytest.fixture
def builder():
    """The engine's images."""
    return llm_builder.Builder()
