"""
The platform under load while it is changed and broken at random: `make soak` for as long as asked,
and a while of it in every run of the tests.
"""

import os

import pytest

from tests.support import invariants
from tests.support.load import Load
from tests.support.operator import unlimited_client
from tests.support.soak import Soak

MINUTES = float(os.environ.get("LLM_SOAK_MINUTES", "2"))
SEED = int(os.environ.get("LLM_SOAK_SEED", "1883"))
STEPS = int(os.environ.get("LLM_SOAK_STEPS", "0"))  # in place of minutes, when there are any
RATE = 8  # requests per second
pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800 + MINUTES * 60 + STEPS * 300),
]


@pytest.fixture
def settings(platform):
    """The settings of a client without limits; in the end all is as it was."""
    knobs = "pillar/environments/dev.sls"
    with (
        platform.changed(knobs, (platform.folder / knobs).read_text()),
        unlimited_client(platform, RATE) as found,
    ):
        yield found
    platform.run("llm.deploy")
    invariants.hold(platform)


def test_platform_is_well_after_each_change_and_fault(platform, settings):
    with Load(settings, RATE) as load:
        soak = Soak(platform, load, SEED)
        soak.run(MINUTES, STEPS)
    soak.show()
    assert soak.taken
    assert not soak.unannounced()
