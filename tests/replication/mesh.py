"""A few replicas of one shard and a worker on a table: messages go where the test lets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from p2pnn.replication.configuration import Configuration, Member
from p2pnn.replication.holding import Shard
from p2pnn.replication.limits import Limits, Timing
from p2pnn.replication.outcomes import Acknowledge, Apply, LoadState, Propose, Received, TakeState
from p2pnn.replication.replica import Replica
from p2pnn.types import NodeId
from p2pnn.wire.fields import Message
from p2pnn.wire.messages import Push, Pushed

M = TypeVar("M", bound=Message)
SHARD = Shard("digits-1", 3)
W = NodeId("d" * 32)
"""The worker's node."""


def member(letter: str, incarnation: int = 1) -> Member:
    return Member(letter * 32, incarnation)


A, B, C = member("a"), member("b"), member("c")
Sent = tuple[NodeId, NodeId, Message, Any]


class Mesh:
    """replicas: by letter. states: the updates that each has applied. sent: everything that went out, in order. passes: what
    arrives; all by default. checks: whether updates are accepted at once."""

    def __init__(
        self,
        *members: Member,
        limits: Limits | None = None,
        timing: Timing | None = None,
        checks: bool = True,
        kind: type[Replica] = Replica,
    ) -> None:
        self.kind = kind
        self.now = 100.0
        self.limits = limits or Limits(piece_bytes=4)
        self.replicas: dict[NodeId, Replica] = {}
        self.states: dict[NodeId, list[bytes]] = {}
        self.events: dict[NodeId, list[Any]] = {}
        self.sent: list[Sent] = []
        self.passes: Callable[[NodeId, NodeId, Message], bool] = lambda source, target, message: True
        self.checks = checks
        self.timing = timing or Timing()
        for one in members:
            self.start(one)

    def start(self, one: Member) -> Replica:
        self.replicas[one.id] = self.kind(SHARD, one, self.now, self.limits, self.timing)
        self.states[one.id] = []
        self.events[one.id] = []
        return self.replicas[one.id]

    def __getitem__(self, one: Member) -> Replica:
        return self.replicas[one.id]

    def configure(self, configuration: Configuration, *only: Member) -> None:
        for node, replica in self.replicas.items():
            if not only or node in {one.id for one in only}:
                replica.configured(configuration, self.now)
        self.settle()

    def push(self, to: Member, sequence: int, update: bytes, generation: int = 1, worker: int = 9) -> None:
        """A whole update, in one piece."""
        message = Push(*SHARD, generation, worker, sequence, 0, len(update))
        self[to].receive(W, message, self.now, update)
        self.settle()

    def wait(self, seconds: float) -> None:
        """Let time pass, every timer at its moment."""
        end = self.now + seconds
        while True:
            timers = [timer for one in self.replicas.values() if (timer := one.get_timer()) is not None]
            due = min(timers, default=end)
            if due >= end:
                break
            self.now = max(self.now, due)
            for replica in list(self.replicas.values()):
                timer = replica.get_timer()
                if timer is not None and timer <= self.now:
                    replica.handle_timer(self.now)
            self.settle()
        self.now = end

    def settle(self) -> None:
        """Route events and messages until nothing moves."""
        moved = True
        while moved:
            moved = False
            for node, replica in list(self.replicas.items()):
                while (event := replica.next_event()) is not None:
                    moved = True
                    self._route(node, replica, event)
                for target, message, body in replica.messages_to_send(self.now):
                    moved = True
                    self.sent.append((node, target, message, body))
                    if target in self.replicas and self.passes(node, target, message):
                        self.replicas[target].receive(node, message, self.now, body)

    def _route(self, node: NodeId, replica: Replica, event: Any) -> None:
        self.events[node].append(event)
        match event:
            case Received(worker, sequence, _) if self.checks:
                replica.accept(worker, sequence, self.now)
            case Apply(_, _, _, pieces) if pieces:
                self.states[node].append(b"".join(pieces))
            case TakeState(number):
                replica.state_taken(number, [b"\0".join(self.states[node])], self.now)
            case LoadState(_, pieces):
                self.states[node] = b"".join(pieces).split(b"\0")
            case Acknowledge(target, message, _):
                self.sent.append((node, target, message, b""))

    # --- looking

    def messages(self, kind: type[M], source: Member | None = None, target: NodeId | None = None) -> list[M]:
        return [
            message
            for sender, receiver, message, _ in self.sent
            if isinstance(message, kind)
            and (source is None or sender == source.id)
            and (target is None or receiver == target)
        ]

    def acknowledged(self) -> list[int]:
        """The sequences that the worker was told of."""
        return [message.sequence for message in self.messages(Pushed)]

    def proposals(self, one: Member) -> list[Configuration]:
        return [event.configuration for event in self.events[one.id] if isinstance(event, Propose)]


def cut(*nodes: Member) -> Callable[[NodeId, NodeId, Message], bool]:
    """Nothing goes to or from these."""
    ids = {one.id for one in nodes}
    return lambda source, target, message: source not in ids and target not in ids


def pair(generation: int = 1, copies: int = 2) -> Configuration:
    """A is the primary, B its backup."""
    return Configuration(generation, copies, (A, B))
