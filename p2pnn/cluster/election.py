"""Who leads: terms, votes and the four roles. The half of `consensus` that needs no leader.

A voter that hears no leader for a random 1 to 2 s asks first whether the others would vote for it (PreVote, Ongaro 2014,
§9.6), so that a node that was cut off or stopped disturbs nobody when it comes back. With a majority it takes the next term,
votes for itself, and asks for votes.

    follower ──timeout──► precandidate ──majority──► candidate ──majority──► leader
        ▲                     │  ▲ timeout │              │ timeout             │
        └─────────────────────┴──┴─────────┴──────────────┴── higher term, higher charter, no quorum

Each rule of the design that safety rests on is one method here or in `consensus`, with the rule's number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from p2pnn.cluster.charter import NOTHING, Charter, Version
from p2pnn.cluster.durable import Durable, Stable
from p2pnn.cluster.outcomes import DiskFailed, LeaderChanged, Outcome, Persist
from p2pnn.cluster.view import Standing, View
from p2pnn.types import NodeId
from p2pnn.wire.charter import TERM_MAX, Handover, PreVote, PreVoted, Vote, Voted
from p2pnn.wire.fields import Message


class Role(StrEnum):
    FOLLOWER = "follower"
    PRECANDIDATE = "precandidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Raises AssertionError where they contradict each other.

    heartbeat_s: between two signs of life of a leader; less finds its loss no sooner, more needs longer timeouts.
    election_min_s, election_max_s: the silence after which a voter campaigns, drawn anew each time; a wide range
    parts candidates, a high one leads a mesh longer without a leader.
    quorum_silence_s: without word from a majority for so long, a leader steps down (CheckQuorum).
    veto_max_s: how long gossip's word that the leader lives stops a campaign; it cannot see one that no longer leads.
    rank_s: when a leader is lost, how much later each next candidate campaigns.
    resend_s: after so long without an acknowledgement a charter is sent again.
    handover_s: how long a handover may take; no change is proposed meanwhile.
    disk_retry_s: after a failed write, how long nothing is written.
    learners_per_beat: learners that a heartbeat reaches, in turns, so that its cost does not grow with the cluster.
    """

    heartbeat_s: float = 0.2
    election_min_s: float = 1.0
    election_max_s: float = 2.0
    quorum_silence_s: float = 2.0
    veto_max_s: float = 4.0
    rank_s: float = 0.15
    resend_s: float = 1.0
    handover_s: float = 3.0
    disk_retry_s: float = 1.0
    learners_per_beat: int = 4

    def __post_init__(self) -> None:
        assert 0 < 3 * self.heartbeat_s <= self.election_min_s, "two lost heartbeats are no lost leader"
        assert self.election_min_s < self.election_max_s <= self.veto_max_s
        assert self.election_min_s <= self.quorum_silence_s
        assert 0 < self.rank_s < self.election_min_s
        assert min(self.resend_s, self.handover_s, self.disk_retry_s) > 0
        assert self.learners_per_beat > 0


HEALTH_MAX: Final = 2.0
"""Being cut off looks like being slow, since probes go unanswered in both: a node that waited eight times as long as others
would not even notice that nobody leads it. To wait too little costs a PreVote."""


