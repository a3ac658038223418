"""One replica of one shard: PacificA's primary and backups, without read leases. Sans-IO.

Source: Lin, Yang, Zhang, Zhou, *PacificA: Replication in Log-Based Distributed Storage Systems*, MSR-TR-2008-25. A primary
orders updates and has all in-sync replicas hold each before it acknowledges it; a configuration manager, apart from the data,
decides who is in sync. That manager is the charter (`cluster.consensus`). The rules, each one method of this name:

- `is_current`, `obeys`: each message carries the generation of its sender's configuration. A lower one is rejected, a higher one
  makes the receiver fetch the committed configuration. So a deposed primary can get no acknowledgement any more.
- `may_commit`, `must_hold`: acknowledged is what all in-sync replicas hold, a learner under promotion among them; a primary that
  does not reach a backup cannot take it out by itself: it proposes that, and waits for the commit.
- `is_held`: a replica holds an update when all its bytes are there. `may_apply`: it applies what is committed.
- `may_serve`, `first_held`: a new primary, one of the last in-sync set (`configuration.may_follow`), first has the others hold
  its log. `is_same`: what another generation ordered and nobody acknowledged gives way.
- `keeps_up`, `is_ready`: a learner that is synced and has kept up for a while is waited for like a backup from then on, and is
  proposed for promotion when it holds all that is committed. `is_too_slow`: a living backup that has not kept up is demoted to
  learner, so it stalls the others for a bounded time.
- `is_me`, `is_same_process`: a process that was started again has lost its memory, and is another member.
- `is_duplicate`, `is_next`: of each worker incarnation the last sequence is in the replicated state; nothing counts twice.

Different from the paper, on purpose: no leases, since Downpour tolerates stale reads, so a deposed primary may still answer
reads; the coordinator, not a backup, proposes a new primary, because it has the members' view of who lives; an update's bytes are
forwarded while they arrive, and ordered apart from them.

Its owner feeds receive, configured, accept or refuse, state_taken, and handle_timer at get_timer's time; after each it takes
next_event and messages_to_send until they are empty. Events are carried out in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.holding import Parcel, Role, Shard
from p2pnn.replication.leading import Leading
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.log import Sequences
from p2pnn.replication.outcomes import Outcome
from p2pnn.replication.staging import Body
from p2pnn.types import NodeId
from p2pnn.wire.fields import Message
from p2pnn.wire.messages import (
    Append,
    Appended,
    Beat,
    Forward,
    Push,
    StateHeld,
    StatePiece,
    Superseded,
    UpdateWanted,
)


class ReplicaSnapshot(msgspec.Struct, frozen=True):
    """What a person may want to know. last: of its log. dropped: updates for which there was no room. behind: how many
    committed entries each learner lacks, as far as this primary knows; one that falls ever further back has too slow a link.
    """

    role: Role
    generation: int
    committed: int
    last: int
    is_serving: bool
    dropped: int
    behind: dict[NodeId, int] = {}


class Replica(Leading):
    """me: this process; a node that starts again draws another incarnation. The shard's state is that of the job's start.

    now: seconds of a clock that never goes back, here and in every call.
    """

    def __init__(
        self,
        shard: Shard,
        me: Member,
        now: float,
        limits: Limits | None = None,
        timing: Timing | None = None,
        sessions: Sequences | None = None,
    ) -> None:
        super().__init__(shard, me, now, limits or Limits(), timing or Timing(), sessions)

    # --- what the owner feeds

    def receive(self, source: NodeId, message: Message, now: float, body: Body = b"") -> None:
        """A message of this shard from a peer; others are ignored. Raises RemoteProtocolError for a state that is none."""
        if (getattr(message, "job", ""), getattr(message, "shard", -1)) != self.shard:
            return
        match message:
            case Push():
                self._receive_push(source, message, body, now)
            case Forward():
                self._receive_forward(source, message, body, now)
            case Append():
                self._receive_append(source, message, now)
            case Appended():
                self._receive_appended(source, message, now)
            case Beat():
                self._receive_beat(source, message, now)
            case UpdateWanted():
                self._receive_update_wanted(source, message, now)
            case StatePiece():
                self._receive_state_piece(source, message, body, now)
            case StateHeld():
                self._receive_state_held(source, message, now)
            case Superseded():
                self._hear_of(message.generation, now)

    def configured(self, configuration: Configuration, now: float) -> None:
        """The charter has committed this configuration, or holds it still; an older one than known is ignored."""
        if configuration.generation == self.generation:
            self._known = self.generation  # who claimed to know of a newer one says it again, if it was true
        if configuration.generation <= self.generation:
            return
        before = self.role
        self.configuration = configuration
        self._known = max(self._known, configuration.generation)
        self._since = now
        self.role = self._role_in(configuration)
        if self.role is Role.PRIMARY:
            self._lead(now, is_new=before is not Role.PRIMARY)
            return
        if before is Role.PRIMARY:
            self._step_down()
        if self.role is Role.OUTSIDE:
            self._staging.clear()
        self._follow(now)

    def arrived(self, worker: int, sequence: int, start: int, total_bytes: int, body: Body, now: float) -> None:
        """A piece of a push is here, whose header the owner reads itself; a primary's owner calls it instead of `receive`."""
        if self.role is Role.PRIMARY and not self.is_duplicate(worker, sequence):
            self._came((worker, sequence), start, total_bytes, body, now)

    def accept(self, worker: int, sequence: int, now: float, head: bytes = b"") -> None:
        """The update of a Received event is good. head: goes with it to everybody's Apply, at most `RECORD_BYTES_MAX` bytes."""
        self._settle(worker, sequence, "", head, now)

    def refuse(self, worker: int, sequence: int, reason: str, now: float, head: bytes = b"") -> None:
        """The update of a Received event is not to be applied; reason: one sentence for the worker. Its number is used up."""
        self._settle(worker, sequence, reason or "it was refused", head, now)

    def may_order(self, total_bytes: int = 0) -> bool:
        """Whether an update of so many bytes would get its number at once."""
        return self.role is Role.PRIMARY and self.is_serving and self._log_has_room(total_bytes)

    def write(self, head: bytes, now: float) -> None:
        """Order a decision of the shard's own; `may_order` said that it may be."""
        assert self.may_order(), "only a primary that serves orders anything"
        self._write(head, now)

    def applied(self, number: int, now: float) -> None:
        """The state holds all entries up to this number, and their bytes may change: for owners that receive into memory of their
        own, after each Apply. Copies are kept only while a learner may need them."""
        has_learners = self.configuration is not None and bool(self.configuration.learners)
        self.log.let_go(self._applied or 0, number, keep_copies=self.role is Role.PRIMARY and has_learners)
        self._applied = number
        if self.role is Role.PRIMARY:
            self._trim(now)

    def is_whole(self, worker: int, sequence: int) -> bool:
        """Whether an update that has no number yet is here with all its bytes."""
        update = self._staging.get((worker, sequence))
        return update is not None and update.is_complete

    def hear_of(self, generation: int, now: float) -> None:
        """Somebody acts by a configuration of this generation: fetch it, if it is newer."""
        self._hear_of(generation, now)

    def is_waited_for(self, node: NodeId) -> bool:
        """Whether nothing is acknowledged before this one holds it."""
        return self.role is Role.PRIMARY and any(peer.member.id == node for peer in self.must_hold())

    def state_taken(self, number: int, pieces: Sequence[Body], now: float) -> None:
        """The state that a TakeState event asked for. It must not change while it is sent."""
        self._state_taken(number, tuple(pieces), now)

    # --- what the owner takes

    def get_timer(self) -> float | None:
        """When handle_timer wants to be called next; None where only others can move anything."""
        due = []
        if self.role is Role.PRIMARY:
            due.append(self._beat_due)
        elif self.role is not Role.OUTSIDE:
            due.append(max(self._heard + self._timing.silence_s, self._fetch_due))
            if self._wanted_at is not None:
                due.append(self._wanted_at)
        if self._known > self.generation:
            due.append(self._fetch_due)
        return min(due, default=None)

    def handle_timer(self, now: float) -> None:
        if self._known > self.generation:
            self._fetch(now)
        if self.role is Role.PRIMARY:
            if now >= self._beat_due:
                self._forgive(now - self._beat_due, now)
                self._beat(now)
        elif self.role is not Role.OUTSIDE:
            if now >= self._heard + self._timing.silence_s:
                self._fetch(now)
            if self._wanted_at is not None and now >= self._wanted_at:
                self._want_again(now)

    def messages_to_send(self, now: float) -> list[Parcel]:
        """Messages since the last call, each with its body; any may be lost."""
        out = self._outbox
        if out:
            self._outbox = []
        return out

    def next_event(self) -> Outcome | None:
        return self._events.popleft() if self._events else None

    def snapshot(self) -> ReplicaSnapshot:
        serving = self.role is Role.PRIMARY and self.is_serving
        return ReplicaSnapshot(
            self.role, self.generation, self.committed, self.log.last, serving, self._staging.dropped, self.behind()
        )

    # --- inside

    def _forgive(self, late_s: float, now: float) -> None:
        """A primary that was stopped itself has heard nobody meanwhile, and accuses nobody of it."""
        if late_s > self._timing.silence_s / 2:
            for peer in self._peers.values():
                peer.heard = peer.since = now
