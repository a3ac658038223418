"""The table of jobs in the charter: the coordinator writes it through here, every node learns from here what holds.

Changes wait for each other: a charter has one proposal under way at a time, so those that come meanwhile go together with the
next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from p2pnn.cluster.charter import Charter, Version
from p2pnn.errors import CharterError, ProposalRefused
from p2pnn.job import work
from p2pnn.job.work import Entry
from p2pnn.node.asking import AskAgain
from p2pnn.types import JobId

AGAIN_S: Final = 0.2

log = logging.getLogger("p2pnn.jobs")


class Proposer(Protocol):
    """The charter, as far as this needs it (`node.charter.ClusterCharter`)."""

    def propose_work(self, make: Callable[[int], bytes]) -> Version: ...

    @property
    def coordinates(self) -> bool: ...


class NotDecided(AskAgain):
    """A change of the table did not come to be, or nobody knows: this node coordinates no more."""


Change = Callable[[int], Entry | None]
"""An entry's next value, given the generation; None removes it."""


class Work:
    """entries: what holds, as far as this node knows; unreadable: why it does not, where a newer p2pnn wrote the table: then
    nothing is changed here. `committed` and `deposed` are to be called as the charter tells."""

    def __init__(self, charter: Proposer) -> None:
        self.entries: dict[JobId, Entry] = {}
        self.unreadable = ""
        self._charter = charter
        self._waiting: list[tuple[JobId, Change, asyncio.Future[int]]] = []
        self._under_way: list[tuple[JobId, Change, asyncio.Future[int]]] = []
        self._version: Version | None = None

    @property
    def coordinates(self) -> bool:
        """Whether this node may have the table changed."""
        return self._charter.coordinates

    async def decide(self, job: JobId, change: Change) -> int:
        """Have the job's entry changed by a majority; returns the generation of the commit.

        Raises NotDecided where this node does not coordinate, or stops to; CharterError where the charter would be too large, or
        its table cannot be read here.
        """
        if not self.coordinates:
            raise NotDecided("this node does not coordinate the cluster")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, change, future))
        self._propose()
        return await future

    def committed(self, charter: Charter) -> None:
        """The charter holds. Raises nothing: a table that cannot be read is logged, and the one before stands."""
        try:
            found = work.decode(charter.work)
        except CharterError as error:
            log.error("%s", error)
            self.unreadable = str(error)
            self._propose()
            return
        self.unreadable = ""
        self.entries.clear()
        self.entries.update(found)
        if self._version is not None and charter.version >= self._version:
            ours = charter.version == self._version
            self._settle(None if ours else NotDecided("another coordinator decided something else meanwhile"))
        self._propose()

    def deposed(self) -> None:
        """This node coordinates no more. What was under way may hold nevertheless, when the next coordinator had it."""
        self._settle(NotDecided("this node stopped coordinating before it was decided"))
        waiting, self._waiting = self._waiting, []
        for _, _, future in waiting:
            if not future.done():
                future.set_exception(NotDecided("this node coordinates the cluster no more"))

    # --- how

    def _propose(self) -> None:
        changes = [change for change in self._waiting if not change[2].done()]
        if self._version is not None or not changes or not self.coordinates:
            return
        if self.unreadable:  # entries are old: to write them would take back what others have decided
            self._waiting = []
            for _, _, future in changes:
                future.set_exception(CharterError(self.unreadable))
            return
        try:
            self._version = self._charter.propose_work(lambda generation: self._changed(changes, generation))
        except ProposalRefused:
            self._waiting = changes  # with the next commit; or later, since the end of a handover is none
            asyncio.get_running_loop().call_later(AGAIN_S, self._propose)
        except CharterError as error:
            self._waiting = changes
            self._refuse_newest(error)
            self._propose()
        else:
            self._waiting, self._under_way = [], changes

    def _refuse_newest(self, error: CharterError) -> None:
        """The charter would be too large: what came last has to go elsewhere; what only removes stays."""
        newest = next((one for one in reversed(self._waiting) if one[1](0) is not None), self._waiting[-1])
        self._waiting.remove(newest)
        newest[2].set_exception(error)

    def _changed(self, changes: list[tuple[JobId, Change, asyncio.Future[int]]], generation: int) -> bytes:
        entries = dict(self.entries)
        for job, change, _ in changes:
            entry = change(generation)
            if entry is not None:
                entries[job] = entry
            else:
                entries.pop(job, None)
        return work.encode(entries.values())

    def _settle(self, error: NotDecided | None) -> None:
        version, self._version = self._version, None
        changes, self._under_way = self._under_way, []
        for _, _, future in changes:
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                assert version is not None
                future.set_result(version.generation)
