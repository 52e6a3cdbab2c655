"""
What the authority signs, with the policies of the compiled pillar and Salt's own ``x509_v2``.
"""

import datetime

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from salt.matchers import glob_match
from salt.modules import x509_v2
from saltfactories.utils.loader import LoaderModuleMock

HOSTS = {
    "node1": {"address": "10.0.0.1", "roles": ["cache", "rate-limiter", "model-proxy", "head"]},
    "node2": {"address": "10.0.0.2", "roles": ["tail"]},
    "node11": {"address": "10.0.0.3", "roles": []},
}
SERVICES = ("tail", "mesh", "ingress")


@pytest.fixture
def policies(compiled, pillar_root, tmp_path):
    """The policies of a site of three hosts, whose authority lies in the test's folder."""
    path = pillar_root / "site.yaml"
    site = yaml.safe_load(path.read_text()) | {"hosts": HOSTS, "root": str(tmp_path)}
    path.write_text(yaml.safe_dump(site))
    (tmp_path / "authority").mkdir()
    (tmp_path / "trust").mkdir()
    key = x509_v2.create_private_key(algo="ec", keysize=256)
    (tmp_path / "authority/ca.key").write_text(key)
    text = x509_v2.create_certificate(
        signing_private_key=key, CN="authority", basicConstraints="critical, CA:TRUE", days_valid=99
    )
    (tmp_path / "trust/ca.pem").write_text(text)
    return compiled("node1")["x509_signing_policies"]


@pytest.fixture
def sign(policies):
    """
    A function that asks the authority for a certificate as a minion does, under the name of a
    policy; it returns the certificate and what was said.
    """
    salt = {
        "pillar.get": lambda *_, **__: policies,
        "config.get": lambda *_: {},
        "match.glob": lambda pattern, minion: glob_match.match(pattern, {"id": minion}),
    }
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    key = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()

    def ask(minion, policy, **wishes):
        wishes = {"public_key": key} | wishes
        answer = x509_v2.sign_remote_certificate(policy, wishes, __pub_id=minion)
        found = answer["data"] and x509.load_der_x509_certificate(answer["data"])
        return found, " ".join(answer["errors"])

    with LoaderModuleMock({x509_v2: {"__salt__": salt, "__opts__": {}}}):
        yield ask


def extension(certificate, kind):
    """Return one of the extensions of a certificate."""
    return certificate.extensions.get_extension_for_class(kind)


def test_policies_are_of_each_host_and_service(policies):
    assert set(policies) == {f"{host}-{name}" for host in HOSTS for name in SERVICES}


@pytest.mark.parametrize("minion", [*HOSTS, "node", "*", ""])
def test_policies_are_for_their_own_host_alone(sign, policies, minion):
    signed = {}
    for policy in policies:
        certificate, said = sign(minion, policy)
        if certificate:
            signed[policy] = certificate.subject.rfc4514_string()
        else:
            assert said == "minion not permitted to use specified signing policy"
    expected = {f"{minion}-{name}": f"CN={name}.{minion}.llm" for name in SERVICES}
    assert signed == (expected if minion in HOSTS else {})


def test_nothing_is_signed_without_a_policy(sign):
    for policy in (None, "", "node3-tail", "node1-*"):
        certificate, said = sign("node1", policy)
        assert certificate is None
        assert said == "signing_policy must be specified and defined on signing minion"


def csr():
    """Return a request of a host for more than it may have."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.PolicyConstraints(0, 0), critical=True)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "wish",
    [
        {"CN": "tail.node1.llm"},
        {"commonName": "tail.node1.llm"},
        {"subject": "CN=tail.node1.llm"},
        {"subjectAltName": "DNS:tail.node1.llm, DNS:llm.internal"},
        {"basicConstraints": "critical, CA:TRUE"},
        {"keyUsage": "critical, keyCertSign, cRLSign"},
        {"extendedKeyUsage": "codeSigning"},
        {"days_valid": 9999},
        {"not_after": "2099-01-01 00:00:00"},
        {"not_before": "2020-01-01 00:00:00"},
        {"digest": "sha512"},
        {"csr": csr()},
        {"signing_cert": None},
        {"ca_server": "node2", "signing_policy": "node1-tail"},
    ],
    ids=lambda wish: "-".join(wish),
)
def test_what_a_host_wishes_beside_its_policy_is_not_heard(sign, wish, policies):
    found, said = sign("node2", "node2-mesh", **wish)
    assert said == ""
    assert found.subject.rfc4514_string() == "CN=mesh.node2.llm"
    names = extension(found, x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["mesh.node2.llm"]
    assert extension(found, x509.BasicConstraints).value.ca is False
    usage = extension(found, x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    purposes = extension(found, x509.ExtendedKeyUsage).value
    assert {purpose._name for purpose in purposes} == {"serverAuth", "clientAuth"}
    assert len(found.extensions) == 6
    lifetime = found.not_valid_after_utc - found.not_valid_before_utc
    assert round(lifetime / datetime.timedelta(days=1), 3) == 30
    age = datetime.datetime.now(datetime.UTC) - found.not_valid_before_utc
    assert abs(age) < datetime.timedelta(minutes=10)
    assert found.signature_hash_algorithm.name == "sha256"


def test_no_host_has_the_authority_write_a_file(sign, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found, _ = sign("node2", "node2-mesh", copypath=str(tmp_path), path=str(tmp_path / "file"))
    assert found
    assert sorted(tmp_path.rglob("*")) == before