class Election(ABC):
    """The state that both halves share, and the way to leadership."""

    def __init__(self, node: NodeId, durable: Durable, now: float, random: Random, timing: Timing) -> None:
        self._node = node
        self._stable = Stable(durable)
        self._random = random
        self._timing = timing
        self._view = View(node, now)
        self._health = 1.0
        self._role = Role.FOLLOWER
        self._leader: NodeId | None = None
        self._heard = now
        self._ballots: set[NodeId] = set()
        self._asked_votes = False
        self._owed: tuple[int, NodeId] | None = None
        self._disk_retry_at = now
        self._outbox: list[tuple[NodeId, Message]] = []
        self._events: deque[Outcome] = deque()
        self._election_due = self._draw_timeout(now)
        if self._leads_alone():
            self._election_due = now  # nobody else can, and nobody is to be asked

    # --- the state

    @property
    def term(self) -> int:
        return self._stable.memory.term

    @property
    def charter(self) -> Charter | None:
        """The charter that this node goes by; it need not be committed."""
        return self._stable.memory.charter

    @property
    def version(self) -> Version:
        charter = self._stable.memory.charter
        return NOTHING if charter is None else charter.version

    @property
    def cluster(self) -> str:
        """The id of the cluster whose charter this node holds; empty before it has one."""
        charter = self._stable.memory.charter
        return "" if charter is None else charter.cluster

    @property
    def role(self) -> Role:
        return self._role

    # --- the rules

    def may_vote(self, candidate: NodeId, term: int, version: Version) -> bool:
        """Rule 1. Only for a higher term (or the same vote once more), and for a charter that is not older than mine.

        Who holds no charter votes for nobody: no voter holds none, so it may have lost it, with the memory of its votes.
        """
        return self.is_fresh_vote(candidate, term) and version >= self.version and self.charter is not None

    def is_fresh_vote(self, candidate: NodeId, term: int) -> bool:
        """Rule 1, its first half: one vote per term. A repeated request gets the repeated answer."""
        return term > self.term or (term == self.term and self._stable.memory.vote == candidate)

    def why_no_prevote(self, term: int, version: Version, now: float) -> str:
        """Rule 8. Empty where a vote would be given: the candidate could win it, and no leader lives that it would disturb."""
        if term <= self.term:
            return f"this node is in term {self.term}"
        if version < self.version:
            return f"this node holds charter {self.version}"
        if self._role is Role.LEADER:
            return "this node leads"
        if self.hears_leader(now):
            return "the leader lives"
        return ""

    def hears_leader(self, now: float) -> bool:
        """Whether a leader spoke within the shortest timeout, and gossip does not doubt it."""
        if self._leader is None or self._view.is_lost(self._leader):
            return False
        return now - self._heard < self._timing.election_min_s

    def is_vetoed(self, now: float) -> bool:
        """Rule 8. Gossip calls the silent leader alive, so wait for it a little longer."""
        leader = self._leader
        if leader is None or self._view.standing(leader) is not Standing.ALIVE:
            return False
        return now - self._heard < self._timing.veto_max_s

    # --- the transitions

    def _become_follower(self, leader: NodeId | None, reason: str, now: float) -> None:
        """From any role."""
        self._role = Role.FOLLOWER
        self._ballots.clear()
        self._asked_votes = False
        self._note_leader(leader, reason)
        self._election_due = self._draw_timeout(now)

    def _become_precandidate(self, now: float) -> None:
        assert self._role is not Role.LEADER
        self._role = Role.PRECANDIDATE
        self._ballots = {self._node}
        self._note_leader(None, "it is silent")
        self._election_due = self._draw_timeout(now)
        self._send_voters(PreVote(self.term + 1, *self.version, self.cluster))
        if self._has_majority():
            self._become_candidate(now)

    def _become_candidate(self, now: float) -> None:
        """The next term, and my own vote in it; others are asked once that is on the disk."""
        assert self._role is not Role.LEADER
        if self.term >= TERM_MAX:
            return
        self._role = Role.CANDIDATE
        self._ballots.clear()
        self._asked_votes = False
        self._note_leader(None, "an election is under way")
        self._stable.hold(term=self.term + 1, vote=self._node)
        self._election_due = self._draw_timeout(now)
        self._flush(now)

    @abstractmethod
    def _become_leader(self, now: float) -> None:
        """Only from candidate, with a majority."""

    def _observe_term(self, term: int, now: float) -> None:
        """Rule 6. A higher term ends every role but follower's."""
        if term > self.term:
            self._stable.hold(term=term, vote=None)
            self._become_follower(None, f"term {term} has begun", now)
            self._flush(now)

    # --- time

    def _election_timeout(self, now: float) -> None:
        """The leader was silent for too long, or my last campaign led nowhere."""
        if not self._is_voter() or not self._stable.is_synced:
            self._election_due = self._draw_timeout(now)  # who cannot keep a vote does not ask for any
        elif self._role is Role.FOLLOWER and self.is_vetoed(now):
            self._election_due = now + self._timing.heartbeat_s
        else:
            self._become_precandidate(now)

    def _hurry(self, now: float) -> None:
        """The leader is lost: campaign soon, in the order of the newest charter and the longest life."""
        if self._role is not Role.FOLLOWER or not self._is_voter() or self.charter is None:
            return
        rank = self._view.rank(self._node, self.version, map(NodeId, self.charter.voters))
        wait_s = self._timing.rank_s * (rank + self._random.random() / 2) * self._health
        self._election_due = min(self._election_due, now + wait_s)

    def _draw_timeout(self, now: float) -> float:
        timing = self._timing
        return now + self._health * self._random.uniform(timing.election_min_s, timing.election_max_s)

    # --- messages

    def _receive_prevote(self, source: NodeId, message: PreVote, now: float) -> None:
        version = Version(message.charter_term, message.revision)
        reason = self.why_no_prevote(message.term, version, now)
        self._send(source, PreVoted(message.term, self.term, reason))
        if version < self.version:
            self._send_charter(source)

    def _receive_prevoted(self, source: NodeId, message: PreVoted, now: float) -> None:
        self._observe_term(message.term, now)
        if self._role is Role.PRECANDIDATE and message.asked == self.term + 1 and not message.error:
            self._ballots.add(source)
            if self._has_majority():
                self._become_candidate(now)

    def _receive_vote(self, source: NodeId, message: Vote, now: float) -> None:
        version = Version(message.charter_term, message.revision)
        if not self.may_vote(source, message.term, version):
            reason = f"in term {self.term} this node voted already" if version >= self.version else "an older charter"
            reason = reason if self.charter is not None else "this node holds no charter"
            self._observe_term(message.term, now)
            self._send(source, Voted(message.term, self.term, reason))
            if version < self.version:
                self._send_charter(source)
            return
        if message.term != self.term or self._stable.memory.vote != source:
            self._stable.hold(term=message.term, vote=source)
            self._become_follower(None, f"an election for term {message.term} is under way", now)
        self._owed = (message.term, source)
        self._flush(now)
        self._pay_vote()

    def _receive_voted(self, source: NodeId, message: Voted, now: float) -> None:
        self._observe_term(message.term, now)
        if self._role is Role.CANDIDATE and message.asked == self.term and not message.error:
            self._ballots.add(source)
            if self._has_majority():
                self._become_leader(now)

    def _receive_handover(self, source: NodeId, message: Handover, now: float) -> None:
        """The leader wants me in its place: no PreVote, because it lives and agrees."""
        if message.term == self.term and source == self._leader and self._is_voter() and self._stable.is_synced:
            self._become_candidate(now)

    # --- the disk

    def _flush(self, now: float) -> None:
        """Have the state written if it changed."""
        if now >= self._disk_retry_at and (write := self._stable.next_write()) is not None:
            self._events.append(Persist(*write))

    def _vote_is_durable(self, now: float) -> None:
        """A write has ended: what it holds of votes may be told now."""
        self._pay_vote()
        disk = self._stable.disk
        if self._role is Role.CANDIDATE and disk.term == self.term and disk.vote == self._node:
            self._ballots.add(self._node)
            if self._has_majority():
                self._become_leader(now)
            elif not self._asked_votes:
                self._asked_votes = True
                self._send_voters(Vote(self.term, *self.version, self.cluster))

    def _pay_vote(self) -> None:
        """Rule 1. Answer with a vote only when it is on the disk."""
        disk = self._stable.disk
        if self._owed is not None and self._owed == (disk.term, disk.vote):
            term, candidate = self._owed
            self._owed = None
            self._send(candidate, Voted(term, disk.term))

    def _fall_back(self, reason: str, now: float) -> None:
        """The write failed: memory is what the disk has. A version that I wrote and sent must not be written again with
        other contents, so I lead no more in this term."""
        self._owed = None
        self._disk_retry_at = now + self._timing.disk_retry_s
        self._events.append(DiskFailed(reason))
        self._become_follower(self._leader if self._role is Role.FOLLOWER else None, "the disk failed", now)
        self._election_due = now + self._timing.disk_retry_s + (self._election_due - now)

    # --- small things

    def _is_voter(self) -> bool:
        charter = self._stable.memory.charter
        return charter is not None and self._node in charter.voters

    def _leads_alone(self) -> bool:
        return self.charter is not None and self.charter.voters == (self._node,)

    def _has_majority(self) -> bool:
        """Rule 2. Of the voters of my own charter."""
        return self.charter is not None and self.charter.has_quorum(self._ballots)

    def _note_leader(self, leader: NodeId | None, reason: str) -> None:
        if leader != self._leader:
            self._leader = leader
            self._events.append(LeaderChanged(leader, self.term, reason))

    def _send(self, target: NodeId, message: Message) -> None:
        if target != self._node:
            self._outbox.append((target, message))

    def _send_voters(self, message: Message) -> None:
        if self.charter is not None:
            for voter in self.charter.voters:
                self._send(NodeId(voter), message)

    @abstractmethod
    def _send_charter(self, target: NodeId) -> None:
        """Send this node's charter, whole."""
