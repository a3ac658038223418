"""What a coordinator has the cluster decide for its jobs: that a start begins, who has which role in it, that a job has ended.

Each is a change of the job's entry in the charter (`node.work`). Only what a majority holds is carried out and told, so that the
next coordinator finds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from p2pnn.errors import P2pnnError
from p2pnn.job import assignment, work
from p2pnn.job.actions import Reassign
from p2pnn.job.supervisor import Supervisor
from p2pnn.node.keeping import Keeping, NotKept
from p2pnn.node.tasks import Tasks
from p2pnn.node.work import NotDecided, Work
from p2pnn.types import JobId

log = logging.getLogger("p2pnn.jobs")

KEEP_AGAIN_S: Final = 10.0  # until voters are asked again to keep what a job needs


class Deciding:
    """name: of this node. led: who leads each job here. carry_out(job): does what its supervisor wants."""

    def __init__(
        self,
        name: str,
        work: Work,
        keeping: Keeping,
        led: Mapping[JobId, Supervisor],
        carry_out: Callable[[JobId], None],
    ) -> None:
        self._name = name
        self._work = work
        self._keeping = keeping
        self._led = led
        self._carry_out = carry_out
        self._deciding: list[Supervisor] = []  # whose next start is, once for each that is under way
        self._tasks = Tasks()

    def is_deciding(self, supervisor: Supervisor) -> bool:
        """Whether its next start is not decided yet."""
        return supervisor in self._deciding

    async def begin(self, job: JobId, supervisor: Supervisor) -> None:
        """Have a start decided. Raises NotDecided, NotKept, CharterError."""
        record, spec = supervisor.record, supervisor.spec
        assert record.plan is not None
        await self._keeping.on_voters(job, (record.spec, *spec.initial))
        self.must_lead(job, supervisor)
        generation = await self._work.decide(job, lambda generation: work.entry(supervisor.record, generation))
        supervisor.decided(generation, self._now())

    def must_lead(self, job: JobId, supervisor: Supervisor) -> None:
        """Raises NotDecided where the job has ended, or this node does not coordinate any more, since it was to be decided."""
        if self._led.get(job) is not supervisor:
            raise NotDecided(f"node {self._name} does not lead job {job} any more")

    def begin_again(self, job: JobId, supervisor: Supervisor) -> None:
        """Have the next start of a job decided, however long that takes."""
        self._deciding.append(supervisor)
        self._tasks.spawn(self._begin_again(job, supervisor))

    def reassign(self, job: JobId, supervisor: Supervisor, action: Reassign) -> None:
        """Have another assignment of its start committed, and tell the supervisor."""
        self._tasks.spawn(self._reassign(job, supervisor, action, supervisor.record.generation))

    def retire(self, job: JobId) -> None:
        """Have the entry of a job that has ended go; where this node is deposed before, the next coordinator does it."""
        if job in self._work.entries:
            self.retire_undecided(job)

    def retire_undecided(self, job: JobId) -> None:
        """The same of one that may come to be in the table only now."""
        self._tasks.spawn(self._retire(job))

    async def close(self) -> None:
        await self._tasks.close()

    # --- how

    async def _begin_again(self, job: JobId, supervisor: Supervisor) -> None:
        try:
            while True:
                try:
                    await self.begin(job, supervisor)
                    break
                except NotKept as error:  # voters are away, or their disks full: a job that has run waits for them
                    supervisor.warn(f"{error}; tried again in {KEEP_AGAIN_S:.0f} s")
                    self._carry_out(job)
                    await asyncio.sleep(KEEP_AGAIN_S)
                    self.must_lead(job, supervisor)
        except NotDecided as error:
            log.info("job=%s not decided reason=%s", job, error)
            return
        except P2pnnError as error:
            supervisor.fail(str(error), self._now())
        finally:
            self._deciding.remove(supervisor)
        if self._led.get(job) is supervisor:
            self._carry_out(job)

    async def _reassign(self, job: JobId, supervisor: Supervisor, action: Reassign, start: int) -> None:
        def changed(generation: int) -> work.Entry | None:
            entry = self._work.entries.get(job)
            if entry is None or entry.generation != start:
                return entry  # that start is over: nothing of it changes any more
            return work.with_assignment(entry, assignment.committed(action.before, action.after, generation))

        try:
            changed(work.GENERATION_MAX)  # raises what must not be raised while a charter is made
            generation, refusal = await self._work.decide(job, changed), ""
        except NotDecided as error:
            log.info("job=%s not reassigned reason=%s", job, error)
            return
        except P2pnnError as error:
            generation, refusal = 0, str(error)
        if self._led.get(job) is not supervisor or supervisor.record.generation != start:
            return
        if refusal:
            supervisor.failover.not_reassigned(refusal, self._now())
        else:
            supervisor.failover.reassigned(generation, self._now())
        self._carry_out(job)

    async def _retire(self, job: JobId) -> None:
        try:
            await self._work.decide(job, lambda _: None)
        except P2pnnError as error:
            log.info("job=%s stays in the charter reason=%s", job, error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
