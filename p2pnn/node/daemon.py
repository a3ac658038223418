"""The daemon: the composition root. It makes the parts, joins them, and routes what comes in to the one it is for.

The daemon never computes, and opens no path that a person names: models and data come in through the API, blobs through
peers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2pnn import __version__
from p2pnn.cluster import Description
from p2pnn.cluster.charter import Charter
from p2pnn.config import NodeConfig
from p2pnn.errors import UsageError
from p2pnn.job.work import generations
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.charter import ClusterCharter
from p2pnn.node.draining import Draining
from p2pnn.node.jobs import Jobs
from p2pnn.node.links import Post
from p2pnn.node.members import Members
from p2pnn.node.place import Place
from p2pnn.node.planning import Planning
from p2pnn.node.snapshots import Snapshots
from p2pnn.node.storage import Storage
from p2pnn.node.traces import Traces
from p2pnn.transport import LocalIdentity, PeerIdentity, Transport
from p2pnn.types import Address, NodeId
from p2pnn.wire import messages as wire

if TYPE_CHECKING:
    from p2pnn.node.secured import Secured

log = logging.getLogger("p2pnn.node")

SOFTWARE: Final = f"p2pnn {__version__}"

PLAIN_STAYS: Final = (
    "this is a plain node (--plain), which cannot leave for good: whoever runs on this machine may join its mesh, and who is"
    " stopped stays in its list as away; drain it without --leave"
)


class Daemon:
    """Call `start`, then `close`. Create it inside a running loop.

    Implements `transport.Events`, `members.Owner` and `charter.Owner`.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.boot = secrets.token_hex(8)
        self.started_at = asyncio.get_running_loop().time()
        self.storage = Storage(config.state_dir, config.quota_bytes, plain=not config.secured)
        self.node = self.storage.node
        self.secured = self._secure()
        held = self.secured
        security, joins = (held.identity.security(), held.joins) if held else (None, config.join)
        cluster = held.identity.cluster if held else config.cluster
        identity = LocalIdentity(self.node, config.name, cluster, self.boot, SOFTWARE)
        self.transport = Transport(identity, self, security=security)
        self.post = Post(self.node, config.name, self.transport, self.message)
        self.members = Members(self.post, self.boot, joins, self.transport, self, self.describe, config.preset)
        founds, founding = (held.founds, held.founding) if held else (not config.join, None)
        self.charter = ClusterCharter(self.post, self.storage.root, founds, self, founding)
        names = self.members.names
        self.blobs = BlobExchange(self.storage.blobs, self.post, names)
        cache = config.profile_cache or Path(config.state_dir) / "profile"
        self.planning = Planning(self.post, names, cache)
        self.jobs = Jobs(self.post, self.storage, self.blobs, self.planning, names, self.charter)
        self.traces = Traces(self.post, self.storage, self.blobs, self.jobs.asking)
        obeys = lambda node: self.charter.coordinator in (None, node)  # noqa: E731
        self.snapshots = Snapshots(self.post, self.blobs, names, self.jobs.records.get, obeys)
        fence = (self.charter.refusal, self.jobs.recorded, self.charter.hear_of_generation)
        self.place = Place(self.post, self.blobs, self.traces, self.snapshots, *fence)
        self.jobs.when_changed(self.snapshots.record_changed)
        about = (names, self.planning.usable, self._drains, self._leave, lambda: self._removed)
        self.draining = Draining(self.post, self.charter, self.jobs, self.place, self.blobs, *about)
        if held:
            held.identity.attach(self.post, self.transport, self.members, self.charter, self._job_that_keeps)
        self.address = config.listen
        self._profiling: asyncio.Task[object] | None = None
        self._closing = False
        self._routes = self._make_routes()

    async def start(self) -> None:
        """Listen and begin to join. Raises NotAllowedError or UsageError where the address cannot be had, CharterError where the
        state folder's charter cannot be used."""
        try:
            self.address = await self.transport.start(self.config.listen)
            self.charter.start()  # no turn of the loop between: nobody is heard before, and without a port nothing is founded
            if self.secured:
                await self.secured.start()
        except BaseException:
            if self.secured:
                await self.secured.close()
            await self.charter.close()
            await self.transport.close("it could not start")
            self.storage.close()
            raise
        self.jobs.start()
        self.members.start()
        self._profiling = asyncio.ensure_future(self.planning.profile())
        self._profiling.add_done_callback(_log_failure)
        log.info("listening node=%s name=%s address=%s", self.node[:8], self.config.name, self.address)

    async def close(self, reason: str) -> None:
        """End jobs and executors, say goodbye to the peers, let go of the state folder; harmless when that is done."""
        if self._closing:
            return
        self._closing = True
        await self.draining.close()
        await self.jobs.close()
        await self.traces.close()
        await self.place.close()
        await self.snapshots.close()
        if self.secured:
            await self.secured.close()
        self.members.close()
        await self.charter.close()
        if self._profiling is not None:
            self._profiling.cancel()
        await self.planning.close()
        await self.blobs.close()
        await self.transport.close(reason)
        self.storage.close()

    # --- transport.Events

    def peer_connected(self, node: NodeId, hello: PeerIdentity) -> None:
        self.members.link_up(node, hello)

    def peer_lost(self, node: NodeId, reason: str, left: bool) -> None:
        self.blobs.peer_lost(node, reason)
        self.planning.peer_lost(node, reason)
        self.snapshots.member_lost(node)
        self.place.link_lost(node)
        self.members.link_down(node, reason, left)

    def dial_reached(self, address: Address, node: NodeId) -> None:
        self.members.dial_reached(address, node)

    def dial_failed(self, address: Address, reason: str, refused: bool) -> None:
        self.members.dial_failed(address, reason, refused)

    def message(self, node: NodeId, message: wire.Message) -> None:
        """Route a message, of a peer or of this node itself. What no part takes is logged and dropped."""
        if self._closing:
            return
        receive = self._routes.get(type(message))
        if receive is None:
            log.warning("message without a receiver type=%s node=%s", type(message).__name__, node[:8])
            return
        receive(node, message)

    def body_for(self, node: NodeId, message: wire.Message, nbytes: int) -> memoryview | None:
        match message:
            case wire.Tensor() | wire.Push() | wire.Values() | wire.Forward() | wire.StatePiece():
                return self.place.body_for(node, message, nbytes)
            case wire.BlobPiece():
                return self.blobs.body_for(node, message, nbytes)
            case wire.LinkProbe():
                return self.planning.body_for(node, message, nbytes)
            case wire.Snapshot():
                return self.snapshots.body_for(node, message, nbytes)
        return None

    def body(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.Tensor() | wire.Push() | wire.Values() | wire.Forward() | wire.StatePiece():
                self.place.body(node, message)
            case wire.BlobPiece():
                self.blobs.received(node, message)
            case wire.LinkProbe():
                self.planning.body(node, message)
            case wire.Snapshot():
                self.snapshots.body(node, message)

    # --- members.Owner

    def member_usable(self, node: NodeId, name: str) -> None:
        self.charter.member_alive(node, name, self.members.cluster_of(node))
        self.jobs.member_usable(node, name)

    def member_lost(self, node: NodeId, reason: str) -> None:
        self.jobs.member_lost(node, reason)
        self.place.member_lost(node, reason)

    def member_suspected(self, node: NodeId) -> None:
        self.planning.suspected.add(node)
        self.charter.member_suspected(node)

    def member_refuted(self, node: NodeId, name: str) -> None:
        self.planning.suspected.discard(node)
        self.charter.member_alive(node, name, self.members.cluster_of(node))

    def _drains(self, active: bool) -> None:
        """This node begins to drain, or does not any more."""
        (self.planning.draining.add if active else self.planning.draining.discard)(self.node)

    @property
    def _removed(self) -> bool:
        return self.secured is not None and bool(self.secured.identity.removed)

    async def _leave(self) -> None:
        """Raises UsageError for a plain node, else as `Identity.leave`."""
        if self.secured is None:
            raise UsageError(PLAIN_STAYS)
        await self.secured.identity.leave()

    def member_described(self, node: NodeId, about: Description, uptime_s: float) -> None:
        (self.planning.draining.add if about.draining else self.planning.draining.discard)(node)
        self.charter.member_described(node, about, uptime_s)

    def slowness_changed(self, factor: float) -> None:
        self.charter.slowness_changed(factor)

    def member_failed(self, node: NodeId, reason: str) -> None:
        self.planning.suspected.discard(node)
        self.charter.member_failed(node, reason)
        self.jobs.member_failed(node, reason)

    # --- charter.Owner

    def charter_committed(self, charter: Charter) -> None:
        if self.secured:
            self.secured.identity.charter_committed(charter)
        self.jobs.charter_committed(charter)
        if not self.jobs.work.unreadable:
            found = generations(self.jobs.work.entries, self.node)
            self.place.decided(found, charter.version.generation)

    def coordinator_changed(self, coordinator: NodeId | None) -> None:
        if self.secured:
            self.secured.identity.coordinator_changed(coordinator)
        self.jobs.coordinator_changed(coordinator)

    # --- how

    def _secure(self) -> Secured | None:
        """Credentials, of a secured node. Raises StorageError, UsageError."""
        if not self.config.secured:
            return None
        from p2pnn.node.secured import open_secured  # a plain node does without, and starts sooner

        try:
            return open_secured(self.config, self.storage, SOFTWARE)
        except BaseException:
            self.storage.close()
            raise

    def _job_that_keeps(self) -> str:
        """A job for which this node stays in its cluster, as a clause; empty for none."""
        for record in self.jobs.records.values():
            if not record.is_over:
                return f"job {record.job} is {record.state}; cancel it or wait for its end"
        return f"job {self.place.job} has its place" if self.place.job else ""

    def _make_routes(self) -> dict[type[wire.Message], Callable[[NodeId, wire.Message], None]]:
        groups: dict[Callable[[NodeId, wire.Message], None], tuple[type[wire.Message], ...]] = {
            self.members.receive: (
                wire.Roster,
                wire.Probe,
                wire.ProbeRequest,
                wire.Ack,
                wire.Nack,
                wire.Gossip,
                wire.Pull,
                wire.Testimony,
            ),
            self.charter.receive: (
                wire.Lead,
                wire.Held,
                wire.PreVote,
                wire.PreVoted,
                wire.Vote,
                wire.Voted,
                wire.CharterPiece,
                wire.CharterWanted,
                wire.Handover,
            ),
            self.planning.receive: (wire.ProfileRequest, wire.ProfileReply, wire.LinkProbed),
            self.place.receive: (
                wire.Reserve,
                wire.Release,
                wire.Prepare,
                wire.Command,
                wire.Adopt,
                wire.Assigned,
                wire.Retired,
                wire.Squares,
                wire.Pushed,
                wire.Fetch,
                wire.Mark,
                wire.LeaseWish,
                wire.Leased,
                wire.Rest,
                wire.Dealt,
                wire.Decided,
                wire.Append,
                wire.Appended,
                wire.Beat,
                wire.UpdateWanted,
                wire.StateHeld,
                wire.Superseded,
            ),
            self.jobs.receive: (
                wire.Waiting,
                wire.Granted,
                wire.Preparing,
                wire.Prepared,
                wire.Report,
                wire.JobFailed,
                wire.Kept,
                wire.Record,
                wire.RecordRequest,
                wire.Ask,
                wire.Answered,
                wire.Traced,
                wire.Adopted,
                wire.Happened,
                wire.Follow,
                wire.CutsHeld,
                wire.PartMade,
                wire.ShardWish,
            ),
            self.snapshots.receive: (wire.CutsWanted, wire.PartWanted),
            self._receive_blob: (wire.BlobRequest, wire.BlobMissing, wire.Keep),
        }
        if self.secured:
            of_identity = (wire.Petition, wire.Ruling, wire.AuthorityWanted, wire.AuthorityKey, wire.AuthorityHeld)
            groups[self.secured.identity.receive] = of_identity
        return {kind: receive for receive, kinds in groups.items() for kind in kinds}

    def _receive_blob(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.BlobRequest():
                self.blobs.requested(node, message)
            case wire.BlobMissing():
                self.blobs.missing(node, message)
            case wire.Keep():
                self.blobs.keep(node, message)

    def describe(self) -> Description:
        """What this node says of itself to all members."""
        profile = self.planning.known
        cluster, charter = self.charter.description()
        return Description(
            SOFTWARE,
            (wire.VERSION_MIN, wire.VERSION_MAX),
            load=(self.place.job is not None) + len(self.place.waiting),
            gflops=round(profile.gemm_gflops) if profile else 0,
            memory_mib=profile.memory_bytes_max >> 20 if profile else 0,
            cluster=cluster,
            charter=charter,
            lag_ms=self.members.lag_ms,
            draining=self.draining.active,
        )


def _log_failure(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.warning("this node could not be measured reason=%s", task.exception())


def resident_bytes() -> int:
    """This process's resident memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
