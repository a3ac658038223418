"""The supervisor: one job, from its plan to its end, as decided by the node that coordinates it.

Sans-IO: verbs take facts (a node granted its place, an executor reported, a member failed) and `now`; `next_action` says what
must be done. The life of a job is the table in `job.life`; what happens inside `running` is the *script* (`job.script`),
a sequence of commands that every executor of the job follows in the same order:

    per epoch: Train … Train (pieces of half a second, two ahead), Evaluate(validation), Checkpoint
    at the end: Restore (only where the best epoch was not the last), Evaluate(test), Checkpoint, Finish

Nothing that was granted is taken back: a pause takes effect where the granted steps end, at the same step on every node.
A checkpoint counts when each node's part is verified there and on a buddy (the next node of the plan, or any other member).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from p2pnn.job import life
from p2pnn.job.actions import (
    Action,
    Order,
    PrepareNode,
    Publish,
    ReleaseNode,
    Remember,
    Replan,
    ReserveNode,
)
from p2pnn.job.checkpoint import Manifest, Part, fingerprint
from p2pnn.job.plan import Plan
from p2pnn.job.progress import ProgressMeter, finished
from p2pnn.job.records import KEPT_CHECKPOINTS, JobRecord, SplitResult
from p2pnn.job.saving import Complete, DataAlone, Incomplete, Saver
from p2pnn.job.script import (
    Checkpoint,
    Command,
    Done,
    Evaluate,
    Evaluation,
    Finish,
    Predict,
    Predictions,
    Progress,
    Report,
    Restore,
    Train,
)
from p2pnn.job.spec import JobSpec
from p2pnn.types import BlobId, NodeId

PIECE_S: Final = 0.5
"""Aim for the length of one Train command: a pause waits for at most two of them."""

FIRST_PIECE_STEPS: Final = 4


@dataclass(slots=True)
class _Outstanding:
    command: Command
    since: float
    answers: dict[NodeId, Done] = field(default_factory=dict)


class Supervisor:
    """One start of one job. Create it with a queued record; feed it; do what next_action says until it is None.

    record: state `queued`, generation already raised for this start. members: name by node id of every living member,
    this node included.
    """

    def __init__(self, record: JobRecord, spec: JobSpec, members: dict[NodeId, str], now: float) -> None:
        self.record = record
        self.spec = spec
        self.members = dict(members)
        self._actions: deque[Action] = deque()
        self._now = now
        self._nodes: list[NodeId] = []
        self._granted: set[NodeId] = set()
        self._asked: NodeId | None = None
        self._prepared: set[NodeId] = set()
        self._outstanding: dict[int, _Outstanding] = {}
        self._sequence = 0
        self._saver = Saver(self.members, record.spec)
        self._checkpointing: dict[int, tuple[Manifest, bool]] = {}
        resumed = record.newest
        self._step_granted = self._step_done = resumed.step if resumed else 0
        self._epoch = resumed.epoch if resumed else 0
        self._history: tuple[dict[str, float], ...] = resumed.history if resumed else ()
        self._best_value = resumed.best_value if resumed else None
        self._best_epoch = resumed.best_epoch if resumed else 0
        self._stage = "train" if spec.kind == "train" else spec.kind
        self._steps_per_s = 0.0
        self._evaluating = False
        self._final: Manifest | None = None
        self._meter = ProgressMeter(spec, self._step_done, now)
        self._tell_state("waiting for its nodes")

    # --- facts

    def planned(self, plan: Plan, now: float) -> None:
        """The plan to run. Call it once, and again after each Replan."""
        self._now = now
        self._change(plan=plan)
        self._publish("plan", plan=msgspec.to_builtins(plan))
        for text in plan.reasons[1:]:
            self._publish("warning" if "not bitwise" in text else "note", text=text)
        for node in self._granted - {share.node for share in plan.nodes}:
            self._actions.append(ReleaseNode(node))
            self._granted.discard(node)
        self._nodes = self._saver.nodes = [share.node for share in plan.nodes]
        self._asked = None
        self._reserve_next()

    def waiting(self, node: NodeId, behind: str, position: int, now: float) -> None:
        self._now = now
        if self.record.state == "queued":
            self._publish("queued", behind=behind, position=position, node=self._name(node))

    def granted(self, node: NodeId, now: float) -> None:
        self._now = now
        if self.record.state != "queued" or node not in self._nodes:
            return
        self._granted.add(node)
        self._asked = None
        self._reserve_next()

    def preparing(self, node: NodeId, fetched_bytes: int, total_bytes: int, now: float) -> None:
        self._now = now
        self._publish("preparing", node=self._name(node), fetched_bytes=fetched_bytes, total_bytes=total_bytes)

    def prepared(self, node: NodeId, memory_bytes: int, now: float) -> None:
        self._now = now
        if self.record.state != "preparing":
            return
        self._prepared.add(node)
        if self._prepared.issuperset(self._nodes):
            self._meter.start(now, map(self._name, self._nodes))
            self._move("prepared", "")
            if self.spec.kind == "train" and self._over():  # resumed from the last checkpoint of all
                self._stage = "close"
                self._move("complete", "")
            self._advance()

    def report(self, node: NodeId, report: Report, now: float) -> None:
        """An executor's Progress or Done."""
        self._now = now
        if self.record.state in life.ENDED:
            return
        if isinstance(report, Progress):
            event = self._meter.add(self._name(node), report, now)
            if event is not None:
                self._publish("progress", **event, epoch=self._shown_epoch(), epochs=self.spec.epochs)
            return
        outstanding = self._outstanding.get(report.sequence)
        if outstanding is None:
            return
        outstanding.answers[node] = report
        if len(outstanding.answers) == len(self._nodes):
            del self._outstanding[report.sequence]
            self._answered(outstanding)
            self._advance()

    def kept(self, request: int, error: str, now: float) -> None:
        """A member keeps the blobs of a KeepBlobs, or could not."""
        self._now = now
        if self.record.state in life.ENDED:
            return
        self._saver.kept(request, error)
        self._settle()
        self._advance()

    def node_failed(self, node: NodeId, text: str, now: float) -> None:
        """The job cannot go on at a node: its executor died or refused. text: one sentence."""
        self._now = now
        if self.record.state not in life.ENDED and node in self._nodes:
            self._end("fail", f"node {self._name(node)}: {text}")

    def member_joined(self, node: NodeId, name: str) -> None:
        self.members[node] = name

    def member_failed(self, node: NodeId, reason: str, now: float) -> None:
        """A member is gone. Fails the job if it held a part of it; a job that has not started is planned again."""
        self._now = now
        name = self._name(node)
        self.members.pop(node, None)
        if self.record.state in life.ENDED:
            return
        if node in self._nodes:
            if self.record.state == "queued":
                self._granted.discard(node)
                self._publish(
                    "warning", text=f"node {name} is gone before the job started ({reason}); planning without it"
                )
                self._actions.append(Replan())
                return
            self._end("fail", f"node {name} is gone: {reason}")
            return
        self._saver.member_failed(node)
        self._settle()
        self._advance()

    def cancel(self, reason: str, now: float) -> None:
        """End the job at once. UsageError if it has ended already."""
        self._now = now
        life.after(self.record.state, "cancel")
        self._end("cancel", reason)

    def pause(self, now: float) -> None:
        """Stop at the end of the granted steps, with a checkpoint there. UsageError where that is not possible."""
        self._now = now
        if self.spec.kind != "train":
            life.after("done", "pause")
        if self.record.state == "queued":
            self._end("pause", "paused before it started")
            return
        self._move("pause", "pausing at the end of the granted steps")
        self._advance()

    def fail(self, reason: str, now: float) -> None:
        """The coordinator itself cannot go on (no plan over who is left, …)."""
        self._now = now
        if self.record.state not in life.ENDED:
            self._end("fail", reason)

    def keep_data(self, source: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have data that only `source` holds copied to another node; no checkpoint is complete before that is done."""
        self._saver.keep_data(source, blobs)
        self._settle()

    def next_action(self) -> Action | None:
        return self._actions.popleft() if self._actions else None

    # --- reservations

    def _reserve_next(self) -> None:
        missing = sorted(set(self._nodes) - self._granted)
        if missing and self._asked is None:
            self._asked = missing[0]
            self._actions.append(ReserveNode(missing[0]))
        elif not missing:
            self._move("granted", "fetching model and data")
            for index, node in enumerate(self._nodes):
                self._actions.append(PrepareNode(node, index))

    # --- the script

    def _advance(self) -> None:
        """Issue every command whose time has come."""
        if self.record.state not in ("running", "pausing", "finishing"):
            return
        if self._stage in ("evaluate", "predict"):
            self._order(Evaluate(self._next(), "test") if self._stage == "evaluate" else Predict(self._next()))
            self._stage = "answer"
        elif self._stage == "train":
            self._advance_training()
        elif self._outstanding or self._saver.busy:
            return
        elif self._stage == "close":
            self._end_script()
            self._stage = "end"
            self._advance()
        elif self._stage == "end":
            self._finish()

    def _advance_training(self) -> None:
        training = any(isinstance(o.command, Train) for o in self._outstanding.values())
        if self.record.state == "pausing":
            if not training and not self._evaluating and not self._checkpointing and not self._saver.busy:
                if self._step_done < self._epoch_end():
                    self._checkpoint(best=False)
                else:
                    self._end_epoch_training()
            return
        while self._step_granted < self._epoch_end() and self._ahead() < 2:
            until = min(self._step_granted + self._piece(), self._epoch_end())
            every = self.spec.checkpoint_steps
            if every:
                until = min(until, (self._step_granted // every + 1) * every)
            self._step_granted = until
            self._order(Train(self._next(), until))
            if every and until % every == 0 and until < self._epoch_end():
                self._checkpoint(best=False)
        if not training and self._step_done >= self._epoch_end() and not self._evaluating:
            self._end_epoch_training()

    def _end_epoch_training(self) -> None:
        if self.spec.validation is not None:
            self._evaluating = True
            self._order(Evaluate(self._next(), "validation"))
        else:
            self._epoch_done(None)

    def _answered(self, outstanding: _Outstanding) -> None:
        """All nodes have answered a command."""
        command, answers = outstanding.command, outstanding.answers
        if isinstance(command, Train):
            elapsed = max(1e-6, self._now - outstanding.since)
            self._steps_per_s = max(self._steps_per_s * 0.5, (command.until_step - self._step_done) / elapsed)
            self._step_done = command.until_step
        elif isinstance(command, Evaluate):
            result = self._evaluation(command.split, answers)
            if command.split == "validation":
                self._evaluating = False
                self._epoch_done(result)
            else:
                self._change(results=(*self.record.results, result))
                self._publish("evaluation", **msgspec.to_builtins(result))
                if self.spec.kind == "evaluate":
                    self._stage = "end"
                    self._move("complete", "")
        elif isinstance(command, Predict):
            outputs = [msgspec.msgpack.decode(d.result, type=Predictions).outputs for d in answers.values() if d.result]
            merged = {name: chunks for found in outputs for name, chunks in found.items()}
            self._change(predictions=Predictions(merged))
            self._stage = "end"
            self._move("complete", "")
        elif isinstance(command, Checkpoint):
            self._parts_written(command.sequence, answers)

    def _evaluation(self, split: str, answers: dict[NodeId, Done]) -> SplitResult:
        loss_sum, rows, sums = 0.0, 0, {}
        for node in self._nodes:
            if answers[node].result:
                found = msgspec.msgpack.decode(answers[node].result, type=Evaluation)
                loss_sum += found.loss_sum
                rows = max(rows, found.rows)
                sums.update(found.metrics)
        metrics = {m.name: finished(m.kind, *sums[m.name]) for m in self.spec.graph.metrics if m.name in sums}
        loss = loss_sum / rows if self.spec.graph.losses and rows else None
        return SplitResult(split, rows, loss, metrics)

    def _epoch_done(self, validation: SplitResult | None) -> None:
        self._epoch += 1
        entry = self._meter.end_epoch(self._epoch, self._step_done, self._now)
        improved = False
        if validation is not None:
            if validation.loss is not None:
                entry["validation_loss"] = validation.loss
            entry |= {f"validation_{name}": value for name, value in validation.metrics.items()}
            improved = self._improves(validation)
        self._history = (*self._history, entry)
        self._publish("epoch", **entry, epochs=self.spec.epochs)
        self._change(epoch=self._epoch, history=self._history)
        self._checkpoint(best=improved)
        if self._over():
            self._stage = "close"
            self._move("complete", "")

    def _over(self) -> bool:
        """Whether the last epoch is done, or `patience` epochs brought nothing better."""
        patience = self.spec.patience
        early = bool(patience and self._best_epoch and self._epoch - self._best_epoch >= patience)
        self._change(stopped_early=early and self._epoch < self.spec.epochs)
        return early or self._epoch >= self.spec.epochs

    def _end_script(self) -> None:
        best = self.record.best
        if self.spec.patience and self._best_epoch != self._epoch and best is not None:
            self._order(Restore(self._next(), tuple(part.blob for part in best.parts)))
        if self.spec.test is not None:
            self._order(Evaluate(self._next(), "test"))

    def _improves(self, validation: SplitResult) -> bool:
        goals = {m.name: m.goal for m in self.spec.graph.metrics}
        value = validation.metrics.get(self.spec.monitor, validation.loss)
        if value is None or value != value:
            return False
        higher = goals.get(self.spec.monitor, "min") == "max"
        best = self._best_value
        if best is not None and not (value > best if higher else value < best):
            return False
        self._best_value, self._best_epoch = value, self._epoch
        return True

    def _finish(self) -> None:
        """The script is through: say what came out, give the nodes back."""
        if self.spec.kind == "train":
            result = self.record.outcome
            if result is None or (result is not self.record.best and result.step != self._step_done):
                self._end(
                    "fail", "the last checkpoint could not be written, so there is no result; see the warnings above"
                )
                return
            names = [p.name for p in (*self.spec.graph.parameters, *self.spec.graph.state)]
            self._change(bits=fingerprint(result.parts, names))
            self._publish(
                "result",
                bits=self.record.bits,
                step=result.step,
                epoch=result.epoch,
                stopped_early=self.record.stopped_early,
                evaluation=msgspec.to_builtins(self.record.results),
            )
        self._actions.append(Order(Finish()))
        self._end("gathered", "")

    # --- checkpoints

    def _checkpoint(self, *, best: bool) -> None:
        manifest = Manifest(
            job=self.record.job,
            spec=self.record.spec,
            step=self._step_granted,
            epoch=self._epoch,
            parts=(),
            best_value=self._best_value,
            best_epoch=self._best_epoch,
            history=self._history,
            finished=self._epoch >= self.spec.epochs,
        )
        command = Checkpoint(self._next())
        self._checkpointing[command.sequence] = (manifest, best)
        self._order(command)

    def _parts_written(self, sequence: int, answers: dict[NodeId, Done]) -> None:
        manifest, best = self._checkpointing.pop(sequence)
        errors = [f"node {self._name(n)}: {answers[n].error}" for n in self._nodes if answers[n].error]
        if errors:
            self._checkpoint_failed(manifest, "; ".join(errors))
            return
        parts = tuple(msgspec.msgpack.decode(answers[n].result, type=Part) for n in self._nodes)
        self._saver.save(msgspec.structs.replace(manifest, parts=parts), best=best)
        self._settle()

    def _settle(self) -> None:
        """Carry out what the saver wants, and take what has come of it."""
        while self._saver.requests:
            self._actions.append(self._saver.requests.popleft())
        while (outcome := self._saver.next_outcome()) is not None:
            match outcome:
                case Complete(manifest, best):
                    self._checkpoint_complete(manifest, best)
                case Incomplete(manifest, error):
                    self._checkpoint_failed(manifest, error)
                case DataAlone(error):
                    self._publish("warning", text=f"the data has {error}")

    def _checkpoint_complete(self, manifest: Manifest, best: bool) -> None:
        kept = (*self.record.checkpoints, manifest)[-KEPT_CHECKPOINTS:]
        self._change(checkpoints=kept, step=manifest.step, best=manifest if best else self.record.best)
        self._remember()
        self._publish("checkpoint", step=manifest.step, epoch=manifest.epoch, complete=True, error="")
        if self.record.state == "pausing" and manifest.step == self._step_done == self._step_granted:
            self._actions.append(Order(Finish()))
            self._end("saved", f"paused at step {manifest.step}")

    def _checkpoint_failed(self, manifest: Manifest, error: str) -> None:
        self._publish("checkpoint", step=manifest.step, epoch=manifest.epoch, complete=False, error=error)
        if self.record.state == "pausing":
            self._move("unsaved", f"not paused, because the checkpoint could not be written: {error}")

    # --- the record

    def _end(self, event: str, reason: str) -> None:
        self._move(event, reason)
        self._actions.extend(ReleaseNode(node) for node in (*self._granted, *([self._asked] if self._asked else [])))
        self._granted.clear()
        self._asked = None
        self._outstanding.clear()

    def _move(self, event: str, reason: str) -> None:
        state = life.after(self.record.state, event)
        self._change(state=state, reason=reason, step=max(self.record.step, self._step_done))
        self._remember()
        self._tell_state(reason)

    def _tell_state(self, reason: str) -> None:
        self._publish("state", state=self.record.state, reason=reason)

    def _change(self, **fields: Any) -> None:
        self.record = msgspec.structs.replace(self.record, **fields)

    def _remember(self) -> None:
        self._change(revision=self.record.revision + 1)
        self._actions.append(Remember(self.record))

    def _publish(self, kind: str, **fields: Any) -> None:
        self._actions.append(Publish(kind, fields))

    def _order(self, command: Command) -> None:
        if not isinstance(command, Finish):
            self._outstanding[command.sequence] = _Outstanding(command, self._now)
        self._actions.append(Order(command))

    # --- small questions

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _epoch_end(self) -> int:
        return (self._epoch + 1) * self.spec.steps_per_epoch

    def _shown_epoch(self) -> int:
        return min(self._epoch + 1, self.spec.epochs)

    def _ahead(self) -> int:
        return sum(isinstance(o.command, Train) for o in self._outstanding.values())

    def _piece(self) -> int:
        return max(1, int(self._steps_per_s * PIECE_S)) if self._steps_per_s else FIRST_PIECE_STEPS

    def _name(self, node: NodeId) -> str:
        shares = self.record.plan.nodes if self.record.plan else ()
        return self.members.get(node) or next((s.name for s in shares if s.node == node), node[:8])
