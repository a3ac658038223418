"""The secrets' files: for their owner alone, old or new and never mixed, and named where they are damaged."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from p2pnn.errors import StorageError
from p2pnn.identity.authority import Authority
from p2pnn.identity.keys import NodeKey
from p2pnn.node.credentials import Credentials

KEY = NodeKey.generate()
NOW = time.time()


def test_a_founder_holds_all_and_finds_it_again(tmp_path: Path) -> None:
    made = Credentials(tmp_path, KEY)
    assert (made.certificate, made.cluster) == (None, "")
    made.found(NOW)
    again = Credentials(tmp_path, KEY)
    assert again.certificate == made.certificate
    assert again.cluster == made.cluster
    assert again.ca is not None
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_who_joins_another_cluster_keeps_no_key_of_the_old_one(tmp_path: Path) -> None:
    held, other = Credentials(tmp_path, KEY), Authority.found(NOW)
    held.found(NOW)
    held.take(other.issue(KEY.public, NOW), other.certificate)
    assert held.ca is None
    assert not (tmp_path / "authority.pem").exists()
    assert Credentials(tmp_path, KEY).cluster == other.certificate.digest


def test_a_renewed_certificate_leaves_the_authoritys_key(tmp_path: Path) -> None:
    held = Credentials(tmp_path, KEY)
    held.found(NOW)
    assert held.ca is not None
    held.take(held.ca.issue(KEY.public, NOW + 10), held.ca.certificate)
    assert held.ca is not None
    assert Credentials(tmp_path, KEY).ca is not None


def test_a_voters_key_is_kept_if_it_is_of_the_authority(tmp_path: Path) -> None:
    ca = Authority.found(NOW)
    held = Credentials(tmp_path, KEY)
    with pytest.raises(StorageError, match="no cluster"):
        held.hold_ca(ca.pem)
    held.take(ca.issue(KEY.public, NOW), ca.certificate)
    with pytest.raises(StorageError, match="another cluster"):
        held.hold_ca(Authority.found(NOW).pem)
    held.hold_ca(ca.pem)
    assert Credentials(tmp_path, KEY).ca is not None
    held.drop_ca()
    assert Credentials(tmp_path, KEY).ca is None


def test_a_key_of_another_cluster_that_a_crash_left_is_not_used(tmp_path: Path) -> None:
    Credentials(tmp_path, KEY).found(NOW)
    (tmp_path / "authority.pem").write_bytes(Authority.found(NOW).pem)
    assert Credentials(tmp_path, KEY).ca is None


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    Credentials(tmp_path, KEY).found(NOW)
    with pytest.raises(StorageError, match=r"credentials\.pem is of another key"):
        Credentials(tmp_path, NodeKey.generate())
    for damaged in (b"", b"garbage", (tmp_path / "credentials.pem").read_bytes()[:400]):
        (tmp_path / "credentials.pem").write_bytes(damaged)
        with pytest.raises(StorageError, match=r"credentials\.pem is damaged"):
            Credentials(tmp_path, KEY)
