"""Draining: this node's work moves to others, without losing a step, before it is stopped.

In this order: it says that it is draining, so nobody plans on it any more; it hands over what it coordinates; the coordinator,
which is another node now, has each job with a part here stop where its granted steps end, with a checkpoint there, and go on
elsewhere; and what checkpoints and data only this node holds is copied to another. Where that is asked for it leaves the
cluster then: it has itself removed, and the others list it no more. Who asked may stop waiting: it goes on. Where nobody can take
something over or the cluster does not decide, it says so and is as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final, Protocol

from p2pnn.cluster.charter import Version
from p2pnn.cluster.petitions import Change
from p2pnn.errors import NotAllowedError, P2pnnError, ProposalRefused, StorageError, UsageError
from p2pnn.node import specs
from p2pnn.node.asking import AskAgain
from p2pnn.node.blobs import BlobExchange
from p2pnn.node.jobs import Jobs
from p2pnn.node.keeping import NotKept
from p2pnn.node.links import Post
from p2pnn.node.place import Place
from p2pnn.types import BlobId, JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.node")

LOOK_S: Final = 0.05
HANDOVER_S: Final = 10.0
COPY_S: Final = 600.0
COPIED_MAX: Final = 32
"""Blobs that a node is asked to copy at once: after each such part it is said how far it is."""

AGAIN_S: Final = 5.0
"""A job may have been planned here before anybody knew: as long as one has the place, the coordinator is asked again."""


class Coordination(Protocol):
    """The charter, as far as draining needs it."""

    @property
    def coordinator(self) -> NodeId | None: ...

    def propose_members(self, change: Change) -> Version | None: ...


class Draining:
    """active: whether this node is draining, or has drained. told: called when that changes. when_drained: called then.

    members: name by node id of every living member, this node included. usable: of those that are not draining. has_left: whether
    it is no member any more, by `leave`, which raises P2pnnError where the cluster does not remove this node. removed: whether it
    was removed before, so that what it knows of jobs is of the past.
    """

    def __init__(
        self,
        post: Post,
        charter: Coordination,
        jobs: Jobs,
        place: Place,
        blobs: BlobExchange,
        members: Callable[[], dict[NodeId, str]],
        usable: Callable[[], dict[NodeId, str]],
        told: Callable[[bool], None],
        leave: Callable[[], Awaitable[None]],
        removed: Callable[[], bool],
    ) -> None:
        self.active = False
        self.has_left = False
        self.when_drained: Callable[[], None] = lambda: None
        self._post = post
        self._charter = charter
        self._jobs = jobs
        self._place = place
        self._blobs = blobs
        self._members = members
        self._usable = usable
        self._told = told
        self._leave = leave
        self._removed = removed
        self._task: asyncio.Task[None] | None = None
        self._force = self._leaves = False  # a second caller may add them
        self._words = ""
        self._changed = asyncio.Event()

    async def drain(self, *, force: bool, leave: bool = False) -> AsyncIterator[str]:
        """What is waited for, sentence by sentence, until nothing is. A second caller follows the same draining.

        force: leave what nobody can take over. leave: have this node removed from the cluster, too. Raises NotAllowedError where
        somebody must take over, or remove it, and nobody can; then it works on.
        """
        self._force = force or (self._force and self.active)
        self._leaves = leave or (self._leaves and self.active)
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception())):
            self._say("")
            self._task = asyncio.get_running_loop().create_task(self._drain())
        task, last = self._task, ""
        while not task.done():
            if self._words != last:
                last = self._words
                yield last
            changed = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait([task, changed], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        task.result()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- how

    async def _drain(self) -> None:
        self._set(active=True)
        try:
            if self._leaves and self._removed():
                log.info("was removed from its cluster before node=%s", self._post.name)
            elif not self._others():
                self._check_alone()
            else:
                forced = "with --force it is drained nevertheless"
                await self._do((self._hand_over, self._move_jobs, self._copy), forced)
            if self._leaves:
                await self._do((self._go,), "with --force it stops nevertheless, and stays a member that is away")
        except BaseException:
            self._set(active=False)
            raise
        log.info("drained node=%s", self._post.name)
        asyncio.get_running_loop().call_soon(self.when_drained)

    async def _do(self, steps: Iterable[Callable[[], Awaitable[None]]], forced: str) -> None:
        """forced: what comes of it by force, as a clause."""
        for step in steps:
            try:
                await step()
            except P2pnnError as error:
                if not self._force:
                    raise NotAllowedError(f"{error}; {forced}") from error
                log.warning("drained by force reason=%s", error)

    async def _go(self) -> None:
        """Last, because whoever is no member can hand nothing over."""
        self._say("the other members to remove it from the cluster")
        await self._leave()
        self.has_left = True

    def _check_alone(self) -> None:
        """Nobody is there who stays: only what is idle may go."""
        unfinished = [r.job for r in self._jobs.records.values() if not r.is_over]
        if unfinished and not self._force:
            alone = "alone" if len(self._members()) == 1 else "the last that is not draining"
            raise NotAllowedError(
                f"node {self._post.name} is {alone}, so nobody can take over job {unfinished[0]}; pause it (p2pnn jobs pause"
                f" {unfinished[0]}), start another node, or add --force"
            )

    async def _hand_over(self) -> None:
        """Let another node coordinate."""
        try:
            async with asyncio.timeout(HANDOVER_S):
                while self._charter.coordinator in (self._post.node, None):
                    self._say("another node to coordinate the cluster")
                    if self._charter.coordinator is not None:
                        try:
                            self._charter.propose_members(Change(hand_over=True))
                        except ProposalRefused as error:
                            log.debug("not handed over reason=%s", error)
                    await self._jobs.coordinator.next_change()
        except TimeoutError:
            raise UsageError(
                f"no other node took over the coordination of the cluster within {HANDOVER_S:.0f} s"
            ) from None

    async def _move_jobs(self) -> None:
        """Have the coordinator move every job with a part here, and wait until the place is free."""
        while True:
            await self._jobs.coordinator.have_done(wire.Ask(0, "node", "drain"), self._not_here)
            asked = asyncio.get_running_loop().time()
            while (job := self._place.job) is not None:
                self._say(f"job {job}, until it runs elsewhere")
                if asyncio.get_running_loop().time() - asked > AGAIN_S:
                    break
                await asyncio.sleep(LOOK_S)  # a place tells no event
            else:
                return

    async def _not_here(self) -> str:
        """This node was elected again: it moves nothing to itself."""
        await self._hand_over()
        raise AskAgain("it has just handed over")

    async def _copy(self) -> None:
        """Have another node keep what only this one has of jobs that are known: specifications, checkpoints, data."""
        needed, tried, errors = await self._needed(), set[NodeId](), list[str]()
        while alone := await self._only_here(needed):
            helper = next((node for node in self._others() if node not in tried), None)
            if helper is None:
                reasons = "; ".join(errors) or "all others are draining too"
                raise StorageError(
                    f"no other node could copy what only node {self._post.name} holds ({reasons}); free disk space there or"
                    " start another node"
                )
            tried.add(helper)
            try:
                async with asyncio.timeout(COPY_S):
                    await self._copy_to(helper, alone)
            except NotKept as error:
                errors.append(str(error))
            except TimeoutError:
                errors.append(f"node {self._post.name_of(helper)}: it has not copied it within {COPY_S:.0f} s")

    async def _only_here(self, blobs: Iterable[BlobId]) -> list[BlobId]:
        """Those that no node has that stays."""
        leaving = set(self._members()) - set(self._usable())
        return [blob for blob in blobs if not await self._blobs.is_elsewhere(blob, leaving)]

    async def _copy_to(self, helper: NodeId, blobs: list[BlobId]) -> None:
        for start in range(0, len(blobs), COPIED_MAX):
            part = tuple(blobs[start : start + COPIED_MAX])
            told = f"({start + 1:,} of {len(blobs):,})"
            self._say(f"node {self._post.name_of(helper)} to copy what only this node holds {told}")
            await self._jobs.keeping.on_node(JobId("drain"), helper, part)

    async def _needed(self) -> list[BlobId]:
        """Of all jobs that are known, what lies here and somebody may still want."""
        store, found = self._blobs.blobs, dict.fromkeys(b for r in self._jobs.records.values() for b in r.part_blobs())
        for record in self._jobs.records.values():
            found[record.spec] = None
            if await asyncio.to_thread(store.has, record.spec):
                try:
                    spec = await asyncio.to_thread(specs.load, store, record.spec)
                    found.update(dict.fromkeys(sorted(specs.read_by_job(spec))))
                except P2pnnError as error:
                    log.warning("data of job=%s is not looked at reason=%s", record.job, error)
        return await asyncio.to_thread(lambda: [blob for blob in found if store.has(blob)])

    def _others(self) -> list[NodeId]:
        return sorted(node for node in self._usable() if node != self._post.node and self._post.reachable(node))

    def _set(self, *, active: bool) -> None:
        self.active = active
        self._told(active)

    def _say(self, words: str) -> None:
        if words != self._words:
            self._words = words
            self._changed.set()
            self._changed = asyncio.Event()
