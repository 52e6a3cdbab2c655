"""
What was measured: medians of several runs, as a table for people and as JSON for scripts.
"""

import json
import os
import platform
import statistics
import subprocess
import time

from rich.console import Console
from rich.table import Table


class Failed(Exception):
    """A command that was to be measured went wrong."""


def run(command, code=0, **options):
    """
    Run ``command``, a list, and return the seconds it took; raise `Failed` with its output when its
    exit code is not ``code``. ``options`` are those of ``subprocess.run``.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    seconds = time.perf_counter() - start
    if done.returncode != code:
        raise Failed(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


class Figures:
    """
    Measured values by name, and the aims they are held against.
    """

    def __init__(self):
        self.samples = {}  # name: {"unit": ..., "values": [...]}
        self.aims = []
        self.notes = []

    def add(self, name, value, unit="s"):
        """Add one sample of the figure ``name``."""
        self.samples.setdefault(name, {"unit": unit, "values": []})["values"].append(value)

    def median(self, name):
        """Return the median of a figure, or ``None`` when it was not measured."""
        return statistics.median(self.samples[name]["values"]) if name in self.samples else None

    def aim(self, text, value, most=None, least=None):
        """
        Hold ``value`` against an aim, ``most`` or ``least``; ``None`` is an aim not measured.
        """
        met = value is not None and (most is None or value <= most)
        met = met and (least is None or value >= least)
        self.aims.append({"aim": text, "value": value, "most": most, "least": least, "met": met})

    def note(self, text):
        """Add a sentence for the reader, such as what could not be measured and why."""
        self.notes.append(text)

    def data(self):
        """Return all of it as plain data."""
        return {
            "machine": {
                "cores": os.cpu_count(),
                "kernel": platform.release(),
                "python": platform.python_version(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
            "figures": {
                name: {"median": self.median(name), **sample}
                for name, sample in self.samples.items()
            },
            "aims": self.aims,
            "notes": self.notes,
        }

    def save(self, path):
        """Write all of it to ``path`` as JSON."""
        with open(path, "w") as file:
            json.dump(self.data(), file, indent=2)
            file.write("\n")

    def show(self, console=None):
        """Print tables of the figures and the aims."""
        console = console or Console()
        table = Table("figure", "median", "lowest", "highest", "runs", title="Benchmark")
        for name, sample in self.samples.items():
            values, unit = sample["values"], sample["unit"]
            shown = [f"{each:.3g} {unit}" for each in (self.median(name), min(values), max(values))]
            table.add_row(name, *shown, str(len(values)))
        console.print(table)
        table = Table("aim", "measured", "wanted", "met")
        for aim in self.aims:
            wanted = f"≤ {aim['most']:.3g}" if aim["most"] is not None else f"≥ {aim['least']:.3g}"
            value = "–" if aim["value"] is None else f"{aim['value']:.3g}"
            table.add_row(aim["aim"], value, wanted, "yes" if aim["met"] else "NO")
        if self.aims:
            console.print(table)
        for note in self.notes:
            console.print(note)
