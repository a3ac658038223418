"""The primary's part: order updates, have all in-sync replicas hold them, then acknowledge; say who should be in sync.

A push is forwarded piece by piece while it still arrives; when it is whole and checked it gets a number, and only that is told
then. It is committed, applied and acknowledged when all in-sync replicas hold it. A learner that was proposed for promotion
counts as in sync from the proposal on, because nobody can know when it is committed.

Nobody waits for a learner that catches up, so it is sent no more than it has places for: of each worker as many updates as may
be under way behind those that it has applied (`has_place`). So it catches up if its link carries somewhat more than is written,
and only who has caught up is waited for. Where the link carries less it stays a learner, and `behind` says by how much.

A new primary first drops what it never could have acknowledged as a backup (bytes are missing), has the others hold the
rest, and serves then. Nothing that it ordered in an earlier generation changes its place.
"""

from __future__ import annotations

from p2pnn.replication.configuration import Configuration, Member, demoted, promoted, removed
from p2pnn.replication.holding import Role, Shard
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.log import SHARD, Entry, Sequences
from p2pnn.replication.outcomes import Acknowledge, Propose, Received, Serving
from p2pnn.replication.peers import Peer
from p2pnn.replication.staging import Body, Key, Update
from p2pnn.replication.supplying import Supplying
from p2pnn.types import NodeId
from p2pnn.wire.messages import Append, Appended, Beat, Forward, Push, Pushed, UpdateWanted

APPENDS_MAX = 64
"""Entries that are told to one replica again at once."""


