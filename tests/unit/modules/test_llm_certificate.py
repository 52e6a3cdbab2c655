"""
Certificates, with Salt's own ``x509_v2`` in place of the one that its loader gives.
"""

import concurrent.futures
import datetime
import os
import pathlib
import re
import stat
from unittest.mock import create_autospec

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from salt.exceptions import CommandExecutionError
from salt.modules import x509_v2
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_certificate as llm_certificate_module
from _modules import llm_config
from tests.support.certificates import Authority

NAMES = ["DNS:tail.node1.llm", "DNS:llm.internal", "IP:127.0.0.1"]


@pytest.fixture
def platform(platform, tmp_path):
    """The platform, in a folder of the test and of its user."""
    platform["site"] |= {"root": str(tmp_path / "root"), "public_certificate": {}}
    for service in platform["services"].values():
        service["user"] = os.getuid()
    return platform


@pytest.fixture
def policy(platform):
    """What the authority signs for tail on this host."""
    root = platform["site"]["root"]
    return {
        "signing_private_key": f"{root}/authority/ca.key",
        "signing_cert": f"{root}/trust/ca.pem",
        "CN": "tail.node1.llm",
        "subjectAltName": ", ".join(NAMES),
        "basicConstraints": "critical, CA:FALSE",
        "days_valid": platform["certificates"]["days"],
    }


@pytest.fixture
def asked():
    """With which arguments a certificate was asked for, each time."""
    return []


@pytest.fixture
def running():
    """The state runs that are under way."""
    return []


@pytest.fixture
def llm_certificate(configure_loader, platform, pillar, policy, asked, running):
    def create_certificate(**keywords):
        asked.append(keywords)
        return x509_v2.create_certificate(**keywords)

    salt = {
        "llm_config.platform": lambda: platform,
        "x509.create_private_key": x509_v2.create_private_key,
        "x509.create_certificate": create_certificate,
        "x509.get_signing_policy": {"node1-tail": policy}.__getitem__,
        "llm_config.carried": lambda: ["tail", "cache"],
        "state.running": lambda: running,
        "llm_config.check": create_autospec(llm_config.check, return_value=[]),
    }
    names = {"llm": pillar | {"names": {"tail": NAMES}}}
    opts = {"cachedir": "/nowhere", "test": False}
    with LoaderModuleMock({x509_v2: {"__opts__": opts, "__salt__": {}}}):
        yield configure_loader(llm_certificate_module, salt=salt, pillar=names)


