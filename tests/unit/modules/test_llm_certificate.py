"""
Certificates, with Salt's own ``x509_v2`` in place of the one that its loader gives.
"""

import os
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from salt.exceptions import CommandExecutionError
from salt.modules import x509_v2
from saltfactories.utils.loader import LoaderModuleMock

from _modules import llm_certificate as llm_certificate_module
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
def llm_certificate(configure_loader, platform, pillar, policy, asked):
    def create_certificate(**keywords):
        asked.append(keywords)
        return x509_v2.create_certificate(**keywords)

    salt = {
        "llm_config.platform": lambda: platform,
        "x509.create_private_key": x509_v2.create_private_key,
        "x509.create_certificate": create_certificate,
        "x509.get_signing_policy": {"node1-tail": policy}.__getitem__,
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


def test_own_certificate_that_is_missing(llm_certificate, root, own):
    os.unlink(own["key"])
    assert llm_certificate.flaws("tail") == [f"{own['key']} of site.yaml is not on this host"]
    before = (root / "services/tail/tls/key.pem").read_bytes()
    with pytest.raises(CommandExecutionError, match="No such file"):
        llm_certificate.renew("tail")
    assert (root / "services/tail/tls/key.pem").read_bytes() == before


def test_own_certificate_of_another_key_changes_nothing(llm_certificate, root, own):
    with open(own["key"], "w") as file:
        file.write(x509_v2.create_private_key(algo="ec", keysize=256))
    tls = root / "services/tail/tls"
    before = [path.read_bytes() for path in sorted(tls.iterdir())]
    with pytest.raises(CommandExecutionError, match="is not that of the certificate"):
        llm_certificate.renew("tail")
    assert [path.read_bytes() for path in sorted(tls.iterdir())] == before


def test_own_certificate_is_for_the_public_service_alone(llm_certificate, root, own, policy):
    assert llm_certificate.flaws("mesh") == ["there is none"]


def test_keys_are_unencrypted_as_envoy_wants_them(root):
    text = (root / "services/tail/tls/key.pem").read_bytes()
    assert serialization.load_pem_private_key(text, None).curve.name == "secp256r1"
