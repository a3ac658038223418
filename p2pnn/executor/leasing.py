"""A data-parallel run's worker that asks for the batches that it trains (`async`, `ssp`), or the first node of one that is cut.

`ps.leasing` says what to wish for and which batch a step of this worker trains. Where the worker is cut over nodes, this one
tells the others which batches are theirs too, and hears from them what is trained (`ps.dealing`).
"""

from __future__ import annotations

import time

from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.leased import LeasedSession
from p2pnn.job.assignment import Assignment
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.dealing import Dealing
from p2pnn.ps.leasing import Leasing
from p2pnn.ps.messages import Refusal
from p2pnn.train import machine as m


class LeasingSession(LeasedSession):
    """One worker from Prepare to Finish, or its first node."""

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        self._begun = 0  # steps of this worker's own
        super().__init__(channel, arena, prepare, spec, plan)
        refused, nodes = self._leasing.refused, len(plan.replicas[self._number].nodes)
        self._dealing = Dealing(range(1, nodes), refused) if self._is_cut else None
        self._replica.decided.on_refused = refused if self._dealing is None else self._dealing.refused

    def _make_steps(self, spec: JobSpec, step: int) -> Leasing:
        assert spec.data is not None  # `read` has seen to it
        self._leasing = Leasing(step, spec.data.n_push)
        return self._leasing

    @property
    def _steps(self) -> Leasing:
        return self._leasing

    def _take(self, message: commands.ToExecutor) -> None:
        match message:
            case commands.Leased(number, ranges, trained_below, again, never):
                before = self._leasing.granted
                self._leasing.leased(number, ranges, trained_below, again, never)
                if self._leasing.granted > before:
                    self._dealt()
                self._answer_trained()
            case commands.Decided(steps, back, bad, position) if self._dealing is not None:
                for ranges, are_bad in ((back, False), (bad, True)):
                    for first, stop in ranges:
                        self._dealing.refused(first, stop, are_bad, position)
                self._dealing.decided(position, steps)
            case _:
                super()._take(message)

    def _assigned(self, packed: bytes) -> Assignment:
        self._leasing.say_again()
        return super()._assigned(packed)

    # what is done

    def _train(self, until: int) -> None:
        self._leasing.grant(until)

    def _say(self, *, idle: bool) -> None:
        leasing, replica = self._leasing, self._replica
        leasing.until = self._trains[0].until_step if self._trains else -1
        steps, pushes = replica.acknowledged
        if self._dealing is not None:
            steps, pushes = self._dealing.trained(steps, pushes)
            if (deal := self._dealing.next(leasing)) is not None:
                self._channel.send(commands.Dealt(*deal))
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
        """Others train what this worker has, and it evaluates on. One that is cut goes through what was dealt to its nodes."""
        super()._give_up_steps(why, step)
        if self._is_cut:
            self._leasing.quit(through=True)

    def _give_up_rest(self) -> None:
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

    @property
    def _uneven(self) -> tuple[int, int]:
        return self._leasing.again, self._leasing.never
