"""The script of a run: which command comes next, and what the answers mean. See `job.script` for the commands.

    per epoch: Train … Train (pieces of half a second, a few ahead), Evaluate(validation), Checkpoint
    at the end: Restore (only where the best epoch was not the last), Evaluate(test), Finish
    to go on with a text: Sample … Sample (each with the token that the answer before it gave), Finish

Nothing that was granted is taken back: a pause takes effect where the granted steps end, at the same step on every node.
A checkpoint counts when each node's part is verified there and on a buddy (see `job.saving`). Where a run goes on without a lost
node (`job.failover`), an evaluation or checkpoint that was under way is ordered anew of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2pnn.job import answers, life, results, run_state
from p2pnn.job.actions import Order
from p2pnn.job.assignment import gone_workers
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.checkpointing import Checkpointing
from p2pnn.job.ledger import Ledger
from p2pnn.job.monitor import Monitor
from p2pnn.job.orders import Issued, Orders
from p2pnn.job.pace import AHEAD, Pace
from p2pnn.job.part_log import Totals
from p2pnn.job.progress import ProgressMeter
from p2pnn.job.records import SplitResult
from p2pnn.job.run_state import RunState
from p2pnn.job.sampling import Sampler
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
from p2pnn.job.spec import JobSpec
from p2pnn.job.watch import Watch
from p2pnn.types import NodeId


class Run:
    """Pure. end(event, reason) is called when the run is over: the owner changes the state and gives the nodes back."""

    def __init__(
        self, ledger: Ledger, spec: JobSpec, end: Callable[[str, str], None], watch: Watch, now: float
    ) -> None:
        record, resumed = ledger.record, ledger.record.newest
        self._ledger = ledger
        self._spec = spec
        self._end = end
        self._watch = watch
        self._nodes: list[NodeId] = []
        self.cut = ""
        self._orders = Orders(watch)
        self.checkpoints = Checkpointing(ledger, self._checkpoint_complete, self._checkpoint_failed)
        self._at(now)
        self._step_granted = self._step_done = resumed.step if resumed else 0
        self._epoch = resumed.epoch if resumed else 0
        self._history = record.history[: resumed.epoch] if resumed else ()
        self._monitor = Monitor(spec, resumed)
        self.sampler = Sampler(spec) if spec.sampling is not None else None
        self._stage, self._pace = spec.kind, Pace()
        self._gone = self._gone_workers = tuple[int, ...]()
        self._can_lose = self._evaluating = False
        self.meter = ProgressMeter(spec, self._step_done, now, resumed.uneven if resumed else (0, 0))

    @property
    def step(self) -> int:
        """Updates that all nodes have done."""
        return self._step_done

    @property
    def left_s(self) -> float | None:
        """How long training will last, at most; None while that is not known."""
        return self._pace.left_s(self._spec.steps - self._step_done)

    def assign(self, nodes: list[NodeId], cut: str = "", *, can_lose: bool = False) -> None:
        """The nodes of the plan, in its order, and its `job.plan.cut`. can_lose: the run may go on without one of them."""
        self._nodes = self._orders.nodes = list(nodes)
        self.checkpoints.assign(list(nodes))
        self.cut, self._can_lose = cut, can_lose

    def start(self, now: float) -> None:
        """All nodes are prepared."""
        self._at(now)
        self.meter.start(now, map(self._ledger.name, self._nodes), self._ledger.record.plan)
        self._ledger.move("prepared", "", self._step_done)
        if self._spec.kind == "train" and self._over():  # resumed from the last checkpoint of all
            self._complete("close")
        self._go_on()

    def take_over(self, state: RunState, commands: dict[int, Command], totals: list[Totals], now: float) -> None:
        """Stand where another coordinator did. Call `without` then, with who is gone since, and `report` the answers that nodes
        gave since. The record's state is set already.

        commands: those without all answers, by number, sent again here. totals: what each node of the plan has reported.
        """
        self._at(now)
        self._orders.last = state.sequence
        self._step_granted, self._step_done, self._epoch = state.step_granted, state.step_done, state.epoch
        self._history = self._ledger.record.history
        self._stage, self._evaluating, self._pace.steps_per_s = state.stage, state.evaluating, state.steps_per_s
        self._monitor.best_value, self._monitor.best_epoch = state.best_value, state.best_epoch
        for number, manifest, best in state.checkpointing:
            self.checkpoints.begin(number, manifest, best=best)
        names = list(map(self._ledger.name, self._nodes))
        counted = dict(zip(names, state.counted, strict=True))
        self.meter.take_over(counted, state.epoch_sums, state.step_done, now, self._ledger.record.plan, state.uneven)
        self._does_without(state.gone)
        self._orders.nodes = [node for index, node in enumerate(self._nodes) if index not in state.gone]
        self.meter.catch_up(dict(zip(names, totals, strict=True)), now)
        for number in sorted(state.outstanding):
            self._order(commands[number])
        for manifest, best, writers in state.copies(len(self._nodes)):
            self.checkpoints.copy(manifest, best=best, writers=writers)

    def report(self, node: NodeId, report: Report, now: float) -> None:
        """A node's Progress or Done. Raises msgspec.MsgspecError for a result that cannot be read."""
        self._at(now)
        self._watch.heard(node, now, report.sequence if isinstance(report, Done) else None)
        if isinstance(report, Progress):
            event, epoch = self.meter.add(self._ledger.name(node), report, now), min(self._epoch + 1, self._spec.epochs)
            if event is not None:
                self._ledger.publish("progress", **event, epoch=epoch, epochs=self._spec.epochs)
            for text in self.meter.take_warnings():
                self._ledger.publish("warning", text=text)
            return
        if (issued := self._orders.answer(node, report)) is not None:
            self._answered(issued)
            self._go_on()

    def without(self, gone: Iterable[int], now: float) -> None:
        """These nodes of the plan take part no more; the others go on."""
        self._at(now)
        for index in gone:
            self._does_without((*self._gone, index))
            complete, withdrawn = self._orders.without(self._nodes[index], now)
            for issued in complete:
                self._answered(issued)
            self._order_again(withdrawn)
            self.checkpoints.member_failed(self._nodes[index])
            if self._ledger.record.state not in life.RUNNING:
                return
        self._go_on()

    def pause(self, now: float) -> None:
        """Stop where the granted steps end, with a checkpoint there."""
        self._at(now)
        self._ledger.move("pause", "pausing at the end of the granted steps", self._step_done)
        self._go_on()

    def copying(self, tell: Callable[[Checkpointing], None], now: float) -> None:
        """Something has become of copies of checkpoints: what came of it, or who is to keep one no more."""
        self._at(now)
        tell(self.checkpoints)
        self._go_on()

    # --- the script

    def _go_on(self) -> None:
        if self._ledger.record.state in life.RUNNING:  # else what came last has ended the run
            self._advance()
            self._send()

    def _advance(self) -> None:
        """Issue every command whose time has come."""
        if self._stage in ("evaluate", "predict"):
            if self._stage == "evaluate":
                self._evaluate("test")
            else:
                self._order(Predict(self._orders.next()))
            self._stage = "answer"
        elif self._stage == "train":
            self._advance_training()
        elif self._stage == "sample" and self.sampler is not None and not self._orders.open:
            self._order(Sample(self._orders.next(), self.sampler.window()))
        elif self._orders.open or self.checkpoints.is_copying:
            return
        elif self._stage == "close":
            self._end_script()
            self._stage = "end"
            self._advance()
        elif self._stage == "end":
            self._finish()

    def _advance_training(self) -> None:
        training = self._orders.training
        if self._ledger.record.state == "pausing":
            saving = self.checkpoints.writing or self.checkpoints.is_copying
            if not training and not self._evaluating and not saving:
                if self._step_done < self._epoch_end():
                    self._checkpoint(best=False)
                else:
                    self._end_epoch_training()
            return
        while self._step_granted < self._epoch_end() and self._orders.training < AHEAD and not self._writes_best():
            until = min(self._step_granted + self._pace.piece(), self._epoch_end())
            every = self._spec.checkpoint_steps
            if every:
                until = min(until, (self._step_granted // every + 1) * every)
            self._step_granted = until
            self._pace.granted(self._orders.next(), self._step_done, self.now)
            self._order(Train(self._orders.last, until, self.meter.interval.steps * (len(self._ledger.members) > 1)))
            if every and until % every == 0 and until < self._epoch_end() and not self.checkpoints.is_copying:
                self._checkpoint(best=False)  # none while one is being copied: slow links must not pile them up
        if not training and self._step_done >= self._epoch_end() and not self._evaluating:
            self._end_epoch_training()

    def _end_epoch_training(self) -> None:
        if self._spec.validation is not None:
            self._evaluating = True
            self._evaluate("validation")
        else:
            self._epoch_done(None)

    def _writes_best(self) -> bool:
        """Whether nodes write a best epoch that the job may end with: should one of them be lost, it is to be written anew by the
        others, which must not have trained on."""
        return self._can_lose and bool(self._spec.patience) and any(best for _, _, best in self.checkpoints.writing)

    def _does_without(self, gone: tuple[int, ...]) -> None:
        self._gone, plan = gone, self._ledger.record.plan
        self._gone_workers = gone_workers(gone, plan) if plan is not None else ()
        for index in gone:
            self.meter.without(self._ledger.name(self._nodes[index]))

    def _order_again(self, withdrawn: Sequence[Command]) -> None:
        """Order anew, of those that are left, what was under way. A checkpoint is then of where the granted steps end."""
        saves = [self.checkpoints.withdraw(c.sequence) for c in withdrawn if isinstance(c, Checkpoint)]
        if saves:
            self._checkpoint(best=any(best and manifest.step == self._step_granted for manifest, best in saves))
        splits = [command.split for command in withdrawn if isinstance(command, Evaluate)]
        if "validation" in splits:
            self._evaluate("validation")
        if "test" in splits:
            self._end_script()  # parameters that were restored are evaluated once, so they are restored again

    def _answered(self, issued: Issued) -> None:
        """All nodes that take part have answered a command."""
        command, found = issued.command, issued.answers
        if isinstance(command, Train):
            self._step_done = max(self._step_done, command.until_step)  # a large answer may be overtaken
            self._pace.trained(command.sequence, self._step_done, self.now)
            self.meter.uneven = max(done.uneven for done in found.values())
        elif isinstance(command, Evaluate):
            result = answers.evaluation(self._spec, command.split, self._nodes, found)
            if command.split == "validation":
                self._evaluating = False
                self._epoch_done(result)
            else:
                results.evaluated(self._ledger, result)
                if self._spec.kind == "evaluate":
                    self._complete("end")
        elif isinstance(command, Predict):
            self._ledger.change(predictions=answers.predictions(self._nodes, found))
            self._complete("end")
        elif isinstance(command, Sample):
            self._drawn(answers.scores(self._nodes, found))
        elif isinstance(command, Checkpoint):
            self.checkpoints.written(command.sequence, found, self.meter.uneven)

    def _drawn(self, scores: bytes) -> None:
        """The text has one more token."""
        assert self.sampler is not None
        if error := results.drawn(self._ledger, self.sampler, scores):
            self._end("fail", error)
        elif self.sampler.done:
            self._complete("end")

    def _epoch_done(self, validation: SplitResult | None) -> None:
        self._epoch += 1
        entry = self.meter.end_epoch(self._epoch, self._step_done, self.now)
        if validation is not None:
            entry = results.with_validation(entry, validation)
        improved = validation is not None and self._monitor.improves(self._epoch, validation)
        self._history = (*self._history, entry)
        self._ledger.publish("epoch", **entry, epochs=self._spec.epochs)
        self._ledger.change(epoch=self._epoch, history=self._history)
        self._checkpoint(best=improved)
        if self._over():
            self._complete("close")

    def _over(self) -> bool:
        """Whether the last epoch is done, or the run is to be stopped early."""
        early = self._monitor.stops(self._epoch)
        self._ledger.change(stopped_early=early and self._epoch < self._spec.epochs)
        return early or self._epoch >= self._spec.epochs

    def _complete(self, stage: str) -> None:
        """Only the end of the script, from this stage on, is still to come."""
        self._stage = stage
        self._ledger.move("complete", "", self._step_done)

    def _end_script(self) -> None:
        best = self._ledger.record.best
        if self._spec.patience and self._monitor.best_epoch != self._epoch and best is not None:
            self._order(Restore(self._orders.next(), tuple(part.blob for part in best.parts)))
        if self._spec.test is not None:
            self._evaluate("test")

    def _finish(self) -> None:
        """The script is through: say what came out, give the nodes back."""
        if self._spec.kind == "train" and (
            error := results.trained(self._ledger, self._step_done, self.checkpoints.last_error)
        ):
            self._end("fail", error)
            return
        self._order(Finish())
        self._send()
        self._end("gathered", "")

    # --- checkpoints

    def _checkpoint(self, *, best: bool) -> None:
        record, over = self._ledger.record, self._epoch >= self._spec.epochs
        best_so_far = (self._monitor.best_value, self._monitor.best_epoch)
        manifest = Manifest(
            record.job, record.spec, self._step_granted, self._epoch, (), *best_so_far, finished=over, cut=self.cut
        )
        command = Checkpoint(self._orders.next(), self._gone_workers)
        self.checkpoints.begin(command.sequence, manifest, best=best)
        self._order(command)

    def _checkpoint_complete(self, manifest: Manifest) -> None:
        if self._ledger.record.state == "pausing" and manifest.step == self._step_done == self._step_granted:
            self._order(Finish())
            self._send()
            self._end("saved", f"paused at step {manifest.step}")

    def _checkpoint_failed(self, error: str, torn: tuple[Manifest, bool] | None) -> None:
        """torn: the checkpoint, and whether it was the best epoch, where a node was lost that alone had a part of it."""
        if torn is not None and self._can_lose:
            manifest, best = torn
            if manifest.step == self._step_granted:
                self._checkpoint(best=best)
            elif best and self._spec.patience:  # nobody has its parameters any more, and the job may end with them
                self._end("lose", f"the checkpoint of the best epoch is lost: {error}")
        elif self._ledger.record.state == "pausing":
            self._ledger.change(vacating="")
            reason = f"not paused, because the checkpoint could not be written: {error}"
            self._ledger.move("unsaved", reason, self._step_done)

    # --- small questions

    def _evaluate(self, split: str) -> None:
        self._order(Evaluate(self._orders.next(), split, self._gone_workers))

    def _order(self, command: Command) -> None:
        self._orders.issue(command, self.now)

    def _send(self) -> None:
        """Send what was issued at once, with where the script stands now: nobody must get a part of it without the rest."""
        if commands := self._orders.take():
            state = run_state.encode(self._state()) if self._spec.kind == "train" else b""
            self._ledger.do(Order(commands, self._orders.oldest, state, tuple(self._orders.nodes)))

    def _state(self) -> RunState:
        record = self._ledger.record
        counted, epoch_sums = self.meter.tell(map(self._ledger.name, self._nodes))
        return RunState(
            sequence=self._orders.last,
            step_granted=self._step_granted,
            step_done=self._step_done,
            epoch=self._epoch,
            told=len(self._ledger.remembered.history),
            history=self._history[len(self._ledger.remembered.history) :],
            stage=self._stage,
            state=record.state,
            reason=record.reason,
            evaluating=self._evaluating,
            steps_per_s=self._pace.steps_per_s,
            best_value=self._monitor.best_value,
            best_epoch=self._monitor.best_epoch,
            stopped_early=record.stopped_early,
            results=record.results,
            outstanding=self._orders.open,
            checkpointing=self.checkpoints.writing,
            saving=self.checkpoints.copying,
            cut=self.cut,
            revision=self._ledger.remembered.revision,
            counted=counted,
            epoch_sums=epoch_sums,
            writers=self.checkpoints.writers,
            gone=self._gone,
            uneven=self.meter.uneven,
        )

    def _at(self, now: float) -> None:
        self.now = now
        self.checkpoints.at(now)

    def _epoch_end(self) -> int:
        return (self._epoch + 1) * self._spec.steps_per_epoch
