"""A certificate authority that signs one serving certificate and is then forgotten.

Its private key never leaves `issue`: whoever reads the Secret can serve as the webhook until the certificate expires,
but can sign nothing. Renewing means a new authority, which is why both are published during a rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = timedelta(minutes=5)
"""Validity starts a little in the past: clocks of nodes differ."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving certificate, its key and the authority that it verifies under; all PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    def expires(self) -> datetime:
        """End of validity of whichever of the two ends first, UTC."""
        return min(self.parsed.not_valid_after_utc, x509.load_pem_x509_certificate(self.authority).not_valid_after_utc)

    def names(self) -> frozenset[str]:
        """DNS names and addresses that the certificate is for."""
        names = self.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return frozenset(names.get_values_for_type(x509.DNSName)) | frozenset(
            str(address) for address in names.get_values_for_type(x509.IPAddress)
        )

    def is_sound(self) -> bool:
        """Whether the parts can be read, the key is the certificate's and the authority signed it."""
        try:
            certificate = self.parsed
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(self.authority))
            key = serialization.load_pem_private_key(self.key, password=None)
            self.names()
        except Exception:  # cryptography raises many kinds (InvalidSignature, ValueError, TypeError, ExtensionNotFound)
            return False
        return _spki(key.public_key()) == _spki(certificate.public_key())


def issue(names: tuple[str, ...], now: datetime, lifetime: timedelta) -> Serving:
    """A new authority and a serving certificate under it, valid from a little before `now` for `lifetime`.

    `names` are DNS names or IP addresses. ECDSA on P-256: signing costs the webhook 0.1 ms a handshake.
    """
    authority_key, serving_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dippm webhook CA {now:%Y-%m-%d %H:%M:%S}")])
    start, end = now - BACKDATED, now + lifetime
    authority = (
        _builder(authority_name, authority_name, authority_key, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(subject, authority_name, serving_key, start, end)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(serving_key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Serving(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=serving_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        authority=authority.public_bytes(serialization.Encoding.PEM),
    )


def authorities(bundle: bytes) -> frozenset[bytes]:
    """The certificates of a caBundle as DER; empty where there is none or it cannot be read."""
    if b"BEGIN CERTIFICATE" not in bundle:
        return frozenset()
    try:
        certificates = x509.load_pem_x509_certificates(bundle)
    except ValueError:
        return frozenset()
    return frozenset(c.public_bytes(serialization.Encoding.DER) for c in certificates)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _spki(key: object) -> bytes:
    public_bytes: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key has it, no common base says so
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public_bytes
