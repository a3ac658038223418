"""The table of jobs in the charter: the journey, what stays out, and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.errors import CharterError, CheckpointError
from p2pnn.job import assignment, records, work
from p2pnn.job.assignment import Assignment
from p2pnn.job.records import JobRecord
from p2pnn.replication.configuration import Configuration, Member
from p2pnn.types import JobId, NodeId
from tests.job.test_supervisor import NODES, make_plan, make_record, make_spec


def planned(**changes: object) -> JobRecord:
    return make_record(make_spec(), plan=make_plan(NODES[:2]), **changes)


def test_a_table_survives_the_journey_and_no_bytes_are_no_jobs() -> None:
    first = work.entry(planned(), 7)
    second = work.entry(planned(job=JobId("toy-2")), 8)
    found = work.decode(work.encode([first, second]))
    assert found == {"toy-1": first, "toy-2": second}
    assert first.nodes == tuple(NODES[:2])
    assert work.generations(found, NODES[0]) == {"toy-1": 7, "toy-2": 8}
    assert work.decode(b"") == work.decode(work.encode([])) == {}


def test_a_start_bears_the_generation_of_its_commit_whatever_its_record_said() -> None:
    entry = work.entry(planned(generation=3), 9)
    assert entry.began() == planned(generation=9)


def test_a_large_record_leaves_its_plan_and_history_to_the_members() -> None:
    small = planned()
    assert work.entry(small, 1).began().plan == small.plan
    large = msgspec.structs.replace(small, history=tuple({"epoch": float(n)} for n in range(200)), step=5)
    assert len(records.encode(large)) > work.RECORD_BYTES_MAX
    began = work.entry(large, 1).began()
    assert (began.plan, began.history, began.step) == (None, (), 5)
    assert work.entry(large, 1).nodes == tuple(NODES[:2]), "who it is about is still told"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xc1", "cannot be read"),
        (b"\x91" * 5000, "cannot be read"),
        (msgspec.msgpack.encode([work.FORMAT + 1, []]), f"has format {work.FORMAT + 1}; this p2pnn reads up to"),
        (msgspec.msgpack.encode([0, []]), "cannot be read"),
        (msgspec.msgpack.encode([1, [["../up", 1, "5" * 64, [], b""]]]), "cannot be read"),
        (msgspec.msgpack.encode([1, [["toy-1", 1, "../secret", [], b""]]]), "cannot be read"),
        (msgspec.msgpack.encode([1, [["toy-1", 1, "5" * 64, ["x"], b""]]]), "cannot be read"),
        (msgspec.msgpack.encode([1, [["toy-1", 2**63, "5" * 64, [], b""]]]), "cannot be read"),
    ],
)
def test_what_is_no_table_or_a_newer_one_is_one_sentence(data: bytes, words: str) -> None:
    with pytest.raises(CharterError, match=words):
        work.decode(data)


def large(shards: int, nodes: int) -> Assignment:
    """As large as one of so many shards can be."""
    members = [Member(NodeId(f"{n:032x}"), work.GENERATION_MAX) for n in range(2)]
    shard = Configuration(work.GENERATION_MAX, 2, (members[0],), (members[1],))
    return Assignment((shard,) * shards, tuple(range(assignment.NODES_MAX - nodes, assignment.NODES_MAX)))


def test_the_largest_plan_with_replicas_has_room_whatever_becomes_of_its_start() -> None:
    entry = work.entry(planned(), 7)
    found = work.with_assignment(entry, large(assignment.REPLICATED_SHARDS_MAX, assignment.NODES_MAX))
    assert work.decode(work.encode([found])) == {"toy-1": found}


def test_no_assignment_gets_into_the_table_that_nobody_could_read() -> None:
    entry, held = work.entry(planned(), 7), large(400, 1)
    with pytest.raises(CharterError, match="cannot be read"):
        work.decode(work.encode([msgspec.structs.replace(entry, assignment=assignment.encode(held))]))
    with pytest.raises(CharterError, match=r"in job toy-1 takes 4\d,\d+ bytes, .* room for 32,768: .* fewer --shards"):
        work.with_assignment(entry, held)


def test_newer_fields_are_read_over() -> None:
    entry = work.entry(planned(), 7)
    fields = [getattr(entry, name) for name in entry.__struct_fields__]
    assert work.decode(msgspec.msgpack.encode([1, [[*fields, "newer"]], {"newer": 1}])) == {"toy-1": entry}


def test_a_record_of_a_newer_p2pnn_is_refused_by_name() -> None:
    entry = msgspec.structs.replace(
        work.entry(planned(), 1), record=msgspec.msgpack.encode(msgspec.to_builtins(planned()) | {"format": 99})
    )
    with pytest.raises(CheckpointError, match="the charter's entry of job toy-1 has format 99"):
        entry.began()
