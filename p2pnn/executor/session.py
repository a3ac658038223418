"""One job in an executor: take in what happened, ask the segment machine, do it, tell the daemon.

It blocks on the socket only when there is nothing to compute.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import threadpoolctl

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import JobFailedError, StorageError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.looks import Looks
from p2pnn.executor.runner import Runner
from p2pnn.executor.snapshots import Snapshots
from p2pnn.executor.spans import Spans
from p2pnn.executor.tally import Pace, Sums
from p2pnn.job import script
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan
from p2pnn.job.segment import delays
from p2pnn.job.spec import JobSpec
from p2pnn.model.verify import verify
from p2pnn.ps.allotment import Allotment
from p2pnn.ps.consistency import check_spec
from p2pnn.train import machine as m
from p2pnn.train.cuts import places
from p2pnn.train.schedule import Routes


class Session:
    """One job from Prepare to Finish."""

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        self._channel = channel
        self._spec = spec
        self._blobs = BlobStore(Path(prepare.blobs))
        manifest = manifest_of(prepare)
        self._allotment = self._allot(spec, plan, prepare.node_index, manifest)
        node_index = prepare.node_index
        if plan.replicas:
            node_index = plan.replicas[self._allotment.index].nodes.index(node_index)
            plan = plan.replica(self._allotment.index)
        self._spans = Spans(arena.view[prepare.spans :] if prepare.spans >= 0 else None)
        self._limit = threadpoolctl.threadpool_limits(spec.threads)
        routes = Routes(spec.graph, plan.assignment, node_index, len(plan.nodes))
        engine = NumpyEngine()
        self._runner = Runner(spec, plan, routes, engine, self._blobs, arena, self._allotment)
        self._runner.check_memory(self._runner.memory_bytes)
        self._runner.weights.load(self._blobs, manifest)
        micro_batches = len(self._allotment.micro_batches(spec.micro_batches))

        def new_machine(step: int) -> m.Machine:
            return m.Machine(
                routes,
                plan.frames,
                micro_batches,
                delay=plan.delays[node_index] if plan.delays else 0,
                step=step,
                split_batches=self._split_batches(),
                clip=spec.optimizer.clip_norm > 0 and spec.in_flight < 2 and (spec.data is None or len(plan.nodes) > 1),
                gated=spec.data is not None,
            )

        self._new_machine = new_machine
        self._machine = new_machine(self._allotment.local(manifest.step) if manifest and spec.kind == "train" else 0)
        self._snapshots = Snapshots(
            spec,
            engine,
            self._runner.weights,
            places(spec, plan, node_index),
            arena,
            prepare.snapshots,
            self._machine.step,
        )
        self._pace = Pace(time.perf_counter(), self._machine.step)
        self._evaluation = Sums()
        self._looks = Looks(spec.graph.parameters, self._allotment, self._machine.step, spec.optimizer.warmup_steps)

    def _allot(self, spec: JobSpec, plan: Plan, node_index: int, manifest: Manifest | None) -> Allotment:
        """Which steps are this node's."""
        return Allotment.of(spec, plan, node_index)

    def _split_batches(self) -> dict[str, int]:
        splits = {"validation": self._spec.validation, "test": self._spec.test}
        return {name: self._runner.feed.batches(name) for name, split in splits.items() if split}

    def run(self, early: Sequence[commands.ToExecutor] = ()) -> None:
        """Work until the script ends. early: messages that came with Prepare."""
        self._channel.send(commands.Prepared(self.memory_bytes))
        for message in early:
            self._take(message)
        while True:
            self._send()
            action = self._next_action()
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

    @property
    def memory_bytes(self) -> int:
        """Everything that was allocated."""
        return self._runner.memory_bytes

    def _next_action(self) -> m.Action | None:
        return self._machine.next_action()

    def _wait(self) -> None:
        """Nothing to do until news come; what was not reported yet is, when it is time."""
        due = self._pace.due_in(time.perf_counter())
        messages = self._channel.receive(due) if due else []
        if not messages:
            self._progress(time.perf_counter())
            messages = self._channel.receive(self._patience())
        self._spans.news(messages)
        for message in messages:
            self._take(message)

    def _patience(self) -> float | None:
        """For how many seconds to wait for news at most; None for ever."""
        return None

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
                if machine.stage.mode == "train":
                    self._train_forward(action)
                else:
                    self._runner.forward(action, machine.stage, self._evaluation)
                machine.done(action)
            case m.Backward():
                self._runner.backward(action, machine.stage)
                machine.done(action)
            case m.Squares():
                squares = self._runner.weights.squares()
                machine.done(action, squares)
                self._channel.send(commands.Squares(action.step, squares))
            case m.Update():
                self._update(action)
            case m.Answer():
                self._answer(action.command)
                machine.done(action)

    def _train_forward(self, action: m.Forward) -> None:
        stage, sums = self._machine.stage, self._pace.sums
        step = stage.at(action.micro_batch)[0]
        loss, rows = sums.loss, sums.rows
        self._runner.forward(action, stage, sums, self._looks.forward(step, action.micro_batch))
        if self._looks.trained(step, sums.loss - loss, sums.rows - rows, finite=sums.finite):
            self._progress(time.perf_counter(), always=True)

    def _update(self, action: m.Update) -> None:
        machine = self._machine
        self._runner.weights.update(action.step, action.squares, machine.forwarded, self._looks)
        machine.done(action)
        slot = self._snapshots.updated(machine.step, machine.snapshot_every)
        if slot >= 0:
            self._channel.send(commands.Snapped(machine.step, slot))

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
            return script.Done(sequence, msgspec.msgpack.encode(self._save()))
        except StorageError as error:
            return script.Done(sequence, error=str(error))

    def _save(self) -> Part:
        return self._runner.weights.save(self._blobs)

    def _progress(self, now: float, *, always: bool = False) -> None:
        report = self._pace.report(self._reached(), now, always=always)
        if report is not None:
            report.snapshots, report.snapshot_s = self._snapshots.taken()
            report.health = self._looks.health()
            self._channel.send(report)

    def _reached(self) -> int:
        """The job's steps that are done."""
        return self._machine.step


