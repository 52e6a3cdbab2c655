"""
An installation of the bootstrap program whose pillar and root are the test's own.
"""

import sys

import pytest

from bootstrap import installation


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A function that writes site.yaml and returns the installation that it describes."""
    monkeypatch.setattr(installation, "PYTHON", sys.executable)

    def write(text="", forgiving=False):
        pillar = tmp_path / "pillar"
        pillar.mkdir(exist_ok=True)
        root = f"root: {tmp_path}/root\n" if "root:" not in text else ""
        (pillar / "site.yaml").write_text(f"name: trial\n{root}{text}")
        monkeypatch.setenv("LLM_PILLAR", str(pillar))
        return installation.Installation(forgiving=forgiving)

    return write
