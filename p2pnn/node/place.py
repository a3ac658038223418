"""This node's one place: which job has it, and the part of that job in it (`node.part`).

The coordinator reserves the place, has it prepared (blobs fetched, executor started), sends the script, and releases it.
What belongs to another start of the job, or comes from a node that does not coordinate the cluster, is dropped. The place
outlives its coordinator: the next one adopts what runs here, and what the cluster has ended or started anew ends here as
soon as this node learns of that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from p2pnn.job.part_log import PartState
from p2pnn.job.queue import Grant, PlaceQueue, Ticket, Wait
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.links import Post
from p2pnn.node.part import Part
from p2pnn.node.snapshots import Snapshots
from p2pnn.node.tasks import Tasks
from p2pnn.node.traces import Traces
from p2pnn.types import JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.place")

OfPart = wire.Tensor | wire.Push | wire.Values | wire.Forward | wire.StatePiece
"""Messages with a body between the parts of one start."""

OfScript = (
    wire.Command
    | wire.Assigned
    | wire.Retired
    | wire.Squares
    | wire.Pushed
    | wire.Fetch
    | wire.Mark
    | wire.LeaseWish
    | wire.Leased
    | wire.Rest
    | wire.Dealt
    | wire.Decided
)
"""Messages without one, for a part."""


OfReplica = wire.Append | wire.Appended | wire.Beat | wire.UpdateWanted | wire.StateHeld | wire.Superseded
"""The same between the replicas of a shard: their `generation` is that of who they are, not of the start."""


class Place:
    """The adapter of `job.queue.PlaceQueue`, with at most one running part.

    refusal(node, term): why this node does not obey a coordinator's word, as a clause; empty where it does. record(job): the
    job's record as it is known here, as bytes; none where it is not. newer(node, generation): the node works under a commit that
    may not be known here.
    """

    def __init__(
        self,
        post: Post,
        blobs: BlobExchange,
        traces: Traces,
        snapshots: Snapshots,
        refusal: Callable[[NodeId, int], str],
        record: Callable[[JobId], bytes],
        newer: Callable[[NodeId, int], None],
    ) -> None:
        self._post = post
        self._record = record
        self._refusal = refusal
        self._newer = newer
        self._decided = 0
        self._blobs = blobs
        self._traces = traces
        self._snapshots = snapshots
        self._queue = PlaceQueue()
        self._part: Part | None = None
        self._ending = Tasks()
        self._closed = False

    @property
    def job(self) -> JobId | None:
        """Who holds the place."""
        return self._queue.holder.job if self._queue.holder else None

    @property
    def waiting(self) -> tuple[JobId, ...]:
        return tuple(ticket.job for ticket in self._queue.waiting)

    @property
    def executor_pids(self) -> dict[str, int]:
        """Of what runs here, by role (`node.part`)."""
        return self._part.pids if self._part else {}

    def receive(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.Reserve() | wire.Release() | wire.Prepare() | wire.Command() | wire.Assigned() | wire.Adopt() if (
                refusal := self._refusal(node, message.term)
            ):
                log.info("refused message=%s node=%s reason=%s", type(message).__name__, node[:8], refusal)
            case wire.Reserve():
                self._reserve(Ticket(JobId(message.job), message.generation, node))
            case wire.Adopt():
                self._adopt(node, message)
            case wire.Release():
                self._release(Ticket(JobId(message.job), message.generation, node))
            case wire.Prepare():
                self._prepare(node, message)
            case (
                wire.Command()
                | wire.Assigned()
                | wire.Retired()
                | wire.Squares()
                | wire.Pushed()
                | wire.Fetch()
                | wire.Mark()
                | wire.LeaseWish()
                | wire.Leased()
                | wire.Rest()
                | wire.Dealt()
                | wire.Decided()
                | wire.Append()
                | wire.Appended()
                | wire.Beat()
                | wire.UpdateWanted()
                | wire.StateHeld()
                | wire.Superseded()
            ):
                if (part := self._about(node, message)) is not None:
                    part.receive(node, message)

    def body_for(self, node: NodeId, message: OfPart, nbytes: int) -> memoryview | None:
        """Where a tensor, a push or values shall be received; None (dropped) for what is not expected."""
        part = self._about(node, message)
        return part.body_for(node, message, nbytes) if part is not None else None

    def body(self, node: NodeId, message: OfPart) -> None:
        if (part := self._about(node, message)) is not None:
            part.arrived(node, message)

    def link_lost(self, node: NodeId) -> None:
        """What was coming from a node will not."""
        if self._part is not None:
            self._part.link_lost(node)

    def member_lost(self, node: NodeId, reason: str) -> None:
        """What was on its way to and from a lost node is lost, even if its link comes back."""
        if self._part is not None:
            self._part.peer_lost(node, reason)

    def decided(self, generations: Mapping[JobId, int], decided: int) -> None:
        """What the cluster has decided so far: the generations of all starts that there are, and that of the decision itself.

        Ends what runs here and is none of them: this node may have stood still while others went on without it.
        """
        self._decided = decided
        holder = self._queue.holder
        changes = self._queue.fence(generations, decided)
        if holder is not None and holder != self._queue.holder:
            log.info("ended job=%s generation=%d reason=the cluster goes on without it", holder.job, holder.generation)
            self._end_part()
        self._tell(changes)

    async def close(self) -> None:
        """End what runs, and begin nothing more."""
        self._closed = True
        self._end_part()
        await self._ending.drain()

    # --- how

    def _about(self, node: NodeId, message: OfPart | OfScript | OfReplica) -> Part | None:
        """The fence: the part that a message is about; None for one of another start, be it over or not known here yet."""
        generation = message.started if hasattr(message, "started") else message.generation
        if self._part is not None and self._part.is_about(message.job, generation):
            return self._part
        if generation > self._decided:
            self._newer(node, generation)
        return None

    def _reserve(self, ticket: Ticket) -> None:
        holder = self._queue.holder
        changes = self._queue.reserve(ticket)
        if holder is not None and self._queue.holder != holder:
            self._end_part()
        if ticket != self._queue.holder and ticket not in self._queue.waiting:
            text = f"{self._queue.LENGTH_MAX} jobs wait for its place already; start the job again later"
            self._post.send(ticket.coordinator, wire.JobFailed(ticket.job, ticket.generation, text))
        self._tell(changes)

    def _release(self, ticket: Ticket) -> None:
        holder = self._queue.holder
        changes = self._queue.release(ticket)
        if holder is not None and self._queue.holder != holder:
            self._end_part()
        self._tell(changes)

    def _prepare(self, node: NodeId, message: wire.Prepare) -> None:
        holder = self._queue.holder
        ticket = Ticket(JobId(message.job), message.generation, node)
        if holder != ticket or self._part is not None or self._closed:
            text = "its place was not reserved for this start; start the job again"
            self._post.send(node, wire.JobFailed(message.job, message.generation, text))
            return
        self._part = Part(node, message, self._post, self._blobs, self._traces, self._snapshots)

    def _adopt(self, node: NodeId, message: wire.Adopt) -> None:
        part = self._part if self._queue.adopt(JobId(message.job), message.generation, node) else None
        if part is not None and part.is_about(message.job, message.generation):
            part.adopt(node, message.term, self._record(JobId(message.job)))
        else:
            state = PartState("absent", text="it has no part of this start")
            packed = msgspec.msgpack.encode(state)
            self._post.send(node, wire.Adopted(message.job, message.generation, packed))

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._ending.spawn(part.end())

    def _tell(self, changes: list[Grant | Wait]) -> None:
        for change in changes:
            ticket = change.ticket
            if isinstance(change, Grant):
                log.info("place granted job=%s generation=%d", ticket.job, ticket.generation)
                self._post.send(ticket.coordinator, wire.Granted(ticket.job, ticket.generation))
            else:
                waiting = wire.Waiting(ticket.job, ticket.generation, change.behind, change.position)
                self._post.send(ticket.coordinator, waiting)
