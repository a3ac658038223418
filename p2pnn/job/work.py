"""The table of jobs that rides in the charter as its `work`: which starts of which jobs there are, decided by a majority.

An entry is written when a start of a job is decided and goes when the job has ended. Its *generation* is the version of
the commit that wrote it (`cluster.charter.Version.generation`), so no two starts ever share one, whoever decided them. How far
a start has come is not in here: its nodes know (`job.part_log`), and a new coordinator asks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pnn.errors import CharterError, CheckpointError
from p2pnn.job import assignment, records
from p2pnn.job.assignment import Assignment
from p2pnn.job.records import JobRecord
from p2pnn.types import JobId, NodeId

FORMAT: Final = 1

RECORD_BYTES_MAX: Final = 1024
"""Of a larger record plan and history stay out, so that hundreds of jobs fit a charter: the members have both as well, and a
coordinator that has neither plans anew."""

ASSIGNMENT_BYTES_MAX: Final = 32 * 1024
"""Of `assignment.REPLICATED_SHARDS_MAX` shards; it comes with the first loss of a node, or a primary's first wish."""

GENERATION_MAX: Final = 2**63 - 1

_JobText = Annotated[str, Meta(max_length=128, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]  # it becomes a folder's name
_BlobText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_NodeText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Generation = Annotated[int, Meta(ge=0, le=GENERATION_MAX)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One start of a job. spec: a blob that a majority of the voters holds. record: as it was when the start was decided.
    assignment: who has which role now (`job.assignment`); empty for as the plan has it."""

    job: _JobText
    generation: _Generation
    spec: _BlobText
    nodes: tuple[_NodeText, ...]
    record: bytes
    assignment: Annotated[bytes, Meta(max_length=ASSIGNMENT_BYTES_MAX)] = b""

    def assigned(self) -> Assignment | None:
        """Who has which role now; None for as the plan has it. Raises CheckpointError for what cannot be read."""
        return assignment.decode(self.assignment) if self.assignment else None

    def takes_part(self, node: NodeId) -> bool:
        """Whether the start does not go on without this node."""
        held = self.assigned() or Assignment()
        return node not in {self.nodes[index] for index in held.gone if index < len(self.nodes)}

    def began(self) -> JobRecord:
        """The record at the start, of this generation. Raises CheckpointError where a newer p2pnn wrote it."""
        record = records.decode(self.record, f"the charter's entry of job {self.job}")
        return msgspec.structs.replace(record, generation=self.generation)


class _Table(msgspec.Struct, frozen=True, array_like=True):
    format: Annotated[int, Meta(ge=1)]
    entries: tuple[Entry, ...]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Table)


def entry(record: JobRecord, generation: int) -> Entry:
    """The entry of a start that this record begins."""
    nodes: tuple[NodeId, ...] = tuple(share.node for share in record.plan.nodes) if record.plan else ()
    data = records.encode(record)
    if len(data) > RECORD_BYTES_MAX:
        data = records.encode(msgspec.structs.replace(record, plan=None, history=()))
    return Entry(record.job, generation, record.spec, nodes, data)


def with_assignment(entry: Entry, held: Assignment) -> Entry:
    """The entry with who has which role now. Raises CharterError for more than it has room for: nobody could read the table."""
    data = assignment.encode(held)
    if len(data) > ASSIGNMENT_BYTES_MAX:
        raise CharterError(
            f"who has which role in job {entry.job} takes {len(data):,} bytes, but the charter has room for "
            f"{ASSIGNMENT_BYTES_MAX:,}: start it again with fewer --shards, or with --replicas 1"
        )
    return msgspec.structs.replace(entry, assignment=data)


def encode(entries: Iterable[Entry]) -> bytes:
    return _encoder.encode(_Table(FORMAT, tuple(entries)))


def decode(work: bytes) -> dict[JobId, Entry]:
    """The entries by job; none for no bytes. Raises CharterError for bytes that are no table, or a newer one."""
    if not work:
        return {}
    try:
        table = _decoder.decode(work)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CharterError(
            f"the charter's table of jobs cannot be read ({error}); use a newer p2pnn on this node"
        ) from None
    if table.format > FORMAT:
        raise CharterError(
            f"the charter's table of jobs has format {table.format}; this p2pnn reads up to {FORMAT}: update it"
        )
    for entry in table.entries:
        try:
            entry.assigned()
        except CheckpointError as error:
            raise CharterError(f"of job {entry.job} in the charter's table: {error}; use a newer p2pnn here") from None
    return {JobId(entry.job): entry for entry in table.entries}


def generations(entries: Mapping[JobId, Entry], node: NodeId) -> dict[JobId, int]:
    """What the fence on a node compares: of all starts that there are, but for those that go on without it."""
    return {job: entry.generation for job, entry in entries.items() if entry.takes_part(node)}
