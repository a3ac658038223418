"""Between the nodes that hold the same shard: pushes go from slot to slot, everything else from executor to executor.

The executors decide (`ps.replicated`); here it is seen to that a message comes from a node that holds the shard too, that bytes
of a push come from its primary and into the place that is theirs, and that what a peer claims takes no memory.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from p2pnn.errors import ProtocolError
from p2pnn.executor import commands
from p2pnn.job import assignment
from p2pnn.job.assignment import Assignment
from p2pnn.job.plan import Plan
from p2pnn.node.company import Company
from p2pnn.node.executor import Executor
from p2pnn.node.links import Priority
from p2pnn.ps.gate import PushGate
from p2pnn.ps.layout import ServerLayout
from p2pnn.replication.limits import Limits
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire
from p2pnn.wire.codec import decode, encode

log = logging.getLogger("p2pnn.place")

SAID: Final = (commands.Replicate, commands.Recall, commands.Applied)
"""What an executor says to the other replicas, and to the gate."""

Told = wire.Append | wire.Appended | wire.Beat | wire.UpdateWanted | wire.StateHeld | wire.Superseded
Carried = wire.Forward | wire.StatePiece
"""Messages without a body, and with one."""

PIECES_MAX: Final = 2 * Limits().state_window
"""Pieces of states that may be on their way to one shard here: what its primary sends at once, and what the one before left."""

Part = tuple[int, int, int, int]
"""Shard, worker, sequence and part of a push."""


class Replicating:
    """Of the shards that this node holds. gate: through which workers' pushes come as well."""

    def __init__(self, plan: Plan, layout: ServerLayout, company: Company, executor: Executor, gate: PushGate) -> None:
        self._plan = plan
        self._layout = layout
        self._company = company
        self._executor = executor
        self._gate = gate
        self._holders = [frozenset(home.nodes) for home in plan.shards]
        self._primaries = [home.nodes[0] for home in plan.shards]
        self._generations = [company.about[1] for _ in plan.shards]
        shards = layout.sharding.shards
        self._parts = [
            [start for start, _ in layout.slots[n].parts] if n in layout.slots else [] for n in range(len(shards))
        ]
        self._needed = [[part.needed for part in shard.parts] for shard in shards]
        self._ranks = [sorted(set(needed)) for needed in self._needed]
        self._coming: dict[NodeId, set[Part]] = {}
        self._pieces: dict[
            tuple[NodeId, int, int, int], bytearray
        ] = {}  # by node, shard, number of the state and first byte

    def assigned(self, held: Assignment) -> None:
        """Who holds the shards now."""
        self._primaries = [assignment.primary_of(held, self._plan, shard) for shard in range(len(self._holders))]
        self._generations = [shard.generation for shard in held.shards] or self._generations

    def may_push(self, shard: int, by: int) -> bool:
        """Whether a worker that goes by the configuration of this generation may push here: to the primary, or to one that may be
        the primary by what the worker has heard and this node has not."""
        return self._company.index == self._primaries[shard] or by > self._generations[shard]

    def receive(self, node: NodeId, message: Told) -> None:
        if self._is_from_holder(node, message):
            self._pass_on(node, message)

    def body_for(self, node: NodeId, message: Carried, nbytes: int) -> memoryview | None:
        """The place of a part of a push, or of a piece of a state; None for what is here already, or not expected."""
        if not self._is_from_holder(node, message) or self._company.index_of(node) != self._primaries[message.shard]:
            return None
        if isinstance(message, wire.StatePiece):
            key = node, message.shard, message.number, message.start
            coming = sum(shard == message.shard for _, shard, _, _ in self._pieces)
            if nbytes > Limits().piece_bytes or coming >= PIECES_MAX or key in self._pieces:
                return None
            self._pieces[key] = bytearray(nbytes)
            return memoryview(self._pieces[key])
        part = self._part(message)
        if part is None:
            return None
        if refusal := self._gate.refusal(part[1], None, part[0], part[2], part[3], nbytes):
            log.debug("copy refused job=%s node=%s reason=%s", message.job, self._company.name(node), refusal)
            return None
        if self._gate.is_known(*part, forwarded=True):
            self._pass_on(node, message)
            return None
        self._coming.setdefault(node, set()).add(part)
        return self._executor.room(*self._gate.take(*part))

    def arrived(self, node: NodeId, message: Carried) -> None:
        """A body lies whole in its place."""
        if isinstance(message, wire.StatePiece):
            piece = self._pieces.pop((node, message.shard, message.number, message.start), None)
            if piece is not None:
                self._pass_on(node, message, bytes(piece))
            return
        part = self._part(message)
        assert part is not None, "it had a place"
        self._coming.get(node, set()).discard(part)
        self._gate.received(*part, forwarded=True)
        self._pass_on(node, message)

    def lost(self, node: NodeId) -> None:
        """What was coming from a node will not."""
        for part in self._coming.pop(node, ()):
            self._gate.broken(*part)
        for key in [key for key in self._pieces if key[0] == node]:
            del self._pieces[key]

    def says(self, message: commands.Replicate | commands.Recall | commands.Applied) -> None:
        """The executor has something for another replica, wants it back, or has applied pushes."""
        if isinstance(message, commands.Applied):
            self._gate.acknowledged(message.shard, message.worker, message.sequence)
            return
        if isinstance(message, commands.Recall):
            self._company.recall(message.target, message.tokens)
            return
        try:
            found = decode(message.message)
        except ProtocolError as error:  # a fault of this program, which shall not end the daemon
            log.error("not sent reason=%s", error)
            return
        body: memoryview | None = memoryview(message.body)
        if message.nbytes:
            body = self._executor.room(message.offset, message.nbytes)
        if not isinstance(found, wire.Forward | wire.StatePiece):
            self._company.send(message.target, found)
            return
        left = partial(self._left, message.token)
        self._company.send_body(message.target, found, body, self._priority(found), left, message.token)

    def _left(self, token: int) -> None:
        if token:
            self._executor.send(commands.ReplicaLeft(token))

    def _priority(self, message: Carried) -> int:
        """A part of a push takes turns with those that workers here push, of which it was one: neither keeps the other back."""
        if isinstance(message, wire.StatePiece) or message.start not in self._parts[message.shard]:
            return Priority.BLOB
        ranks = self._ranks[message.shard]
        needed = self._needed[message.shard][self._parts[message.shard].index(message.start)]
        return Priority.of_push(ranks.index(needed), len(ranks))

    def _part(self, message: wire.Forward) -> Part | None:
        starts = self._parts[message.shard]
        if message.start not in starts or message.worker < 1:
            return None
        return message.shard, message.worker - 1, message.sequence, starts.index(message.start)

    def _is_from_holder(self, node: NodeId, message: Told | Carried) -> bool:
        held = message.shard in self._layout.slots and self._company.index_of(node) in self._holders[message.shard]
        if not held:
            what = f"{type(message).__name__} about shard {message.shard}"
            self._company.refused("refused", node, what)
        return held

    def _pass_on(self, node: NodeId, message: Told | Carried, body: bytes = b"") -> None:
        self._executor.send(commands.Replicated(self._company.index_of(node), encode(message), body))
