"""
Salt's configuration, as written for this machine.
"""

import os
import re
import stat
import subprocess
import sys
from importlib import metadata

import pytest
import salt.config
import yaml

from bootstrap import configuration, daemons, environment, launch

HOSTS = "hosts: {node1: {address: 127.0.0.1, roles: []}}\n"


@pytest.fixture
def installation(site):
    """An installation whose configuration is written."""
    found = site(HOSTS + "salt: {publish_port: 14505, return_port: 14506}\n")
    configuration.ensure(found)
    return found


@pytest.fixture
def master(installation):
    """The master's configuration."""
    return yaml.safe_load((installation.conf / "master").read_text())


@pytest.fixture
def minion(installation):
    """The minion's configuration."""
    return yaml.safe_load((installation.conf / "minion").read_text())


def test_second_time_changes_nothing(installation):
    assert configuration.ensure(installation) == []


def test_master_accepts_no_key_by_itself(master):
    assert master["auto_accept"] is False
    assert master["open_mode"] is False
    assert not {"autosign_file", "autoreject_file", "publisher_acl", "external_auth"} & set(master)


def test_master_lets_minions_ask_for_certificates_and_nothing_else(master):
    assert master["peer"] == {".*": ["x509.sign_remote_certificate"]}
    assert master["on_demand_ext_pillar"] == []


def test_file_server_serves_the_states_and_not_the_pillar(master, repository):
    assert master["file_roots"] == {"base": [f"{repository}/salt"]}
    assert master["fileserver_followsymlinks"] is True


def test_no_log_takes_what_prints_the_text_of_the_pillar(master, minion):
    for daemon in (master, minion):
        levels = daemon["log_granular_levels"]
        for logger in ("salt.pillar", "salt.utils.templates", "salt.loaded.int.render.gpg"):
            assert levels[logger] == "quiet"


def test_all_of_salt_lies_below_its_folder(installation, master, minion):
    for name in ("pki_dir", "cachedir", "sock_dir", "pidfile", "log_file", "gpg_keydir"):
        for daemon in (master, minion):
            assert daemon[name].startswith(f"{installation.salt}/")


UNUSED = (  # by what we start: proxies of Salt for other networks, Windows, the user's own ssh
    "syndic_log_file", "syndic_pidfile", "winrepo_dir", "winrepo_dir_ng", "thorium_roots",
    "master_roots", "ssh_config_file",
)  # fmt: skip


