"""Charters, members and single cores for the tests of this folder."""

from __future__ import annotations

from random import Random
from typing import TypeVar

from p2pnn.cluster.charter import FORMAT, Charter, CharterMember
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.outcomes import Outcome, Persist
from p2pnn.types import NodeId
from p2pnn.wire.charter import PreVoted, Voted
from p2pnn.wire.fields import Message

M = TypeVar("M", bound=Message)
Kind = TypeVar("Kind")


def node_id(letter: str) -> NodeId:
    return NodeId(letter * 32)


A, B, C, D, E, F = map(node_id, "abcdef")


def member(node: NodeId) -> CharterMember:
    return CharterMember(node, "", node[0])


def charter_of(
    voters: tuple[NodeId, ...],
    *,
    learners: tuple[NodeId, ...] = (),
    term: int = 1,
    revision: int = 1,
    work: bytes = b"",
) -> Charter:
    return Charter(FORMAT, "home", term, revision, voters, tuple(map(member, (*voters, *learners))), work)


class Desk:
    """One core, and what a test does at it; its disk writes at once unless `slow`."""

    def __init__(self, node: NodeId, durable: Durable, *, slow: bool = False, seed: int = 1) -> None:
        self.now = 100.0
        self.slow = slow
        self.disk = durable
        self.core = Consensus(node, durable, self.now, Random(seed))
        self.events: list[Outcome] = []
        self.writes: list[Persist] = []
        self.sent: list[tuple[NodeId, Message]] = []
        self.settle()

    def settle(self) -> None:
        while (event := self.core.next_event()) is not None:
            if isinstance(event, Persist):
                self.writes.append(event)
                if not self.slow:
                    self.write()
            else:
                self.events.append(event)
        self.sent += self.core.messages_to_send(self.now)

    def write(self) -> None:
        """The oldest write ends well."""
        write = self.writes.pop(0)
        self.disk = write.durable
        self.core.persisted(write.number, self.now)
        self.settle()

    def fail(self) -> None:
        self.core.persist_failed(self.writes.pop(0).number, "no space left", self.now)
        self.settle()

    def receive(self, source: NodeId, message: Message) -> list[tuple[NodeId, Message]]:
        """What is sent because of it."""
        self.sent.clear()
        self.core.receive(source, message, self.now)
        self.settle()
        return list(self.sent)

    def wait(self, seconds: float) -> list[tuple[NodeId, Message]]:
        """What is sent meanwhile."""
        self.sent.clear()
        end = self.now + seconds
        while (due := self.core.get_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.core.handle_timer(self.now)
            self.settle()
        self.now = end
        return list(self.sent)

    def messages(self, kind: type[M]) -> list[tuple[NodeId, M]]:
        return [(target, message) for target, message in self.sent if isinstance(message, kind)]

    def outcomes(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def elect(self, *voters: NodeId) -> None:
        """Let it time out and win with these votes."""
        self.wait(2.0)
        term = self.core.term + 1
        for voter in voters:
            self.receive(voter, PreVoted(term, term - 1))
        for voter in voters:
            self.receive(voter, Voted(term, term))
