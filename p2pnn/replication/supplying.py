"""A primary's part towards learners: what they have room for, and the whole state, in pieces, to one at a time of those that lack
more than the log has.

One whose link is too slow to catch up behind a state will need the next one. It gets that ever later (`steady_s`, twice as long
each time, up to `steady_max_s`), so that it does not take the link from those who train.
"""

from __future__ import annotations

from p2pnn.replication.configuration import Member
from p2pnn.replication.following import Following
from p2pnn.replication.holding import Role, Shard
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.log import Sequences
from p2pnn.replication.outcomes import TakeState
from p2pnn.replication.peers import Peer
from p2pnn.replication.staging import Body
from p2pnn.replication.transfer import Outgoing
from p2pnn.types import NodeId
from p2pnn.wire.messages import StateHeld


class Supplying(Following):
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
        self._peers: dict[NodeId, Peer] = {}
        self._taking: tuple[Member, int, bytes] | None = None
        self._in_vain: dict[Member, int] = {}  # states in a row behind which a learner did not catch up
        self._state_due: dict[Member, float] = {}

    # --- a rule

    def has_place(self, peer: Peer, worker: int, sequence: int) -> bool:
        """Whether a learner can receive an update: it has applied the worker's one that is a window older."""
        earlier = sequence - self._limits.window
        number = self.log.number_of(worker, earlier)
        if number is None:  # long gone, or yet to come
            return earlier <= 0 or (earlier <= self._ordered(worker) and self.log.floor <= peer.committed)
        return number <= peer.committed

    def behind(self) -> dict[NodeId, int]:
        """How many committed entries each learner lacks; on the primary."""
        learners = [peer for peer in self._peers.values() if self._is_learner(peer)]
        return {peer.member.id: max(0, self.committed - (peer.held or 0)) for peer in learners}

    # --- inside

    def _peer(self, source: NodeId, generation: int, now: float) -> Peer | None:
        if not self.is_current(source, generation, now) or self.role is not Role.PRIMARY:
            return None
        return self._peers.get(source)

    def _is_in_touch(self, peer: Peer, now: float) -> bool:
        return now - peer.heard <= self._timing.silence_s

    def _is_learner(self, peer: Peer) -> bool:
        assert self.configuration is not None
        return peer.member not in self.configuration.in_sync

    def _room(self, peer: Peer) -> int:
        """Bytes that may be on their way to a learner at once, besides those that are: as many as of a state."""
        return self._limits.state_window * self._limits.piece_bytes - self._under_way(peer)

    def _under_way(self, peer: Peer) -> int:
        return self.log.bytes_between(peer.held or 0, peer.next - 1)

    def _tend_transfers(self, now: float) -> None:
        wanting = [peer for peer in self._peers.values() if peer.needs_state(self.log) and self._is_in_touch(peer, now)]
        able = [peer for peer in wanting if now >= self._state_due.get(peer.member, now)]
        for peer in self._peers.values():
            if peer.transfer is None:
                continue
            if peer not in wanting or peer.transfer.number < self.log.floor:
                if peer in wanting:
                    self._had_state(peer, now)
                peer.transfer = None  # it is gone, or what comes after that state is
            elif now - peer.transfer.moved_at >= self._moves_within_s():
                peer.transfer.again(now)
                self._send_state(peer, peer.transfer)
        is_busy = self._taking is not None or any(peer.transfer is not None for peer in self._peers.values())
        if able and not is_busy:
            self._taking = (able[0].member, self.committed, self.sessions.encode())
            self._events.append(TakeState(self.committed))

    def _had_state(self, peer: Peer, now: float) -> None:
        """It has a state, or that came too late; if it needs another one before it has caught up, then not at once."""
        count = self._in_vain[peer.member] = self._in_vain.get(peer.member, 0) + 1
        wait_s = self._timing.steady_s * 2 ** min(count - 1, 10)
        self._state_due[peer.member] = now + min(wait_s, self._timing.steady_max_s)

    def _has_caught_up(self, peer: Peer) -> None:
        self._in_vain.pop(peer.member, None)
        self._state_due.pop(peer.member, None)

    def _moves_within_s(self) -> float:
        """Until a state of which nothing is heard is sent again: what is under way needs its time on a slow link."""
        under_way = self._limits.state_window * self._limits.piece_bytes
        return self._timing.silence_s + under_way / self._timing.slow_bytes_per_s

    def _state_taken(self, number: int, pieces: tuple[Body, ...], now: float) -> None:
        taking, self._taking = self._taking, None
        if taking is None or taking[1] != number or self.role is not Role.PRIMARY:
            return
        peer = self._peers.get(taking[0].id)
        if peer is not None and peer.member == taking[0]:
            peer.transfer = Outgoing(number, taking[2], pieces, self._limits, now)
            self._send_state(peer, peer.transfer)

    def _send_state(self, peer: Peer, transfer: Outgoing) -> None:
        for message, body in transfer.next_pieces(self.shard, self.generation):
            self._send(peer.member.id, message, body)

    def _receive_state_held(self, source: NodeId, message: StateHeld, now: float) -> None:
        peer = self._peer(source, message.generation, now)
        if peer is None:
            return
        peer.heard = now
        if peer.transfer is not None and peer.transfer.number == message.number:
            peer.transfer.heard(message.held_bytes, now)
            self._send_state(peer, peer.transfer)
