"""The charter's file: founded once, read back, begun anew, and never half there."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnn.cluster import durable
from p2pnn.cluster.charter import CharterMember
from p2pnn.cluster.durable import Durable
from p2pnn.errors import CharterError
from p2pnn.node.charter_file import CharterFile, Founding
from tests.node.nodes import A

FOUNDING = Founding(CharterMember(A, "", "a"))


def test_a_founded_charter_is_on_the_disk_before_it_is_used_and_founded_once(tmp_path: Path) -> None:
    file = CharterFile(tmp_path)
    founded = file.load(FOUNDING)
    assert founded.charter is not None
    assert founded.charter.nodes() == [A]
    assert durable.decode((tmp_path / "charter").read_bytes(), "it") == founded
    assert CharterFile(tmp_path).load(FOUNDING) == CharterFile(tmp_path).load(None) == founded


def test_who_shall_not_found_begins_with_nothing(tmp_path: Path) -> None:
    assert CharterFile(tmp_path).load(None) == Durable()
    assert list(tmp_path.iterdir()) == []


def test_what_was_torn_goes_and_what_is_damaged_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".charter.torn").write_bytes(b"half")
    (tmp_path / "charter").write_bytes(b"\xc1 nothing")
    with pytest.raises(CharterError, match="charter"):
        CharterFile(tmp_path).load(FOUNDING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["charter"]
    assert (tmp_path / "charter").read_bytes() == b"\xc1 nothing"


def test_a_cluster_begun_anew_has_another_id_and_the_old_charter_lies_beside_it(tmp_path: Path) -> None:
    file = CharterFile(tmp_path)
    old = file.load(FOUNDING)
    assert old.charter is not None
    assert not file.is_recovered
    before = (tmp_path / "charter").read_bytes()
    anew = file.begin_anew(A, old.charter.cluster)
    assert anew.charter is not None
    assert anew.charter.cluster != old.charter.cluster
    assert file.is_recovered
    assert (tmp_path / f"charter.{old.charter.cluster}").read_bytes() == before
    assert file.load(None) == anew


def test_a_charter_that_is_forgotten_is_gone(tmp_path: Path) -> None:
    file = CharterFile(tmp_path)
    file.load(FOUNDING)
    file.forget()
    file.forget()
    assert file.load(None) == Durable()