def read(prepare: commands.Prepare) -> tuple[JobSpec, Plan]:
    """The spec and the plan, checked against each other. Raises JobFailedError or ModelError for what is not one."""
    try:
        spec = msgspec.msgpack.decode(Path(prepare.spec_path).read_bytes(), type=JobSpec)
        plan = msgspec.msgpack.decode(prepare.plan, type=Plan)
    except (msgspec.MsgspecError, RecursionError, OSError) as error:
        raise JobFailedError(f"the job's spec or plan cannot be read: {error}") from error
    verify(spec.graph)
    nodes = len(plan.nodes)
    _check_roles(spec, plan, prepare)
    within = min((len(replica.nodes) for replica in plan.replicas), default=nodes)
    if len(plan.assignment) != len(spec.graph.ops) or any(not 0 <= node < within for node in plan.assignment):
        raise JobFailedError("the plan does not fit the job's model")
    if not 0 <= prepare.node_index < nodes or plan.frames < 1 or spec.rows_per_micro_batch < 1:
        raise JobFailedError("the plan has no place for this node, no frame, or the job no rows per micro-batch")
    if plan.delays != (delays(spec.graph, plan.assignment, spec.in_flight, within) if spec.kind == "train" else ()):
        raise JobFailedError(f"the plan's delays do not fit the schedule {spec.schedule}")
    return spec, plan


def manifest_of(prepare: commands.Prepare) -> Manifest | None:
    """The checkpoint to go on from, if any."""
    return msgspec.msgpack.decode(prepare.checkpoint, type=Manifest) if prepare.checkpoint else None


def _check_roles(spec: JobSpec, plan: Plan, prepare: commands.Prepare) -> None:
    """Raise JobFailedError unless replicas, shards and this node's role go together."""
    groups = [replica.nodes for replica in plan.replicas] + [home.nodes for home in plan.shards]
    if not all(groups) or any(not 0 <= node < len(plan.nodes) for nodes in groups for node in nodes):
        raise JobFailedError("the plan has a replica or a shard without a node")
    if bool(plan.replicas) != (spec.data is not None) or bool(plan.shards) != (spec.data is not None):
        raise JobFailedError("the plan's replicas and shards do not go with the job's settings of data parallelism")
    if spec.data is not None and spec.kind == "train":
        check_spec(spec, len(plan.replicas), len(plan.shards))
    serves, computes = plan.served_by(prepare.node_index), plan.worker_of(prepare.node_index) >= 0
    if prepare.role not in ("compute", "serve") or not (serves if prepare.role == "serve" else computes):
        raise JobFailedError(f"the plan gives node {prepare.node_index} nothing to do in the role {prepare.role!r}")
