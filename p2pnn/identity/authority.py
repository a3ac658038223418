"""The cluster's certificate authority: one key that says which keys are nodes of this cluster.

It is small on purpose. It signs certificates of nodes and nothing else; whether a node is a member is decided by the
charter, so a certificate alone admits nobody and nothing needs to be revoked. The cluster is known by the SHA-256 of the
authority's certificate, which a join token carries. The voters hold the key, because the coordinator, who admits, is one
of them.

Clocks: a certificate is valid from a day before it is made, so that a machine whose clock is up to a day late can use
it, for a year. A node asks for a new one when a third of that is left. The authority itself is valid for thirty years.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pnn.errors import NotAllowedError, StorageError
from p2pnn.identity.keys import PublicKey, load_private, private_pem

DAY_S: Final = 86400.0
SKEW_S: Final = DAY_S
"""How late the clock of a machine may be that gets a new certificate, or is shown one."""

VALID_S: Final = 365 * DAY_S
AUTHORITY_VALID_S: Final = 30 * VALID_S
CERTIFICATE_BYTES_MAX: Final = 4096
"""Ours take under 700 bytes."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as bytes. Raises NotAllowedError where `der` is none. Times are seconds since 1970."""

    der: bytes

    def __post_init__(self) -> None:
        if len(self.der) > CERTIFICATE_BYTES_MAX:
            raise NotAllowedError(
                f"a certificate of {len(self.der)} bytes is over the limit of {CERTIFICATE_BYTES_MAX}"
            )
        self._parsed()

    @classmethod
    def load(cls, pem: bytes) -> list[Certificate]:
        """All in a PEM file. Raises NotAllowedError."""
        try:
            found = x509.load_pem_x509_certificates(pem)
        except ValueError:
            raise NotAllowedError("it holds no certificates") from None
        return [cls(one.public_bytes(serialization.Encoding.DER)) for one in found]

    @property
    def pem(self) -> bytes:
        return self._parsed().public_bytes(serialization.Encoding.PEM)

    @property
    def digest(self) -> str:
        """SHA-256 as 64 hexadecimal digits: of an authority's certificate, the cluster's name in tokens."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def begins_s(self) -> float:
        return self._parsed().not_valid_before_utc.timestamp()

    @property
    def ends_s(self) -> float:
        return self._parsed().not_valid_after_utc.timestamp()

    @property
    def renews_s(self) -> float:
        """When its node should ask for the next one: two thirds through."""
        return self.begins_s + (self.ends_s - self.begins_s) * 2 / 3

    @property
    def key(self) -> PublicKey:
        return PublicKey.of(self._parsed().public_key())

    def check_issued_by(self, authority: Certificate, now: float) -> None:
        """Raises NotAllowedError where the authority did not sign it ("wrong cluster") or `now` is outside its time ("clock")."""
        try:
            self._parsed().verify_directly_issued_by(authority._parsed())
        except (InvalidSignature, ValueError, TypeError):
            raise NotAllowedError(
                "wrong cluster: the peer's certificate was not issued by the token's cluster"
            ) from None
        if not self.begins_s <= now <= self.ends_s:
            raise NotAllowedError(
                f"clock: the peer's certificate is valid from {_date(self.begins_s)} to {_date(self.ends_s)}, and this"
                f" machine's clock says {_date(now)}; set the clock that is wrong"
            )

    def _parsed(self) -> x509.Certificate:
        try:
            return x509.load_der_x509_certificate(self.der)
        except (ValueError, UnsupportedAlgorithm):
            raise NotAllowedError(f"{len(self.der)} bytes are no certificate") from None


class Authority:
    """Certificate and key together: who holds this can admit nodes."""

    def __init__(self, certificate: Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def found(cls, now: float) -> Authority:
        """A new cluster's. now: seconds since 1970."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pnn cluster")])
        builder = (
            _builder(name, name, key.public_key(), now, AUTHORITY_VALID_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(Certificate(_sign(builder, key)), key)

    @classmethod
    def load(cls, certificate: Certificate, pem: bytes, name: str) -> Authority:
        """The key in a file (or message) called `name`. Raises StorageError where it is none, or another authority's."""
        key = load_private(pem)
        if key is None:
            raise StorageError(f"{name} holds no key of a cluster")
        if PublicKey.of(key.public_key()) != certificate.key:
            raise StorageError(f"{name} holds the key of another cluster")
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The private key: for voters only."""
        return private_pem(self._key)

    def issue(self, key: PublicKey, now: float, valid_s: float = VALID_S) -> Certificate:
        """A node's certificate, for both ends of TLS. Its subject is the node id; names play no part in TLS here."""
        issuer = x509.load_der_x509_certificate(self.certificate.der)
        public = serialization.load_der_public_key(key.der)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key.node)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(subject, issuer.subject, public, now, valid_s)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return Certificate(_sign(builder, self._key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, valid_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - SKEW_S))
        .not_valid_after(_time(now + valid_s))
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _date(seconds: float) -> str:
    return _time(seconds).strftime("%Y-%m-%d %H:%M UTC")
