"""
``make bench``: how fast it is, beside what somebody would use in its place.
"""

import argparse
import pathlib

from bootstrap.testing import started_engine
from tests.benchmarks import changes, installation, twelve
from tests.benchmarks.figures import Figures

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def main():
    """Measure everything, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often each is measured")
    parser.add_argument("--json", default=REPOSITORY / "bench.json", help="where to write figures")
    arguments = parser.parse_args()
    figures = Figures()
    with started_engine():
        twelve.measure(figures, arguments.runs)
        with installation.installed(figures) as installed:
            installation.measure(figures, arguments.runs, installed)
            changes.measure(figures, arguments.runs, installed)
        installation.measure_bare(figures)
    figures.show()
    figures.save(arguments.json)


main()