@pytest.fixture
def root(llm_certificate, tmp_path):
    """The root of a host that has an authority, and a certificate for tail."""
    llm_certificate.make_authority()
    llm_certificate.renew("tail")
    return tmp_path / "root"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def loaded(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_everything_is_missing_at_first(llm_certificate):
    assert llm_certificate.authority_flaws() == ["there is none"]
    assert llm_certificate.flaws("tail") == ["there is none"]


def test_made_ones_have_no_flaws(llm_certificate, root):
    assert llm_certificate.authority_flaws() == []
    assert llm_certificate.flaws("tail") == []


def test_keys_are_their_owners_alone(root):
    tls = root / "services/tail/tls"
    assert mode(root / "authority") == 0o700
    assert mode(root / "authority/ca.key") == 0o400
    assert mode(root / "trust/ca.pem") == 0o444
    assert mode(tls.parent) == mode(root / "services") == 0o700
    assert mode(tls) == 0o500
    assert mode(tls / "key.pem") == 0o400
    assert not list(root.rglob(".*"))


def test_authority_signs_nothing_that_signs(root):
    authority = loaded(root / "trust/ca.pem")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    own = loaded(root / "services/tail/tls/cert.pem")
    own.verify_directly_issued_by(authority)
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_authority_keeps_its_key_when_it_is_renewed(llm_certificate, root):
    key = (root / "authority/ca.key").read_bytes()
    llm_certificate.make_authority()
    assert (root / "authority/ca.key").read_bytes() == key
    assert llm_certificate.flaws("tail") == []


def test_service_keeps_its_key_when_it_is_renewed(llm_certificate, root):
    tls = root / "services/tail/tls"
    key, serial = (tls / "key.pem").read_bytes(), loaded(tls / "cert.pem").serial_number
    llm_certificate.renew("tail")
    assert (tls / "key.pem").read_bytes() == key
    assert loaded(tls / "cert.pem").serial_number != serial


def test_authority_of_another_host_is_asked_by_policy(llm_certificate, root, platform, asked):
    platform["site"]["authority"] = "node0"
    with pytest.raises(Exception, match="publish"):  # there is no master to pass it on
        llm_certificate.renew("tail")
    assert asked[-1].pop("private_key").endswith("tls/key.pem")
    assert asked[-1] == {"ca_server": "node0", "signing_policy": "node1-tail"}


def test_flaws_of_one_that_runs_out(llm_certificate, root, platform):
    platform["certificates"]["renew_days"] = platform["certificates"]["days"]
    days = platform["certificates"]["days"] - 1
    assert llm_certificate.flaws("tail") == [f"it runs out in {days} days"]


PAST = {"not_before": "2020-01-01 00:00:00", "not_after": "2020-02-01 00:00:00"}
FUTURE = {"not_before": "2100-01-01 00:00:00", "not_after": "2100-02-01 00:00:00"}


def test_one_that_ran_out_while_the_platform_was_down_is_renewed(llm_certificate, root, policy):
    sound = dict(policy)
    policy |= PAST
    llm_certificate.renew("tail")
    assert llm_certificate.flaws("tail") == ["it ran out on 2020-02-01 00:00 UTC"]
    policy.clear()
    policy |= sound
    assert llm_certificate.renew_due() == {"tail": ["it ran out on 2020-02-01 00:00 UTC"]}
    assert llm_certificate.flaws("tail") == []


def test_one_from_before_the_clock_was_set_back_is_renewed(llm_certificate, root, policy):
    sound = dict(policy)
    policy |= FUTURE
    llm_certificate.renew("tail")
    (flaw,) = llm_certificate.flaws("tail")
    assert flaw.startswith("it is not valid before 2100-01-01 00:00 UTC, and it is ")
    policy.clear()
    policy |= sound
    assert set(llm_certificate.renew_due()) == {"tail"}
    assert llm_certificate.flaws("tail") == []


def test_one_of_an_authority_whose_clock_is_a_little_ahead_is_valid(llm_certificate, root, policy):
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    policy["not_before"] = f"{start:%Y-%m-%d %H:%M:%S}"
    llm_certificate.renew("tail")
    assert llm_certificate.flaws("tail") == []


@pytest.mark.parametrize(
    ("times", "said"), [(PAST, "it ran out on 2020-02-01"), (FUTURE, "it is not valid before 2100")]
)
def test_authority_out_of_its_time_is_renewed_with_its_key(llm_certificate, root, times, said):
    key, certificate = root / "authority/ca.key", root / "trust/ca.pem"
    text = x509_v2.create_certificate(signing_private_key=str(key), CN="llm authority", **times)
    certificate.chmod(0o600)
    certificate.write_text(text)
    before = key.read_bytes()
    (flaw,) = llm_certificate.authority_flaws()
    assert flaw.startswith(said)
    llm_certificate.make_authority()
    assert llm_certificate.authority_flaws() == llm_certificate.flaws("tail") == []
    assert key.read_bytes() == before


def test_renew_due_waits_for_a_clock_that_is_right(llm_certificate, root, policy):
    policy |= PAST
    llm_certificate.renew("tail")
    key, certificate = root / "authority/ca.key", root / "trust/ca.pem"
    text = x509_v2.create_certificate(signing_private_key=str(key), CN="llm authority", **FUTURE)
    certificate.chmod(0o600)
    certificate.write_text(text)
    assert llm_certificate.renew_due() == {}


def test_renew_due_renews_what_runs_out(llm_certificate, root, platform):
    assert llm_certificate.renew_due() == {}
    before = loaded(root / "services/tail/tls/cert.pem").serial_number
    platform["certificates"] |= {"renew_days": 30, "authority_days": 3650}
    assert llm_certificate.renew_due() == {"tail": ["it runs out in 29 days"]}
    assert loaded(root / "services/tail/tls/cert.pem").serial_number != before


def test_renew_due_leaves_a_pillar_with_mistakes_to_people(llm_certificate, root, platform):
    llm_certificate.__salt__["llm_config.check"].return_value = ["site.yaml: a mistake"]
    llm_certificate.__salt__["llm_config.platform"] = None
    assert llm_certificate.renew_due() == {}


def test_renew_due_renews_the_authority(llm_certificate, root, platform):
    platform["certificates"] |= {"renew_days": 3650, "authority_days": 9999}
    assert llm_certificate.renew_due()["authority"] == ["it runs out in 3649 days"]
    assert llm_certificate.authority_flaws() == []


@pytest.mark.parametrize("missing", ["everything", "services/tail/tls/cert.pem"])
def test_renew_due_makes_nothing_that_is_not_deployed(llm_certificate, tmp_path, missing):
    if missing != "everything":
        llm_certificate.make_authority()
        llm_certificate.renew("tail")
        (tmp_path / "root" / missing).unlink()
    before = sorted(tmp_path.rglob("*"))
    assert llm_certificate.renew_due() == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_renew_due_leaves_other_names_to_the_deploy(llm_certificate, root, policy):
    policy["subjectAltName"] = "DNS:old.internal"
    llm_certificate.renew("tail")
    assert llm_certificate.renew_due() == {}


def test_renew_due_leaves_it_to_a_state_run(llm_certificate, root, platform, running):
    platform["certificates"]["renew_days"] = platform["certificates"]["days"]
    running.append('The function "state.apply" is running')
    assert llm_certificate.renew_due() == {}
    running.clear()
    assert set(llm_certificate.renew_due()) == {"tail"}


def test_renew_due_says_what_failed_after_the_rest(llm_certificate, root, platform):
    platform["certificates"] |= {"renew_days": 3650, "authority_days": 9999}
    (root / "services/tail/tls/cert.pem").chmod(0o600)
    (root / "services/tail/tls/cert.pem").write_text("half")
    with pytest.raises(CommandExecutionError, match=r"^certificates are not renewed: tail: .*read"):
        llm_certificate.renew_due()
    assert llm_certificate.authority_flaws() == []


def test_renew_due_takes_over_own_files_that_were_renewed(llm_certificate, root, own, tmp_path):
    llm_certificate.renew("tail")
    assert llm_certificate.renew_due() == {}
    serial = Authority().issue(tmp_path / "own", "llm.internal", end=60 * 24 * 90)
    assert llm_certificate.renew_due() == {"tail": ["the certificate of site.yaml is another"]}
    assert loaded(root / "services/tail/tls/cert.pem").serial_number == serial


def test_list_tells_names_and_times(llm_certificate, root, platform, own):
    platform["site"]["public_certificate"] = {}
    found = llm_certificate.list_()
    expires = loaded(root / "services/tail/tls/cert.pem").not_valid_after_utc
    renews = expires - datetime.timedelta(days=platform["certificates"]["renew_days"])
    assert set(found) == {"authority", "tail"}
    assert found["authority"]["names"] == []
    assert found["tail"] == {
        "names": sorted(NAMES), "expires": expires.isoformat(), "renews": renews.isoformat(),
    }  # fmt: skip
    platform["site"]["public_certificate"] = own
    llm_certificate.renew("tail")
    assert llm_certificate.list_()["tail"]["renews"] is None


def test_list_of_a_host_that_has_none(llm_certificate):
    assert llm_certificate.list_() == {"authority": None, "tail": None}


def test_minion_and_state_run_do_not_write_the_same_file_at_once(llm_certificate, root):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(llm_certificate.make_authority) for _ in range(40)]:
            done.result()
    assert llm_certificate.authority_flaws() == []


