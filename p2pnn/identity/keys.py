"""A node's key pair, and the names that follow from it.

The key is EC P-256: every TLS library has it, and its handshake is the fastest of those that all have (signing 20 µs,
verifying 60). A node's *fingerprint* is the SHA-256 of its public key (SubjectPublicKeyInfo, DER), all 256 bits of it;
its *node id* is the first 128 bits, which is what messages carry. Whoever must be sure compares the fingerprint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from p2pnn.errors import NotAllowedError, StorageError
from p2pnn.types import NodeId

NODE_DIGITS: Final = 32
PUBLIC_BYTES_MAX: Final = 256
"""A P-256 public key takes 91 bytes in DER."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half, as bytes. Raises NotAllowedError where `der` is no P-256 key."""

    der: bytes

    def __post_init__(self) -> None:
        key: object = None
        if len(self.der) <= PUBLIC_BYTES_MAX:
            try:
                key = serialization.load_der_public_key(self.der)
            except (ValueError, UnsupportedAlgorithm):
                key = None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise NotAllowedError(f"{len(self.der)} bytes are no public key of the kind that nodes have (EC P-256)")

    @classmethod
    def of(cls, key: PublicKeyTypes) -> PublicKey:
        """Raises NotAllowedError for one of another kind."""
        return cls(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, as 64 hexadecimal digits."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def node(self) -> NodeId:
        return NodeId(self.fingerprint[:NODE_DIGITS])


@dataclass(frozen=True, slots=True)
class NodeKey:
    """The pair. It leaves this machine never; `pem` is for the state folder, mode 0600."""

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> NodeKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, pem: bytes, name: str) -> NodeKey:
        """The key in a file called `name`. Raises StorageError."""
        key = load_private(pem)
        if key is None:
            raise StorageError(
                f"{name} holds no key of a node (EC P-256, PEM); restore it, or move the state folder away"
            )
        return cls(key)

    @property
    def pem(self) -> bytes:
        return private_pem(self.private)

    @property
    def public(self) -> PublicKey:
        return PublicKey.of(self.private.public_key())


def key_of(certificate: bytes) -> PublicKey:
    """The public key in a certificate (DER) that TLS has verified already. Raises NotAllowedError."""
    try:
        found = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise NotAllowedError("the peer's certificate holds no key that this node understands") from None
    return PublicKey.of(found)


def load_private(pem: bytes) -> ec.EllipticCurvePrivateKey | None:
    """The private key (EC P-256) in a PEM file; None where there is none."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1) else None


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Without encryption: the file's mode is what keeps it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
