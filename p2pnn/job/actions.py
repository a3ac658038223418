"""What a supervisor wants done; the adapter in `node` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2pnn.job.assignment import Assignment
from p2pnn.job.records import JobRecord
from p2pnn.job.script import Command
from p2pnn.types import BlobId, NodeId


@dataclass(frozen=True, slots=True)
class Decide:
    """Have this start of the job decided, with the record as it is now; answered by `decided`."""


@dataclass(frozen=True, slots=True)
class ReserveNode:
    """Ask for the node's one place."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class PrepareNode:
    """Have the node fetch what its part of the plan needs and start an executor."""

    node: NodeId
    index: int


@dataclass(frozen=True, slots=True)
class Order:
    """Send commands to these nodes, which are those of the plan that take part, in one message. oldest: number of the oldest
    command that not all have answered, these included. state: where the script stands with them (`job.run_state`); empty
    where nobody could go on from it."""

    commands: tuple[Command, ...]
    oldest: int
    state: bytes
    nodes: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseNode:
    """Give the node's place back; an executor that still runs there is ended."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Reassign:
    """Have another assignment of this start committed with the job's entry, in place of `before`; answered by `reassigned`, or
    `not_reassigned`."""

    before: Assignment
    after: Assignment


@dataclass(frozen=True, slots=True)
class TellAssigned:
    """Tell nodes of the start which assignment holds."""

    nodes: tuple[NodeId, ...]
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Compare:
    """Plan the job as if it began now, while it runs; answered by `compared`."""


@dataclass(frozen=True, slots=True)
class KeepBlobs:
    """Have `node` fetch blobs from `source` and keep them; answered by `kept`."""

    node: NodeId
    request: int
    blobs: tuple[BlobId, ...]
    source: NodeId


@dataclass(frozen=True, slots=True)
class AskCuts:
    """Ask a member which cuts of this start of the job it holds in memory; answered by `cuts`."""

    node: NodeId
    generation: int
    request: int


@dataclass(frozen=True, slots=True)
class MakePart:
    """Have a member write a part of a cut that it holds as a checkpoint's; answered by `made`."""

    node: NodeId
    generation: int
    request: int
    index: int
    step: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Store the record durably here and send it to every member."""

    record: JobRecord


@dataclass(frozen=True, slots=True)
class Publish:
    """An event for whoever follows the job."""

    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replan:
    """A planned node went away: plan again over who is left. Answered by `planned` or `unplanned`."""


Action = (
    Decide
    | ReserveNode
    | PrepareNode
    | Order
    | Reassign
    | TellAssigned
    | Compare
    | ReleaseNode
    | KeepBlobs
    | AskCuts
    | MakePart
    | Remember
    | Publish
    | Replan
)