class Leading(Supplying):
    def __init__(
        self,
        shard: Shard,
        me: Member,
        now: float,
        limits: Limits,
        timing: Timing,
        sessions: Sequences | None = None,
    ) -> None:
        super().__init__(shard, me, now, limits, timing, sessions)
        self.is_serving = False
        self._base = 0
        self._stable = 0
        self._promised: list[NodeId] = []
        self._demotions: dict[Member, int] = {}
        self._pushing: dict[int, NodeId] = {}
        self._beat_due = now
        self._propose_due = now

    # --- the rules

    def must_hold(self) -> list[Peer]:
        """Who must hold an update before it is acknowledged: all in sync, and whoever may be in sync by a proposal of mine."""
        assert self.configuration is not None
        others = [member.id for member in self.configuration.in_sync if member.id in self._peers]
        return [self._peers[node] for node in (*others, *self._promised)]

    def may_commit(self, number: int) -> bool:
        """When all of them hold it."""
        return all(peer.holds(number) for peer in self.must_hold())

    def may_serve(self) -> bool:
        """When the others hold all that this primary had when its generation began."""
        return self.may_commit(self._base)

    def keeps_up(self, peer: Peer, now: float) -> bool:
        """Whether a learner may be waited for from now on: it has kept up with every update for a while, so what it may lack
        now stalls the others no longer than a backup does."""
        demotions = self._demotions.get(peer.member, 0)
        steady_s = min(self._timing.steady_s * 2 ** min(demotions, 10), self._timing.steady_max_s)
        is_steady = now - max(peer.since, peer.late_at) >= steady_s and self._is_in_touch(peer, now)
        return is_steady and peer.held is not None and not peer.needs_state(self.log)

    def is_ready(self, peer: Peer) -> bool:
        """Whether a learner that is waited for may be proposed: it holds all that is committed.

        Not before this primary serves: what it took over may have been acknowledged by the last primary, or still be so by
        answers that are on their way to it, and is known to be committed here only then.
        """
        return self.is_serving and peer.holds(self.committed) and peer.committed >= self.log.floor

    def is_behind(self, peer: Peer) -> bool:
        """Whether a learner still catches up: for what it lacks it would need too long, at its pace so far."""
        lacks = self.committed - (peer.held or 0)
        return peer.held is None or lacks > max(self._limits.window, peer.pace * self._timing.slow_s)

    def is_too_slow(self, peer: Peer, now: float) -> bool:
        """Whether it keeps all others waiting."""
        on_their_way_s = self._under_way(peer) / self._timing.slow_bytes_per_s
        return peer.waits_s(self.log, now) > self._timing.slow_s + on_their_way_s

    def first_held(self, message: Appended) -> int:
        """How far a replica's log is surely mine when a generation begins: as far as it says, in this generation."""
        return message.held

    # --- a generation begins

    def _lead(self, now: float, is_new: bool) -> None:
        assert self.configuration is not None
        if is_new:
            self._drop_after(self.log.complete(self.committed))
            self._staging.forget_checks()
        self._base = self.log.last
        self.is_serving = False
        kept = {peer.member: peer.transfer for peer in self._peers.values()}
        self._promised.clear()
        members = set(self.configuration.members)
        self._demotions = {member: count for member, count in self._demotions.items() if member in members}
        self._in_vain = {member: count for member, count in self._in_vain.items() if member in members}
        self._state_due = {member: due for member, due in self._state_due.items() if member in members}
        self._peers = {
            member.id: Peer(member, now, now, late_at=now, transfer=None if is_new else kept.get(member))
            for member in self.configuration.members
            if not self.is_me(member)
        }
        self._propose_due = now
        self._beat(now)
        self._advance(now)

    def _step_down(self) -> None:
        self.is_serving = False
        self._peers.clear()
        self._promised.clear()
        self._pushing.clear()
        self._taking = None

    # --- pushes

    def _receive_push(self, source: NodeId, message: Push, body: Body, now: float) -> None:
        if not self.is_current(source, message.generation, now) or self.role is not Role.PRIMARY:
            return
        worker, sequence = key = (message.worker, message.sequence)
        if self.is_duplicate(worker, sequence):
            self._pushing[worker] = source
            if sequence <= self.sessions.last(worker) and message.start == 0:
                self._acknowledge(worker, self.sessions.last(worker), "", self.committed)
            return
        if not self._has_room_for(worker, sequence, message.total_bytes):
            return
        self._pushing[worker] = source
        self._came(key, message.start, message.total_bytes, body, now)

    def _came(self, key: Key, start: int, total_bytes: int, body: Body, now: float) -> None:
        """A piece of an update that may come: forward it at once."""
        update = self._staging.open(key, total_bytes, now)
        if update is None:
            return
        if update.add(start, body, now, self._limits.pieces_max):
            told = Forward(*self.shard, self.generation, *key, start, total_bytes)
            for peer in self._peers.values():
                if peer.held is None or peer.needs_state(self.log):
                    continue
                if self._takes(peer, *key):
                    self._send(peer.member.id, told, body)
                else:
                    peer.skipped.add(key)
        self._offer(update)

    def _takes(self, peer: Peer, worker: int, sequence: int) -> bool:
        """Whether an update that comes now may go on to it at once; else it follows with the entry."""
        if not self._is_learner(peer):
            return peer.next > self.committed
        return peer.next > self.log.last and self._room(peer) > 0 and self.has_place(peer, worker, sequence)

    def _has_room_for(self, worker: int, sequence: int, total_bytes: int) -> bool:
        """Whether the update is one that may come now. A worker sends again what was dropped."""
        known = worker in self.sessions or worker in self._pushing
        if not known and max(len(self.sessions), len(self._pushing)) >= self._limits.sessions_max:
            return False
        return 0 < sequence <= self._ordered(worker) + self._limits.window and total_bytes > 0

    def _offer(self, update: Update) -> None:
        if update.is_complete and not update.offered:
            update.offered = True
            self._events.append(Received(*update.key, update.body()))

    def _settle(self, worker: int, sequence: int, error: str, head: bytes, now: float) -> None:
        """The owner has checked an update."""
        update = self._staging.get((worker, sequence))
        if self.role is Role.PRIMARY and update is not None and update.offered:
            update.accepted, update.error, update.head = True, error, head
            self._order(now)
            self._advance(now)

    def _order(self, now: float) -> None:
        """Give numbers to what is checked and next of its worker, while the log has room."""
        if not self.is_serving:
            return
        for key in sorted(self._staging.waiting()):
            update = self._staging.get(key)
            if update is not None and self.is_next(*key) and self._log_has_room(update.total_bytes):
                self._staging.remove(update.key)
                bytes_of = None if update.error else update
                self._number(update.key, bytes_of, now, update.error, update.head)
        for peer in self._peers.values():
            self._tell(peer, now)

    def _number(self, key: Key, update: Update | None, now: float, error: str = "", head: bytes = b"") -> None:
        self.log.append(Entry(self.log.last + 1, self.generation, *key, update, now, error, head))

    def _write(self, head: bytes, now: float) -> None:
        """An entry of the owner's own gets its number."""
        self._number((SHARD, self._ordered(SHARD) + 1), None, now, head=head)
        for peer in self._peers.values():
            self._tell(peer, now)
        self._advance(now)

    def _log_has_room(self, total_bytes: int) -> bool:
        open_entries = self.log.last - self.committed
        open_bytes = self.log.open_bytes(self.committed)
        is_small = open_bytes == 0 or open_bytes + total_bytes <= self._limits.log_bytes_max
        return open_entries < self._limits.entries_max and is_small

    # --- replication

    def _tell(self, peer: Peer, now: float) -> None:
        """The entries that it has not been told of yet, with their bytes where it catches up (what is committed, an in-sync
        replica has) or where those were not forwarded; a learner only as far as it has places, and the link room.
        """
        if peer.held is None or peer.needs_state(self.log):
            return
        is_learner = self._is_learner(peer)
        for entry in self.log.between(peer.next - 1, peer.next - 1 + APPENDS_MAX):
            key, is_old = (entry.worker, entry.sequence), entry.number <= self.committed
            if (is_old or is_learner) and entry.update is not None and self._room(peer) <= 0:
                return
            if is_learner and entry.update is not None and not self.has_place(peer, *key):
                return
            if entry.update is not None and (is_old or key in peer.skipped):
                self._forward(peer, entry.update)
            peer.skipped.discard(key)
            self._send(peer.member.id, self._append(entry))
            peer.next = entry.number + 1
            peer.sent_at = now

    def _append(self, entry: Entry) -> Append:
        where = (self.shard.job, self.shard.number, self.generation, self._base, self.committed, self._stable)
        return Append(*where, entry.number, entry.ordered, entry.worker, entry.sequence, entry.total_bytes, entry.head)

    def _receive_appended(self, source: NodeId, message: Appended, now: float) -> None:
        peer = self._peer(source, message.generation, now)
        if peer is None or not self.is_same_process(peer, message.incarnation):
            return
        peer.heard = now
        is_first = peer.held is None
        held = self.first_held(message) if is_first else message.held
        peer.acknowledged(min(held, self.log.last), message.committed, now)
        if is_first:
            self._forward_staged(peer)
        if peer.transfer is not None and peer.held is not None and peer.held >= peer.transfer.number:
            peer.has_state()
            peer.skipped = {key for key in peer.skipped if not self._is_behind_it(peer, key)}
            self._had_state(peer, now)
        self._tell(peer, now)
        self._advance(now)

    def _is_behind_it(self, peer: Peer, key: Key) -> bool:
        """Whether an update has its place among those that a peer is told of no more."""
        number = self.log.number_of(*key)
        return self.is_duplicate(*key) and (number is None or number < peer.next)

    @staticmethod
    def is_same_process(peer: Peer, incarnation: int) -> bool:
        """A restarted process is another one, which has nothing."""
        return peer.member.incarnation == incarnation

    def _receive_update_wanted(self, source: NodeId, message: UpdateWanted, now: float) -> None:
        peer = self._peer(source, message.generation, now)
        entry = self.log.get(message.number)
        if peer is not None and entry is not None and entry.update is not None:
            peer.lacks = peer.lacks or entry.update.is_gone
            self._forward(peer, entry.update)

    def _forward_staged(self, peer: Peer) -> None:
        """What has come in this generation before the peer was heard: it would be missed when it gets its number."""
        for update in self._staging.since(self._since):
            if self._is_learner(peer) and not self._takes(peer, *update.key):
                peer.skipped.add(update.key)
            else:
                self._forward(peer, update)

    def _forward(self, peer: Peer, update: Update) -> None:
        """The bytes of an update that are here, once more."""
        for start, body in sorted(update.pieces.items()):
            told = Forward(*self.shard, self.generation, *update.key, start, update.total_bytes)
            self._send(peer.member.id, told, body)

    def _advance(self, now: float) -> None:
        """Whatever became possible: serve, commit, acknowledge, give more numbers."""
        if not self.is_serving and self.may_serve():
            self.is_serving = True
            self._events.append(Serving(self.generation))
        number = self.committed
        while number < self.log.last and self.may_commit(number + 1):
            number += 1
        for entry in self._commit(number):
            self._acknowledge(entry.worker, entry.sequence, entry.error, entry.number)
        self._stable = max(self._stable, min((peer.committed for peer in self.must_hold()), default=self.committed))
        self._trim(now)
        if self.is_serving and self._staging.waiting():
            last = self.log.last
            self._order(now)
            if self.log.last > last:
                self._advance(now)

    def _trim(self, now: float) -> None:
        """Let old entries go, but keep more while a learner that is on its way will need them."""
        stable, limits = min(self._stable, self._is_applied()), self._limits
        needed = stable
        for peer in self._peers.values():
            if peer.held is not None and peer.held < stable and self._is_in_touch(peer, now):
                has_state = peer.held if not peer.needs_state(self.log) else stable
                needed = min(needed, has_state if peer.transfer is None else peer.transfer.number)
        self.log.trim(needed, limits.retained_entries, limits.retained_bytes)
        self.log.trim(stable, limits.catching_up_entries, limits.catching_up_bytes)

    def _acknowledge(self, worker: int, sequence: int, error: str, number: int) -> None:
        node = self._pushing.get(worker)
        if node is not None:
            told = Pushed(*self.shard, self.generation, worker, sequence, b"", error)
            self._events.append(Acknowledge(node, told, number))

    # --- the primary's timer

    def _beat(self, now: float) -> None:
        self._beat_due = now + self._timing.beat_s
        beat = Beat(*self.shard, self.generation, self._base, self.committed, self._stable, self.log.last)
        for peer in self._peers.values():
            if peer.held is not None and peer.held < peer.next - 1 and now - peer.sent_at >= self._resend_s(peer):
                peer.next = peer.held + 1
                self._tell(peer, now)
            peer.measure(now)
            if self.is_too_slow(peer, now) or self.is_behind(peer):
                peer.late_at = now
            elif not peer.needs_state(self.log):
                self._has_caught_up(peer)
            self._send(peer.member.id, beat)
        self._tend_transfers(now)
        if now >= self._propose_due:
            self._propose(now)

    def _resend_s(self, peer: Peer) -> float:
        """Until what is not answered is sent again; what a learner is sent whole needs its time on a slow link."""
        under_way = self._under_way(peer) if self._is_learner(peer) else 0
        return self._timing.resend_s + under_way / self._timing.slow_bytes_per_s

    def _propose(self, now: float) -> None:
        """Who should not be waited for any more, or who may be in sync again."""
        before = self.configuration
        assert before is not None
        after, reason = self._without_those_who_stall(before, now)
        if after is None and len(before.in_sync) < before.copies:
            after, reason = self._with_a_ready_learner(before, now)
        if after is not None:
            self._propose_due = now + self._timing.propose_again_s
            self._events.append(Propose(after, reason))
            self._fetch(now)

    def _without_those_who_stall(self, before: Configuration, now: float) -> tuple[Configuration | None, str]:
        after, reasons = before, []
        for peer in self.must_hold():
            member = peer.member
            if not self._is_in_touch(peer, now):
                after = removed(after, member)
                reasons.append(f"{member.node[:8]} has been silent for {now - peer.heard:.1f} s")
            elif self.is_too_slow(peer, now) or peer.needs_state(self.log):
                if member in after.in_sync:
                    after = demoted(after, member)
                self._demotions[member] = self._demotions.get(member, 0) + 1
                reasons.append(f"{member.node[:8]} keeps updates waiting")
        return (after, " and ".join(reasons)) if reasons else (None, "")

    def _with_a_ready_learner(self, before: Configuration, now: float) -> tuple[Configuration | None, str]:
        """First it is waited for, then proposed: under a steady stream of updates it would never hold all otherwise."""
        learners = [self._peers[member.id] for member in before.learners if member.id in self._peers]
        chosen = [peer for peer in learners if peer.member.id in self._promised]
        if not chosen:
            chosen = [peer for peer in learners if self.keeps_up(peer, now)]
            chosen = sorted(chosen, key=lambda peer: self._demotions.get(peer.member, 0))[:1]
            self._promised.extend(peer.member.id for peer in chosen)
        ready = [peer.member for peer in chosen if self.is_ready(peer)]
        return (promoted(before, ready[0]), f"{ready[0].node[:8]} holds all updates") if ready else (None, "")
