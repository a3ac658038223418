"""The table: facts and links side by side, and the number of the living kept right."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.facts import living
from p2pnn.cluster.suspicion import Suspicion
from p2pnn.cluster.table import Table
from p2pnn.types import Address
from p2pnn.wire.messages import Fact, Life
from tests.simulator.mesh import node_id

HOME = Address("h", 1)


def fact(number: int, life: Life = Life.ALIVE, boot: str = "b") -> Fact:
    return Fact(node_id(number), f"n{number}", "h", 1, boot, 1, life)


def test_a_member_is_probed_when_a_link_led_to_the_process_that_lives() -> None:
    table = Table()
    known = table.add(fact(1), HOME, 0.0)
    assert not known.probed
    known.boot = "b"
    assert known.probed
    table.change(known, fact(1, boot="b2"), 1.0)
    assert not known.met, "another process"
    known.boot = "b2"
    table.change(known, fact(1, Life.DEAD, "b2"), 2.0)
    assert known.met
    assert not known.probed


def test_a_change_of_life_ends_the_suspicion_and_starts_the_clock() -> None:
    table = Table()
    known = table.add(fact(1), HOME, 0.0)
    table.change(known, fact(1, Life.SUSPECT), 3.0)
    known.suspicion = Suspicion(node_id(2), 3.0, 1.0, 3.0, 1)
    known.proof.witnesses.add(node_id(2))
    assert list(table.suspects) == [node_id(1)]
    table.change(known, msgspec.structs.replace(fact(1), incarnation=2), 4.0)
    assert (known.suspicion, known.since, list(table.suspects)) == (None, 4.0, [])
    assert known.proof.witnesses == set()


def test_who_can_be_asked() -> None:
    table = Table()
    for number in (1, 2, 3):
        table.link(table.add(fact(number), HOME, 0.0), Address("127.0.0.1", 7000 + number))
    table.change(table.known[node_id(2)], fact(2, Life.DEAD), 1.0)
    table.unlink(table.known[node_id(3)])
    assert table.reachable() == [node_id(1)]
    assert table.reachable(but=node_id(1)) == []
    assert list(table.linked) == [node_id(1), node_id(2)]
    assert {address.port: node for address, node in table.at.items()} == {7001: node_id(1), 7002: node_id(2)}


def test_who_listens_where_follows_the_link() -> None:
    table = Table()
    known = table.add(fact(1), HOME, 0.0)
    table.link(known, Address("127.0.0.1", 7001))
    table.link(known, Address("127.0.0.1", 7002))
    assert table.at == {Address("127.0.0.1", 7002): node_id(1)}
    table.link(known, Address("127.0.0.1", 0))  # it does not listen any more
    assert table.at == {}
    table.link(known, Address("127.0.0.1", 7003))
    table.drop(node_id(1))
    assert (table.at, table.linked) == ({}, {})


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([*Life, None]))))
def test_the_size_is_that_of_the_living(steps: list[tuple[int, Life | None]]) -> None:
    table = Table()
    for number, life in steps:
        known = table.get(node_id(number))
        if life is None:
            if known is not None:
                table.drop(node_id(number))
        elif known is None:
            table.add(fact(number, life), HOME, 0.0)
        else:
            table.change(known, fact(number, life), 0.0)
        assert table.size == 1 + sum(living(one.fact) for one in table.known.values())
