import json
import sys

import pytest
from rich.console import Console

from tests.benchmarks.figures import Failed, Figures, run


@pytest.fixture
def figures():
    figures = Figures()
    for value in (3.0, 1.0, 2.0):
        figures.add("first run", value)
    return figures


def test_median(figures):
    assert figures.median("first run") == 2.0
    assert figures.median("never measured") is None


@pytest.mark.parametrize(
    ("value", "bounds", "met"),
    [
        (1, {"most": 2}, True),
        (3, {"most": 2}, False),
        (3, {"least": 2}, True),
        (1, {"least": 2}, False),
        (None, {"most": 2}, False),
    ],
)
def test_aim(figures, value, bounds, met):
    figures.aim("quick", value, **bounds)
    assert figures.data()["aims"][0]["met"] is met


def test_save_and_show(figures, tmp_path):
    figures.aim("quick", None, most=1)
    figures.note("it rained")
    figures.save(tmp_path / "bench.json")
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["figures"]["first run"]["median"] == 2.0
    assert saved["notes"] == ["it rained"]
    console = Console(record=True, width=120)
    figures.show(console)
    shown = console.export_text()
    assert "first run" in shown
    assert "it rained" in shown


def test_run_takes_time_and_tells_failures():
    assert run([sys.executable, "-c", ""]) > 0
    with pytest.raises(Failed, match="no good"):
        run([sys.executable, "-c", "raise SystemExit('no good')"])
    assert run([sys.executable, "-c", "raise SystemExit(4)"], code=4) > 0