def test_flaws_of_one_with_other_names(llm_certificate, root, policy):
    policy["subjectAltName"] = "DNS:old.internal, IP:::1"
    llm_certificate.renew("tail")
    (flaw,) = llm_certificate.flaws("tail")
    assert flaw.startswith("its names are DNS:old.internal, IP:::1, not DNS:llm.internal, ")


def test_flaws_of_one_that_a_former_authority_signed(llm_certificate, root):
    (root / "authority/ca.key").unlink()
    llm_certificate.make_authority()
    assert llm_certificate.flaws("tail") == ["it is not the authority's"]


def test_flaws_of_one_whose_key_is_another(llm_certificate, root):
    key = root / "services/tail/tls/key.pem"
    text = x509_v2.create_private_key(algo="ec", keysize=256)
    key.chmod(0o600)
    key.write_text(text)
    (flaw,) = llm_certificate.flaws("tail")
    assert flaw == f"the key {key} is not that of the certificate {key.with_name('cert.pem')}"
    assert text.split("\n")[1] not in flaw


@pytest.mark.parametrize("file", ["key.pem", "cert.pem"])
def test_flaws_of_one_that_is_half_written(llm_certificate, root, file):
    path = root / "services/tail/tls" / file
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:60])
    (flaw,) = llm_certificate.flaws("tail")
    assert flaw.startswith("key or certificate cannot be read: ")


