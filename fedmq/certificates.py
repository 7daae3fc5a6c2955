"""A site's private certificate authority: who is the broker, who is a node, and who no longer is.

Keys are EC P-256. A server's certificate may only serve and a node's may only connect (extended key usage), so that
a stolen node key cannot pose as the broker. Every function is pure: the caller gives the time and writes the files.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.errors import SettingsError

AUTHORITY_DAYS = 3650
"""A new authority means visiting every device: ten years is longer than a Pi lives."""
CERTIFICATE_DAYS = 730
"""Two years; `fedmq node list` and an alert name those that run out."""
REVOCATION_LIST_DAYS = 3650
"""A list past its date makes the broker refuse everyone, so it lives as long as the authority."""
BACKDATE = timedelta(days=1)
"""A Pi has no clock battery: one that boots a few hours slow must still accept a certificate made today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An Ed25519 pair that signs messages; the private half PKCS#8 PEM, the public half SubjectPublicKeyInfo PEM."""

    private: bytes
    public: bytes


def create_authority(site: str, *, now: datetime) -> Issued:
    """Return a new self-signed authority named after the site, good for ten years from `now` (UTC)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(f"FedMQ {site}"[:64])
    certificate = (
        _builder(name, key.public_key(), issuer=name, now=now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _issued(certificate, key)


def issue_server_certificate(authority: Issued, hosts: Sequence[str], *, now: datetime, days: int = CERTIFICATE_DAYS) -> Issued:
    """Return the broker's certificate for host names and IP addresses.

    Raises:
        SettingsError: no host is given, or one is neither a host name nor an IP address.
    """
    if not hosts:
        raise SettingsError("give at least one name or address under which nodes reach the server: fedmq init HOST...")
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    return _issue(authority, hosts[0][:64], ExtendedKeyUsageOID.SERVER_AUTH, now=now, days=days, alternative=names)


def issue_client_certificate(authority: Issued, name: str, *, now: datetime, days: int = CERTIFICATE_DAYS) -> Issued:
    """Return a client's certificate whose CN `name` is its MQTT user name."""
    return _issue(authority, name, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, days=days, alternative=None)


def create_revocation_list(authority: Issued, serial_numbers: Iterable[int], *, now: datetime) -> bytes:
    """Return a PEM list that revokes the certificates of these serial numbers."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    builder = builder.last_update(now - BACKDATE).next_update(now + timedelta(days=REVOCATION_LIST_DAYS))
    for number in sorted(set(serial_numbers)):
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now - BACKDATE)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(_private_key(authority), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def serial_number(certificate: bytes) -> int:
    """Return the serial number of a PEM certificate."""
    return x509.load_pem_x509_certificate(certificate).serial_number


def expiry(certificate: bytes) -> datetime:
    """Return when a PEM certificate ends (UTC)."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def create_signing_pair() -> KeyPair:
    """Return a new Ed25519 pair that signs what one side publishes."""
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return KeyPair(private=_private_pem(key), public=public)


def _issue(
    authority: Issued,
    name: str,
    usage: x509.ObjectIdentifier,
    *,
    now: datetime,
    days: int,
    alternative: x509.SubjectAlternativeName | None,
) -> Issued:
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_common_name(name), key.public_key(), issuer=issuer.subject, now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_private_key(authority).public_key()), critical=False)
    )
    if alternative is not None:
        builder = builder.add_extension(alternative, critical=False)
    return _issued(builder.sign(_private_key(authority), hashes.SHA256()), key)


def _builder(
    subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, issuer: x509.Name, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_is_label(label) for label in labels):
        raise SettingsError(
            f"{host!r} is neither a host name nor an IP address; give names as nodes dial them, such as server.local or 192.168.0.10"
        )
    return x509.DNSName(host)


def _is_label(label: str) -> bool:
    plain = label.replace("-", "")
    return 0 < len(label) <= 63 and plain.isascii() and plain.isalnum() and not label.startswith("-") and not label.endswith("-")


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private_key(authority: Issued) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError("the authority's key is not an elliptic-curve key; was site/ca/ca.key replaced?")
    return key


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=_private_pem(key))


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
