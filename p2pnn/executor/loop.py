"""The executor's loop: prepare, then take in what happened, ask the segment machine, do it, tell the daemon.

It blocks on the socket only when there is nothing to compute. Whatever goes wrong becomes one sentence in Failed, with the
traceback on stderr, and exit status 1; the daemon's end closing ends it quietly.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from pathlib import Path

import msgspec
import threadpoolctl

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import JobFailedError, P2pnnError, StorageError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.runner import Runner
from p2pnn.executor.snapshots import Snapshots
from p2pnn.executor.spans import Spans
from p2pnn.executor.tally import Pace, Sums
from p2pnn.job import script
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.plan import Plan
from p2pnn.job.segment import delays
from p2pnn.job.spec import JobSpec
from p2pnn.model.verify import verify
from p2pnn.train import machine as m
from p2pnn.train.cuts import places
from p2pnn.train.schedule import Routes


def run(channel: Channel, arena: Arena) -> int:
    """Serve one job until Finish (0), a failure (1) or the daemon's end closes (1); returns the exit status."""
    try:
        Session(channel, arena).run()
        return 0
    except EOFError:
        return 1
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        with contextlib.suppress(EOFError):
            channel.send(commands.Failed(sentence(error)))
        return 1
    finally:
        channel.leave()


def sentence(error: Exception) -> str:
    """What a person is told about an exception."""
    if isinstance(error, P2pnnError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"its memory does not suffice ({error or 'the system gave no more'}); use more nodes or a smaller batch"
    if isinstance(error, OSError):
        return f"the operating system refused: {error}"
    return f"a fault in this program: {type(error).__name__}: {error}"


class Session:
    """One job from Prepare to Finish."""

    def __init__(self, channel: Channel, arena: Arena) -> None:
        self._channel = channel
        prepare, *self._early = self._first_messages()
        if not isinstance(prepare, commands.Prepare):
            raise JobFailedError(f"the executor was told {type(prepare).__name__} before Prepare")
        self._blobs = BlobStore(Path(prepare.blobs))
        spec, plan = read(prepare)
        manifest = msgspec.msgpack.decode(prepare.checkpoint, type=Manifest) if prepare.checkpoint else None
        self._spans = Spans(arena.view[prepare.spans :] if prepare.spans >= 0 else None)
        self._limit = threadpoolctl.threadpool_limits(spec.threads)
        routes = Routes(spec.graph, plan.assignment, prepare.node_index, len(plan.nodes))
        engine = NumpyEngine()
        self._runner = Runner(spec, plan, routes, engine, self._blobs, arena)
        self._runner.check_memory()
        self._runner.weights.load(self._blobs, manifest)
        splits = {"validation": spec.validation, "test": spec.test}
        self._machine = m.Machine(
            routes,
            plan.frames,
            spec.micro_batches,
            delay=plan.delays[prepare.node_index] if plan.delays else 0,
            step=manifest.step if manifest and spec.kind == "train" else 0,
            split_batches={name: self._runner.feed.batches(name) for name, split in splits.items() if split},
            clip=spec.optimizer.clip_norm > 0 and spec.in_flight < 2,
        )
        self._snapshots = Snapshots(
            spec,
            engine,
            self._runner.weights,
            places(spec, plan, prepare.node_index),
            arena,
            prepare.snapshots,
            self._machine.step,
        )
        self._pace = Pace(time.perf_counter(), self._machine.step)
        self._evaluation = Sums()

    def run(self) -> None:
        """Work until the script ends."""
        self._channel.send(commands.Prepared(self._runner.memory_bytes))
        for message in self._early:
            self._take(message)
        while True:
            self._send()
            action = self._machine.next_action()
            if isinstance(action, m.Finished):
                now = time.perf_counter()
                self._spans.did(action, self._machine.stage, now, now)
                return
            if action is None:
                self._spans.waits(time.perf_counter())
                self._wait()
                continue
            stage = self._machine.stage
            start = time.perf_counter()
            self._do(action)
            now = time.perf_counter()
            self._pace.compute_s += now - start
            self._spans.did(action, stage, start, now)
            if not self._pace.due_in(now):
                self._progress(now)
            for message in self._channel.receive(0):
                self._take(message)

    def _first_messages(self) -> list[commands.ToExecutor]:
        while not (found := self._channel.receive()):
            pass
        return found

    def _wait(self) -> None:
        """Nothing to do until news come; what was not reported yet is, when it is time."""
        due = self._pace.due_in(time.perf_counter())
        messages = self._channel.receive(due) if due else []
        if not messages:
            self._progress(time.perf_counter())
            messages = self._channel.receive()
        self._spans.news(messages)
        for message in messages:
            self._take(message)

    def _take(self, message: commands.ToExecutor) -> None:
        match message:
            case commands.Arrived():
                self._machine.arrived(message.transfer, message.micro_batch)
            case commands.Sent():
                self._machine.sent(message.transfer, message.micro_batch)
            case commands.PeerRetired():
                self._machine.peer_retired(message.node_index, message.count)
            case commands.PeerSquares():
                self._machine.peer_squares(message.node_index, message.step, message.squares)
            case commands.Freed():
                self._snapshots.freed(message.slot)
            case commands.Prepare():
                raise JobFailedError("the executor was told Prepare twice")
            case (
                script.Train()
                | script.Evaluate()
                | script.Predict()
                | script.Sample()
                | script.Checkpoint()
                | script.Restore()
                | script.Finish()
            ):
                self._machine.command(message)
            case _:
                raise JobFailedError(f"the executor of a run without shards was told {type(message).__name__}")

    def _send(self) -> None:
        out = self._machine.outgoing()
        if out:
            self._channel.send(
                *(
                    commands.Retired(item.until)
                    if isinstance(item, m.Retired)
                    else commands.Send(item.transfer, item.micro_batch)
                    for item in out
                )
            )

    def _do(self, action: m.Action) -> None:
        machine = self._machine
        match action:
            case m.Forward():
                training = machine.stage.mode == "train"
                self._runner.forward(action, machine.stage, self._pace.sums if training else self._evaluation)
                machine.done(action)
            case m.Backward():
                self._runner.backward(action, machine.stage)
                machine.done(action)
            case m.Squares():
                squares = self._runner.weights.squares()
                machine.done(action, squares)
                self._channel.send(commands.Squares(action.step, squares))
            case m.Update():
                self._runner.weights.update(action.step, action.squares, machine.forwarded)
                machine.done(action)
                slot = self._snapshots.updated(machine.step, machine.snapshot_every)
                if slot >= 0:
                    self._channel.send(commands.Snapped(machine.step, slot))
            case m.Answer():
                self._answer(action.command)
                machine.done(action)

    def _answer(self, command: script.Command) -> None:
        match command:
            case script.Train():
                self._progress(time.perf_counter())
                done = script.Done(command.sequence)
            case script.Evaluate():
                sums, self._evaluation = self._evaluation, Sums()
                done = script.Done(command.sequence, msgspec.msgpack.encode(sums.evaluation()))
            case script.Predict():
                done = script.Done(command.sequence, msgspec.msgpack.encode(self._runner.outputs.finish()))
            case script.Sample():
                done = script.Done(command.sequence, self._runner.take_scores())
            case script.Restore():
                self._runner.weights.restore(self._blobs, command.parts)
                done = script.Done(command.sequence)
            case script.Checkpoint():
                done = self._checkpoint(command.sequence)
            case script.Finish():
                return
        self._channel.send(done)

    def _checkpoint(self, sequence: int) -> script.Done:
        try:
            return script.Done(sequence, msgspec.msgpack.encode(self._runner.weights.save(self._blobs)))
        except StorageError as error:
            return script.Done(sequence, error=str(error))

    def _progress(self, now: float) -> None:
        report = self._pace.report(self._machine.step, now)
        if report is not None:
            report.snapshots, report.snapshot_s = self._snapshots.taken()
            self._channel.send(report)


def read(prepare: commands.Prepare) -> tuple[JobSpec, Plan]:
    """The spec and the plan, checked against each other. Raises JobFailedError or ModelError for what is not one."""
    try:
        spec = msgspec.msgpack.decode(Path(prepare.spec_path).read_bytes(), type=JobSpec)
        plan = msgspec.msgpack.decode(prepare.plan, type=Plan)
    except (msgspec.MsgspecError, RecursionError, OSError) as error:
        raise JobFailedError(f"the job's spec or plan cannot be read: {error}") from error
    verify(spec.graph)
    nodes = len(plan.nodes)
    if len(plan.assignment) != len(spec.graph.ops) or any(not 0 <= node < nodes for node in plan.assignment):
        raise JobFailedError("the plan does not fit the job's model")
    if not 0 <= prepare.node_index < nodes or plan.frames < 1 or spec.rows_per_micro_batch < 1:
        raise JobFailedError("the plan has no place for this node, no frame, or the job no rows per micro-batch")
    if plan.delays != (delays(spec.graph, plan.assignment, spec.in_flight, nodes) if spec.kind == "train" else ()):
        raise JobFailedError(f"the plan's delays do not fit the schedule {spec.schedule}")
    return spec, plan