def test_renew_mends_a_key_that_cannot_be_read(llm_certificate, root):
    key = root / "services/tail/tls/key.pem"
    key.chmod(0o600)
    key.write_bytes(b"half")
    llm_certificate.renew("tail")
    assert llm_certificate.flaws("tail") == []


@pytest.fixture
def own(platform, tmp_path):
    """A certificate of the user's own, with its key."""
    Authority().issue(tmp_path / "own", "llm.internal")
    files = {"certificate": "cert.pem", "key": "key.pem"}
    files = {part: str(tmp_path / "own" / file) for part, file in files.items()}
    platform["site"]["public_certificate"] = files
    return files


def test_own_certificate_takes_the_place_of_ours(llm_certificate, root, own, tmp_path):
    said = ["the key of site.yaml is another", "the certificate of site.yaml is another"]
    assert llm_certificate.flaws("tail") == said
    llm_certificate.renew("tail")
    assert llm_certificate.flaws("tail") == []
    tls = root / "services/tail/tls"
    assert (tls / "cert.pem").read_bytes() == (tmp_path / "own/cert.pem").read_bytes()
    assert mode(tls / "key.pem") == 0o400


@pytest.mark.parametrize("names", [["*.internal"], ["other.internal", "LLM.internal"]])
def test_own_certificate_for_the_public_name_among_others(llm_certificate, own, tmp_path, names):
    Authority().issue(tmp_path / "own", *names)
    llm_certificate.renew("tail")
    assert llm_certificate.flaws("tail") == []


def spoilt(own, flaw):
    """Make the user's own certificate unfit; return what is said of it."""
    folder = pathlib.Path(own["key"]).parent
    match flaw:
        case "missing":
            os.unlink(own["key"])
            return f"{own['key']} is not on this host"
        case "half written":
            os.truncate(own["certificate"], 60)
            return "key or certificate cannot be read: "
        case "another key":
            pathlib.Path(own["key"]).write_text(x509_v2.create_private_key(algo="ec", keysize=256))
            return f"the key {own['key']} is not that of the certificate {own['certificate']}"
        case "other names":
            Authority().issue(folder, "*.llm.internal", "127.0.0.1")
            return "it is for DNS:*.llm.internal, IP:127.0.0.1, not for public_name llm.internal"
        case "no names":
            Authority().issue(folder)
            return "it is for no names, not for public_name llm.internal"
        case "expired":
            Authority().issue(folder, "llm.internal", start=-60, end=-1)
            return "it ran out on "
        case "not yet valid":
            Authority().issue(folder, "llm.internal", start=60)
            return "it is not valid before "


@pytest.mark.parametrize(
    "flaw",
    [
        "missing", "half written", "another key", "other names", "no names", "expired",
        "not yet valid",
    ],
)  # fmt: skip
def test_own_certificate_that_is_unfit_changes_nothing(llm_certificate, root, own, flaw):
    said = re.escape(f"{own['certificate']} of site.yaml: {spoilt(own, flaw)}")
    tls = root / "services/tail/tls"
    before = [path.read_bytes() for path in sorted(tls.iterdir())]
    for function in (llm_certificate.flaws, llm_certificate.renew):
        with pytest.raises(CommandExecutionError, match=said):
            function("tail")
    assert [path.read_bytes() for path in sorted(tls.iterdir())] == before


def test_own_certificate_with_several_flaws_is_told_of_all(llm_certificate, own, tmp_path):
    Authority().issue(tmp_path / "own", "other.internal", start=-60, end=-1)
    with pytest.raises(CommandExecutionError, match="it ran out on .*; it is for DNS:other"):
        llm_certificate.flaws("tail")


def test_own_certificate_that_runs_out_is_warned_of(llm_certificate, root, own, tmp_path):
    said = [f"it runs out in 0 days: renew {own['certificate']} of site.yaml"]
    assert llm_certificate.warnings("tail") == said
    Authority().issue(tmp_path / "own", "llm.internal", end=60 * 24 * 90)
    assert llm_certificate.warnings("tail") == []


def test_nothing_to_warn_of_the_platforms_own(llm_certificate, root, platform):
    platform["certificates"]["renew_days"] = platform["certificates"]["days"]
    assert llm_certificate.warnings("tail") == []


def test_own_certificate_is_for_the_public_service_alone(llm_certificate, root, own, policy):
    assert llm_certificate.flaws("mesh") == ["there is none"]


def test_keys_are_unencrypted_as_envoy_wants_them(root):
    text = (root / "services/tail/tls/key.pem").read_bytes()
    assert serialization.load_pem_private_key(text, None).curve.name == "secp256r1"
