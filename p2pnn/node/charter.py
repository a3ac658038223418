"""The adapter of `cluster.Consensus`: its messages over links, its disk a file, gossip's word from membership.

A daemon that was told of no peer founds a cluster: a charter whose one member and voter it is. One that joins has no
charter until the leader admits it; where it founded a cluster before that has no other member, it gives that up, unless the
cluster was recovered (`cluster.recovery`): the former one's charter lies beside it then, and its votes must not be forgotten.
In a plain mesh whoever is alive in membership is admitted, because the link's handshake decides who may come. In a secured
cluster tokens admit (`node.identity`).

The file (`node.charter_file`) is written in a thread, one write at a time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2pnn.cluster import Description, parking, recovery
from p2pnn.cluster.charter import NOTHING, Charter, CharterMember, Version
from p2pnn.cluster.consensus import Consensus, ConsensusSnapshot
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.outcomes import Alarm, AlarmOver, Committed, DiskFailed, Gone, LeaderChanged, Outcome, Persist
from p2pnn.cluster.parking import Parked
from p2pnn.cluster.petitions import Change
from p2pnn.cluster.presence import Lost, Presence
from p2pnn.cluster.view import Standing
from p2pnn.errors import BetweenClusters, CharterError, NotAllowedError, ProposalRefused, StorageError
from p2pnn.node.charter_file import CharterFile, Founding
from p2pnn.node.links import Post
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import NodeId
from p2pnn.wire.messages import Message

log = logging.getLogger("p2pnn.charter")


@dataclass(frozen=True, slots=True)
class CharterSnapshot:
    """consensus: as the core tells it. alive: names by id of the members that gossip holds for alive, and this one.

    disk: empty, or why the last write failed. parked: empty, or why nothing can be decided here, as a sentence. presence: who is
    away since when, and what follows from it.
    """

    consensus: ConsensusSnapshot
    alive: dict[NodeId, str]
    disk: str
    parked: str
    presence: Presence


class Owner(Protocol):
    """Who wants to know what was decided."""

    def charter_committed(self, charter: Charter) -> None:
        """This charter holds until the next one."""

    def coordinator_changed(self, coordinator: NodeId | None) -> None:
        """Another node coordinates, as far as this one knows, or the same in another term; None: nobody does."""


class ClusterCharter:
    """This node's part in the charter. founds: whether to found a cluster where the state folder has no charter.

    founding: of a secured cluster, its first member and tokens; None in a plain mesh.
    """

    def __init__(self, post: Post, folder: Path, founds: bool, owner: Owner, founding: Founding | None = None) -> None:
        self._post = post
        self._owner = owner
        self._file = CharterFile(folder)
        self._founds = founds
        self._founding = founding
        self._loop = asyncio.get_running_loop()
        self._presence = Presence(post.node, post.name, self._loop.time())
        self._alive = self._presence.alive
        self._parked: Parked | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        self._disk = ""
        self._versions: dict[NodeId, tuple[str, Version]] = {}
        self._core: Consensus | None = None

    def start(self) -> None:
        """Read or found. Raises CharterError for a file that is damaged or newer, StorageError for a disk that fails."""
        now = self._loop.time()
        core = self._core = Consensus(self._post.node, self._load(), now, random.Random())
        for node in self._alive:
            core.observe(node, Standing.ALIVE, now)
        self._settle(core)
        self._look(core)

    async def close(self) -> None:
        """A write or a recovery that is under way is finished; its answer reaches nobody, and nothing starts again by itself."""
        self._core = None
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()

    def receive(self, node: NodeId, message: Message) -> None:
        if self._core is not None:
            self._core.receive(node, message, self._loop.time())
            self._settle(self._core)

    def member_alive(self, node: NodeId, name: str, cluster: str | None = "") -> None:
        """It joined, came back, or refuted what was said of it. cluster: whose charter it holds; None: it has not said so yet."""
        self._presence.arrived(node, name, cluster)
        self._observe(node, Standing.ALIVE)

    def member_described(self, node: NodeId, about: Description, uptime_s: float) -> None:
        """What it says of itself, at any time; of this node too."""
        self._presence.said(node, about.cluster)
        if self._core is not None:
            lag_s, version = about.lag_ms / 1000, Version(*about.charter)
            self._core.hear_of(node, self._loop.time(), uptime_s, lag_s, version, about.cluster)
            self._versions[node] = (about.cluster, version)
            self._admit(self._core)
            self._settle(self._core)
            self._look(self._core)

    def hear_of_generation(self, node: NodeId, generation: int) -> None:
        """A data message of this node bears the generation of a commit that this one may not know: then it is fetched."""
        if self._core is not None:
            self._core.hear_of_commit(node, Version.of(generation), self._loop.time())
            self._settle(self._core)

    def member_suspected(self, node: NodeId) -> None:
        """It may refute that."""
        self._presence.departed(node, "it does not answer", self._loop.time())
        self._observe(node, Standing.SUSPECT)

    def member_failed(self, node: NodeId, reason: str = "it is dead") -> None:
        """It is dead, or has left."""
        self._presence.departed(node, reason, self._loop.time())
        self._versions.pop(node, None)
        self._observe(node, Standing.DEAD)

    @property
    def coordinator(self) -> NodeId | None:
        """Who leads, as far as this node knows."""
        return self._core.snapshot().leader if self._core is not None else None

    @property
    def term(self) -> int:
        return self._core.term if self._core is not None else 0

    @property
    def coordinates(self) -> bool:
        """Whether this node leads and its first charter holds: from then on it knows all that was ever decided."""
        core = self._core
        if core is None or core.role is not Role.LEADER:
            return False
        acted = core.snapshot().charter
        return acted is not None and acted.term == core.term

    @property
    def alarm(self) -> str:
        """As the coordinator: why nothing may be given to other nodes now, as a clause; empty where it may."""
        lost = self._presence.alarm
        return f"{lost.count} of {lost.members} members were lost at once, so the fault may be ours" if lost else ""

    def voters(self) -> tuple[NodeId, ...]:
        """Of the newest charter that holds; none before any."""
        charter = self.committed
        return tuple(map(NodeId, charter.voters)) if charter is not None else ()

    def refusal(self, node: NodeId, term: int) -> str:
        """Why this node does not obey a coordinator's word of this term, as a clause; empty where it does."""
        core = self._core
        if core is None:
            return "this node is stopping"
        leader = core.snapshot().leader
        if term < core.term:
            return f"it is of term {term}, and term {core.term} has begun"
        if term == core.term and leader not in (None, node):
            return f"another node coordinates in term {term}"
        return ""

    def propose_work(self, make: Callable[[int], bytes]) -> Version:
        """Have the table of jobs replaced. make(generation): the new one, whose new entries bear this generation. The returned
        version holds once a charter of it, and none of a higher one before, is committed.

        Raises ProposalRefused where this node does not lead or a change is under way (try again at the next commit), CharterError
        where the table is too large.
        """
        core = self._core
        if core is None or core.charter is None:
            raise ProposalRefused("this node does not lead")
        now = self._loop.time()
        version = core.charter.version._replace(revision=core.charter.revision + 1)
        proposed = core.propose(now, work=make(version.generation))
        assert proposed == version, "the leader's charter is of its own term"
        self._loop.call_soon(self._settle_soon)
        return proposed

    def slowness_changed(self, factor: float) -> None:
        """This node is slow itself, so it waits so many times longer before it doubts the coordinator."""
        if self._core is not None:
            self._core.set_health(factor)

    @property
    def parked(self) -> str:
        """Empty while a living coordinator is known; else why nothing can be decided here, since when, and what to do."""
        return "" if self._parked is None else self._parked.reason(self._loop.time())

    def description(self) -> tuple[str, Version]:
        """The cluster's id and the version of the newest charter that this node knows to be committed, for gossip."""
        charter, cluster = self.committed, self._core.cluster if self._core is not None else ""
        return cluster, NOTHING if charter is None else charter.version

    @property
    def committed(self) -> Charter | None:
        """The newest that holds, as far as this node knows."""
        return self._core.snapshot().charter if self._core is not None else None

    @property
    def held(self) -> Charter | None:
        """The newest that this node has, committed or not: after a start that takes a moment to be known."""
        return self._core.charter if self._core is not None else None

    def propose_members(self, change: Change) -> Version | None:
        """Have members admitted or dismissed, or tokens changed, or (None) another voter lead; raises as `propose_work`."""
        if (core := self._core) is None:
            raise ProposalRefused("this node does not lead")
        self._loop.call_soon(self._settle_soon)
        if change.hand_over:
            core.hand_over(self._loop.time())
            return None
        return core.propose(self._loop.time(), admit=change.admit, dismiss=change.dismiss, tokens=change.tokens)

    async def stand_still(self) -> None:
        """Nothing is heard, said or written until `start`: this node is leaving its cluster."""
        await self.close()
        self._tasks = Tasks()
        self._owner.coordinator_changed(None)

    async def forget(self) -> None:
        """Give the charter up, standing still: after `start` this node waits for another cluster's. Raises StorageError."""
        self._founds = False
        await in_thread(self._file.forget)
        self._presence = Presence(self._post.node, self._post.name, self._loop.time())
        self._alive = self._presence.alive

    def snapshot(self) -> CharterSnapshot:
        """Raises BetweenClusters while this node stands still, for a move or a recovery, or stops."""
        if self._core is None:
            raise BetweenClusters(
                f"node {self._post.name} is on its way to another cluster, or stopping, so it has no charter to show; ask again"
                " in a moment"
            )
        return CharterSnapshot(self._core.snapshot(), dict(self._alive), self._disk, self.parked, self._presence)

    async def recover(self, cluster: str) -> Charter:
        """Begin a new cluster from this node's charter, because the majority of `cluster`'s voters is lost for good.

        The old charter is kept beside it. Raises NotAllowedError as `check_recovery`, StorageError or CharterError where the
        old one cannot be read or the new one written; then nothing has changed.
        """
        self.check_recovery(cluster)
        self._core, writes, self._tasks = None, self._tasks, Tasks()
        state = await self._tasks.finish(self._begin_anew(cluster, writes, self._tasks))
        assert state.charter is not None
        log.warning("cluster recovered old=%s new=%s version=%s", cluster, state.charter.cluster, state.charter.version)
        return state.charter

    def check_recovery(self, cluster: str) -> None:
        """Raises NotAllowedError with the reason where that is not to be done here now."""
        held = self._core.charter if self._core is not None else None
        if why := recovery.refusal(held, self._post.node, cluster, self._parked, self._versions, self._loop.time()):
            raise NotAllowedError(why)

    # --- how

    async def _begin_anew(self, cluster: str, writes: Tasks, mine: Tasks) -> Durable:
        """writes: those of before, which end first. mine: closed where this node is closed meanwhile."""
        try:
            await writes.drain()
            return await in_thread(self._file.begin_anew, self._post.node, cluster)
        finally:
            if not mine.closed:
                self.start()  # from what is on the disk now, be it the old or the new

    def _observe(self, node: NodeId, standing: Standing) -> None:
        if self._core is not None:
            self._core.observe(node, standing, self._loop.time())
            self._admit(self._core)
            self._settle(self._core)
            self._look(self._core)

    def _look(self, core: Consensus) -> None:
        """Whether this node is parked, and who came here that belongs elsewhere."""
        presence, now = self._presence, self._loop.time()
        for node in presence.note_foreign(core.cluster):
            log.warning("not admitted node=%s reason=%s", node[:8], presence.foreign[node])
        ours = self._alive.keys() - presence.foreign.keys()
        self._parked = parking.look(core.charter, core.snapshot().leader, self._post.node, ours, self._parked, now)

    def _settle_soon(self) -> None:
        if self._core is not None:
            self._settle(self._core)

    def _settle(self, core: Consensus) -> None:
        while (event := core.next_event()) is not None:
            self._route(core, event)
        for node, message in core.messages_to_send(self._loop.time()):
            self._post.send(node, message)
        if self._timer is not None:
            self._timer.cancel()
        due = core.get_timer()
        self._timer = None if due is None else self._loop.call_at(due, self._handle_timer)

    def _handle_timer(self) -> None:
        if self._core is not None:
            self._core.handle_timer(self._loop.time())
            self._settle(self._core)

    def _route(self, core: Consensus, event: Outcome) -> None:
        match event:
            case Persist(number, state):
                self._tasks.spawn(self._write(number, state))
            case LeaderChanged(leader, term, reason):
                name = "none" if leader is None else self._alive.get(leader, leader[:8])
                log.info("coordinator changed name=%s term=%d reason=%s", name, term, reason)
                if leader != self._post.node:
                    self._presence.alarm = None  # whoever leads raises its own
                self._owner.coordinator_changed(leader)
                self._look(core)
            case Committed(charter):
                counts = len(charter.voters), len(charter.members)
                log.info("charter committed version=%s voters=%d members=%d", charter.version, *counts)
                self._admit(core)
                self._owner.charter_committed(charter)
                self._look(core)
            case Gone(node):
                self._presence.gone[node] = self._loop.time()
                log.warning("member is dead node=%s", node[:8])
            case Alarm(suspects, members):
                self._presence.alarm = Lost(suspects, members, self._loop.time())
                log.error(
                    "more than half of the members were lost at once lost=%d members=%d; nothing is reassigned until some are"
                    " back: look at this node's network first",
                    suspects,
                    members,
                )
            case AlarmOver():
                self._presence.alarm = None
                log.info("enough members are back")
            case DiskFailed(reason):
                log.error("charter not stored reason=%s; this node neither votes nor leads meanwhile", reason)

    def _admit(self, core: Consensus) -> None:
        """As the leader: whoever is alive becomes a member. What is refused now is tried again at the next commit."""
        charter = core.charter
        if core.role is not Role.LEADER or charter is None or self._founding is not None:
            return
        known = set(charter.nodes())
        coming = self._presence.may_be_admitted(core.cluster)
        missing = [CharterMember(node, "", name) for node, name in coming.items() if node not in known]
        if not missing:
            return
        try:
            core.propose(self._loop.time(), admit=missing)
        except ProposalRefused:
            pass
        except CharterError as error:
            log.warning("members not admitted count=%d reason=%s", len(missing), error)

    async def _write(self, number: int, state: Durable) -> None:
        try:
            await in_thread(self._file.replace, state)
        except (StorageError, CharterError) as error:
            self._disk = str(error)
            if self._core is not None:
                self._core.persist_failed(number, str(error), self._loop.time())
        else:
            self._disk = ""
            if self._core is not None:
                self._core.persisted(number, self._loop.time())
        if self._core is not None:
            self._settle(self._core)

    def _load(self) -> Durable:
        plain = Founding(CharterMember(self._post.node, "", self._post.name))
        state = self._file.load((self._founding or plain) if self._founds else None)
        alone = state.charter is not None and state.charter.nodes() == [self._post.node]
        if self._founding is None and not self._founds and alone and not self._file.is_recovered:
            log.info("gave up a cluster without other members")
            return Durable()  # a node that was started alone once, and is to join others now
        return state
