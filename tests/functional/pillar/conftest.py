"""
The pillar as Salt compiles it, with secrets in a keyring of the tests' own.
"""

import llm_catalogue
import llm_review
import llm_secret
import pytest
import salt.config
import salt.pillar


@pytest.fixture
def pillar_root(pillar_root, keyring, pillar):
    """A copy of the pillar, with every secret that the platform needs."""
    merged = llm_catalogue.merged
    services = {name: merged(pillar["defaults"], own) for name, own in pillar["services"].items()}
    llm_secret.generate(pillar_root, keyring, services, pillar["site"])
    return pillar_root


@pytest.fixture
def configuration(repository, pillar_root, keyring, tmp_path):
    """What a master and a minion of this repository have in their configuration alike."""
    return {
        "root_dir": str(tmp_path),
        "cachedir": str(tmp_path / "cache"),
        "pki_dir": str(tmp_path / "pki"),
        "sock_dir": str(tmp_path / "run"),
        "log_file": str(tmp_path / "log"),
        "extension_modules": str(tmp_path / "extmods"),
        "file_roots": {"base": [str(repository / "salt")]},
        "pillar_roots": {"base": [str(pillar_root)]},
        "gpg_keydir": keyring.folder,
    }


@pytest.fixture
def opts(configuration):
    """A master's configuration, as Salt has it in memory."""
    defaults = salt.config.DEFAULT_MASTER_OPTS
    return salt.config.apply_master_config({**configuration, "id": "node1_master"}, defaults)


@pytest.fixture
def compiled(opts):
    """A function that compiles the pillar of a minion; it takes the minion's grains too."""

    def compile_(host, grains=None):
        own = dict(opts, file_client="local")
        pillar = salt.pillar.Pillar(own, {"id": host, **(grains or {})}, host, "base")
        return pillar.compile_pillar()

    return compile_


@pytest.fixture
def reviewed(opts, pillar_root, keyring):
    """A function that returns all that ``salt-run llm.check`` says of the pillar."""

    def review():
        compile_ = llm_review.compiler(opts)
        return llm_review.problems(pillar_root, keyring=keyring, compiled=compile_)

    return review
