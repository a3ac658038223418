"""One charter for the whole cluster, decided by a majority of the voters that it names itself: logless dynamic Raft.

Source: Schultz, Dardik, Tripakis, *Design and Analysis of a Logless Dynamic Reconfiguration Protocol*, OPODIS 2021
(arXiv 2102.11960), which MongoDB runs. Raft (Ongaro 2014) keeps a log of commands; here the replicated state is one small
document, so each change replaces it whole, and only its version is compared. The rules, each one method of this name in
`election`, `leading` or here:

1. `may_vote`: for a higher term only, and for a charter not older than mine; told when it is on the disk.
2. `won`: a leader rewrites its charter into its term.
3. `is_committed`: a majority of its voters acknowledged exactly this version in this term.
4. `may_propose`: only when the current charter is committed.
5. `may_change_voters`: one at a time; who becomes one holds the current charter.
6. `accepts`: any charter of a higher version, from anyone; `may_act`: only on what is committed.
8. PreVote, CheckQuorum, random timeouts, gossip's veto: `why_no_prevote`, `has_quorum_in_touch`, `is_vetoed`.
9. and 10.: `view`, `voters`.

(7., the fence, is `charter.Version.generation`, and `hear_of_commit`.)

What is different here on purpose. The core never tells more than its disk holds: an acknowledgement names the version on
the disk, so a slow disk delays a commit but loses nobody its place. A charter is sent before the leader's own disk has it (as
Raft allows); the leader counts itself only afterwards. The election veto by gossip ends after `veto_max_s` in any case, because
gossip also calls a leader alive that can no longer lead.

This is a core: it owns no socket, clock, disk or dice. Its owner feeds receive, observe, persisted or persist_failed, and
handle_timer at get_timer's time; after each it takes next_event and messages_to_send until they are empty.
"""

from __future__ import annotations

from random import Random

import msgspec

from p2pnn.cluster import charter as charters
from p2pnn.cluster import pieces
from p2pnn.cluster.charter import NOTHING, Charter, Version
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import HEALTH_MAX, Role, Timing
from p2pnn.cluster.leading import Leading
from p2pnn.cluster.outcomes import Outcome
from p2pnn.cluster.view import Standing
from p2pnn.errors import CharterError
from p2pnn.types import NodeId
from p2pnn.wire.charter import (
    CharterPiece,
    CharterWanted,
    Handover,
    Held,
    Lead,
    PreVote,
    PreVoted,
    Vote,
    Voted,
)
from p2pnn.wire.fields import Message


class ConsensusSnapshot(msgspec.Struct, frozen=True):
    """What a person may want to know. charter: the newest that this node knows to be committed; None before any."""

    role: Role
    term: int
    leader: NodeId | None
    version: Version
    charter: Charter | None
    alarmed: bool


