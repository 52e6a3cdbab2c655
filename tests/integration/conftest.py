"""
The whole platform once for all tests of a process, on the real engine, with real daemons.
"""

import logging
import subprocess

import pytest

from tests.support.platform import Platform, images

pytest.register_assert_rewrite("tests.support.invariants", "tests.support.soak")
logging.raiseExceptions = False  # the daemons log after pytest has closed its streams


IMAGES = pytest.StashKey()


def pytest_sessionstart(session):
    """Remember which images there are, before the processes that share them begin."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[IMAGES] = images()


def pytest_sessionfinish(session):
    """Remove the images that were made for the tests, when nobody needs them any more."""
    for image in images() - session.config.stash.get(IMAGES, images()):
        subprocess.run(["docker", "rmi", "-f", image], capture_output=True, check=False)


@pytest.fixture(scope="session")
def platform(tmp_path_factory, salt_factories):
    """The platform, deployed."""
    with Platform(tmp_path_factory.mktemp("platform"), salt_factories).started() as platform:
        platform.deploy()
        yield platform


@pytest.fixture(scope="session")
def client(platform):
    """The official client of a user of the platform."""
    return platform.client()


def pytest_collection_modifyitems(items):
    """Give the first test of a session the time that the deployment takes."""
    for item in items:
        if "platform" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(1500))
