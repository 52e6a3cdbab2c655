"""
Certificates on a platform that serves: renewed and replaced under requests, refused to others.
"""

import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography import x509

from tests.support.certificates import Authority
from tests.support.operator import site_changed

pytestmark = [pytest.mark.docker, pytest.mark.slow]

STATE = "tail has a valid certificate"


def served(platform):
    """Return the certificate that a client is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", platform.port), 5) as plain,
        context.wrap_socket(plain, server_hostname="llm.internal") as connection,
    ):
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))


def in_place(platform, service="tail"):
    """Return the certificate that a service has been given."""
    path = platform.root / "services" / service / "tls/cert.pem"
    return x509.load_pem_x509_certificate(path.read_bytes())


def until_served(platform, serial):
    """Wait until clients are shown the certificate with ``serial``; return it."""
    deadline = time.monotonic() + 20
    while (found := served(platform)).serial_number != serial:
        assert time.monotonic() < deadline, "the new certificate is not served"
        time.sleep(0.2)
    return found


def names(certificate):
    """Return the DNS names of a certificate."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


@contextlib.contextmanager
def requests_all_the_time(platform):
    """Ask on connections of all ages meanwhile; none may fail. Gives the list of the answers."""
    context = ssl.create_default_context(cafile=platform.root / "trust/ca.pem")
    answers, over = [], threading.Event()

    def ask(keep):
        url = f"https://127.0.0.1:{platform.port}/health"
        with httpx.Client(verify=context, timeout=20, trust_env=False) as kept:
            while not over.wait(0.05):
                try:
                    if keep:
                        answers.append(kept.get(url).status_code)
                    else:
                        answers.append(httpx.get(url, verify=context, timeout=20).status_code)
                except httpx.HTTPError as err:
                    answers.append(repr(err))

    threads = [threading.Thread(target=ask, args=(keep,)) for keep in (True, False)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def lifetimes(platform, **days):
    """Have other lifetimes of certificates for a while."""
    path = "pillar/environments/dev.sls"
    found = yaml.safe_load((platform.folder / path).read_text())
    found["llm"]["certificates"] = days
    with platform.changed(path, yaml.safe_dump(found)):
        yield


def test_renewal_drops_no_connection(platform):
    before = {name: in_place(platform, name).serial_number for name in ("tail", "mesh", "ingress")}
    containers = platform.containers()
    assert served(platform).serial_number == before["tail"]
    with (
        lifetimes(platform, days=90, renew_days=60),
        requests_all_the_time(platform) as answers,
    ):
        done = platform.apply()
        after = {name: in_place(platform, name).serial_number for name in before}
        until_served(platform, after["tail"])
        time.sleep(1)
        assert platform.apply("tls") == {}
    assert set(done) == {f"{name} has a valid certificate" for name in before}
    assert "it runs out in 29 days" in str(done[STATE]) or "in 30 days" in str(done[STATE])
    assert not {before[name] for name in before} & {after[name] for name in after}
    assert len(answers) > 50
    assert set(answers) == {200}
    assert platform.containers() == containers


def test_schedule_renews_between_deploys(platform):
    before, containers = in_place(platform).serial_number, platform.containers()
    with lifetimes(platform, days=120, renew_days=95), requests_all_the_time(platform) as answers:
        platform.salt("*", "saltutil.refresh_pillar", "wait=True")
        platform.salt("*", "schedule.run_job", "certificates")
        deadline = time.monotonic() + 60
        while in_place(platform).serial_number == before:
            assert time.monotonic() < deadline, "the schedule has renewed nothing"
            time.sleep(0.2)
        until_served(platform, in_place(platform).serial_number)
    assert set(answers) == {200}
    assert platform.containers() == containers


def test_another_public_name_makes_another_certificate(platform):
    with site_changed(platform, public_name="llm.example.com"):
        done = platform.apply("tls")
        assert set(done) == {STATE}
        found = until_served(platform, in_place(platform).serial_number)
        assert "llm.example.com" in names(found)
        assert "llm.internal" not in names(found)
    assert set(platform.apply("tls")) == {STATE}
    assert "llm.internal" in names(until_served(platform, in_place(platform).serial_number))


@pytest.fixture
def own(tmp_path):
    """A certificate of the user's own: its files as site.yaml names them, and its serial."""
    serial = Authority().issue(tmp_path, "llm.internal")
    files = {"certificate": "cert.pem", "key": "key.pem", "authority": "ca.pem"}
    return {part: str(tmp_path / file) for part, file in files.items()}, serial


def test_own_certificate_is_served_and_clients_are_told_of_its_issuer(platform, own):
    files, serial = own
    with site_changed(platform, public_certificate=files):
        assert set(platform.apply("tls")) == {STATE}
        until_served(platform, serial)
        settings = platform.client_settings()
        assert settings["ca_file"] == files["authority"]
        assert settings["base_url"] == f"https://llm.internal:{platform.port}/v1"
        platform.run("llm.verify")
        assert platform.apply("tls") == {}
    assert set(platform.apply("tls")) == {STATE}
    until_served(platform, in_place(platform).serial_number)


@pytest.mark.parametrize("flaw", ["missing", "of another key"])
def test_own_certificate_that_is_no_good_changes_nothing(platform, own, flaw, tmp_path):
    files, _ = own
    if flaw == "missing":
        os.unlink(files["certificate"])
        said = files["certificate"]
    else:
        Authority().issue(tmp_path / "other", "llm.internal")
        files["key"] = str(tmp_path / "other/key.pem")
        said = "is not that of the certificate"
    before = in_place(platform).serial_number
    with site_changed(platform, public_certificate=files):
        done = platform.apply("tls", check=False)
    assert set(done) == {STATE}
    assert said in done[STATE]
    assert "PRIVATE" not in str(done)
    assert served(platform).serial_number == in_place(platform).serial_number == before


@pytest.fixture(scope="module")
def other_minion(platform, tmp_path_factory):
    """The configuration of an accepted minion that `site.yaml` does not know."""
    folder = tmp_path_factory.mktemp("other")
    configuration = yaml.safe_load(Path(platform.minion.config_dir, "minion").read_text())
    for key, name in (("pki_dir", "pki"), ("cachedir", "cache"), ("sock_dir", "run")):
        (folder / name).mkdir()
        configuration[key] = str(folder / name)
    configuration |= {"id": "other", "root_dir": str(folder), "log_file": str(folder / "log")}
    (folder / "minion").write_text(yaml.safe_dump(configuration))
    yield folder
    platform.called("salt-key", platform.master.config_dir, ["--yes", "--delete", "other"])


def _call(platform, config_dir, *arguments):
    command = platform.command("salt-call", config_dir, [*arguments, "--out=json"])
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("service", ["tail", "mesh", "ingress"])
def test_certificate_of_a_host_is_refused_to_another(platform, other_minion, service):
    done = _call(
        platform, other_minion, "x509.create_certificate", "ca_server=node1",
        f"signing_policy=node1-{service}", f"private_key={platform.root}/authority/ca.key",
    )  # fmt: skip
    assert "minion not permitted to use specified signing policy" in done.stdout + done.stderr
    assert "BEGIN CERTIFICATE" not in done.stdout


@pytest.mark.parametrize(
    "function", [["test.ping"], ["cmd.run", "id"], ["llm_config.secret", "head.key"]]
)
def test_minions_ask_one_another_for_nothing_else(platform, other_minion, function):
    done = _call(platform, other_minion, "publish.publish", "node1", *function)
    assert json.loads(done.stdout) == {"local": {}}


def test_key_of_the_authority_stays_where_it_is(platform):
    key = platform.root / "authority/ca.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o400
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert key.stat().st_uid == 0
    for certificate in (platform.root / "services").glob("*/tls/cert.pem"):
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
