"""
What every kind of test needs: the repository, and the platform's own pillar, compiled.
"""

import copy
import functools
import pathlib
import shutil
import subprocess
import tempfile

import llm_catalogue
import llm_keyring
import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ON_THE_SECOND = (  # about half of the time that tests of a deployed platform take
    "test_damage", "test_faults", "test_knobs", "test_replacing", "test_soak", "test_watch",
)  # fmt: skip
SECRETS = {
    "cache": {"password": "canary-cache-password"},
    "head": {"key": "canary-head-key"},
    "model-proxy": {"key": "canary-model-proxy-key"},
    "clients": {"default": "canary-client-default", "verify": "canary-client-verify"},
    "providers": {},
}


@pytest.fixture(scope="session")
def repository():
    """The folder of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def compile_pillar():
    """A function that returns the ``llm`` part of the pillar of an environment, with secrets."""

    @functools.cache
    def compile_once(environment):
        pillar = yaml.safe_load((REPOSITORY / "pillar/services.sls").read_text())
        override = (REPOSITORY / f"pillar/environments/{environment}.sls").read_text()
        pillar = llm_catalogue.merged(pillar, yaml.safe_load(override))["llm"]
        site = yaml.safe_load((REPOSITORY / "pillar/site.yaml").read_text())
        site["environment"] = environment
        roles = site["hosts"]["node1"]["roles"]
        pillar |= {"site": site, "host": "node1", "roles": roles}
        return pillar | {"secrets": SECRETS}

    def compile_(environment="dev"):
        return copy.deepcopy(compile_once(environment))

    return compile_


@pytest.fixture
def pillar(compile_pillar):
    """The ``llm`` part of the pillar of node1 in dev, a copy of one's own."""
    return compile_pillar()


@pytest.fixture
def platform(pillar):
    """What ``llm_config.platform`` returns on node1 in dev."""
    return llm_catalogue.platform(pillar, "node1")


def _keyring():
    folder = tempfile.mkdtemp(prefix="llm-gpg-", dir="/tmp")  # gpg-agent wants a short path
    keyring = llm_keyring.Keyring(folder)
    keyring.create()
    return keyring


def _remove(keyring):
    command = ["gpgconf", "--homedir", keyring.folder, "--kill", "gpg-agent"]
    subprocess.run(command, check=True)
    shutil.rmtree(keyring.folder)


@pytest.fixture(scope="session")
def keyring():
    """The keyring of an installation."""
    keyring = _keyring()
    yield keyring
    _remove(keyring)


@pytest.fixture(scope="session")
def other_keyring():
    """The keyring of another installation."""
    keyring = _keyring()
    yield keyring
    _remove(keyring)


@pytest.fixture
def pillar_root(repository, tmp_path):
    """A copy of the pillar that a test may spoil; without secrets."""
    root = tmp_path / "pillar"
    return shutil.copytree(repository / "pillar", root, ignore=shutil.ignore_patterns("secrets"))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """
    Keep together, in one of the processes that run the tests side by side, what shares something
    expensive: the tests of a deployed platform, of which there are two, and otherwise those of one
    file.
    """
    for item in items:
        folder, *_ = item.path.relative_to(REPOSITORY / "tests").parts
        if folder != "unit":
            deployed = folder == "integration" and "platform" in item.fixturenames
            platform = "second platform" if item.path.stem in ON_THE_SECOND else "platform"
            group = platform if deployed else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))
