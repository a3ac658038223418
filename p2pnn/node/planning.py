"""What a plan is made of: the profile of every member, and the links between them, asked for when a plan is wanted.

A node measures itself once, in a process of its own, and keeps the figures in a file. Links are measured when the first
plan needs them, by a probe of 1 MiB that the peer drops, and forgotten after ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from p2pnn import plan as planner
from p2pnn.errors import P2pnnError, PeerGone, PlanError, RemoteProtocolError, StorageError
from p2pnn.executor.memory import available_bytes
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.node.links import Post, Priority
from p2pnn.node.storage import replace_file
from p2pnn.node.tasks import Tasks
from p2pnn.plan.profile import FORMAT, Link, Profile
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.planning")

PROBE_BYTES: Final = 1 << 20
PROBES: Final = 2
LINK_AGE_S: Final = 600.0
PROFILE_AGE_S: Final = 30 * 86400.0
ANSWER_TIMEOUT_S: Final = 10.0
SUSPECTS_S: Final = 1.0
"""For a member that is suspected to be dead to answer; a plan need not wait for it any longer."""

GOSSIP_S: Final = 10.0
"""Until then all members know what one says of itself; before that, what gossip tells of it may be older than what it asks."""

LOOK_S: Final = 0.1
"""Suspicions tell nothing here."""

REPLIES_MAX: Final = 8
"""Requests for this node's profile that are answered at once; more are dropped, and time out where they came from."""

MEASURE_TIMEOUT_S: Final = 30.0
LOCK_PAUSE_S: Final = 0.05


class Report(msgspec.Struct, frozen=True):
    """What ProfileReply carries: a node's profile, and its links to the others by node id."""

    profile: Profile
    links: dict[str, Link]


