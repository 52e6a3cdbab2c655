"""
A certificate authority for tests.
"""

import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """
    Signs certificates, and moves them into a folder the way the platform does.
    """

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name("test authority")
        self.certificate = self._sign(self.name, self.key, [], authority=True)

    def _sign(self, name, key, names, authority=False, start=-1, end=24 * 60):
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(minutes=start))
            .not_valid_after(now + datetime.timedelta(minutes=end))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, folder, *names, **times):
        """
        Write `cert.pem`, `key.pem` and `ca.pem` for ``names`` into ``folder``; return the serial
        number of the certificate. It is valid from ``start`` to ``end`` minutes from now: by
        default from -1 on for a day.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "key.pem").exists():
            key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name("test"), key, names, **times)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        files = {
            "ca.pem": self.certificate.public_bytes(serialization.Encoding.PEM),
            "key.pem": private,
            "cert.pem": certificate.public_bytes(serialization.Encoding.PEM),
        }
        for file, content in files.items():
            new = folder / f".{file}.new"
            new.write_bytes(content)
            new.replace(folder / file)
        return certificate.serial_number


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
