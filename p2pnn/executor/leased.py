"""What all nodes of a data-parallel run have alike whose workers train batches that are leased to them (`async`, `ssp`).

A Train of the script is answered when all steps before its end are trained, by whomever: so those of a worker that is lost are
trained again before the epoch ends. The machine is given each range of batches as some steps more. While there is nothing for
this worker it pushes what it has left, and rests.

A worker that is cut over nodes is lost with any of them. The others of it then *stand by*: they compute and say nothing more, and
answer the script at once, so that nobody waits for them. If they hold shards they go on serving them, in another process.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.replica import ReplicaSession
from p2pnn.job import script
from p2pnn.job.assignment import Assignment, gone_workers
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.allotment import Allotment
from p2pnn.ps.leasing import LeasedAllotment, Steps
from p2pnn.ps.messages import Refusal
from p2pnn.train import machine as m

OWN = 0
"""The number of a Train that is no command of the script: the script's begin with 1."""


class _WorkerGone(Exception):
    """The run goes on without this worker."""


class LeasedSession(ReplicaSession):
    """One node of a worker from Prepare to Finish."""

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        self._trains: deque[script.Train] = deque()  # that are not answered
        self._whole_plan = plan
        self._is_gone = False
        super().__init__(channel, arena, prepare, spec, plan)
        self._until = self._steps.trained_below

    def _allot(self, spec: JobSpec, plan: Plan, node_index: int, manifest: Manifest | None) -> Allotment:
        dealt = super()._allot(spec, plan, node_index, manifest)
        steps = self._make_steps(spec, manifest.step if manifest is not None else 0)
        return LeasedAllotment(dealt.workers, dealt.index, shared=False, apart=dealt.apart, leasing=steps)

    @abstractmethod
    def _make_steps(self, spec: JobSpec, step: int) -> Steps:
        """Which batches this worker's steps train; the job has done `step` of its own."""

    @property
    @abstractmethod
    def _steps(self) -> Steps:
        """The same."""

    # a worker that is gone

    def run(self, early: Sequence[commands.ToExecutor] = ()) -> None:
        try:
            super().run(early)
        except _WorkerGone:
            self._stand_by()

    def _assigned(self, packed: bytes) -> Assignment:
        found = super()._assigned(packed)
        self._is_gone |= self._number in gone_workers(found.gone, self._whole_plan)
        return found

    def _stand_by(self) -> None:
        """Answer what is told, until the script ends."""
        told: Sequence[commands.ToExecutor] = [*self._trains, *self._given, *self._script]
        while True:
            for command in told:
                if isinstance(command, script.Finish):
                    return
                if isinstance(command, script.Train | script.Evaluate | script.Checkpoint | script.Restore):
                    self._channel.send(*[script.Done(command.sequence)] * (command.sequence != OWN))
            told = self._channel.receive()

    # what is done

    @property
    def _is_busy(self) -> bool:
        return bool(self._trains) or super()._is_busy

    def _give(self, command: script.Command) -> None:
        if not isinstance(command, script.Train):
            super()._give(command)
            return
        self._trains.append(command)
        self._train(command.until_step)
        self._answer_trained()

    def _train(self, until: int) -> None:
        """The script lets batches below `until` be trained."""

    def _dealt(self) -> None:
        """There are more steps to do."""
        own = script.Train(OWN, self._begun_steps)
        self._given.append(own)
        self._machine.command(own)

    @property
    def _begun_steps(self) -> int:
        """How many steps of this worker the machine is to do."""
        return self._steps.granted

    def _next_action(self) -> m.Action | None:
        if self._is_gone:
            raise _WorkerGone
        action = super()._next_action()
        idle = action is None and self._is_idle()
        if idle:
            self._send_messages()
        self._say(idle=idle)
        return action

    @abstractmethod
    def _say(self, *, idle: bool) -> None:
        """Say what is new of the steps. idle: nothing is left to train or to push."""

    def _answer_cold(self) -> None:
        """Others train meanwhile, and nothing is answered before it is done."""

    def _is_idle(self) -> bool:
        """Whether there is nothing to train, and all that was is decided."""
        replica = self._replica
        if not self._trains or self._machine.step < self._begun_steps:
            return False
        if replica.ended is not None or self._aside:
            self._give_up_steps(replica.ended or Refusal.SET_ASIDE, self._machine.next_step)
            return True
        if not replica.settle(time.perf_counter()):
            self._send_messages()
            return False
        if replica.version >= 0:
            replica.rest()
        return True

    # what is told

    def _answer_trained(self) -> None:
        """Answer what is trained."""
        while self._trains and self._trains[0].until_step <= self._steps.trained_below:
            command = self._trains.popleft()
            self._progress(time.perf_counter())
            self._channel.send(script.Done(command.sequence, uneven=self._uneven))

    @property
    def _uneven(self) -> tuple[int, int]:
        """Batches of the epoch that were trained more often than once, and that were given up; the worker's first node knows."""
        return 0, 0

    def _answer(self, command: script.Command) -> None:
        if isinstance(command, script.Train):
            self._given.popleft()
        else:
            super()._answer(command)
