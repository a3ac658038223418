"""Who is here, who is away since when, and who belongs elsewhere."""

from __future__ import annotations

from p2pnn.cluster.charter import MEMBERS_MAX
from p2pnn.cluster.presence import NEVER_SEEN, Absence, Presence
from p2pnn.types import NodeId
from tests.cluster.charters import A, B, C


def presence() -> Presence:
    return Presence(A, "a", 10.0)


def test_one_absence_has_one_beginning_however_it_is_called_on_its_way() -> None:
    one = presence()
    assert one.absence(B) == Absence(10.0, NEVER_SEEN)
    one.arrived(B, "b", "")
    one.departed(B, "it does not answer", 20.0)
    one.departed(B, "it is dead", 25.0)
    assert one.absence(B) == Absence(20.0, "it is dead")
    assert one.alive == {A: "a"}
    one.gone[B] = 26.0
    one.arrived(B, "b", "")
    assert one.alive == {A: "a", B: "b"}
    assert one.gone == {}
    one.departed(B, "it was stopped", 40.0)
    assert one.absence(B) == Absence(40.0, "it was stopped")


def test_who_holds_another_charter_or_has_not_said_so_is_not_admitted() -> None:
    one = presence()
    one.arrived(B, "b", None)
    assert one.may_be_admitted("home") == {A: "a"}
    one.said(B, "")
    assert one.may_be_admitted("home") == {A: "a", B: "b"}
    one.said(B, "away")
    assert one.may_be_admitted("home") == {A: "a"}
    one.said(C, "home")
    assert C not in one.may_be_admitted("home"), "it is not here"


def test_a_node_of_another_cluster_is_news_once_and_is_told_what_to_do() -> None:
    one = presence()
    one.arrived(B, "b", "away")
    one.said(A, "away")
    assert one.note_foreign("") == [], "this node belongs to none yet"
    assert one.note_foreign("home") == [B]
    assert one.note_foreign("home") == []
    said = str(one.foreign[B])
    assert "node b belongs to cluster away, this node to cluster home" in said
    assert "--join" in said
    one.said(B, "home")
    assert one.note_foreign("home") == []
    assert one.foreign == {}


def test_what_is_remembered_of_the_absent_is_bounded() -> None:
    one = presence()
    for number in range(3 * MEMBERS_MAX):
        one.departed(NodeId(f"{number:032x}"), "it is dead", 20.0)
    assert one.absence(NodeId(f"{1:032x}")).since == 20.0
    assert one.absence(NodeId(f"{3 * MEMBERS_MAX - 1:032x}")).reason == NEVER_SEEN
