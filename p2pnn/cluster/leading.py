"""What a leader does: write charters, count who holds them, keep in touch, choose voters, hand over.

The half of `consensus` that only a leader plays, with its rules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from p2pnn.cluster import charter as charters
from p2pnn.cluster import pieces, voters
from p2pnn.cluster.charter import NOTHING, Charter, CharterMember, Version
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Election, Role, Timing
from p2pnn.cluster.leadership import Leadership
from p2pnn.cluster.outcomes import Alarm, AlarmOver, Committed, Gone
from p2pnn.errors import ProposalRefused
from p2pnn.identity.tokens import TokenRecord
from p2pnn.types import NodeId
from p2pnn.wire.charter import Handover, Lead


class Leading(Election):
    """An election's winner, and what every node knows of what was committed."""

    def __init__(self, node: NodeId, durable: Durable, now: float, random: Random, timing: Timing) -> None:
        self._leadership: Leadership | None = None
        self._beat_due = now
        self._known = NOTHING
        self._acted: Charter | None = None
        self._encoded: tuple[Charter, bytes] | None = None
        super().__init__(node, durable, now, random, timing)

    # --- what the owner asks for

    def propose(
        self,
        now: float,
        *,
        work: bytes | None = None,
        admit: Sequence[CharterMember] = (),
        dismiss: Collection[NodeId] = (),
        tokens: Sequence[TokenRecord] | None = None,
    ) -> Version:
        """Begin a change and return the version that it will have; Committed says when it holds, or a higher version that it does
        not. Voters are chosen here, nobody proposes them.

        Raises ProposalRefused where this node does not lead or another change is under way (try again at the next Committed), and
        CharterError where the charter would be too large.
        """
        charter = self._proposable(now)
        members = [member for member in charter.members if member.node not in dismiss]
        known = {member.node for member in members}
        members += [member for member in admit if member.node not in known]
        remaining = [NodeId(voter) for voter in charter.voters if voter not in dismiss]
        if self._node in dismiss or not voters.is_single_change(charter.voters, remaining):
            raise ProposalRefused("the leader cannot be removed, and of the voters one at a time; hand over first")
        now_in = {member.node for member in members}
        removed = [NodeId(node) for node in (*charter.removed, *dismiss) if node not in now_in]
        successor = charter.successor(
            members=members,
            voters=remaining,
            work=work,
            tokens=tokens,
            removed=list(dict.fromkeys(removed))[-charters.REMOVED_MAX :],
        )
        self._encoded = (successor, charters.encode(successor, charter))
        self._install(successor, now)
        return successor.version

    def hand_over(self, now: float) -> None:
        """Let another voter lead, as before this node is stopped; LeaderChanged says when. Raises ProposalRefused."""
        if self._leadership is None:
            raise ProposalRefused(f"this node does not lead; {self._leader or 'nobody'} does")
        self._leadership.handover_until = now + self._timing.handover_s
        self._tend(now)

    # --- the rules

    def won(self, charter: Charter) -> Charter:
        """Rule 2. What a new leader's charter becomes: the same, written into its term."""
        return charter.rewritten(self.term)

    def is_committed(self, charter: Charter, holders: set[NodeId]) -> bool:
        """Rule 3. holders: who acknowledged exactly this version in this term."""
        return charter.term == self.term and charter.has_quorum(holders)

    def may_propose(self) -> bool:
        """Rule 4. Nothing is under way."""
        return self._acted is not None and self._acted.version == self.version

    def may_change_voters(self, charter: Charter, after: Sequence[NodeId], ready: Collection[NodeId]) -> bool:
        """Rule 5. One comes or goes, and who comes holds the current charter."""
        return voters.is_single_change(charter.voters, after) and set(after) - set(charter.voters) <= set(ready)

    def may_act(self, charter: Charter) -> bool:
        """Rule 6. It is committed, and on this node's disk, so that a restart cannot go back behind what was done."""
        return charter.version == self._known and charter is self._stable.disk.charter

    def has_quorum_in_touch(self, charter: Charter, leadership: Leadership, now: float) -> bool:
        """Rule 8, CheckQuorum."""
        silence_s = self._timing.quorum_silence_s * self._health
        return charter.has_quorum(leadership.in_touch(charter.voters, now - silence_s))

    # --- leading

    def _become_leader(self, now: float) -> None:
        assert self._role is Role.CANDIDATE
        assert self.charter is not None
        self._role = Role.LEADER
        self._leadership = Leadership(self._node, now, self._timing.resend_s)
        self._note_leader(self._node, "elected")
        self._install(self.won(self.charter), now)
        self._beat(self._leadership, now)

    def _become_follower(self, leader: NodeId | None, reason: str, now: float) -> None:
        self._leadership = None
        super()._become_follower(leader, reason, now)

    def _beat(self, leadership: Leadership, now: float) -> None:
        """A sign of life to voters, and to some learners in turn; then whatever there is to tend."""
        charter = self.charter
        assert charter is not None
        self._beat_due = now + self._timing.heartbeat_s
        if not self.has_quorum_in_touch(charter, leadership, now):
            self._become_follower(None, "a majority of the voters is out of reach", now)
            return
        lead = self._lead()
        learners = [node for node in charter.nodes() if node not in charter.voters]
        for node in (*charter.voters, *leadership.next_learners(learners, self._timing.learners_per_beat)):
            self._send(NodeId(node), lead)
        self._tend(now)

    def _tend(self, now: float) -> None:
        """What a leader does unasked: reassign, choose voters, hand over."""
        charter, leadership = self.charter, self._leadership
        if charter is None or leadership is None:
            return
        gone = self._tend_gone(charter, leadership, now)
        if leadership.handover_until is not None and now >= leadership.handover_until:
            leadership.handover_until = None
        if not self.may_propose():
            return
        touched = leadership.in_touch(charter.nodes(), now - self._timing.quorum_silence_s)
        ready = {node for node in leadership.holders(charter) & touched if not self._view.is_lost(node)}
        after = self._next_voters(charter, ready, gone)
        if leadership.handover_until is not None and (heir := self._heir(charter, ready)) is not None:
            self._send(heir, Handover(self.term))
        elif after is not None and self.may_change_voters(charter, after, ready):
            self._install(charter.successor(voters=after), now)

    def _tend_new_voter(self, node: NodeId, now: float) -> None:
        """A learner has come to hold the charter: where voters are wanted it need not wait for the next heartbeat."""
        charter = self.charter
        assert charter is not None
        if node not in charter.voters and len(charter.voters) < voters.wanted(len(charter.members)):
            self._tend(now)

    def _tend_gone(self, charter: Charter, leadership: Leadership, now: float) -> set[NodeId]:
        """Raise the alarm or name the members that are gone. Returns all that are."""
        members = charter.nodes()
        alarm = self._view.check_alarm(members)
        if alarm is not None:
            self._events.append(Alarm(self._view.lost(members), len(members)) if alarm else AlarmOver())
        gone = self._view.gone(members, now)
        for node in members:
            if node in gone and node not in leadership.announced:
                self._events.append(Gone(node))
        leadership.announced = gone
        return gone

    def _next_voters(
        self, charter: Charter, ready: Collection[NodeId], gone: Collection[NodeId]
    ) -> tuple[NodeId, ...] | None:
        count = voters.wanted(len(charter.members))
        if self._leadership is not None and self._leadership.handover_until is not None:
            count = max(count, 2)  # somebody else must be able to lead
        return voters.next_voters(charter, self._node, ready, gone, self._view.started, count)

    def _heir(self, charter: Charter, ready: Collection[NodeId]) -> NodeId | None:
        """The voter to hand over to: the one that runs longest of those that hold everything."""
        heirs = [NodeId(voter) for voter in charter.voters if voter in ready and voter != self._node]
        return min(heirs, key=lambda node: (self._view.started(node), node), default=None)

    def _proposable(self, now: float) -> Charter:
        if self._leadership is None or self.charter is None:
            raise ProposalRefused(f"this node does not lead; {self._leader or 'nobody'} does")
        if self._leadership.handover_until is not None:
            raise ProposalRefused("this node is handing over")
        if not self.may_propose():
            raise ProposalRefused(f"charter {self.version} is not committed yet")
        return self.charter

    def _install(self, charter: Charter, now: float) -> None:
        """Write a charter of mine: to the disk, and to every member at once."""
        self._stable.hold(charter=charter)
        self._flush(now)
        for node in charter.nodes():
            self._push(node, now)

    def _check_commit(self, now: float) -> None:
        charter, leadership = self.charter, self._leadership
        if charter is None or leadership is None or charter.version <= self._known:
            return
        disk = self._stable.disk
        if disk.term == self.term and disk.charter is charter:
            leadership.holds(self._node, charter.version)
        if self.is_committed(charter, leadership.holders(charter)):
            self._known = charter.version
            self._act()
            for node in charter.nodes():
                self._send(node, self._lead())
            self._tend(now)

    def _act(self) -> None:
        charter = self._stable.disk.charter
        if charter is not None and charter is not self._acted and self.may_act(charter):
            self._acted = charter
            self._events.append(Committed(charter))

    def _lead(self) -> Lead:
        return Lead(self.term, *self.version, *self._known, self.cluster)

    def _push(self, node: NodeId, now: float) -> None:
        """Send the charter to a member that has not acknowledged it."""
        if self._leadership is not None and self._leadership.should_send(node, self.version, now):
            self._send_charter(node)

    def _send_charter(self, target: NodeId) -> None:
        charter = self.charter
        if charter is None or target == self._node:
            return
        if self._encoded is None or self._encoded[0] is not charter:
            self._encoded = (charter, charters.encode(charter))
        for piece in pieces.cut(self._encoded[1], charter.version, self._known, charter.cluster):
            self._send(target, piece)
