"""The messages of jobs: a node's place, a start's parts, records, questions. See `wire.messages`.

generation: of a job's start, higher for each. term: of the coordinator; nodes obey nobody of a lower one than they know.
"""

from __future__ import annotations

from p2pnn.wire.fields import (
    Blobs,
    BlobText,
    Count,
    JobText,
    MaybeBlob,
    MaybeNode,
    Message,
    Name,
    Nodes,
    NodeText,
    Packed,
    Sentence,
    SquareSums,
)


class Reserve(Message, tag=30):
    """Coordinator asks for the node's one place. Answered by Granted, at once or when the place is free; first Waiting."""

    job: JobText
    generation: Count
    name: Name = ""
    term: Count = 0


class Waiting(Message, tag=31):
    """The place is taken by job `behind`; this one is `position` in the queue (1 is next)."""

    job: JobText
    generation: Count
    behind: JobText
    position: Count


class Granted(Message, tag=32):
    job: JobText
    generation: Count


class Release(Message, tag=33):
    """Coordinator gives the place back, or withdraws its Reserve; an executor that still runs is ended."""

    job: JobText
    generation: Count
    term: Count = 0


class Prepare(Message, tag=34):
    """Fetch what is needed (spec, checkpoint parts, data chunks; from any of `sources`), start an executor, answer Prepared.

    plan, checkpoint: the record, or MessagePack of the name of a blob that holds it.
    nodes: the plan's nodes, in its order.
    """

    job: JobText
    generation: Count
    spec: BlobText
    plan: Packed
    checkpoint: Packed
    nodes: Nodes
    index: Count
    sources: Nodes
    term: Count = 0


class Preparing(Message, tag=35):
    """How far Prepare is: bytes fetched of bytes needed."""

    job: JobText
    generation: Count
    fetched_bytes: Count
    total_bytes: Count


class Prepared(Message, tag=36):
    job: JobText
    generation: Count
    memory_bytes: Count


class Command(Message, tag=37):
    """A MessagePack array of executor commands (Train, Evaluate, Predict, Checkpoint, Finish), for the executor, in this order.

    One that has the number of an earlier one is a repetition. oldest: all nodes have answered those below this number. state:
    where the coordinator's script stands with these (job.run_state); kept for the next coordinator.
    """

    job: JobText
    generation: Count
    commands: Packed
    term: Count = 0
    oldest: Count = 0
    state: Packed = b""


class Report(Message, tag=38):
    """A MessagePack executor message (Progress, Done) for the coordinator, or the name of a blob that holds it.

    term: in which the node obeyed the coordinator when it said so; 0 where it does not tell.
    """

    job: JobText
    generation: Count
    report: Packed
    term: Count = 0


class JobFailed(Message, tag=39):
    """Node to coordinator: the job cannot go on here. text: one sentence, without the node's name.

    kind: 0 what no other start would change; 1 its compute process was killed; 2 what it needs could not be had, or a link
    broke, that to `peer` where one is named.
    """

    job: JobText
    generation: Count
    text: Sentence
    kind: Count = 0
    peer: MaybeNode = ""


class Retired(Message, tag=40):
    """Node to the nodes that send it tensors: micro-batches below `count` are done here."""

    job: JobText
    generation: Count
    index: Count
    count: Count


class Squares(Message, tag=41):
    """Node to the job's other nodes, of its model replica where there are several, for global-norm clipping: float64 sums of
    squares per parameter. None at all: its shards have set it aside, so its replica pushes nothing more."""

    job: JobText
    generation: Count
    index: Count
    step: Count
    squares: SquareSums


class Keep(Message, tag=42):
    """Coordinator to a buddy: fetch these blobs from `source`, verify and keep them; answered by Kept."""

    job: JobText
    request: Count
    blobs: Blobs
    source: NodeText


class Kept(Message, tag=43):
    """error: empty, or one sentence."""

    job: JobText
    request: Count
    error: Sentence = ""


class Record(Message, tag=44):
    """The job as others should remember it, so that it can be shown and resumed from any peer.

    record: MessagePack of job.records.JobRecord, or of the name of a blob that holds it. A receiver keeps the one with the
    highest (generation, revision).
    """

    job: JobText
    generation: Count
    revision: Count
    record: Packed


class RecordRequest(Message, tag=45):
    """Ask a peer for all job records it has; it answers with Record messages."""


class Ask(Message, tag=47):
    """Ask a node about a job: the coordinator to `submit`, `cancel`, `pause` or `resume` it, as a person said here; answered by
    Answered.

    Any node for its `trace` of it, or only for its `clock`; answered by Traced, or Answered with an error. blob: of a job
    that is submitted, its spec, which the asking node holds with all its data.
    """

    request: Count
    job: JobText
    verb: Name
    blob: MaybeBlob = ""


class Answered(Message, tag=48):
    """state: the job's, now; `again` where the coordinator is another one now. error: empty, or why not, in one sentence."""

    request: Count
    state: Name
    error: Sentence = ""


class Traced(Message, tag=49):
    """Answer to an Ask for a trace or a clock, so only for nodes that know it.

    clock_ns: the answering node's monotonic clock. part: MessagePack of job.trace.NodePart, or of the name of a blob that holds
    it; empty for `clock`.
    """

    request: Count
    clock_ns: Count
    part: Packed = b""


class Adopt(Message, tag=54):
    """A new coordinator takes up a start that runs; answered by Adopted. Nodes obey its predecessor no more."""

    job: JobText
    generation: Count
    term: Count


class Adopted(Message, tag=55):
    """part: MessagePack of job.part_log.PartState, or of the name of a blob that holds it."""

    job: JobText
    generation: Count
    part: Packed


class Happened(Message, tag=56):
    """Coordinator to members: an event of a job, for who follows it there. fields: MessagePack of a map.

    Progress goes only to those that asked with Follow.
    """

    job: JobText
    generation: Count
    kind: Name
    fields: Packed


class Follow(Message, tag=57):
    """Member to coordinator: somebody follows the job here; again every few seconds as long as that is so."""

    job: JobText
