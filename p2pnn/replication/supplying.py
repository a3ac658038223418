"""A primary's part towards learners that lack more than the log has: the whole state, in pieces, to one of them at a time."""

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

    def _peer(self, source: NodeId, generation: int, now: float) -> Peer | None:
        if not self.is_current(source, generation, now) or self.role is not Role.PRIMARY:
            return None
        return self._peers.get(source)

    def _is_in_touch(self, peer: Peer, now: float) -> bool:
        return now - peer.heard <= self._timing.silence_s

    def _tend_transfers(self, now: float) -> None:
        wanting = [peer for peer in self._peers.values() if peer.needs_state(self.log) and self._is_in_touch(peer, now)]
        for peer in self._peers.values():
            if peer.transfer is None:
                continue
            if peer not in wanting or peer.transfer.number < self.log.floor:
                peer.transfer = None  # it is gone, or what comes after that state is
            elif now - peer.transfer.moved_at >= self._timing.silence_s:
                peer.transfer.again(now)
                self._send_state(peer, peer.transfer)
        is_busy = self._taking is not None or any(peer.transfer is not None for peer in self._peers.values())
        if wanting and not is_busy:
            self._taking = (wanting[0].member, self.committed, self.sessions.encode())
            self._events.append(TakeState(self.committed))

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
