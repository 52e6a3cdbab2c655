"""
A minion's key is accepted by its fingerprint, and only then.
"""

import io

import pytest
import salt.crypt
from salt.utils.crypt import pem_finger

from bootstrap import keys
from bootstrap.progress import Failure, Progress


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two public keys as Salt makes them."""
    return [salt.crypt.gen_keys(2048)[1] for _ in range(2)]


@pytest.fixture
def offered(site, pairs):
    """A function that puts the keys of minion and master in place, by index."""
    installation = site()

    def put(own, bank, key):
        for folder, name, index in (
            ("minion", "minion.pub", own),
            (f"master/{bank}", "node1", key),
        ):
            (installation.pki / folder).mkdir(parents=True, exist_ok=True)
            (installation.pki / folder / name).write_text(pairs[index])
        return installation

    return put


@pytest.fixture
def progress():
    """Progress that nobody reads."""
    return Progress(1, out=io.StringIO())


def test_fingerprint_is_the_one_that_salt_shows(tmp_path, pairs):
    path = tmp_path / "key.pub"
    path.write_text(pairs[0])
    assert keys.fingerprint(path) == pem_finger(str(path), sum_type="sha256")


def test_fingerprint_of_nothing_is_empty(tmp_path):
    assert keys.fingerprint(tmp_path / "none") == ""


def test_ensure_accepted_leaves_an_accepted_key_alone(offered, progress):
    assert keys.ensure_accepted(progress, offered(0, "minions", 0), "node1") is False


@pytest.mark.parametrize("bank", ["minions_pre", "minions_denied"])
def test_ensure_accepted_refuses_another_key_under_this_name(offered, progress, bank, pairs):
    installation = offered(0, bank, 1)
    with pytest.raises(Failure) as failure:
        keys.ensure_accepted(progress, installation, "node1", timeout=1)
    assert keys.fingerprint(installation.pki / "minion" / "minion.pub") in str(failure.value)
    assert not (installation.pki / "master" / "minions" / "node1").exists()


def test_ensure_accepted_gives_up_when_no_key_comes(site, progress):
    with pytest.raises(Failure, match="node1 offers its key"):
        keys.ensure_accepted(progress, site(), "node1", timeout=0.1)
