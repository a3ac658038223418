"""The adapter of `cluster.Consensus`: its messages over links, its disk a file, gossip's word from membership.
 A daemon that was told of no peer founds a cluster: a charter whose one member and voter it is. One that joins has no
charter until the leader admits it; where it founded a cluster before that has no other member, it gives that up. In a
plain mesh whoever is alive in membership is admitted, because the link's handshake decides who may come. In a secured
cluster tokens admit (`node.identity`).

The file `charter` in the state folder holds term, vote and charter (`cluster.durable`). It is written in a thread, one write at a
time. Where it is damaged or newer the daemon does not start: a node that forgets its vote votes twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2pnn.cluster import durable
from p2pnn.cluster.charter import Charter, CharterMember, Version, found
from p2pnn.cluster.consensus import Consensus, ConsensusSnapshot
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.outcomes import (
    Alarm,
    AlarmOver,
    Committed,
    DiskFailed,
    Gone,
    LeaderChanged,
    Outcome,
    Persist,
)
from p2pnn.cluster.petitions import Change
from p2pnn.cluster.view import Standing
from p2pnn.data.blobs import storage_error
from p2pnn.errors import CharterError, ProposalRefused, StorageError
from p2pnn.identity.tokens import TokenRecord
from p2pnn.node.links import Post
from p2pnn.node.storage import replace_file
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import NodeId
from p2pnn.wire.messages import Message

log = logging.getLogger("p2pnn.charter")


@dataclass(frozen=True, slots=True)
class CharterSnapshot:
    """consensus: as the core tells it. alive: names by id of the members that gossip holds for alive, and this one.

    disk: empty, or why the last write failed.
    """

    consensus: ConsensusSnapshot
    alive: dict[NodeId, str]
    disk: str


class Owner(Protocol):
    """Who wants to know what was decided."""

    def charter_committed(self, charter: Charter) -> None:
        """This charter holds until the next one."""

    def coordinator_changed(self, coordinator: NodeId | None) -> None:
        """Another node coordinates, as far as this one knows, or the same in another term; None: nobody does."""


@dataclass(frozen=True, slots=True)
class Founding:
    """What a secured cluster begins with."""

    founder: CharterMember
    tokens: tuple[TokenRecord, ...] = ()


class ClusterCharter:
    """This node's part in the charter. founds: whether to found a cluster where the state folder has no charter.

    founding: of a secured cluster, its first member and tokens; None in a plain mesh.
    """

    def __init__(self, post: Post, folder: Path, founds: bool, owner: Owner, founding: Founding | None = None) -> None:
        self._post = post
        self._owner = owner
        self._path = folder / "charter"
        self._founds = founds
        self._founding = founding
        self._loop = asyncio.get_running_loop()
        self._alive: dict[NodeId, str] = {post.node: post.name}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        self._disk = ""
        self._core: Consensus | None = None

    def start(self) -> None:
        """Read or found. Raises CharterError for a file that is damaged or newer, StorageError for a disk that fails."""
        self._core = Consensus(self._post.node, self._load(), self._loop.time(), random.Random())
        self._settle(self._core)

    async def close(self) -> None:
        """A write that is under way is finished; its answer reaches nobody."""
        core, self._core = self._core, None
        if self._timer is not None:
            self._timer.cancel()
        if core is not None:
            await self._tasks.close()

    def receive(self, node: NodeId, message: Message) -> None:
        if self._core is not None:
            self._core.receive(node, message, self._loop.time())
            self._settle(self._core)

    def member_alive(self, node: NodeId, name: str) -> None:
        """It joined, came back, or refuted what was said of it."""
        self._alive[node] = name
        self._observe(node, Standing.ALIVE)

    def member_suspected(self, node: NodeId) -> None:
        """It may refute that."""
        self._alive.pop(node, None)
        self._observe(node, Standing.SUSPECT)

    def member_failed(self, node: NodeId) -> None:
        """It is dead, or has left."""
        self._alive.pop(node, None)
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

    def voters(self) -> tuple[NodeId, ...]:
        """Of the newest charter that holds; none before any."""
        charter = self._core.snapshot().charter if self._core is not None else None
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

    @property
    def committed(self) -> Charter | None:
        """The newest that holds, as far as this node knows."""
        return self._core.snapshot().charter if self._core is not None else None

    def propose_members(self, change: Change) -> Version:
        """Have members admitted or dismissed, or tokens changed; as `propose_work`, and raises as that."""
        if self._core is None:
            raise ProposalRefused("this node does not lead")
        now = self._loop.time()
        proposed = self._core.propose(now, admit=change.admit, dismiss=change.dismiss, tokens=change.tokens)
        self._loop.call_soon(self._settle_soon)
        return proposed

    def hand_over(self) -> None:
        """Let another voter lead. Raises ProposalRefused where this node does not."""
        if self._core is None:
            raise ProposalRefused("this node does not lead")
        self._core.hand_over(self._loop.time())
        self._loop.call_soon(self._settle_soon)

    async def start_over(self) -> None:
        """Give the charter up: this node has joined another cluster, and waits for its charter. Raises StorageError."""
        await self.close()
        self._founds = False
        self._tasks = Tasks()
        await in_thread(self._forget)
        self._alive = {self._post.node: self._post.name}
        self._owner.coordinator_changed(None)
        self.start()

    def _forget(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def snapshot(self) -> CharterSnapshot:
        assert self._core is not None, "asked before the start"
        return CharterSnapshot(self._core.snapshot(), dict(self._alive), self._disk)

    # --- how

    def _observe(self, node: NodeId, standing: Standing) -> None:
        if self._core is not None:
            self._core.observe(node, standing, self._loop.time())
            self._admit(self._core)
            self._settle(self._core)

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
                self._owner.coordinator_changed(leader)
            case Committed(charter):
                log.info(
                    "charter committed version=%s voters=%d members=%d",
                    charter.version,
                    len(charter.voters),
                    len(charter.members),
                )
                self._admit(core)
                self._owner.charter_committed(charter)
            case Gone(node):
                log.warning("member is dead node=%s", node[:8])
            case Alarm(suspects, members):
                log.error(
                    "more than half of the members were lost at once lost=%d members=%d; nothing is reassigned until some are"
                    " back: look at this node's network first",
                    suspects,
                    members,
                )
            case AlarmOver():
                log.info("enough members are back")
            case DiskFailed(reason):
                log.error("charter not stored reason=%s; this node neither votes nor leads meanwhile", reason)

    def _admit(self, core: Consensus) -> None:
        """As the leader: whoever is alive becomes a member. What is refused now is tried again at the next commit."""
        charter = core.charter
        if core.role is not Role.LEADER or charter is None or self._founding is not None:
            return
        known = set(charter.nodes())
        missing = [CharterMember(node, "", name) for node, name in self._alive.items() if node not in known]
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
            await in_thread(self._replace, state)
        except StorageError as error:
            self._disk = str(error)
            if self._core is not None:
                self._core.persist_failed(number, str(error), self._loop.time())
        else:
            self._disk = ""
            if self._core is not None:
                self._core.persisted(number, self._loop.time())
        if self._core is not None:
            self._settle(self._core)

    def _replace(self, state: Durable) -> None:
        replace_file(self._path, durable.encode(state))

    def _load(self) -> Durable:
        """What the file holds, or a new state; the charter of a cluster that is founded is on the disk before it is used."""
        try:
            for torn in self._path.parent.glob(f".{self._path.name}.*"):
                torn.unlink(missing_ok=True)
            data = self._path.read_bytes()
        except FileNotFoundError:
            if not self._founds:
                return Durable()
            founding = self._founding or Founding(CharterMember(self._post.node, "", self._post.name))
            state = Durable(charter=found(secrets.token_hex(8), founding.founder, founding.tokens))
            replace_file(self._path, durable.encode(state))
            return state
        except OSError as error:
            raise storage_error(error, self._path) from error
        state = durable.decode(data, str(self._path))
        plain = self._founding is None
        if plain and not self._founds and state.charter is not None and state.charter.nodes() == [self._post.node]:
            log.info("gave up a cluster without other members cluster=%s", state.charter.cluster[:8])
            return Durable()  # a node that was started alone once, and is to join others now
        return state
