"""The messages of replicated shards: 95–98 and 100–105 (`p2pnn.replication`). 99 stays free: a golden vector rejects it.

They are part of the closed list in `wire.messages`. All name the shard by its job and number, and carry a *generation*: of the
committed configuration by which the sender acts. In Push and Pushed, between workers and the shards of a job, that is `by`, and
`generation` that of the job's start, which in messages between replicas is `started`. An update travels in pieces, each the body
of one message, and is named by the worker's incarnation and its sequence number; its place in the log is told apart, so that the
bytes travel once. Any of these may be lost, doubled or late.
"""

from __future__ import annotations

from typing import ClassVar

from p2pnn.wire.fields import Count, JobText, Length, Message, Name, Packed, Sentence


class Push(Message, tag=95):
    """Worker to primary. Body: the update's bytes from `start` on. worker: its incarnation. sequence: counts updates from 1.

    Of a push of gradients: part: which of the shard's parts the body is; based_on, based_clock: `version` and `clock` of the
    values that the gradient was computed from; fetch: answer with values; have: the number of the newest that the worker has;
    mark: the sequence of the worker's newest Mark: the push is decided when all workers have sent theirs.
    """

    BODY: ClassVar[bool] = True
    job: JobText
    shard: Count
    generation: Count
    worker: Count
    sequence: Count
    start: Length
    total_bytes: Length
    part: Count = 0
    based_on: Count = 0
    based_clock: Count = 0
    fetch: bool = False
    have: Count = 0
    mark: Count = 0
    by: Count = 0


class Pushed(Message, tag=96):
    """To the worker: all in-sync replicas hold its updates up to `sequence`. answer: what the shard has to say to it.

    error: the update of this sequence was refused and changes nothing; its number is used up. Of a push of gradients:
    refusal: the name of a `ps.messages.Refusal`, or empty; request: of the Fetch that is refused, 0 for none; log_number: of
    the newest push; lately: as of Values.
    """

    job: JobText
    shard: Count
    generation: Count
    worker: Count
    sequence: Count
    answer: Packed = b""
    error: Sentence = ""
    refusal: Name = ""
    request: Count = 0
    log_number: Count = 0
    by: Count = 0
    lately: Count = 0


class Forward(Message, tag=97):
    """Primary to the other replicas, while the push still arrives. Body: the update's bytes from `start` on."""

    BODY: ClassVar[bool] = True
    job: JobText
    shard: Count
    generation: Count
    worker: Count
    sequence: Count
    start: Length
    total_bytes: Length
    started: Count = 0


class Append(Message, tag=98):
    """Primary to the other replicas: this update is entry `number` of the log. Answered by Appended.

    base: the last number of the primary's log when this generation began: later entries of older generations are to be
    dropped. ordered: the generation in which the entry got its number. total_bytes: 0 for an update that was refused, and for
    what no worker pushed (worker 0): a decision of the primary's own. head: what the primary decided, for the shard's owners.
    committed: up to it all entries are held by all in-sync replicas. stable: up to it all of them know so.
    """

    job: JobText
    shard: Count
    generation: Count
    base: Count
    committed: Count
    stable: Count
    number: Count
    ordered: Count
    worker: Count
    sequence: Count
    total_bytes: Length
    head: Packed = b""
    started: Count = 0


class Appended(Message, tag=100):
    """To the primary: in this generation, the sender holds the log as the primary has it, up to `held`.

    incarnation: the sender's. committed: up to it the sender knows it to be committed.
    """

    job: JobText
    shard: Count
    generation: Count
    incarnation: Count
    held: Count
    committed: Count
    started: Count = 0


class Beat(Message, tag=101):
    """The primary of this generation lives. Answered by Appended. Fields as of Append; last: its log's last number."""

    job: JobText
    shard: Count
    generation: Count
    base: Count
    committed: Count
    stable: Count
    last: Count
    started: Count = 0


class UpdateWanted(Message, tag=102):
    """To the primary: the sender has entry `number` without (all of) its bytes. Answered by Forward."""

    job: JobText
    shard: Count
    generation: Count
    number: Count
    started: Count = 0


class StatePiece(Message, tag=103):
    """Primary to a learner. Body: bytes from `start` on of the whole state after entry `number`. Answered by StateHeld.

    head_bytes: how many of the first bytes are the replication's own (who has pushed what); the rest is the shard's.
    """

    BODY: ClassVar[bool] = True
    job: JobText
    shard: Count
    generation: Count
    number: Count
    start: Count
    head_bytes: Length
    total_bytes: Count
    started: Count = 0


class StateHeld(Message, tag=104):
    """To the primary: of the state after entry `number` the sender has the first `held_bytes`."""

    job: JobText
    shard: Count
    generation: Count
    number: Count
    held_bytes: Count
    started: Count = 0


class Superseded(Message, tag=105):
    """Answer to a message of a lower generation: `generation` is the sender's; fetch the committed configuration."""

    job: JobText
    shard: Count
    generation: Count
    started: Count = 0
