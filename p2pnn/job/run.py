"""The script of a run: which command comes next, and what the answers mean. See `job.script` for the commands.

    per epoch: Train … Train (pieces of half a second, two ahead), Evaluate(validation), Checkpoint
    at the end: Restore (only where the best epoch was not the last), Evaluate(test), Finish
    to go on with a text: Sample … Sample (each with the token that the answer before it gave), Finish

Nothing that was granted is taken back: a pause takes effect where the granted steps end, at the same step on every node.
A checkpoint counts when each node's part is verified there and on a buddy (see `job.saving`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from p2pnn.errors import JobFailedError
from p2pnn.job import answers
from p2pnn.job.actions import Order
from p2pnn.job.checkpoint import Manifest, fingerprint
from p2pnn.job.ledger import Ledger
from p2pnn.job.monitor import Monitor
from p2pnn.job.progress import ProgressMeter
from p2pnn.job.records import KEPT_CHECKPOINTS, SplitResult
from p2pnn.job.sampling import Sampler
from p2pnn.job.saving import Complete, DataAlone, Saver
from p2pnn.job.script import (
    Checkpoint,
    Command,
    Done,
    Evaluate,
    Finish,
    Predict,
    Progress,
    Report,
    Restore,
    Sample,
    Train,
)
from p2pnn.job.snapshots import Interval
from p2pnn.job.spec import JobSpec
from p2pnn.job.watch import Watch
from p2pnn.types import BlobId, NodeId

PIECE_S: Final = 0.5
"""Aim for the length of one Train command: a pause waits for at most two of them."""

FIRST_PIECE_STEPS: Final = 4


@dataclass(slots=True)
class _Outstanding:
    command: Command
    since: float
    answers: dict[NodeId, Done] = field(default_factory=dict)


class Run:
    """Pure. end(event, reason) is called when the run is over: the owner changes the state and gives the nodes back.

    before: the run of this job that was lost; a text goes on where it was.
    """

    def __init__(
        self,
        ledger: Ledger,
        spec: JobSpec,
        end: Callable[[str, str], None],
        watch: Watch,
        now: float,
        before: Run | None = None,
    ) -> None:
        record = ledger.record
        resumed = record.newest
        self._ledger = ledger
        self._spec = spec
        self._end = end
        self._watch = watch
        self._nodes: list[NodeId] = []
        self.cut = ""
        self._outstanding: dict[int, _Outstanding] = {}
        self._sequence = 0
        self._saver = Saver(ledger.members, record.spec, record.generation)
        self._at(now)
        self._checkpointing: dict[int, tuple[Manifest, bool]] = {}
        self._step_granted = self._step_done = resumed.step if resumed else 0
        self._epoch = resumed.epoch if resumed else 0
        self._history = record.history[: resumed.epoch] if resumed else ()
        self._monitor = Monitor(spec, resumed)
        sampler = Sampler(spec) if spec.sampling is not None else None
        self._sampler: Sampler | None = before._sampler if before else sampler
        self._snapshots = Interval(spec.snapshot_steps)
        self._stage = spec.kind
        self._steps_per_s = 0.0
        self._evaluating = False
        self._last_error = ""
        self._meter = ProgressMeter(spec, self._step_done, now)

    @property
    def step(self) -> int:
        """Updates that all nodes have done."""
        return self._step_done

    @property
    def limit(self) -> int | None:
        """No cut behind this step can be gone on from: the best epoch's checkpoint, for early stopping, would be missing."""
        pending = [*self._saver.pending, *self._checkpointing.values()] if self._spec.patience else []
        return min((manifest.step for manifest, best in pending if best), default=None)

    def assign(self, nodes: list[NodeId], cut: str = "") -> None:
        """The nodes of the plan, in its order, and its `job.plan.cut`."""
        self._nodes = self._saver.nodes = nodes
        self.cut = cut

    def start(self, now: float) -> None:
        """All nodes are prepared."""
        self._at(now)
        self._meter.start(now, map(self._ledger.name, self._nodes))
        self._ledger.move("prepared", "", self._step_done)
        if self._spec.kind == "train" and self._over():  # resumed from the last checkpoint of all
            self._stage = "close"
            self._ledger.move("complete", "", self._step_done)
        self._advance()

    def report(self, node: NodeId, report: Report, now: float) -> None:
        """A node's Progress or Done. Raises msgspec.MsgspecError for a result that cannot be read."""
        self._at(now)
        self._watch.heard(node, now, report.sequence if isinstance(report, Done) else None)
        if isinstance(report, Progress):
            self._snapshots.add(node, report)
            event = self._meter.add(self._ledger.name(node), report, now)
            if event is not None:
                epoch = min(self._epoch + 1, self._spec.epochs)
                self._ledger.publish("progress", **event, epoch=epoch, epochs=self._spec.epochs)
            return
        outstanding = self._outstanding.get(report.sequence)
        if outstanding is None:
            return
        outstanding.answers[node] = report
        if len(outstanding.answers) == len(self._nodes):
            del self._outstanding[report.sequence]
            self._answered(outstanding)
            self._advance()

    def pause(self, now: float) -> None:
        """Stop where the granted steps end, with a checkpoint there."""
        self._at(now)
        self._ledger.move("pause", "pausing at the end of the granted steps", self._step_done)
        self._advance()

    def kept(self, node: NodeId, request: int, error: str, now: float) -> None:
        """`node` keeps the blobs of a KeepBlobs, or could not."""
        self._at(now)
        self._saver.kept(node, request, error)
        self._settle()
        self._advance()

    def member_failed(self, node: NodeId, now: float) -> None:
        """A member that is no node of the plan is gone: what it was to keep is asked of another."""
        self._at(now)
        self._saver.member_failed(node)
        self._settle()
        self._advance()

    def keep_data(self, source: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have data that only `source` holds copied to another node; no checkpoint is complete before that is done."""
        self._saver.keep_data(source, blobs)
        self._settle()

    def get_timer(self) -> float | None:
        """When handle_timer is to be called, for copies that nobody answers for."""
        return self._saver.get_timer()

    def handle_timer(self, now: float) -> None:
        self._at(now)
        self._saver.handle_timer()
        self._settle()
        self._advance()

    # --- the script

    def _advance(self) -> None:
        """Issue every command whose time has come."""
        if self._ledger.record.state not in ("running", "pausing", "finishing"):
            return
        if self._stage in ("evaluate", "predict"):
            self._order(Evaluate(self._next(), "test") if self._stage == "evaluate" else Predict(self._next()))
            self._stage = "answer"
        elif self._stage == "train":
            self._advance_training()
        elif self._stage == "sample":
            if self._sampler is not None and not self._outstanding:
                self._order(Sample(self._next(), self._sampler.window()))
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
        if self._ledger.record.state == "pausing":
            if not training and not self._evaluating and not self._checkpointing and not self._saver.busy:
                if self._step_done < self._epoch_end():
                    self._checkpoint(best=False)
                else:
                    self._end_epoch_training()
            return
        while self._step_granted < self._epoch_end() and self._ahead() < 2:
            until = min(self._step_granted + self._piece(), self._epoch_end())
            every = self._spec.checkpoint_steps
            if every:
                until = min(until, (self._step_granted // every + 1) * every)
            self._step_granted = until
            self._order(Train(self._next(), until, self._snapshots.steps if len(self._ledger.members) > 1 else 0))
            if every and until % every == 0 and until < self._epoch_end() and not self._saver.busy:
                self._checkpoint(best=False)  # none while one is being copied: slow links must not pile them up
        if not training and self._step_done >= self._epoch_end() and not self._evaluating:
            self._end_epoch_training()

    def _end_epoch_training(self) -> None:
        if self._spec.validation is not None:
            self._evaluating = True
            self._order(Evaluate(self._next(), "validation"))
        else:
            self._epoch_done(None)

    def _answered(self, outstanding: _Outstanding) -> None:
        """All nodes have answered a command."""
        command, found = outstanding.command, outstanding.answers
        if isinstance(command, Train):
            elapsed = max(1e-6, self._now - outstanding.since)
            self._steps_per_s = max(self._steps_per_s * 0.5, (command.until_step - self._step_done) / elapsed)
            self._step_done = max(self._step_done, command.until_step)  # a large answer may be overtaken
        elif isinstance(command, Evaluate):
            result = answers.evaluation(self._spec, command.split, self._nodes, found)
            if command.split == "validation":
                self._evaluating = False
                self._epoch_done(result)
            else:
                self._ledger.change(results=(*self._ledger.record.results, result))
                self._ledger.publish("evaluation", **msgspec.to_builtins(result))
                if self._spec.kind == "evaluate":
                    self._stage = "end"
                    self._ledger.move("complete", "", self._step_done)
        elif isinstance(command, Predict):
            self._ledger.change(predictions=answers.predictions(self._nodes, found))
            self._stage = "end"
            self._ledger.move("complete", "", self._step_done)
        elif isinstance(command, Sample):
            self._drawn(answers.scores(self._nodes, found))
        elif isinstance(command, Checkpoint):
            self._parts_written(command.sequence, found)

    def _drawn(self, scores: bytes) -> None:
        """The text has one more token."""
        assert self._sampler is not None
        try:
            self._ledger.publish("tokens", tokens=[self._sampler.take(scores)])
        except JobFailedError as error:
            self._end("fail", str(error))
            return
        if self._sampler.done:
            self._stage = "end"
            self._ledger.move("complete", "", self._step_done)

    def _epoch_done(self, validation: SplitResult | None) -> None:
        self._epoch += 1
        entry = self._meter.end_epoch(self._epoch, self._step_done, self._now)
        improved = False
        if validation is not None:
            if validation.loss is not None:
                entry["validation_loss"] = validation.loss
            entry |= {f"validation_{name}": value for name, value in validation.metrics.items()}
            improved = self._monitor.improves(self._epoch, validation)
        self._history = (*self._history, entry)
        self._ledger.publish("epoch", **entry, epochs=self._spec.epochs)
        self._ledger.change(epoch=self._epoch, history=self._history)
        self._checkpoint(best=improved)
        if self._over():
            self._stage = "close"
            self._ledger.move("complete", "", self._step_done)

    def _over(self) -> bool:
        """Whether the last epoch is done, or the run is to be stopped early."""
        early = self._monitor.stops(self._epoch)
        self._ledger.change(stopped_early=early and self._epoch < self._spec.epochs)
        return early or self._epoch >= self._spec.epochs

    def _end_script(self) -> None:
        best = self._ledger.record.best
        if self._spec.patience and self._monitor.best_epoch != self._epoch and best is not None:
            self._order(Restore(self._next(), tuple(part.blob for part in best.parts)))
        if self._spec.test is not None:
            self._order(Evaluate(self._next(), "test"))

    def _finish(self) -> None:
        """The script is through: say what came out, give the nodes back."""
        if self._spec.kind == "train":
            result = self._ledger.record.outcome
            if result is None or (result is not self._ledger.record.best and result.step != self._step_done):
                self._end(
                    "fail", f"the last checkpoint could not be written, so there is no result: {self._last_error}"
                )
                return
            self._ledger.change(bits=fingerprint(result.parts))
            self._ledger.publish(
                "result",
                bits=self._ledger.record.bits,
                step=result.step,
                epoch=result.epoch,
                stopped_early=self._ledger.record.stopped_early,
                evaluation=msgspec.to_builtins(self._ledger.record.results),
            )
        self._ledger.do(Order(Finish()))
        self._end("gathered", "")

    # --- checkpoints

    def _checkpoint(self, *, best: bool) -> None:
        manifest = Manifest(
            job=self._ledger.record.job,
            spec=self._ledger.record.spec,
            step=self._step_granted,
            epoch=self._epoch,
            parts=(),
            best_value=self._monitor.best_value,
            best_epoch=self._monitor.best_epoch,
            finished=self._epoch >= self._spec.epochs,
            cut=self.cut,
        )
        command = Checkpoint(self._next())
        self._checkpointing[command.sequence] = (manifest, best)
        self._order(command)

    def _parts_written(self, sequence: int, found: dict[NodeId, Done]) -> None:
        manifest, best = self._checkpointing.pop(sequence)
        errors = [f"node {self._ledger.name(n)}: {found[n].error}" for n in self._nodes if found[n].error]
        if errors:
            self._checkpoint_failed(manifest, "; ".join(errors))
            return
        parts = answers.parts(self._nodes, found)
        self._saver.save(msgspec.structs.replace(manifest, parts=parts), best=best)
        self._settle()

    def _settle(self) -> None:
        """Carry out what the saver wants, and take what has come of it."""
        while self._saver.requests:
            self._ledger.do(self._saver.requests.popleft())
        while (outcome := self._saver.next_outcome()) is not None:
            match outcome:
                case Complete(manifest, best, warnings):
                    for text in warnings:
                        self._ledger.publish("warning", text=f"the checkpoint of step {manifest.step} has {text}")
                    self._checkpoint_complete(manifest, best)
                case DataAlone(error):
                    self._ledger.publish("warning", text=f"the data has {error}")

    def _checkpoint_complete(self, manifest: Manifest, best: bool) -> None:
        kept = (*self._ledger.record.checkpoints, manifest)[-KEPT_CHECKPOINTS:]
        self._ledger.change(checkpoints=kept, step=manifest.step, best=manifest if best else self._ledger.record.best)
        self._ledger.remember()
        self._ledger.publish("checkpoint", step=manifest.step, epoch=manifest.epoch, complete=True, error="")
        if self._ledger.record.state == "pausing" and manifest.step == self._step_done == self._step_granted:
            self._ledger.do(Order(Finish()))
            self._end("saved", f"paused at step {manifest.step}")

    def _checkpoint_failed(self, manifest: Manifest, error: str) -> None:
        self._last_error = error
        self._ledger.publish("checkpoint", step=manifest.step, epoch=manifest.epoch, complete=False, error=error)
        if self._ledger.record.state == "pausing":
            self._ledger.move(
                "unsaved", f"not paused, because the checkpoint could not be written: {error}", self._step_done
            )

    # --- small questions

    def _order(self, command: Command) -> None:
        if not isinstance(command, Finish):
            self._outstanding[command.sequence] = _Outstanding(command, self._now)
            for node in self._nodes:
                self._watch.expect(node, command.sequence, self._now, training=isinstance(command, Train))
        self._ledger.do(Order(command))

    def _at(self, now: float) -> None:
        self._now = self._saver.now = now

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _epoch_end(self) -> int:
        return (self._epoch + 1) * self._spec.steps_per_epoch

    def _ahead(self) -> int:
        return sum(isinstance(o.command, Train) for o in self._outstanding.values())

    def _piece(self) -> int:
        return max(1, int(self._steps_per_s * PIECE_S)) if self._steps_per_s else FIRST_PIECE_STEPS
