"""The messages between workers and parameter-server shards that are not those of replication: 62–64; those about who holds the
shards: 106, 107; and those about who trains what: 110–112.

They are part of the closed list in `wire.messages`. A worker is named by its number in the plan, a shard by its. A push is
`wire.replication.Push`, answered by Values or, without values, by `wire.replication.Pushed`. generation: of the job's start; by:
of the shard's configuration by which the sender acts.
"""

from __future__ import annotations

from typing import ClassVar

from p2pnn.wire.fields import Count, JobText, LeaseRanges, Message, Name, Packed


class Values(Message, tag=62):
    """Shard to worker. Body: parameters, whole float32 or a compressed difference to those numbered `number` − 1.

    Answers the pushes up to `sequence`, or the Fetch numbered `request`. version, clock: how many updates the values hold,
    and how many pushes at least of each worker. refusal: the name of a `ps.messages.Refusal`, or empty. log_number: of the
    newest push. lately: what became of it and of the one before, two bits each from the lowest on: 0 taken, 1 refused, 2 refused
    for what it held.
    """

    BODY: ClassVar[bool] = True
    job: JobText
    generation: Count
    shard: Count
    worker: Count
    sequence: Count
    request: Count
    version: Count
    clock: Count
    whole: bool
    number: Count
    refusal: Name = ""
    log_number: Count = 0
    by: Count = 0
    lately: Count = 0


class Fetch(Message, tag=63):
    """Worker to shard: send values, answered by Values. have: the number of those that the worker has.

    after: once all workers have done the commands of the script before this number; 0 for at once. returns: the number of the
    worker's next push, where it has said Rest after the one before: that ends first.
    """

    job: JobText
    generation: Count
    shard: Count
    worker: Count
    request: Count
    have: Count = 0
    after: Count = 0
    by: Count = 0
    returns: Count = 0


class Mark(Message, tag=64):
    """Worker to shard: the worker has done all commands of the script before `sequence`, and the shard has acknowledged its
    pushes."""

    job: JobText
    generation: Count
    shard: Count
    worker: Count
    sequence: Count
    by: Count = 0


class Assigned(Message, tag=106):
    """Coordinator to the nodes of a start that take part in it: this has been committed. The newest counts; it may come again.

    assignment: MessagePack of job.assignment.Assignment.
    """

    job: JobText
    generation: Count
    assignment: Packed
    term: Count = 0


class ShardWish(Message, tag=107):
    """Node to coordinator: a shard's primary wants this configuration of its replicas, made from the newest that it knows.
    Answered by Assigned, once it is committed or where another one holds.

    configuration: MessagePack of replication.configuration.Configuration; empty to be told what holds.
    """

    job: JobText
    generation: Count
    shard: Count
    configuration: Packed = b""


class LeaseWish(Message, tag=110):
    """Worker to the shard that deals out the data: what it has trained, and that it wants more. Answered by Leased: at once, or
    when there are batches for it, or when all below `until` are trained. number: rises by one with each; the newest counts.

    done: ranges of batches; pushed: the last push that holds any of those, or of what was said before. batches: how many more it
    wants, of those below `below`. heard: the newest Leased that it has. quits: it trains nothing any more. back, bad: ranges that
    it trained in vain, since no shard took its pushes: they came too late, or were bad.
    """

    job: JobText
    generation: Count
    shard: Count
    worker: Count
    number: Count
    done: LeaseRanges = ()
    pushed: Count = 0
    batches: Count = 0
    below: Count = 0
    until: Count = 0
    heard: Count = 0
    quits: bool = False
    back: LeaseRanges = ()
    bad: LeaseRanges = ()


class Leased(Message, tag=111):
    """Shard to worker: the ranges of batches that it is to train, in this order, all of them. trained_below: all batches below
    are trained. again: how many of the epoch that `LeaseWish.below` ends or is in were trained more often than once, never: and
    were given up, since their pushes were refused twice for what they held."""

    job: JobText
    generation: Count
    shard: Count
    worker: Count
    number: Count
    ranges: LeaseRanges = ()
    trained_below: Count = 0
    again: Count = 0
    never: Count = 0


class Rest(Message, tag=112):
    """Worker to shard: it has nothing to train after `pushes` pushes, all of them acknowledged: no bound waits for it until its
    Fetch says that it `returns`."""

    job: JobText
    generation: Count
    shard: Count
    worker: Count
    pushes: Count


class Dealt(Message, tag=115):
    """First node of a worker that is cut over several to the others: the worker's steps from `first` on train the batches
    `ranges`, in this order. trained_below: of Leased."""

    job: JobText
    generation: Count
    index: Count
    first: Count
    ranges: LeaseRanges = ()
    trained_below: Count = 0


class Decided(Message, tag=116):
    """Node of such a worker to its first: the shards of its layers have decided the first `steps` steps of it. back, bad: steps
    of those, from and up to, that none of them took: they came too late, or were bad."""

    job: JobText
    generation: Count
    index: Count
    steps: Count
    back: LeaseRanges = ()
    bad: LeaseRanges = ()
