"""A shard that lives in several processes: `shard` decides, `replication` keeps it, `state` is what follows. Pure.

On the primary a part of a push goes on to the backups as soon as it lies in its slot. A whole push is judged and gets its place
in the log, as an entry with a few bytes of decision (`decisions`) beside the push's own; so do the end of a round and each mark.
What all in-sync replicas hold is applied, here as there, and only then answered. So an answer that a worker has seen is true of
every process that may become the primary.

*Exactly once* is known in one place, the state (`State.taken`), and for what is not applied yet the log says it.

*A new primary* has no memory of who waits for what: workers hear of the new generation and send again what is not acknowledged.
It decides nothing before all that it took over is applied. What a bound holds back it holds back as well: that follows from the
state.

*Slots* are the same everywhere, `layout.window` of each worker. The log lets go of a push's bytes when it is applied; where a
learner may need them it keeps copies, at most as many as `replication.limits` says. To a replica that is waited for bytes are
sent from the slot, so the owner says when they have left (`sent`); to learners as copies, which are dropped where too much is
under way.

The owner feeds receive, configured, handle_timer besides the verbs of a shard, and after each takes work until it is False, then
next_answer, messages_to_send and next_event until they are empty, in this order: what is said must be applied. Workers do not
come or go.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from p2pnn.errors import LocalProtocolError, RemoteProtocolError
from p2pnn.ps.answers import Due
from p2pnn.ps.carrying import pack, unpack
from p2pnn.ps.copies import SLOTS, limits_of, on_their_way
from p2pnn.ps.decisions import Close, Decision, Key, Own, Repeated, Strike, Take, decode, encode, rank_of
from p2pnn.ps.granting import Leased
from p2pnn.ps.layout import WINDOW
from p2pnn.ps.messages import Answer, Pull, Push, Worker
from p2pnn.ps.shard import Shard
from p2pnn.ps.staging import Staged
from p2pnn.ps.state import State
from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.holding import Parcel, Role
from p2pnn.replication.holding import Shard as Name
from p2pnn.replication.leases import Wish
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.log import SHARD
from p2pnn.replication.outcomes import (
    Apply,
    FetchConfiguration,
    LoadState,
    Propose,
    Serving,
    TakeState,
)
from p2pnn.replication.replica import Replica
from p2pnn.replication.staging import Body
from p2pnn.types import NodeId
from p2pnn.wire.fields import Message
from p2pnn.wire.messages import CloseReason, Forward

Event = Propose | FetchConfiguration | Serving
"""For the owner: the first two as of `replication`; from Serving on workers are answered."""


class ReplicatedShard(Shard):
    """name: of the shard, me: this process, to the other replicas. arguments, more: those of `Shard`; slot: of SLOTS per worker.

    replica: how to make the replica.
    """

    def __init__(
        self,
        name: Name,
        me: Member,
        *arguments: Any,
        now: float,
        limits: Limits | None = None,
        timing: Timing | None = None,
        replica: type[Replica] = Replica,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, window=SLOTS, **more)
        self.name = name
        if limits is None:
            state_bytes = sum(array.nbytes for array in self.arrays.values())
            limits = limits_of(len(self.state.roster.workers), self.state.staging.nbytes, state_bytes)
        self.replica = replica(name, me, now, limits, timing, sessions=Taken(self.state))
        self._copied_max = on_their_way(limits, self.state.staging.nbytes)
        self._committed: deque[Apply | TakeState] = deque()
        self._events: deque[Event] = deque()
        self._applied = 0
        self._begins_at = 0  # the log's last entry when this process became the primary
        self._closing = 0
        self._own: dict[Key, Repeated] = {}  # to be ordered
        self._told: dict[Key, int] = {}  # that was ordered
        self._leaving: Counter[tuple[int, int]] = Counter()  # by push: what is sent from its slot now
        self._copied: Counter[NodeId] = Counter()  # bytes on their way to a learner

    # --- what the owner feeds

    def receive(self, source: NodeId, message: Message, now: float, body: Body = b"") -> None:
        """A message of another replica. The body of a Forward is a view of the push's slot (`slot_view`), where it lies whole.

        Raises RemoteProtocolError for what no replica sends; then this process is of no use any more.
        """
        self.replica.receive(source, message, now, body)
        self._pump(now)

    def configured(self, configuration: Configuration, now: float) -> None:
        """The charter has committed this configuration."""
        was_primary = self.is_primary
        self.replica.configured(configuration, now)
        self.generation = self.replica.generation
        if was_primary != self.is_primary:
            self._begin_anew()
        self._pump(now)

    def handle_timer(self, now: float) -> None:
        self.replica.handle_timer(now)
        self._pump(now)

    def sent(self, parcel: Parcel) -> None:
        """A parcel of `messages_to_send` has left, or its link is broken."""
        target, message, body = parcel
        if isinstance(message, Forward) and isinstance(body, memoryview):
            key = message.worker, message.sequence
            self._leaving[key] -= 1
            if self._leaving[key] <= 0:
                del self._leaving[key]
        elif isinstance(message, Forward):
            self._copied[target] -= len(body)

    def arrived(self, push: Push, now: float) -> None:
        if self._is_asked(push.generation, now):
            super().arrived(push, now)
            self._pump(now)

    def pull(self, pull: Pull, now: float) -> None:
        if self._is_asked(pull.generation, now):
            super().pull(pull, now)
            self._pump(now)

    def mark(self, worker: Worker, sequence: int, now: float) -> None:
        if self.is_primary and worker in self._roster:
            super().mark(worker, sequence, now)
            self._pump(now)

    def rest(self, worker: Worker, pushes: int, now: float) -> None:
        if self.is_primary:
            super().rest(worker, pushes, now)
            self._pump(now)

    def wish(self, worker: Worker, wish: Wish, now: float) -> None:
        if self.is_primary:
            super().wish(worker, wish, now)

    def leave(self, worker: Worker, now: float) -> None:
        if self.is_primary:
            super().leave(worker, now)
            self._pump(now)

    def served(self, sequence: int, now: float = 0.0) -> None:
        if self.is_primary:
            super().served(sequence, now)
            self._pump(now)

    def set_workers(self, generation: int, workers: Sequence[Worker], now: float) -> None:
        """Not of a shard with several replicas: its generation is that of who they are."""
        raise LocalProtocolError("the workers of a replicated shard stay the same; begin the job anew with others")

    # --- what the owner takes

    @property
    def is_primary(self) -> bool:
        """Whether workers are heard. Elsewhere a daemon lets in only pushes of those who know of a newer configuration."""
        return self.replica.role is Role.PRIMARY

    @property
    def is_serving(self) -> bool:
        """Whether this process decides and answers: it is the primary, and has applied all that it took over."""
        return self.is_primary and self.replica.is_serving and self._applied >= self._begins_at

    def work(self, now: float) -> bool:
        moved = self._apply_committed(now)
        if self.is_serving and not self._committed:
            self._order_rest(now)
            if super().work(now):
                self._pump(now)
                return True
        return moved

    def next_answer(self, now: float) -> Answer | None:
        return self._answers.next(self.generation, self._may_leave) if self.is_serving else None

    def next_leased(self) -> Leased | None:
        return super().next_leased() if self.is_serving else None

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def messages_to_send(self, now: float) -> list[Parcel]:
        """Messages since the last call; say of each when it has `sent`."""
        out: list[Parcel] = []
        for target, message, body in self.replica.messages_to_send(now):
            if not isinstance(message, Forward):
                out.append((target, message, body))
            elif isinstance(body, memoryview) and self.replica.is_waited_for(target):
                self._leaving[message.worker, message.sequence] += 1
                out.append((target, message, body))
            elif self._copied[target] == 0 or self._copied[target] + len(body) <= self._copied_max:
                self._copied[target] += len(body)
                out.append((target, message, bytes(body)))
        return out

    def get_timer(self) -> float | None:
        return self.replica.get_timer()

    def slot_view(self, number: int, sequence: int, start: int, size: int) -> memoryview | None:
        """Where the bytes of a Forward lie; None where it names nothing that there is. number: of the worker, in the log."""
        worker = self._roster.worker(number)
        if worker is None or (start, size) not in self.state.staging.parts:
            return None
        return memoryview(self.state.staging.place(worker, sequence).data)[start : start + size]

    # --- the log

    def _may_order(self, decision: Decision) -> bool:
        return self.replica.may_order(self.state.staging.nbytes if isinstance(decision, Take) else 0)

    def _order(self, decision: Decision, now: float, worker: Worker | None = None, sequence: int = 0) -> None:
        if worker is None:
            self.replica.write(encode(decision), now)
            if isinstance(decision, Close):
                self._closing = self.replica.log.last
        elif isinstance(decision, Take):
            number, head = self._roster.number(worker), encode(decision)
            if decision.refusal:
                self.replica.refuse(number, sequence, decision.refusal, now, head)
            else:
                self.replica.accept(number, sequence, now, head)

    def _order_own(self, decision: Own, now: float) -> None:
        """Marks wait until this process serves. A worker's strikes before that do not count."""
        if isinstance(decision, Strike):
            if self.is_serving and self._may_order(decision):
                self._order(decision, now)
            return
        key, rank = rank_of(decision)
        if rank > self._told.get(key, 0):
            self._told[key] = rank
            self._own[key] = decision

    def _order_rest(self, now: float) -> None:
        while self._own and self._may_order(decision := next(iter(self._own.values()))):
            del self._own[next(iter(self._own))]
            self._order(decision, now)
        self._pump(now)

    def _ordered(self, worker: Worker) -> int:
        return self.replica.ordered(self._roster.number(worker))

    def _is_all_applied(self) -> bool:
        return self._applied == self.replica.log.last

    def _is_closing(self) -> bool:
        return self._closing > self._applied

    def _came(self, push: Push, now: float) -> None:
        self._hand_in(push.worker, push.sequence, push.part, now)

    def _hand_in(self, worker: Worker, sequence: int, part: int, now: float) -> None:
        staging = self.state.staging
        start, size = staging.parts[part]
        body = memoryview(staging.place(worker, sequence).data)[start : start + size]
        self.replica.arrived(self._roster.number(worker), sequence, start, staging.nbytes, body, now)

    def _take(self, staged: Staged, now: float) -> bool:
        """The log may have given up what idled in it, but it lies here all the same."""
        push = staged.header
        number = self._roster.number(push.worker)
        if not self.replica.is_whole(number, push.sequence):
            for part in range(len(self.state.staging.parts)):
                self._hand_in(push.worker, push.sequence, part, now)
        return self.replica.is_whole(number, push.sequence) and super()._take(staged, now)

    def _pump(self, now: float) -> None:
        """What the replica has to say. States are taken and loaded between the entries where they belong."""
        while (event := self.replica.next_event()) is not None:
            match event:
                case Apply() | TakeState():
                    self._committed.append(event)
                case LoadState(number, pieces):
                    self._committed.clear()
                    unpack(self.state, pieces)
                    self._applied = number
                case Propose() | FetchConfiguration() | Serving():
                    self._events.append(event)
        self._apply_committed(now)

    def _apply_committed(self, now: float) -> bool:
        """Apply what is committed, in its order, as far as there are buffers; whether there was anything."""
        moved = False
        while self._committed:
            event = self._committed[0]
            if isinstance(event, TakeState):
                self.replica.state_taken(event.number, pack(self.state), now)
            else:
                decision = decode(event.head)
                if isinstance(decision, Take):
                    self._check(event)
                if not self.state.can_apply(decision):
                    break
                self._apply(decision, self._roster.worker(event.worker), event.sequence, now)
                self._applied = event.number
                self.replica.applied(event.number, now)
            self._committed.popleft()
            moved = True
        return moved

    def _check(self, entry: Apply) -> None:
        """Raise RemoteProtocolError for a push that cannot be the next of its worker: the primary is none."""
        worker = self._roster.worker(entry.worker)
        if worker is None or entry.sequence != self.state.taken(worker) + 1:
            what = f"entry {entry.number} of a shard's log is push {entry.sequence} of worker {entry.worker}, which is not next"
            raise RemoteProtocolError(CloseReason.MALFORMED, what)

    # --- inside

    def _is_asked(self, generation: int, now: float) -> bool:
        """Whether a worker speaks to the right process; who knows of a newer configuration makes it ask for that."""
        if generation > self.generation:
            self.replica.hear_of(generation, now)
            self._pump(now)
        return self.is_primary

    def _begin_anew(self) -> None:
        """As another primary, or as none: nobody waits here any more."""
        for worker in self._inbox.workers:
            self._inbox.drop(worker)
        self._withheld.clear()
        for waiting in (self._own, self._told):
            waiting.clear()
        self._answers.clear()
        self._granting.clear()
        self._closing = 0
        self._begins_at = self.replica.log.last

    def _may_leave(self, due: Due) -> bool:
        """Whether the slot that this answer frees is not being sent: that of the push which is a window older."""
        if not due.sequence or not self._leaving:
            return True
        number, freed = self._roster.number(due.worker), due.sequence + WINDOW - SLOTS
        return not any(worker == number and sequence <= freed for worker, sequence in self._leaving)


class Taken:
    """What the state says of each worker, to the log (`replication.log.Sequences`)."""

    def __init__(self, state: State) -> None:
        self._state = state

    def __len__(self) -> int:
        return len(self._state.roster.workers)

    def __contains__(self, worker: int) -> bool:
        return self._state.roster.worker(worker) is not None

    def last(self, worker: int) -> int:
        if worker == SHARD:
            return self._state.written
        found = self._state.roster.worker(worker)
        return 0 if found is None else self._state.taken(found)

    def committed(self, worker: int, sequence: int) -> None:
        """The state will know when it has applied it; until then the log does."""

    def encode(self) -> bytes:
        return b""

    def load(self, data: bytes) -> None:
        """It comes with the state."""
