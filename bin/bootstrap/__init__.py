"""The commands of the Makefile: they bring the platform up, and take it away again."""

import sys
from pathlib import Path

# What needs nothing but Python's own library is shared with Salt's modules.
sys.path.append(str(Path(__file__).resolve().parents[2] / "_utils"))
