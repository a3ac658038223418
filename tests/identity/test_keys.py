"""Keys: names follow from them, and nothing else passes as one."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from p2pnn.errors import NotAllowedError, StorageError
from p2pnn.identity.authority import Authority
from p2pnn.identity.keys import NodeKey, PublicKey, key_of


def test_names_follow_from_the_public_key() -> None:
    public = NodeKey.generate().public
    assert public.fingerprint == hashlib.sha256(public.der).hexdigest()
    assert public.node == public.fingerprint[:32]


def test_a_key_comes_back_from_its_file() -> None:
    key = NodeKey.generate()
    assert NodeKey.load(key.pem, "key.pem").public == key.public


def test_a_certificate_names_the_key_it_was_issued_for() -> None:
    key = NodeKey.generate().public
    assert key_of(Authority.found(0).issue(key, 0).der) == key


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_file_is_named(pem: bytes) -> None:
    with pytest.raises(StorageError, match=r"key\.pem holds no key"):
        NodeKey.load(pem, "key.pem")


def test_a_key_of_another_curve_is_refused() -> None:
    other = NodeKey(ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(StorageError, match="no key"):
        NodeKey.load(other.pem, "key.pem")


@pytest.mark.parametrize("der", [b"", b"\x30" * 91, b"\x00" * 4096])
def test_bytes_that_are_no_public_key_are_refused(der: bytes) -> None:
    with pytest.raises(NotAllowedError, match="no public key"):
        PublicKey(der)


def test_a_public_key_of_another_kind_is_refused() -> None:
    der = (
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(NotAllowedError, match="no public key"):
        PublicKey(der)


def test_bytes_that_are_no_certificate_are_refused() -> None:
    with pytest.raises(NotAllowedError, match="no key"):
        key_of(b"garbage")
