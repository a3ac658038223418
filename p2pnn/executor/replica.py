"""The executor of a data-parallel run's worker: a model replica whose parameters live on the shards of the parameter server, or
one node's segment of such a replica.

`ps.Replica` decides when a step may begin and what is pushed (`executor.pushing`); the segment machine computes the step, on
parameters that are installed before it.

The script's Train commands flow into each other. Before any other command the worker pushes what it has left, waits until all is
acknowledged, and draws a mark (`ps.messages`): so an evaluation and a checkpoint see the parameters after all steps before
them, the same ones on every worker. The first worker writes them, and its own state (running means and variances), as a part.

Where a replica is cut over nodes, each of them is a worker by itself to the shards of its own layers, under the replica's number;
all have the same steps, and tensors between them keep them together as in a model-parallel run. A node whose shards have set it
aside tells the others (by squares of nothing); all compute on, since none can do without the others, and push nothing.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

import msgspec
import numpy as np

from p2pnn.engine.base import Array
from p2pnn.errors import JobFailedError, PlanError
from p2pnn.executor import commands, parts
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.pushing import Pushing
from p2pnn.executor.session import Session, manifest_of
from p2pnn.job import script
from p2pnn.job.assignment import Assignment
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.consistency import settings
from p2pnn.ps.layout import Bump, worker_layout, workers_of
from p2pnn.ps.messages import Refusal
from p2pnn.ps.worker import Replica
from p2pnn.train import machine as m
from p2pnn.train.optimizers import slot_name


class ReplicaSession(Session):
    """One worker from Prepare to Finish."""

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        super().__init__(channel, arena, prepare, spec, plan)
        assert spec.data is not None  # `read` has seen to it
        self._number = self._allotment.index
        layout = worker_layout(spec, plan, prepare.node_index, max(0, prepare.landings))
        if prepare.landings < 0 or layout.stop > arena.size:
            raise PlanError(f"the arena has {arena.size:,} bytes, but the plan takes {layout.stop:,}")
        weights = self._runner.weights
        worker = workers_of(plan)[self._number]
        self._replica = Replica(
            worker,
            layout.sharding,
            settings(spec.data),
            generation=prepare.generation if plan.copies > 1 else 0,  # as `job.assignment.initial`
            optimizer=spec.optimizer,
            steps=self._allotment.local(spec.steps),
            step=self._machine.step,
            buffer=Bump(arena.view, layout.bodies, layout.stop),
            combine=weights.combine,
            parameters=weights.flat,
            gradient=weights.flat_gradient,
        )
        self._layout_bytes = layout.nbytes
        self._runner.check_memory(self.memory_bytes)
        space = self._space = layout.sharding.space
        self._resume(manifest_of(prepare))
        held = space.views(self._replica.parameters)
        installs = [(weights.view(name), array) for name, array in held.items()]
        self._installs = [pair for pair in installs if not np.may_share_memory(*pair)]
        order = sorted(space.entries, key=lambda entry: entry.needed)
        gradients = space.views(self._replica.gradient)
        self._gradients = {entry.name: gradients[entry.name] for entry in order}
        self._handed: set[str] = set()  # gradients of this step that were
        self._runner.on_gradient = self._gradient_ready
        self._pushing = Pushing(worker, self._replica, plan, layout, arena)
        self._script: deque[script.Command] = deque()
        self._given: deque[script.Command] = deque()  # to the machine, and not answered
        self._until = self._machine.step
        self._marked = 0  # the newest command that a mark was drawn before
        self._restored = False
        self._skips = spec.data.backup > 0
        self._is_cut = len(plan.replicas[self._number].nodes) > 1
        self._muted = False  # in the step that is under way
        self._aside = self._told_aside = False  # this worker, as another node of it has told
        self._warm_start = spec.data.warm_start
        self._answered_early: set[int] = set()

    @property
    def memory_bytes(self) -> int:
        """Everything that was allocated, arena included."""
        return super().memory_bytes + self._layout_bytes + self._replica.memory_bytes

    # what comes in

    def _take(self, message: commands.ToExecutor) -> None:
        match message:
            case commands.Answered():
                self._pushing.answered(message)
            case commands.Left():
                self._pushing.left(message.token)
            case commands.PeerSquares() if self._is_cut and not message.squares:
                self._aside = True
            case commands.Assigned(packed):
                self._assigned(packed)
            case script.Predict() | script.Sample():
                raise JobFailedError(f"a worker of a data-parallel run was told {type(message).__name__}")
            case script.Train() | script.Evaluate() | script.Checkpoint() | script.Restore() | script.Finish():
                self._script.append(message)
            case _:
                super()._take(message)

    def _assigned(self, packed: bytes) -> Assignment:
        """Who has which role now."""
        return self._pushing.assigned(packed)

    # what is done

    def _next_action(self) -> m.Action | None:
        self._replica.handle_timer(time.perf_counter())
        self._follow_script()
        action = super()._next_action()
        while action is None and self._machine.next_step >= 0 and self._begin_step():
            action = super()._next_action()
        if action is None and self._replica.version < 0 and self._number and self._warm_start:
            self._answer_cold()
        self._send_messages()
        return action

    def _answer_cold(self) -> None:
        """Answer what was granted before it is done, while worker 0 trains alone (`warm_start`): the coordinator grants
        no more steps before all have answered. They are done later, before any other command."""
        for command in self._given:
            if isinstance(command, script.Train) and command.sequence not in self._answered_early:
                self._answered_early.add(command.sequence)
                self._channel.send(script.Done(command.sequence))

    def _begin_step(self) -> bool:
        """Let the machine's next step begin, or give it up, if one of that can be."""
        replica, step = self._replica, self._machine.next_step
        if replica.ended is not None or self._aside:
            self._give_up_steps(replica.ended or Refusal.SET_ASIDE, step)
        elif self._skips and replica.may_begin and step < replica.version:
            self._skip_to(min(replica.version, self._allotment.local(self._until)))
        elif replica.begin_step(time.perf_counter()):
            self._install()
            self._machine.allow(step)
        else:
            return False
        return True

    def _patience(self) -> float | None:
        at = self._replica.get_timer()
        return None if at is None else max(0.0, at - time.perf_counter())

    def _follow_script(self) -> None:
        """Give the machine the commands whose time has come."""
        while self._script:
            command = self._script[0]
            if isinstance(command, script.Train):
                if self._restored and self._is_busy:
                    return
                if self._restored:
                    self._replica.install(again=True)
                    self._install()
                self._until = command.until_step
            elif self._is_busy or not self._is_at(command):
                return
            self._script.popleft()
            self._give(command)

    @property
    def _is_busy(self) -> bool:
        """Whether a command that was begun is not answered."""
        return bool(self._given)

    def _give(self, command: script.Command) -> None:
        """A command begins."""
        if isinstance(command, script.Evaluate):
            self._runner.feed.gone = command.gone
            self._machine.split(self._split_batches())
        self._given.append(command)
        self._machine.command(self._local(command))

    def _writes(self, command: script.Checkpoint) -> bool:
        """Whether this worker, the least that is left, writes parameters and state."""
        return all(worker in command.gone for worker in range(self._number))

    def _local(self, command: script.Command) -> script.Command:
        """The command in this worker's own steps."""
        if not isinstance(command, script.Train):
            return command
        return msgspec.structs.replace(command, until_step=self._allotment.local(command.until_step), snapshot_every=0)

    def _is_at(self, command: script.Command) -> bool:
        """Whether all that comes before a command other than Train is done, and the values that it needs are here."""
        if isinstance(command, script.Finish):
            return True
        replica, now = self._replica, time.perf_counter()
        if self._marked < command.sequence:
            if replica.ended is not None or self._aside:
                self._leave()
            elif not replica.settle(now):
                return False
            self._marked = command.sequence
            replica.mark(command.sequence, now, fetch=self._needs_values(command))
        if replica.awaits_mark:
            return False
        if isinstance(command, script.Restore):
            self._restored = True
        elif not self._restored:
            replica.install()
            self._install()
        return True

    def _needs_values(self, command: script.Command) -> bool:
        match command:
            case script.Evaluate():
                return not self._restored
            case script.Checkpoint():
                return self._writes(command) and not self._restored
            case _:
                return False

    def _install(self) -> None:
        """Compute from the parameters that the shards have sent."""
        self._restored = False
        for target, source in self._installs:
            np.copyto(target, source)

    def _update(self, action: m.Update) -> None:
        """Hand over what is left of the step's gradients, those that are needed first first."""
        totals, scale = self._runner.weights.gradients(action.squares)
        if self._looks.wants(action.step):
            for name, total in totals.items():
                self._looks.gradient(name, total)
            self._looks.done()
        if self._muted:
            self._muted = False
            self._machine.done(action)
            return
        for name in self._gradients:
            if name not in self._handed:
                self._hand_over(name, totals.get(name), scale)
        self._handed.clear()
        self._replica.end_step(time.perf_counter())
        self._machine.done(action)

    def _gradient_ready(self, name: str) -> None:
        """Amid the step's last backward pass: what becomes complete leaves while the rest is computed."""
        if self._muted:
            return
        self._handed.add(name)
        self._hand_over(name, self._runner.weights.gradient(name), 1.0)

    def _hand_over(self, name: str, gradient: Array | None, scale: float) -> None:
        target = self._gradients[name]
        if gradient is not None:  # else no loss depends on it, and it stays zero
            if not np.may_share_memory(target, gradient):
                np.copyto(target, gradient)
            if scale != 1.0:
                np.multiply(target, np.float32(scale), out=target)
        self._replica.gradient_ready(name, time.perf_counter())
        self._send_messages()

    def _give_up_steps(self, why: Refusal, step: int) -> None:
        """The shards take nothing more from this worker: its steps that are granted count as done, and it evaluates on. One that
        is cut goes through them, since its nodes may be in different ones."""
        if why is not Refusal.SET_ASIDE:
            raise JobFailedError(f"the shards want nothing of worker {self._number}: {why.value}")
        if not self._is_cut:
            self._give_up_rest()
            return
        self._leave()
        if step >= 0:  # else there is none to do
            self._muted = True
            self._replica.skip_to(step + 1)
            self._machine.allow(step)

    def _give_up_rest(self) -> None:
        """None of the steps that are granted is done any more."""
        self._leave()
        self._skip_to(self._allotment.local(self._until))

    def _leave(self) -> None:
        """Push nothing any more, and neither shall other nodes of this worker."""
        if self._is_cut and not (self._aside or self._told_aside):
            self._told_aside = True
            self._channel.send(commands.Squares(self._machine.step, []))
        self._replica.leave()

    def _skip_to(self, step: int) -> None:
        """Do no steps before this one: they were made without this worker (`backup`), or it may make none."""
        self._machine = self._new_machine(step)
        self._replica.skip_to(step)
        for command in self._given:
            self._machine.command(self._local(command))

    # what is told and kept

    def _resume(self, manifest: Manifest | None) -> None:
        """Take over the state of the local steps' optimizer (`local:H`), where the checkpoint has one."""
        entries, state = self._space.entries, self._replica.state
        if manifest is None or not state:
            return
        source = parts.Parts(self._blobs, [part.blob for part in manifest.parts])
        names = [slot_name(slot, entry.name) for slot in state for entry in entries]
        if all(name in source for name in names):
            for slot, array in state.items():
                for entry in entries:
                    array[entry.start : entry.stop] = source.read(slot_name(slot, entry.name), entry.shape).reshape(-1)
            self._replica.resume()

    def _save(self) -> Part:
        held = [
            (slot_name(slot, entry.name), entry.shape, partial(array.__getitem__, slice(entry.start, entry.stop)))
            for slot, array in self._replica.state.items()
            for entry in self._space.entries
        ]
        return self._runner.weights.save(self._blobs, held)

    def _answer(self, command: script.Command) -> None:
        self._given.popleft()
        if isinstance(command, script.Train) and command.sequence in self._answered_early:
            self._answered_early.remove(command.sequence)
            self._progress(time.perf_counter())
        elif isinstance(command, script.Checkpoint) and not self._writes(command):
            self._channel.send(script.Done(command.sequence))
        else:
            super()._answer(command)

    def _reached(self) -> int:
        return min(self._allotment.reached(self._machine.step), self._until)

    def _send(self) -> None:
        super()._send()
        self._send_messages()

    def _send_messages(self) -> None:
        if out := self._pushing.messages():
            self._channel.send(*out)