def paths(value):
    """Yield the absolute paths in a value of Salt's configuration."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from paths(each)
    elif isinstance(value, str) and value.startswith("/"):
        yield value


@pytest.mark.parametrize("daemon", ["master", "minion"])
def test_no_default_of_salt_leads_out_of_its_folder(installation, repository, daemon):
    read = getattr(salt.config, f"{daemon}_config")
    effective = read(str(installation.conf / daemon))
    ours = (f"{installation.salt}/", f"{installation.pillar}", f"{repository}")
    strange = {
        option: path
        for option, value in effective.items()
        for path in paths(value)
        if not path.startswith(ours) and option not in UNUSED
    }
    watched = {"engines": str(installation.root)} if daemon == "minion" else {}
    assert strange == {"root_dir": "/"} | watched


def test_minion_and_master_meet(master, minion):
    assert (minion["master"], minion["master_port"]) == ("127.0.0.1", master["ret_port"])
    assert master["interface"] == "127.0.0.1"
    assert minion["publish_port"] == master["publish_port"] == 14505


def test_minion_that_is_asked_for_nothing_does_nothing(minion):
    options = salt.config.apply_minion_config(minion, salt.config.DEFAULT_MINION_OPTS.copy())
    assert not options["mine_enabled"]
    assert options.get("schedule", {}) == {}
    assert options["master_alive_interval"] == options["ping_interval"] == 0


def test_masterless_and_by_the_master_are_the_same_code_and_data(master, minion):
    for name in ("file_roots", "pillar_roots", "module_dirs", "gpg_keydir"):
        assert minion[name] == master[name]


def test_folders_are_for_root_alone(installation):
    for folder in [installation.salt, *installation.salt.iterdir()]:
        if folder.is_dir():
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    assert stat.S_IMODE(installation.root.stat().st_mode) == 0o711
    for name in ("master", "minion", "Saltfile"):
        assert stat.S_IMODE((installation.conf / name).stat().st_mode) == 0o600


def test_saltfile_of_the_checkout_names_the_link_for_every_program(repository):
    saltfile = yaml.safe_load((repository / "Saltfile").read_text())
    programs = {
        entry.name
        for entry in metadata.distribution("salt").entry_points
        if entry.group == "console_scripts"
    }
    unused = {"salt-api", "salt-cloud", "salt-pip", "salt-proxy", "salt-syndic", "spm"}
    assert set(saltfile) >= programs - unused
    assert {values["config_dir"] for values in saltfile.values()} == {configuration.LINK.name}


@pytest.mark.parametrize("program", daemons.PROGRAMS)
@pytest.mark.parametrize("template", ["program.conf", "unit.service"])
def test_daemons_come_back_and_use_this_configuration(installation, program, template):
    text = daemons.Keeper(installation).filled(template, program=program)
    assert f"bin/{program}" in text
    assert str(installation.conf) in text
    assert "autorestart=true" in text or "Restart=always" in text


def test_daemons_restart_when_what_they_read_changes(installation):
    keeper = daemons.Keeper(installation)
    before = keeper.digest()
    assert keeper.digest() == before
    with open(installation.conf / "minion", "a") as file:
        file.write("# more\n")
    assert keeper.digest() != before


def test_daemons_restart_when_their_variables_change(installation, monkeypatch):
    before = daemons.Keeper(installation).digest()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert configuration.ensure(installation) == ["environment"]
    assert daemons.Keeper(installation).digest() != before


def test_variables_of_a_daemon_are_those_of_the_last_up(installation, monkeypatch):
    odd = 'http://me:p"a$s\\w`d%20@proxy:3128'
    monkeypatch.setenv("HTTPS_PROXY", odd)
    monkeypatch.setenv("EDITOR", "of the user alone")
    configuration.ensure(installation)
    program = installation.salt / "salt-minion"
    program.write_text("#!/bin/sh\nexec env -0\n")
    program.chmod(0o755)
    started = subprocess.run(
        [sys.executable, launch.__file__, str(program), str(installation.conf)],
        capture_output=True, text=True, check=True, env={"HTTP_PROXY": "of the supervisor"},
    )  # fmt: skip
    found = dict(pair.split("=", 1) for pair in started.stdout.split("\0") if pair)
    assert found["HTTPS_PROXY"] == odd
    assert not {"HTTP_PROXY", "EDITOR"} & set(found)


def test_locks_agree_on_what_they_share():
    platform, tests = ((environment.REQUIREMENTS / f"{name}.txt") for name in ("platform", "tests"))
    pinned = {line for line in platform.read_text().splitlines() if "==" in line}
    assert pinned <= set(tests.read_text().splitlines())


def test_lock_of_uv_can_be_cut_out():
    lines = environment.lines("uv")
    assert lines.startswith(f"uv=={environment.pinned('uv')} ")
    assert lines.count("==") == 1
    assert "--hash=sha256:" in lines


def test_environment_is_not_current_for_another_lock(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(environment, "PYTHON", tmp_path)
    assert environment.is_current("platform") is False
    environment.STAMP.write_text('{"platform": "another"}')
    assert environment.is_current("platform") is False
    environment.STAMP.write_text(f'{{"platform": "{environment.digest("platform")}"}}')
    assert environment.is_current("platform") is True


def test_makefile_lists_every_command(repository):
    text = (repository / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY"))
    listed = set(re.findall(r"^([a-z]+): .*## ", text, re.MULTILINE))
    assert listed == set(phony.split(":")[1].split())
    assert os.access(repository / ".ci" / "run", os.X_OK)
