"""The messages of snapshots: 50–53 on control links, 61 on data links (`p2pnn.node.snapshots`).

They are part of the closed list in `wire.messages`. A *cut* is what all nodes of a plan held after the same update; node
`index` of the plan has its part of it. Each node sends its part to one other, in memory alone, so that a run goes on without
a node that is lost.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pnn.wire.fields import Count, JobText, Message, Packed, Sentence

CUTS_MAX: Final = 3000
"""In one answer: 2 × 9 bytes each. A node holds a few cuts of its own part, and of as many others' as chose it."""

assert CUTS_MAX * 18 < 64 * 1024

Numbers = Annotated[tuple[Count, ...], Meta(max_length=CUTS_MAX)]


class CutsWanted(Message, tag=50):
    """Coordinator to every member: which cuts of this start of the job do you hold in memory? Answered by CutsHeld."""

    job: JobText
    generation: Count
    request: Count


class CutsHeld(Message, tag=51):
    """Part `indices[i]` of the cut after `steps[i]` updates is here. step: updates that the sender's own part has done."""

    job: JobText
    generation: Count
    request: Count
    step: Count
    indices: Numbers
    steps: Numbers


class PartWanted(Message, tag=52):
    """Write part `index` of the cut after `step` updates as a part of a checkpoint, a blob; answered by PartMade."""

    job: JobText
    generation: Count
    request: Count
    index: Count
    step: Count


class PartMade(Message, tag=53):
    """part: MessagePack of the `job.checkpoint.Part` that lies in the sender's store; empty where error says why not."""

    job: JobText
    generation: Count
    request: Count
    part: Packed
    error: Sentence = ""


class Snapshot(Message, tag=61):
    """Body: part `index` of the cut after `step` updates, laid out as `train.cuts` says; the receiver keeps the newest few."""

    BODY: ClassVar[bool] = True
    job: JobText
    generation: Count
    index: Count
    step: Count
