"""
What of the user's environment the daemons get.
"""

import os

import llm_mirror
import pytest

from bootstrap import variables

NAMES = (*llm_mirror.PROXIES, *map(str.upper, llm_mirror.PROXIES))
NAMES += ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "GOPROXY", "GOSUMDB")


@pytest.mark.parametrize("name", NAMES)
def test_clean_keeps_what_builds_ask_for(monkeypatch, tmp_path, name):
    monkeypatch.setattr(os, "environ", {name: "http://near.example", "SECRET": "sesame"})
    kept = variables.clean()
    assert "SECRET" not in kept
    arguments = llm_mirror.arguments(kept, tmp_path)
    assert arguments == llm_mirror.arguments(os.environ, tmp_path) != {}
