"""The executor of a data-parallel run's worker: a model replica whose parameters live on the shards of the parameter server.

`ps.Replica` decides when a step may begin and what is pushed; the segment machine computes the step, on parameters that are
installed before it. What shards send is received into landing places in the arena, some per shard, which are the daemon's while
they are *lent*; push bodies lie behind them and are sent from there.

The script's Train commands flow into each other. Before any other command the worker pushes what it has left, waits until all is
acknowledged, and draws a mark (`ps.messages`): so an evaluation and a checkpoint see the parameters after all steps before
them, the same ones on every worker. The first worker writes them, and its own state (running means and variances), as a part.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from itertools import count

import msgspec
import numpy as np

from p2pnn.engine.base import Array
from p2pnn.errors import JobFailedError, P2pnnError, PlanError
from p2pnn.executor import commands, parts
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.session import Session, manifest_of
from p2pnn.job import assignment, script
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.ps.consistency import settings
from p2pnn.ps.layout import LANDINGS, Bump, worker_layout, workers_of
from p2pnn.ps.messages import Answer, Refusal, Values
from p2pnn.ps.port import MarkNote, PullRequest, PushPart
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
        self._worker = workers_of(plan)[self._number]
        self._replica = Replica(
            self._worker,
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
        self._plan = plan
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
        self._landings = {  # by shard; the first is where the next values land
            shard: deque(
                arena.array(offset, (nbytes,), "uint8")
                for offset, nbytes in (layout.landing(shard, turn) for turn in range(LANDINGS))
            )
            for shard in layout.landings
        }
        self._lending = deque(shard for shard in self._landings for _ in range(LANDINGS))
        self._bytes = arena.array(0, (arena.size,), "uint8")
        self._tokens = count(1)
        self._leaving: dict[int, PushPart] = {}
        self._script: deque[script.Command] = deque()
        self._given: deque[script.Command] = deque()  # to the machine, and not answered
        self._until = self._machine.step
        self._marked = 0  # the newest command that a mark was drawn before
        self._restored = False
        self._skips = spec.data.backup > 0
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
                self._answered(message)
            case commands.Left():
                part = self._leaving.pop(message.token, None)
                if part is None:
                    raise JobFailedError(
                        f"the executor was told that message {message.token} left, which it did not send"
                    )
                self._replica.sent(part)
            case commands.Assigned(packed):
                self._assigned(packed)
            case script.Predict() | script.Sample():
                raise JobFailedError(f"a worker of a data-parallel run was told {type(message).__name__}")
            case script.Train() | script.Evaluate() | script.Checkpoint() | script.Restore() | script.Finish():
                self._script.append(message)
            case _:
                super()._take(message)

    def _assigned(self, packed: bytes) -> None:
        """Who has which role now. What a shard has not acknowledged is pushed again to whoever is its primary: it counts once."""
        try:
            found = assignment.decode(packed)
            assignment.check(found, self._plan)
        except P2pnnError as error:
            raise JobFailedError(str(error)) from None
        now = time.perf_counter()
        for shard, configuration in enumerate(found.shards):
            if configuration.generation > self._replica.generation_of(shard):
                self._replica.restart(configuration.generation, now, shard)

    def _answered(self, message: commands.Answered) -> None:
        landings = self._landings.get(message.shard)
        if landings is None or (message.refusal and message.refusal not in Refusal.__members__):
            raise JobFailedError(f"shard {message.shard} answered {message.refusal!r}, which it cannot")
        landing = landings[0]
        values = None
        if message.has_values:
            data = landing[: message.nbytes]
            values = Values(message.version, message.clock, data, message.whole, message.number)
        answer = Answer(
            self._worker,
            message.generation,
            message.sequence,
            message.request,
            Refusal[message.refusal] if message.refusal else None,
            message.log_number,
            values,
        )
        place = self._replica.place(message.shard, answer) if message.landed else None
        if place is not None:
            if place.nbytes != message.nbytes:
                raise JobFailedError(
                    f"shard {message.shard} sent values of {message.nbytes:,} bytes instead of {place.nbytes:,}"
                )
            np.copyto(place, landing[: message.nbytes])
        if message.landed:
            landings.rotate(-1)
            self._lending.append(message.shard)
        self._replica.answered(message.shard, answer, time.perf_counter(), took_values=place is not None)

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
        if replica.ended is not None:
            self._give_up_steps(replica.ended)
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
            if replica.ended is not None:
                replica.leave()
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
        totals, scale = self._runner.weights.gradients()
        if self._looks.wants(action.step):
            for name, total in totals.items():
                self._looks.gradient(name, total)
            self._looks.done()
        for name in self._gradients:
            if name not in self._handed:
                self._hand_over(name, totals.get(name), scale)
        self._handed.clear()
        self._replica.end_step(time.perf_counter())
        self._machine.done(action)

    def _gradient_ready(self, name: str) -> None:
        """Amid the step's last backward pass: what becomes complete leaves while the rest is computed."""
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

    def _give_up_steps(self, why: Refusal) -> None:
        """The shards take nothing more from this worker: its steps that are granted count as done, and it evaluates on."""
        if why is not Refusal.SET_ASIDE:
            raise JobFailedError(f"the shards want nothing of worker {self._number}: {why.value}")
        self._replica.leave()
        self._skip_to(self._allotment.local(self._until))

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
        out: list[commands.FromExecutor] = [commands.Lend(shard) for shard in self._lending]
        self._lending.clear()
        while (message := self._replica.next_message(time.perf_counter())) is not None:
            match message:
                case PushPart():
                    out.append(self._part(message))
                case PullRequest(shard, pull):
                    out.append(commands.FetchValues(shard, pull.request, pull.have, pull.after, pull.generation))
                case MarkNote(mark):
                    out.append(commands.SendMark(mark.sequence))
                    if mark.rests:
                        out.append(commands.SendRest(mark.pushes))
        if out:
            self._channel.send(*out)

    def _part(self, message: PushPart) -> commands.PushPart:
        token, push = next(self._tokens), message.push
        self._leaving[token] = message
        return commands.PushPart(
            token,
            message.shard,
            push.sequence,
            push.part,
            message.data.ctypes.data - self._bytes.ctypes.data,
            message.data.nbytes,
            push.based_on,
            push.based_clock,
            push.fetch,
            push.have,
            message.needed,
            push.mark,
            push.generation,
        )
