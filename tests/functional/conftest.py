"""
The real engine, Salt's real loader, a tiny image, and a site of each test's own, of which nothing
stays behind.
"""

import contextlib
import json
import os
import pathlib
import random
import time

import llm_engine
import pytest
import salt.config
import salt.loader

from tests.support import tiny


@pytest.fixture(scope="session")
def engine():
    """The engine of this machine."""
    engine = llm_engine.Engine()
    engine.networks()
    return engine


@pytest.fixture(scope="session")
def make_image(engine, tmp_path_factory):
    """
    A function that makes a tiny image under a name, and another one for another ``content``.
    """
    busybox = tiny.busybox(tmp_path_factory.mktemp("busybox"))
    made = []

    def make(name, content=""):
        tiny.make_image(name, busybox, content)
        made.append(name)
        return name

    yield make
    for name in made:
        with contextlib.suppress(llm_engine.NotFound):
            engine.request("DELETE", f"/images/{name}", force=1)


@pytest.fixture(scope="session")
def image(make_image):
    """Name of a tiny image whose container sleeps."""
    return make_image(f"llm-test-{os.getpid()}/busybox:1", "1")


@pytest.fixture(scope="session")
def other_image(make_image):
    """Name of another image, which does the same."""
    return make_image(f"llm-test-{os.getpid()}/busybox:2", "2")


class Site:
    """
    A site on this machine's engine, and Salt's loaders with its pillar.
    """

    def __init__(self, engine, repository, folder):
        self.engine = engine
        self.repository = repository
        self.folder = folder
        self.name = f"t{random.randrange(16**5):05x}"
        self.network = f"{self.name}-net"
        self.subnet = f"10.213.{random.randrange(256)}.0/24"
        self.pillar = {"llm": {"site": {"name": self.name, "root": str(folder)}}}
        self.opts = {}
        self.loaded = {}

    def _load(self, test):
        opts = salt.config.minion_config(None, minion_id="node1") | {
            "id": "node1",
            "cython_enable": False,
            "file_client": "local",
            "root_dir": str(self.folder),
            "cachedir": str(self.folder / "cache"),
            "module_dirs": [str(self.repository)],
            "pillar": self.pillar,
            "grains": {},
            "test": test,
            **self.opts,
        }
        utils = salt.loader.utils(opts)
        modules = salt.loader.minion_mods(opts, utils=utils)
        return modules, salt.loader.states(opts, modules, utils, None)

    def loader(self, test=False):
        """Modules and states, in test mode or not."""
        if test not in self.loaded:
            self.loaded[test] = self._load(test)
        return self.loaded[test]

    def call(self, function, *args, **kwargs):
        """Call an execution module's function."""
        return self.loader()[0][function](*args, **kwargs)

    def state(self, function, name, test=False, **kwargs):
        """Apply one state and return what it says."""
        return self.loader(test)[1][function](name=name, **kwargs)

    def containers(self):
        """Name and state of each container of this site, or named like one."""
        found = {}
        for each in self.engine.containers():
            name = each["Names"][0].lstrip("/")
            if name.startswith(self.name) or each["Labels"].get("llm.site") == self.name:
                found[name] = each["State"]
        return found

    @contextlib.contextmanager
    def silence(self):
        """Fail unless nothing of this site shows on the engine's event stream meanwhile."""
        since = time.time()
        yield
        until = f"{time.time():.9f}"
        answer = self.engine.request("GET", "/events", since=f"{since:.9f}", until=until)
        events = [json.loads(line) for line in answer.splitlines()]
        # With --init a health check may be killed; what counts is what somebody asked for.
        ours = [event for event in events if self.name in json.dumps(event)]
        assert ours == []

    def clean(self):
        """Remove all there is of this site."""
        for name in self.containers():
            with contextlib.suppress(llm_engine.EngineError):
                self.engine.remove(name)
        for network in self.engine.networks():
            if network["Name"].startswith(self.name):
                self.engine.remove_network(network["Id"])
        for volume in self.engine.volumes():
            if volume["Name"].startswith(self.name):
                self.engine.remove_volume(volume["Name"])


@pytest.fixture
def site(engine, repository, tmp_path):
    """A site of one's own, removed afterwards."""
    site = Site(engine, pathlib.Path(repository), tmp_path)
    try:
        yield site
    finally:
        site.clean()


@pytest.fixture
def network(site):
    """Name of the site's network."""
    ret = site.state("llm_network.present", site.network, subnet=site.subnet)
    assert ret["result"] is True, ret["comment"]
    return site.network