class Planning:
    """draining: members whose work moves away; suspected: those that may be dead; both kept up to date by the owner.

    cache: the file of the measured profile; daemons of one machine may share it."""

    def __init__(self, post: Post, members: Callable[[], dict[NodeId, str]], cache: Path) -> None:
        self.draining: set[NodeId] = set()
        self.suspected: set[NodeId] = set()
        self._leaving: dict[NodeId, float] = {}  # who asked to drain, and until when that counts without gossip
        self._post = post
        self._members = members
        self._cache = cache
        self._numbers = itertools.count(1)
        self._links: dict[NodeId, tuple[float, Link]] = {}
        self._answers: dict[int, tuple[NodeId, asyncio.Future[bytes]]] = {}
        self._sink = bytearray(PROBE_BYTES)
        self._measuring: asyncio.Task[Profile] | None = None
        self._replies = 0
        self._tasks = Tasks()

    @property
    def known(self) -> Profile | None:
        """This node's profile, if it has been measured."""
        task = self._measuring
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    async def profile(self) -> Profile:
        """This node's profile, with the memory that is free now; measured by the first call, or read from the cache."""
        if self._measuring is None or (
            self._measuring.done() and (self._measuring.cancelled() or self._measuring.exception())
        ):
            self._measuring = asyncio.ensure_future(self._load_or_measure())
        found = await asyncio.shield(self._measuring)
        memory = await asyncio.to_thread(available_bytes)
        return msgspec.structs.replace(found, node=self._post.node, name=self._post.name, memory_bytes_max=memory)

    def usable(self) -> dict[NodeId, str]:
        """The members that may be planned on: those that are not draining."""
        now = time.monotonic()
        leaving = self.draining | {node for node, until in self._leaving.items() if now < until}
        return {node: name for node, name in self._members().items() if node not in leaving}

    def asked_to_drain(self, node: NodeId) -> None:
        """A member asks this node for it, maybe before gossip tells that it drains."""
        self._leaving[node] = time.monotonic() + GOSSIP_S

    def cannot_drain(self, node: NodeId) -> None:
        self._leaving.pop(node, None)

    async def plan(self, spec: JobSpec, *, compared: bool = True) -> Plan:
        """Ask every member and plan over those that answer. Raises PlanError where nothing fits. compared: see `plan.ways`."""
        members = self.usable()
        if not members:
            raise PlanError("every node of the mesh is draining; start another one")
        answers = await self._ask_all(members)
        reports: list[Report] = []
        left_out: list[str] = []
        for node, answer in zip(members, answers, strict=True):
            if isinstance(answer, Report):
                reports.append(answer)
            elif isinstance(answer, P2pnnError | TimeoutError):
                reason = str(answer) or f"no answer within {ANSWER_TIMEOUT_S:.0f} s"
                log.warning("no profile node=%s reason=%s", members[node], reason)
                left_out.append(f"node {members[node]} is left out: {reason}")
            else:
                raise answer
        if not reports:
            raise PlanError("no node has answered with its profile within 10 s; see the daemons' logs")
        links = {(r.profile.node, NodeId(to)): link for r in reports for to, link in r.links.items()}
        found = await asyncio.to_thread(planner.plan, spec, [r.profile for r in reports], links, compared=compared)
        return msgspec.structs.replace(found, reasons=(*found.reasons, *left_out))

    # --- messages

    def receive(self, node: NodeId, message: wire.Message) -> None:
        match message:
            case wire.ProfileRequest() if self._replies < REPLIES_MAX:
                self._replies += 1
                self._tasks.spawn(self._reply(node, message.request))
            case wire.ProfileReply():
                self._answer(node, message.request, message.profile)
            case wire.LinkProbed():
                self._answer(node, message.request, b"")

    def body_for(self, node: NodeId, message: wire.LinkProbe, nbytes: int) -> memoryview | None:
        """Probes are received into one shared buffer that nobody reads."""
        return memoryview(self._sink)[:nbytes] if nbytes <= PROBE_BYTES else None

    def body(self, node: NodeId, message: wire.LinkProbe) -> None:
        self._post.send(node, wire.LinkProbed(message.request))

    def peer_lost(self, node: NodeId, reason: str) -> None:
        self._links.pop(node, None)
        for asked, future in self._answers.values():
            if asked == node and not future.done():
                future.set_exception(PeerGone(f"node {node[:8]} is gone: {reason}"))

    async def close(self) -> None:
        await self._tasks.close()
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)

    # --- how

    async def _ask_all(self, nodes: Iterable[NodeId]) -> list[Report | BaseException]:
        """Every node's profile, or why it has not come. Nobody waits long for who is suspected, or comes to be meanwhile."""
        loop = asyncio.get_running_loop()
        asked = {node: asyncio.ensure_future(self._ask(node)) for node in nodes}
        patient = loop.time() + SUSPECTS_S
        try:
            while waiting := [n for n, task in asked.items() if not task.done()]:
                if loop.time() >= patient and self.suspected.issuperset(waiting):
                    break
                await asyncio.wait([asked[node] for node in waiting], timeout=LOOK_S)
        finally:
            for task in asked.values():
                task.cancel()
            answers = await asyncio.gather(*asked.values(), return_exceptions=True)
        silent = "it has not answered, and may be dead"
        return [PeerGone(silent) if isinstance(found, asyncio.CancelledError) else found for found in answers]

    async def _ask(self, node: NodeId) -> Report:
        if node == self._post.node:
            return await self._report()
        name = self._members().get(node, node[:8])
        data = await self._request(node, wire.ProfileRequest)
        try:
            found = msgspec.msgpack.decode(data, type=Report)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise RemoteProtocolError(wire.CloseReason.MALFORMED, f"its profile cannot be read: {error}") from error
        profile = msgspec.structs.replace(found.profile, node=node, name=name)  # for no one but itself
        figures = [profile.gemm_gflops, profile.conv_gflops, profile.bytes_per_s, profile.memory_bytes_max]
        for link in found.links.values():
            figures += [link.bytes_per_s, link.latency_s]
        if not all(math.isfinite(x) and x > 0 for x in figures) or not 0 <= profile.overhead_s < 1:
            raise RemoteProtocolError(wire.CloseReason.MALFORMED, "its profile has figures that no machine has")
        return Report(profile, found.links)

    async def _report(self) -> Report:
        profile = await self.profile()
        others = [node for node in self._members() if node != self._post.node and node not in self.suspected]
        links: dict[str, Link] = {}
        for node in others:  # one after the other: probes that share the wire would measure each other
            with contextlib.suppress(PeerGone, TimeoutError):
                links[node] = await self._link(node)
        return Report(profile, links)

    async def _link(self, node: NodeId) -> Link:
        loop = asyncio.get_running_loop()
        known = self._links.get(node)
        if known is not None and loop.time() - known[0] < LINK_AGE_S:
            return known[1]
        payload = memoryview(bytes(PROBE_BYTES))
        times: dict[int, float] = {}
        for size in [8, PROBE_BYTES] * PROBES:
            start = time.perf_counter()  # uvloop's own clock moves in steps of a millisecond
            await self._request(node, wire.LinkProbe, payload[:size])
            times[size] = min(times.get(size, 1e9), time.perf_counter() - start)
        seconds = max(1e-5, times[PROBE_BYTES] - times[8])
        link = Link(bytes_per_s=PROBE_BYTES / seconds, latency_s=times[8] / 2)
        self._links[node] = (loop.time(), link)
        return link

    async def _request(
        self, node: NodeId, kind: Callable[[int], wire.Message], body: memoryview | None = None
    ) -> bytes:
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[number] = (node, future)
        try:
            if body is None:
                self._post.send(node, kind(number))
            else:
                await self._post.send_body(node, kind(number), body, Priority.PROBE)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await future
        finally:
            del self._answers[number]

    def _answer(self, node: NodeId, request: int, data: bytes) -> None:
        asked = self._answers.get(request)
        if asked is not None and asked[0] == node and not asked[1].done():
            asked[1].set_result(data)

    async def _reply(self, node: NodeId, request: int) -> None:
        try:
            report = await self._report()
        except P2pnnError as error:
            log.warning("no profile reason=%s", error)
            return
        finally:
            self._replies -= 1
        self._post.send(node, wire.ProfileReply(request, msgspec.msgpack.encode(report)))

    async def _load_or_measure(self) -> Profile:
        async with _alone(self._cache):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                data = await asyncio.to_thread(self._cache.read_bytes)
                cached = msgspec.msgpack.decode(data, type=Profile)
                age = time.time() - (await asyncio.to_thread(self._cache.stat)).st_mtime
                if cached.format == FORMAT and cached.cores == os.cpu_count() and 0 <= age < PROFILE_AGE_S:
                    return cached
            profile = await self._measure()
            try:
                await asyncio.to_thread(replace_file, self._cache, msgspec.msgpack.encode(profile))
            except (OSError, StorageError) as error:
                log.warning("profile not stored reason=%s", error)
            return profile

    async def _measure(self) -> Profile:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "p2pnn.executor", "--profile", stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            raise StorageError(f"measuring this node took longer than {MEASURE_TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            return msgspec.msgpack.decode(output, type=Profile)
        except msgspec.MsgspecError as error:
            raise StorageError(f"measuring this node failed with exit status {process.returncode}: {error}") from error


@contextlib.asynccontextmanager
async def _alone(cache: Path) -> AsyncIterator[None]:
    """Daemons that share a cache measure one after the other: at once they would measure each other, and one is enough.

    Whoever waits for longer than a measurement may take, or cannot lock, goes on alone.
    """
    lock = -1
    try:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(cache.with_name(f"{cache.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            deadline = time.monotonic() + MEASURE_TIMEOUT_S
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_PAUSE_S)
        yield
    finally:
        if lock >= 0:
            os.close(lock)
