"""
An engine that was there before is left as it is. Its installation: test_bootstrap.py.
"""

import pathlib

import pytest

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("function", ["installed", "running"])
def test_engine_that_answers_is_left_alone(site, function, test):
    configuration = pathlib.Path("/etc/docker/daemon.json")
    before = configuration.exists() and configuration.read_text()
    ret = site.state(f"llm_docker.{function}", "the engine", test=test)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert (configuration.exists() and configuration.read_text()) == before
    assert not (site.folder / "engine.json").exists()
