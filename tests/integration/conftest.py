"""
The whole platform once for all tests, on the real engine with a real master and minion.
"""

import logging

import pytest

from tests.support.platform import Platform

pytest.register_assert_rewrite("tests.support.invariants", "tests.support.soak")
logging.raiseExceptions = False  # the daemons log after pytest has closed its streams


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