class Consensus(Leading):
    """One node's part in it. durable: what its disk holds; of a new cluster's founder, `Durable(charter=found(...))`.

    now: seconds of a clock that never goes back, here and in every call. random: this node's own dice.
    """

    def __init__(
        self, node: NodeId, durable: Durable, now: float, random: Random, timing: Timing | None = None
    ) -> None:
        self._assembly = pieces.Assembly()
        self._wanted_at = float("-inf")
        super().__init__(node, durable, now, random, timing or Timing())

    # --- what the owner feeds

    def receive(self, source: NodeId, message: Message, now: float) -> None:
        """A message of the charter from a peer; others, and those of another cluster, are ignored."""
        match message:
            case Lead() | Held() | PreVote() | Vote() | CharterPiece() if self._is_foreign(message.cluster):
                pass
            case Lead():
                self._receive_lead(source, message, now)
            case Held():
                self._receive_held(source, message, now)
            case CharterPiece():
                self._receive_piece(source, message, now)
            case PreVote():
                self._receive_prevote(source, message, now)
            case PreVoted():
                self._receive_prevoted(source, message, now)
            case Vote():
                self._receive_vote(source, message, now)
            case Voted():
                self._receive_voted(source, message, now)
            case Handover():
                self._receive_handover(source, message, now)
            case CharterWanted():
                if Version(message.charter_term, message.revision) < self.version:
                    self._send_charter(source)

    def persisted(self, number: int, now: float) -> None:
        """The write of this number is on the disk."""
        if self._stable.wrote(number):
            self._vote_is_durable(now)
            self._tell_held()
            self._act()
            self._check_commit(now)
            self._flush(now)

    def persist_failed(self, number: int, reason: str, now: float) -> None:
        """The write of this number failed; the disk has what it had."""
        if self._stable.failed(number):
            self._fall_back(reason, now)

    def observe(self, node: NodeId, standing: Standing, now: float) -> None:
        """Gossip says so of a member's life."""
        changed = self._view.observe(node, standing, now)
        if changed and node == self._leader and self._view.is_lost(node):
            self._hurry(now)
        if changed and self._leadership is not None:
            self._beat_due = min(self._beat_due, now)
            if standing is Standing.ALIVE:
                self._leadership.returned(node)

    def hear_of(self, node: NodeId, now: float, uptime_s: float, lag_s: float, version: Version, cluster: str) -> None:
        """Gossip tells what a member says of itself: for how long it runs, how late its loop is, and the newest charter of which
        cluster it knows to be committed. A newer one than this node acts on is asked for."""
        if self._is_foreign(cluster):
            return
        self._view.describe(node, now, uptime_s, lag_s, version)
        self.hear_of_commit(node, version, now)

    def hear_of_commit(self, node: NodeId, version: Version, now: float) -> None:
        """Rule 7. A member knows that this version is committed, as the generation of its data messages tells, too."""
        mine = NOTHING if self._acted is None else self._acted.version
        if version > mine and now - self._wanted_at >= self._timing.resend_s:
            self._wanted_at = now
            self._send(node, CharterWanted(*mine))

    def set_health(self, factor: float) -> None:
        """This node's own slowness, 1 for none: its timeouts grow by it, so that it accuses nobody of it."""
        self._health = min(max(factor, 1.0), HEALTH_MAX)

    # --- what the owner takes

    def get_timer(self) -> float | None:
        """When handle_timer wants to be called next; None where only others can move anything."""
        due: float | None = None
        if self._role is Role.LEADER:
            due = self._beat_due
        elif self._is_voter():
            due = self._election_due
        if not self._stable.is_synced and self._stable.is_idle:
            due = self._disk_retry_at if due is None else min(due, self._disk_retry_at)
        return due

    def handle_timer(self, now: float) -> None:
        self._flush(now)
        if self._leadership is not None:
            if now >= self._beat_due:
                self._beat(self._leadership, now)
        elif now >= self._election_due:
            self._election_timeout(now)

    def messages_to_send(self, now: float) -> list[tuple[NodeId, Message]]:
        """Messages since the last call, for control links; any may be lost."""
        out = self._outbox
        if out:
            self._outbox = []
        return out

    def next_event(self) -> Outcome | None:
        return self._events.popleft() if self._events else None

    def snapshot(self) -> ConsensusSnapshot:
        return ConsensusSnapshot(self._role, self.term, self._leader, self.version, self._acted, self._view.alarmed)

    # --- the rules

    def accepts(self, version: Version) -> bool:
        """Rule 6. Any higher one."""
        return version > self.version

    # --- following

    def _receive_lead(self, source: NodeId, message: Lead, now: float) -> None:
        self._observe_term(message.term, now)
        if message.term == self.term and self._role is not Role.LEADER:
            if self._role is not Role.FOLLOWER or self._leader != source:
                self._become_follower(source, "it leads", now)
            self._heard = now
            self._election_due = self._draw_timeout(now)
            self._learn(Version(message.committed_term, message.committed_revision))
        self._send(source, self._held())

    def _receive_held(self, source: NodeId, message: Held, now: float) -> None:
        self._observe_term(message.term, now)
        if self._leadership is None:
            return
        self._leadership.heard(source, now)
        if message.term == self.term:
            self._leadership.holds(source, Version(message.charter_term, message.revision))
            self._check_commit(now)
            self._tend_new_voter(source, now)
        self._push(source, now)

    def _receive_piece(self, source: NodeId, message: CharterPiece, now: float) -> None:
        self._learn(Version(message.committed_term, message.committed_revision))
        version = Version(message.charter_term, message.revision)
        if not self.accepts(version) or (data := self._assembly.add(source, message)) is None:
            return
        try:
            charter = self._decode(data)
        except CharterError:
            return  # its sender would not have taken it either
        if charter.version == version and not self._is_foreign(charter.cluster):
            self._accept(charter, now)

    @staticmethod
    def _decode(data: bytes) -> Charter:
        """A whole charter that has arrived. Raises CharterError."""
        return charters.decode(data)

    def _is_foreign(self, cluster: str) -> bool:
        """Whether this is another cluster than mine: two that were founded apart may have charters of one version."""
        mine = self.cluster
        return cluster != mine and cluster != "" and mine != ""

    def _accept(self, charter: Charter, now: float) -> None:
        """Its term has begun, whoever it comes from; and votes that were given for my older charter count for nothing now."""
        if charter.term > self.term:
            self._stable.hold(term=charter.term, vote=None)
            self._become_follower(None, f"term {charter.term} has begun", now)
        elif self._role is not Role.FOLLOWER:
            self._become_follower(None, f"charter {charter.version} is newer", now)
        self._stable.hold(charter=charter)
        self._flush(now)

    def _learn(self, committed: Version) -> None:
        """Rule 6. The highest committed version that anybody told of."""
        if committed > self._known:
            self._known = committed
            self._act()

    def _tell_held(self) -> None:
        if self._role is Role.FOLLOWER and self._leader is not None:
            self._send(self._leader, self._held())

    # --- messages

    def _held(self) -> Held:
        disk = self._stable.disk
        return Held(disk.term, *disk.version, disk.charter.cluster if disk.charter else "")
