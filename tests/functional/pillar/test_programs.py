"""
Salt's own programs with this repository: code found live and synced alike, answers that scripts
can trust, secrets that stay where they belong.
"""

import json
import pathlib
import re
import subprocess
import sys

import llm_secret
import pytest
import yaml

pytestmark = pytest.mark.slow
PROGRAMS = pathlib.Path(sys.executable).parent


@pytest.fixture
def run(configuration, tmp_path):
    """A function that runs one of Salt's programs; it takes further configuration."""
    folder = tmp_path / "conf"
    folder.mkdir()
    (tmp_path / "cache" / "proc").mkdir(parents=True)

    def run_(program, *arguments, stdin="", **more):
        own = configuration | {"root_dir": "/", "id": "node1", "file_client": "local"} | more
        (folder / "minion").write_text(yaml.safe_dump(own))
        (folder / "master").write_text(yaml.safe_dump(own | {"id": "node1_master"}))
        command = [PROGRAMS / program, "-c", folder, "--log-level=error", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, cwd=tmp_path
        )

    return run_


@pytest.fixture
def call(run):
    """A function that runs ``salt-call --local`` and returns the answer."""

    def call_(*arguments, **more):
        done = run("salt-call", "--local", "--out=json", *arguments, **more)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)["local"]

    return call_


@pytest.fixture
def command(run, repository):
    """A function that runs ``salt-run llm.<command>``."""

    def command_(*arguments, **more):
        return run("salt-run", *arguments, module_dirs=[str(repository)], **more)

    return command_


def test_check_with_code_found_live(call, repository):
    assert call("llm_config.check", module_dirs=[str(repository)]) == []


def test_check_with_code_synced(call):
    synced = call("saltutil.sync_all")
    assert "utils.llm_catalogue" in synced["utils"]
    assert call("llm_config.check") == []
    ret = next(
        iter(call("state.single", "llm_config.checked", "The configuration is sound").values())
    )
    assert ret["result"] is True


def test_checked_fails_before_anything_else(call, repository, pillar_root):
    path = pillar_root / "site.yaml"
    path.write_text(path.read_text().replace("public_port: 8443", "public_port: 84430"))
    answer = call(
        "state.single",
        "llm_config.checked",
        "The configuration is sound",
        module_dirs=[str(repository)],
    )
    ret = next(iter(answer.values()))
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert re.match(r"pillar/site.yaml:\d+: public_port: found 84430; expected", ret["comment"])


def test_check_ends_with_0_or_1(command, pillar_root):
    done = command("llm.check")
    assert (done.returncode, done.stdout) == (0, "The configuration is sound\n"), done.stderr
    path = pillar_root / "site.yaml"
    path.write_text(path.read_text().replace("public_port: 8443", "public_port: 84430"))
    done = command("llm.check", "--out=json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["sound"] is False
    assert len(answer["problems"]) == 1


def test_set_and_client_leave_no_key_behind(command, pillar_root, keyring, tmp_path):
    done = command("llm.secret", "set", "providers.openai", stdin="canary-provider\n")
    assert (done.returncode, done.stdout) == (0, "providers.openai is set\n"), done.stderr
    done = command("llm.client", "--out=json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["api_key"] == llm_secret.value(pillar_root, keyring, "clients.default")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"canary-provider" not in kept
    assert answer["api_key"].encode() not in kept


def test_client_unknown_ends_with_1(command):
    done = command("llm.client", "nobody")
    assert (done.returncode, done.stdout) == (
        1,
        'unknown client "nobody"; there are verify, default\n',
    )
