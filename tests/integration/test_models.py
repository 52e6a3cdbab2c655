"""
Model files of the host: found missing in time, brought, served, and served anew when they change.
"""

import hashlib
import random

import pytest

from tests.support.operator import site_changed
from tests.support.platform import docker

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ROLE = b"{{ message['role'] }}"  # in the chat template of the generated model: "user"
LONGER = b"{{ 'another_role'  }}"


@pytest.fixture
def own(platform, tmp_path):
    """The file of a model, which `site.yaml` may name for a while."""
    path = tmp_path / "own.gguf"
    docker("cp", f"{platform.container('model-proxy')}:/usr/share/llm/tiny.gguf", str(path))
    with site_changed(platform):
        yield path
    platform.apply("model-proxy")


def _models(file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"tiny": {"path": str(file), "sha256": digest}}


def _prompt_tokens(client):
    """Return how long a question is that no cache knows; the model's tokens are letters."""
    question = f"{random.randrange(10**8):08}"
    answer = client.chat.completions.create(
        model="tiny", max_tokens=1, messages=[{"role": "user", "content": question}]
    )
    return answer.usage.prompt_tokens


def test_a_model_file_that_changes_is_served(platform, client, own):
    tokens = _prompt_tokens(client)
    platform.change_site(models=_models(own))
    platform.deploy()
    assert _prompt_tokens(client) == tokens
    before, name = platform.containers(), platform.container("model-proxy")
    content = own.read_bytes()
    assert ROLE in content
    own.unlink()
    own.write_bytes(content.replace(ROLE, LONGER))
    platform.change_site(models=_models(own))
    foreseen = platform.apply("test=True")
    assert platform.containers() == before
    done = platform.apply()
    assert foreseen == done
    assert set(done) == {"The model tiny is here", "model-proxy is running"}
    assert "file tiny.gguf changed" in str(done["model-proxy is running"])
    after = platform.containers()
    assert before.keys() - after.keys() == {name}
    assert after.keys() - before.keys() == {platform.container("model-proxy")}
    assert _prompt_tokens(client) == tokens + len("another_role") - len("user")
    assert platform.apply() == {}


def test_files_of_the_host_that_are_missing_stop_a_deploy_before_it_begins(platform):
    model = {"path": "/nowhere/own.gguf", "sha256": 64 * "0"}
    certificate = {"certificate": "/nowhere/cert.pem", "key": "/nowhere/key.pem"}
    before = platform.containers()
    with site_changed(platform, models={"tiny": model}, public_certificate=certificate):
        done = platform.deploy(check=False)
    assert done.returncode == 1
    for file in (model["path"], *certificate.values()):
        assert f"source file {file} missing on host node1" in done.stdout
    assert "Every host has engine" in done.stdout.partition("missing on host")[2]
    assert platform.containers() == before
