"""The document: its order, its bytes, its limits."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.charter import FORMAT, NOTHING, Charter, CharterMember, Version, decode, encode, found
from p2pnn.errors import CharterError
from p2pnn.wire.charter import CHARTER_BYTES_MAX, REVISION_MAX, TERM_MAX

from .charters import A, B, C, charter_of, member

versions = st.builds(Version, st.integers(0, TERM_MAX), st.integers(0, REVISION_MAX))


@given(versions, versions)
def test_generations_compare_as_versions_do(one: Version, other: Version) -> None:
    assert (one < other) == (one.generation < other.generation)
    assert 0 <= one.generation < 2**63


def test_a_new_term_counts_more_than_any_revision() -> None:
    assert NOTHING < Version(1, 9) < Version(2, 1) < Version(2, 2)
    assert str(Version(2, 1)) == "2.1"


def test_a_cluster_begins_with_its_founder() -> None:
    charter = found("home", member(A))
    assert charter.voters == (A,)
    assert charter.nodes() == [A]
    assert charter.version > NOTHING


def test_successors_keep_what_is_not_given() -> None:
    charter = charter_of((A, B), work=b"w")
    after = charter.successor(voters=(A,))
    assert (after.version, after.voters, after.members, after.work) == (Version(1, 2), (A,), charter.members, b"w")
    assert charter.successor(work=b"").work == b""
    assert charter.rewritten(7).version == Version(7, 1)


@pytest.mark.parametrize(("count", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_majorities(count: int, majority: int) -> None:
    voters = (A, B, C, "d" * 32, "e" * 32)[:count]
    charter = Charter(FORMAT, "home", 1, 1, voters, tuple(CharterMember(v, "", "") for v in voters))
    assert charter.majority == majority
    assert charter.has_quorum(set(voters[:majority]))
    assert not charter.has_quorum({*voters[: majority - 1], "f" * 32})


def test_bytes_and_back() -> None:
    charter = charter_of((A, B), learners=(C,), work=bytes(range(256)))
    assert decode(encode(charter)) == charter


def test_a_newer_field_is_ignored_and_a_newer_format_refused() -> None:
    fields = [FORMAT, "home", 3, 4, [A], [[A, "", "a", "newer"]], b"", [], [], {"newer": 1}]
    assert decode(msgspec.msgpack.encode(fields)).version == Version(3, 4)
    for other in ([FORMAT + 1, *fields[1:]], [FORMAT + 1, {"all": "new"}]):
        with pytest.raises(CharterError, match=rf"format {FORMAT + 1}.*use a newer p2pnn"):
            decode(msgspec.msgpack.encode(other))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [FORMAT, "home", 1, 1, [], [[A, "", "a"]], b""],
        [FORMAT, "home", 1, 1, [A], [], b""],
        [FORMAT, "home", 1, 1, [B], [[A, "", "a"]], b""],
        [FORMAT, "home", 1, 1, [A, A], [[A, "", "a"]], b""],
        [FORMAT, "home", 1, 1, [A], [[A, "", "a"], [A, "", "b"]], b""],
        [FORMAT, "home", -1, 1, [A], [[A, "", "a"]], b""],
        [FORMAT, "home", 2**31, 1, [A], [[A, "", "a"]], b""],
        [FORMAT, "home", 1, 1, ["../a"], [["../a", "", "a"]], b""],
        [FORMAT, "home", 1, 1, [A], [[A, "ff", "a"]], b""],
        [FORMAT, "home", 1, 1, [A], [[A, "", "\x1b[2J"]], b""],
        "text",
        {"a": 1},
    ],
    ids=str,
)
def test_what_is_no_charter_is_refused(fields: object) -> None:
    with pytest.raises(CharterError):
        decode(msgspec.msgpack.encode(fields))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_charter_or_an_error(data: bytes) -> None:
    with contextlib.suppress(CharterError):
        decode(data)


def test_a_charter_over_its_limit_is_refused_both_ways() -> None:
    large = charter_of((A,), work=bytes(CHARTER_BYTES_MAX - 300))
    assert decode(encode(large)) == large
    with pytest.raises(CharterError, match="over the limit of 262144"):
        encode(charter_of((A,), work=bytes(CHARTER_BYTES_MAX)))
    with pytest.raises(CharterError, match="over the limit"):
        decode(bytes(CHARTER_BYTES_MAX + 1))
