"""What a server says to the other nodes that hold its shards, and hears from them.

`ps.ReplicatedShard` decides what. The bytes of pushes lie in the slots that the daemon shares with this process, on each node
alike (`ps.layout`), so a Forward only names them. Other bodies, of a state and of what a learner catches up with, are copies
that travel with the command; `replication.limits` bounds how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Final

import msgspec
import numpy as np

from p2pnn.errors import JobFailedError, P2pnnError, RemoteProtocolError
from p2pnn.executor import commands
from p2pnn.job import assignment
from p2pnn.job.plan import Plan
from p2pnn.ps.carrying import HEAD_BYTES_MAX
from p2pnn.ps.copies import limits_of
from p2pnn.ps.layout import Slots, workers_of
from p2pnn.ps.replicated import ReplicatedShard
from p2pnn.replication.configuration import Member
from p2pnn.replication.holding import Parcel
from p2pnn.replication.holding import Shard as Name
from p2pnn.replication.limits import Timing
from p2pnn.replication.outcomes import FetchConfiguration, Propose
from p2pnn.types import NodeId
from p2pnn.wire.codec import decode, encode
from p2pnn.wire.messages import Append, CloseReason, Forward

TIMING: Final = Timing(silence_s=1.5, slow_s=1.5)
"""Processes that hold shards step behind what the person at the machine does, and share its cores with workers: a backup that
gets no core for a moment is no lost one. Who dies is missed by its links first, at once (`job.assignment.without`)."""


def maker(
    prepare: commands.Prepare, plan: Plan, number: int, push_bytes: int, state_bytes: int, now: float
) -> Callable[..., ReplicatedShard]:
    """What makes this process's replica of a shard, from the arguments of a `ps.Shard`. state_bytes: of its arrays; a learner
    takes no state that is larger.

    Nodes begin a start with new processes, so its generation tells them apart from those of before.
    """
    workers = len(plan.replicas)
    limits = limits_of(workers, push_bytes, state_bytes)
    return partial(
        ReplicatedShard,
        Name(prepare.job, number),
        Member(plan.nodes[prepare.node_index].node, prepare.generation),
        now=now,
        limits=replace(limits, state_bytes_max=HEAD_BYTES_MAX + state_bytes + workers * push_bytes),
        timing=TIMING,
    )


class Replicas:
    """The replicated shards of one server. copied_bytes: by shard, of pushes and states that were sent to other replicas."""

    def __init__(
        self,
        prepare: commands.Prepare,
        plan: Plan,
        shards: Mapping[int, ReplicatedShard],
        slots: Mapping[int, Slots],
        view: memoryview,
    ) -> None:
        self._generation = prepare.generation
        self._plan = plan
        self._nodes = {NodeId(share.node): index for index, share in enumerate(plan.nodes)}
        self._shards = shards
        self._slots = slots
        self._arena = np.frombuffer(view, np.uint8)
        self._workers = workers_of(plan)
        self._tokens = count(1)
        self._leaving: dict[int, tuple[int, Parcel]] = {}
        self._recalled: dict[int, list[int]] = {}  # by node: what is to leave its slot at once
        self._told: dict[tuple[int, int], int] = {}  # (shard, worker) → the push up to which all are told to be applied
        self.copied_bytes = dict.fromkeys(shards, 0)

    # what comes in

    def assigned(self, packed: bytes, through: int, now: float) -> assignment.Assignment:
        """Who has which role now. through: up to which command of the script this server has done all; a new primary says so."""
        try:
            found = assignment.decode(packed)
            assignment.check(found, self._plan)
        except P2pnnError as error:
            raise JobFailedError(str(error)) from None
        for number, shard in self._shards.items():
            was_primary = shard.is_primary
            shard.configured(found.shards[number], now)
            if shard.is_primary and not was_primary and through > shard.served_to:
                shard.served(through, now)
        self._recall()
        return found

    def receive(self, command: commands.Replicated, now: float) -> None:
        """A message of another replica. Raises RemoteProtocolError for what no primary sends, if it is from this shard's, in its
        generation: then nobody knows what this process holds. The others' nonsense is dropped."""
        source = self._plan.nodes[command.source]
        message = decode(command.message)
        number: int = getattr(message, "shard", -1)
        shard = self._shards.get(number)
        if shard is None:
            return
        body: bytes | memoryview | None = command.body
        if isinstance(message, Forward):
            body = self._in_slot(shard, message)
        try:
            if isinstance(message, Append) and (why := self._nonsense(message)):
                if shard.replica.obeys(NodeId(source.node), message.generation, now):
                    raise RemoteProtocolError(CloseReason.MALFORMED, why)
            elif body is not None:
                shard.receive(NodeId(source.node), message, now, body)
        except RemoteProtocolError as error:
            what = f"what {source.name} sent as the primary of shard {number} makes no sense: {error}"
            raise RemoteProtocolError(error.reason, what) from None

    def left(self, token: int) -> None:
        """A message has left, so its slot may be filled again."""
        number, parcel = self._leaving.pop(token, (-1, None))
        if parcel is not None:
            self._shards[number].sent(parcel)

    def _recall(self) -> None:
        """Bytes leave from their slots only to those who are waited for: a link that hangs, or is slow, keeps no other's slot."""
        self._recalled.clear()
        for token, (number, (target, _, body)) in self._leaving.items():
            if isinstance(body, memoryview) and not self._shards[number].replica.is_waited_for(target):
                self._recalled.setdefault(self._nodes[target], []).append(token)

    def handle_timer(self, now: float) -> None:
        for shard in self._shards.values():
            due = shard.get_timer()
            if due is not None and due <= now:
                shard.handle_timer(now)

    def get_timer(self) -> float | None:
        times = (shard.get_timer() for shard in self._shards.values())
        return min((at for at in times if at is not None), default=None)

    # what goes out

    def say(self, now: float) -> Iterator[commands.FromExecutor]:
        """All there is to say; that pushes are applied comes before what lets others send more into their slots."""
        while self._recalled:
            yield commands.Recall(*self._recalled.popitem())
        for number, shard in self._shards.items():
            if not shard.is_primary:
                yield from self._applied(number, shard)
            for parcel in shard.messages_to_send(now):
                if parcel[0] in self._nodes:
                    yield self._message(number, parcel)
            while (event := shard.next_event()) is not None:
                match event:
                    case Propose(configuration):
                        packed = assignment.encode_configuration(configuration)
                        yield commands.ProposeConfiguration(number, packed)
                    case FetchConfiguration():
                        yield commands.ProposeConfiguration(number)

    def _applied(self, number: int, shard: ReplicatedShard) -> Iterator[commands.Applied]:
        for index, worker in enumerate(self._workers):
            applied = shard.acknowledged(worker)
            if applied > self._told.get((number, index), 0):
                self._told[number, index] = applied
                yield commands.Applied(number, index, applied)

    def _message(self, number: int, parcel: Parcel) -> commands.Replicate:
        target, message, body = parcel
        said = commands.Replicate(
            0, self._nodes[target], encode(msgspec.structs.replace(message, started=self._generation))
        )
        self.copied_bytes[number] += len(body)
        if isinstance(message, Forward):
            said.token = next(self._tokens)
            self._leaving[said.token] = number, parcel
        if isinstance(body, memoryview) and isinstance(message, Forward):
            said.offset = np.frombuffer(body, np.uint8).ctypes.data - self._arena.ctypes.data
            said.nbytes = len(body)
        elif len(body):
            said.body = bytes(body)
        return said

    # what is told of it

    def roles(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Of a shard: the nodes that hold it in sync, the primary first; learners; entries that not all in sync hold yet."""
        shard = self._shards.get(number)
        found = shard.replica.configuration if shard is not None else None
        if shard is None or found is None:
            return (), (), 0
        in_sync = tuple(self._nodes.get(member.id, -1) for member in found.in_sync)
        learners = tuple(self._nodes.get(member.id, -1) for member in found.learners)
        return in_sync, learners, shard.replica.log.last - shard.replica.committed

    # what may be

    def _in_slot(self, shard: ReplicatedShard, message: Forward) -> memoryview | None:
        parts = dict(self._slots[message.shard].parts)
        return shard.slot_view(message.worker, message.sequence, message.start, parts.get(message.start, -1))

    def _nonsense(self, message: Append) -> str:
        """What is wrong with an entry, if it is neither a decision nor a push of a worker that there is; else empty."""
        push_bytes = self._slots[message.shard].nbytes
        if message.worker > len(self._workers) or message.total_bytes not in (0, push_bytes if message.worker else 0):
            named = f"{message.total_bytes:,} bytes of worker {message.worker}"
            return f"entry {message.number} of shard {message.shard} names {named}, which cannot be"
        return ""
