"""A data-parallel run's worker that trains the batches that are leased to it (`async`, `ssp`).

`ps.leasing` says what to wish for and which batch a step of this worker trains; the machine is given each range as some steps
more. A Train of the script is answered when all steps before its end are trained, by whomever: so those of a worker that is lost
are trained again before the epoch ends. While there is nothing for this worker it pushes what it has left, and rests.
"""

from __future__ import annotations

import time
from collections import deque

from p2pnn.errors import JobFailedError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.replica import ReplicaSession
from p2pnn.job import script
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.allotment import Allotment
from p2pnn.ps.leasing import LeasedAllotment, Leasing
from p2pnn.ps.messages import Refusal
from p2pnn.train import machine as m

OWN = 0
"""The number of a Train that is this module's own: the script's begin with 1."""


class LeasingSession(ReplicaSession):
    """One worker from Prepare to Finish."""

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        self._trains: deque[script.Train] = deque()  # that are not answered
        self._begun = 0  # steps of this worker's own
        super().__init__(channel, arena, prepare, spec, plan)
        self._until = self._leasing.trained_below
        self._replica.decided.on_refused = self._leasing.refused

    def _allot(self, spec: JobSpec, plan: Plan, node_index: int, manifest: Manifest | None) -> Allotment:
        assert spec.data is not None  # `read` has seen to it
        self._leasing = Leasing(manifest.step if manifest is not None else 0, spec.data.n_push)
        dealt = super()._allot(spec, plan, node_index, manifest)
        return LeasedAllotment(dealt.workers, dealt.index, shared=False, apart=dealt.apart, leasing=self._leasing)

    def _take(self, message: commands.ToExecutor) -> None:
        if not isinstance(message, commands.Leased):
            super()._take(message)
            return
        leasing, before = self._leasing, self._leasing.granted
        leasing.leased(message.number, message.ranges, message.trained_below, message.again, message.never)
        if leasing.granted > before:
            own = script.Train(OWN, leasing.granted)
            self._given.append(own)
            self._machine.command(own)
        self._answer_trained()

    def _assigned(self, packed: bytes) -> None:
        super()._assigned(packed)
        self._leasing.say_again()

    # what is done

    @property
    def _is_busy(self) -> bool:
        return bool(self._trains) or super()._is_busy

    def _give(self, command: script.Command) -> None:
        if not isinstance(command, script.Train):
            super()._give(command)
            return
        self._trains.append(command)
        self._leasing.grant(command.until_step)
        self._answer_trained()

    def _next_action(self) -> m.Action | None:
        action = super()._next_action()
        idle = action is None and self._is_idle()
        if idle:
            self._send_messages()
        self._wish(idle=idle)
        return action

    def _is_idle(self) -> bool:
        """Whether there is nothing to train, and all that was is decided."""
        replica = self._replica
        if not self._trains or self._machine.step < self._leasing.granted:
            return False
        if replica.ended is not None:
            self._give_up_steps(replica.ended, self._machine.next_step)
            return True
        if not replica.settle(time.perf_counter()):
            self._send_messages()
            return False
        if replica.version >= 0:
            replica.rest()
        return True

    def _wish(self, *, idle: bool) -> None:
        leasing, replica = self._leasing, self._replica
        leasing.until = self._trains[0].until_step if self._trains else -1
        steps, pushes = replica.acknowledged
        able = replica.version >= 0 and bool(self._trains)
        wish = leasing.next_wish(time.perf_counter(), self._begun, steps, pushes, idle=idle, able=able)
        if wish is not None:
            self._channel.send(commands.WishLeases(wish))

    def _begin_step(self) -> bool:
        step = self._machine.next_step
        if not super()._begin_step():
            return False
        if self._replica.ended is None:
            self._begun = step + 1
            self._leasing.begins(time.perf_counter())
        return True

    def _update(self, action: m.Update) -> None:
        super()._update(action)
        self._leasing.ended(time.perf_counter())

    def _give_up_steps(self, why: Refusal, step: int) -> None:
        """The shards take nothing more from this worker: others train what it has, and it evaluates on."""
        if why is not Refusal.SET_ASIDE:
            raise JobFailedError(f"the shards want nothing of worker {self._number}: {why.value}")
        if self._leasing.has_quit:
            return
        self._replica.leave()
        self._leasing.quit()
        self._machine = self._new_machine(self._machine.step)
        self._begun = self._machine.step
        self._given.clear()

    def _patience(self) -> float | None:
        mine, at = super()._patience(), self._leasing.get_timer()
        its = None if at is None else max(0.0, at - time.perf_counter())
        return min((s for s in (mine, its) if s is not None), default=None)

    # what is told

    def _answer_trained(self) -> None:
        """Answer what is trained."""
        while self._trains and self._trains[0].until_step <= self._leasing.trained_below:
            command = self._trains.popleft()
            self._progress(time.perf_counter())
            uneven = self._leasing.again, self._leasing.never
            self._channel.send(script.Done(command.sequence, uneven=uneven))

    def _answer(self, command: script.Command) -> None:
        if isinstance(command, script.Train):
            self._given.popleft()
        else:
            super()._answer(command)
