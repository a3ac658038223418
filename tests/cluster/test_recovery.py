"""A new cluster from one node's charter: when it is refused, and what it keeps."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.cluster.charter import Charter, Version
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.parking import Parked, names_of
from p2pnn.cluster.recovery import RECOVER_AFTER_S, recovered, refusal
from p2pnn.types import NodeId
from p2pnn.wire.charter import CharterPiece, Lead, Vote
from tests.cluster.charters import A, B, C, Desk, charter_of

THREE = charter_of((A, B, C), term=3, work=b"jobs")
PARKED = Parked(0.0, ("a",), ("b", "c"), 2)


@pytest.mark.parametrize(
    ("charter", "parked", "known", "now", "why"),
    [
        (None, Parked(0.0), {}, 99.0, "holds no charter"),
        (
            msgspec.structs.replace(THREE, cluster="other"),
            PARKED,
            {},
            99.0,
            "the charter of cluster other, and home was",
        ),
        (charter_of((B, C)), PARKED, {}, 99.0, "no member of its charter"),
        (THREE, None, {}, 99.0, "has a coordinator"),
        (THREE, Parked(0.0, ("a", "b"), ("c",), 2), {}, 99.0, "sees 2 of 3 voters, which is a majority"),
        (THREE, PARKED, {}, RECOVER_AFTER_S - 1, "wait until it is 30 s"),
        (
            THREE,
            PARKED,
            {B: ("home", Version(3, 9))},
            99.0,
            f"node {names_of(THREE)[B]} knows charter 3.9, newer than 3.1",
        ),
        (THREE, PARKED, {B: ("away", Version(9, 9)), C: ("home", Version(3, 1))}, RECOVER_AFTER_S, ""),
    ],
)
def test_it_is_refused_while_anything_speaks_against_it(
    charter: Charter | None, parked: Parked | None, known: dict[NodeId, tuple[str, Version]], now: float, why: str
) -> None:
    said = refusal(charter, A, "home", parked, known, now)
    assert why in said
    assert bool(said) == bool(why)


def test_the_new_cluster_has_one_member_the_old_work_and_higher_versions() -> None:
    new = recovered(Durable(7, B, THREE), A, "new")
    assert new.charter is not None
    assert (new.term, new.vote, new.charter.cluster) == (8, None, "new")
    assert (new.charter.voters, list(new.charter.nodes()), new.charter.work) == ((A,), [A], b"jobs")
    assert new.charter.removed == (B, C), "so a secured node tells them to join again"
    assert new.charter.version > THREE.version
    assert new.charter.version.generation > THREE.version.generation


def test_a_node_that_is_no_member_cannot_begin_one() -> None:
    for durable in (Durable(), Durable(3, None, charter_of((B, C), term=3))):
        with pytest.raises(ValueError, match="no member"):
            recovered(durable, A, "new")


def test_it_leads_alone_and_the_old_ones_neither_reach_it_nor_take_its_charter() -> None:
    one = Desk(A, recovered(Durable(7, B, THREE), A, "new"))
    one.wait(0.0)
    assert one.core.role is Role.LEADER
    assert one.core.term == 9
    held = one.core.version
    one.receive(B, Lead(99, 99, 1, 99, 1, "home"))
    one.receive(B, Vote(99, 99, 1, "home"))
    assert (one.core.role, one.core.term, one.core.version) == (Role.LEADER, 9, held)
    old = Desk(B, Durable(7, B, THREE))
    [piece] = _pieces(one)
    old.receive(A, piece)
    assert old.core.version == THREE.version


def _pieces(one: Desk) -> list[CharterPiece]:
    one.core._send_charter(B)
    return [message for _, message in one.core.messages_to_send(one.now) if isinstance(message, CharterPiece)]
