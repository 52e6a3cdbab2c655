"""
Seven containers with health checks, as many as the platform has: how long it takes to bring an
older version back with what somebody would use in this project's place.
"""

import tempfile

from tests.benchmarks import twelve
from tests.benchmarks.figures import run

VERSIONS = ("llm-benchmark/seven:1", "llm-benchmark/seven:2")
PEERS = {
    "Ansible": lambda image: twelve.ansible("seven.yml", image),
    "docker compose": lambda image: twelve.compose("seven.yaml", image),
}


def measure(figures, runs):
    """
    Measure how long each peer takes from the newer version back to the older one.
    """
    old, new = VERSIONS
    twelve.CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, twelve.images(folder, *VERSIONS):
        for peer, command in PEERS.items():
            if not command(old):
                continue
            try:
                for _ in range(runs):
                    run(**command(new))
                    figures.add(name(peer), run(**command(old)))
            finally:
                twelve.clean()


def name(peer):
    """Return what the figure of a peer is called."""
    return f"old version again, seven small containers with health check: {peer}"
