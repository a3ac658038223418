"""The table of data ranges: every batch is trained, a dead worker's go to another, and the coverage is what happened."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.errors import RemoteProtocolError
from p2pnn.replication import leases
from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.leases import Coverage, Done, Lease, LeaseTable, Lost, Take

from .mesh import A, B, Mesh, cut, pair


def test_ranges_are_leased_in_order_and_lost_ones_first() -> None:
    table = LeaseTable(2, 10)
    table.apply(Take(1, 4))
    table.apply(Take(2, 4))
    assert table.leases(1) == (Lease(0, 0, 4),)
    assert table.leases(2) == (Lease(0, 4, 8),)
    table.apply(Done(1, Lease(0, 0, 3)))
    table.apply(Lost(1))
    assert table.leases(1) == ()
    table.apply(Take(2, 4))
    assert table.leases(2) == (Lease(0, 3, 4), Lease(0, 4, 8)), "the lost one, though it is short"
    table.apply(Take(3, 9))
    table.apply(Take(3, 9))
    assert table.leases(3) == (Lease(0, 8, 10), Lease(1, 0, 9)), "the next epoch begins while this one ends"
    table.apply(Take(1, 1))
    assert table.leases(1) == (), "it was given up"
    assert table.workers() == {2, 3}


def test_the_coverage_tells_what_was_trained_twice() -> None:
    table = LeaseTable(1, 10)
    table.apply(Take(1, 10))
    table.apply(Lost(1))
    table.apply(Take(2, 10))
    assert table.coverage() == [Coverage(0, 0, 0, 10)]
    table.apply(Done(1, Lease(0, 0, 4)))
    assert table.coverage() == [Coverage(0, 4, 0, 6)], "it had trained them before it was given up"
    assert table.leases(2) == (Lease(0, 4, 10),), "so nobody needs to again"
    table.apply(Done(2, Lease(0, 0, 10)))
    assert table.coverage() == [Coverage(0, 6, 4, 0)]
    assert table.is_over
    table.apply(Done(1, Lease(0, 4, 5)))
    assert table.coverage() == [Coverage(0, 5, 5, 0)], "a late word counts, too"


def test_nonsense_changes_nothing() -> None:
    table = LeaseTable(1, 10)
    before = table.state()
    for update in (Done(1, Lease(0, 5, 11)), Done(1, Lease(0, 5, 5)), Done(1, Lease(7, 0, 1)), Take(0, 5)):
        table.apply(update)
    assert table.state() == before
    with pytest.raises(ValueError, match="at least 1"):
        LeaseTable(0, 10)
    for wrong in (b"", b"\x93\x01\x02", b"\x92\x09\x01"):
        with pytest.raises(RemoteProtocolError):
            leases.decode([wrong])
    with pytest.raises(RemoteProtocolError):
        table.load([b"\x90"])
    with pytest.raises(RemoteProtocolError):
        leases.read_answer(b"\x01")


def test_no_worker_takes_all() -> None:
    table = LeaseTable(1, 100)
    for _ in range(50):
        table.apply(Take(1, 1))
    assert len(table.leases(1)) == leases.LEASES_MAX
    assert leases.read_answer(table.answer(1)) == table.leases(1)


UPDATES = st.one_of(
    st.builds(Take, st.integers(1, 3), st.integers(1, 6)),
    st.builds(Done, st.integers(1, 3), st.builds(Lease, st.integers(0, 2), st.integers(0, 12), st.integers(0, 13))),
    st.builds(Lost, st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.booleans()),
)


@settings(max_examples=200)
@given(updates=st.lists(UPDATES, max_size=60))
def test_against_a_table_of_single_batches(updates: list[leases.Update | tuple[int, bool]]) -> None:
    """A tuple: a worker says that it has trained its first lease, or a part of it."""
    table, twin = LeaseTable(3, 12), LeaseTable(1, 1)
    trained: Counter[tuple[int, int]] = Counter()
    for update in updates:
        if isinstance(update, tuple):
            held = table.leases(update[0])
            if not held:
                continue
            update = Done(
                update[0], Lease(held[0].epoch, held[0].start, held[0].stop - (update[1] and held[0].batches > 1))
            )
        is_open = isinstance(update, Done) and any(
            one.epoch == update.lease.epoch and one.never for one in table.coverage()
        )
        update = leases.decode([leases.encode(update)])
        twin.load([table.state()])
        table.apply(update)
        twin.apply(update)
        assert twin.state() == table.state()
        if isinstance(update, Done) and is_open and update.lease.stop <= 12:
            trained.update((update.lease.epoch, at) for at in range(update.lease.start, update.lease.stop))
        held = [
            (one.epoch, at)
            for worker in table.workers()
            for one in table.leases(worker)
            for at in range(one.start, one.stop)
        ]
        assert len(held) == len(set(held)), "nobody shares a batch"
        assert not [batch for batch in held if trained[batch]], "nobody is to train what is trained"
        for one in table.coverage():
            assert one.once + one.more + one.never == 12
            assert one.never == sum(not trained[one.epoch, at] for at in range(12))


def test_every_batch_is_trained_as_long_as_a_worker_lives() -> None:
    table = LeaseTable(3, 50)
    worker = 1
    for step in range(500):
        if table.is_over:
            break
        table.apply(Take(worker, 7))
        if step % 5 == 0:
            table.apply(Lost(worker))
            worker += 1
        for lease in table.leases(worker):
            table.apply(Done(worker, lease))
    assert table.is_over
    assert table.coverage() == [Coverage(epoch, 50, 0, 0) for epoch in range(3)]


def test_the_table_outlives_its_primary() -> None:
    """Two replicas of a table, as of any shard: what was acknowledged holds, and a repeated Take is not granted again."""

    def table_of(mesh: Mesh, one: Member) -> LeaseTable:
        table = LeaseTable(1, 100)
        for update in mesh.states[one.id]:
            table.apply(leases.decode([update]))
        return table

    mesh = Mesh(A, B)
    mesh.configure(pair())
    mesh.push(A, 1, leases.encode(Take(9, 10)))
    mesh.push(A, 1, leases.encode(Take(8, 10)), worker=8)
    mesh.wait(0.2)
    mesh.passes = cut(A)
    mesh.configure(Configuration(2, 2, (B,)), B)
    mesh.push(B, 1, leases.encode(Take(9, 10)), generation=2)
    assert mesh.acknowledged() == [1, 1, 1]
    table = table_of(mesh, B)
    assert table.leases(9) == (Lease(0, 0, 10),)
    assert table.leases(8) == (Lease(0, 10, 20),)
    mesh.push(B, 2, leases.encode(Lost(8)), generation=2)
    mesh.push(B, 3, leases.encode(Take(9, 10)), generation=2)
    assert table_of(mesh, B).leases(9) == (Lease(0, 0, 10), Lease(0, 10, 20))
    assert table_of(mesh, B).coverage() == [Coverage(0, 0, 0, 100)]
