"""A run's checkpoints: ordered by the script, written by the nodes, copied to buddies, and then in the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from p2pnn.job import answers
from p2pnn.job.checkpoint import RECUT, Manifest
from p2pnn.job.ledger import Ledger
from p2pnn.job.plan import Plan, cut
from p2pnn.job.records import KEPT_CHECKPOINTS, term_of
from p2pnn.job.saving import Complete, DataAlone, Saver, Torn
from p2pnn.job.script import Done
from p2pnn.job.spec import JobSpec
from p2pnn.types import BlobId, NodeId


class Checkpointing:
    """Pure. completed(manifest) and failed(error, torn) are called when the record and its followers know already. torn:
    (manifest, whether it is the best epoch) where it was written, and a node that alone had a part is lost.

    Verbs that name no time belong to the last one that did.
    """

    def __init__(
        self,
        ledger: Ledger,
        completed: Callable[[Manifest], None],
        failed: Callable[[str, tuple[Manifest, bool] | None], None],
    ) -> None:
        record = ledger.record
        self.last_error = ""
        self._ledger = ledger
        self._completed = completed
        self._failed = failed
        self._writing: dict[int, tuple[Manifest, bool]] = {}
        self._saver = Saver(ledger.members, record.spec, record.starts, term_of(record))
        self._nodes: list[NodeId] = []

    @property
    def writing(self) -> tuple[tuple[int, Manifest, bool], ...]:
        """(number of the command, manifest without parts, whether it is the best epoch) of those that nodes write."""
        return tuple((number, *saving) for number, saving in self._writing.items())

    @property
    def copying(self) -> tuple[tuple[Manifest, bool], ...]:
        """(manifest, whether it is the best epoch) of those that wait for copies."""
        return self._saver.waiting

    @property
    def writers(self) -> tuple[tuple[int, ...], ...]:
        """For each of `copying`: which node of the plan wrote each part."""
        return self._saver.writers

    @property
    def oldest_best(self) -> int | None:
        """The step of the oldest of the best epoch that is not complete yet."""
        return oldest_best(self.writing, self.copying)

    @property
    def is_copying(self) -> bool:
        return self._saver.busy

    def assign(self, nodes: list[NodeId]) -> None:
        """The nodes of the plan, in its order."""
        self._nodes = self._saver.nodes = nodes

    def at(self, now: float) -> None:
        self._saver.now = now

    def begin(self, number: int, manifest: Manifest, *, best: bool) -> None:
        """The nodes are told to write their parts, by the command of this number."""
        self._writing[number] = (manifest, best)

    def withdraw(self, number: int) -> tuple[Manifest, bool]:
        """The command of this number is answered for by nobody: (its manifest, whether it is the best epoch)."""
        return self._writing.pop(number)

    def written(self, number: int, found: dict[NodeId, Done], uneven: tuple[int, int] = (0, 0)) -> None:
        """All nodes that take part have answered: have the parts copied, or give up where one could not write. uneven: as
        of `checkpoint.Manifest`."""
        manifest, best = self._writing.pop(number)
        errors = [
            f"node {self._ledger.name(n)}: {found[n].error}" for n in self._nodes if n in found and found[n].error
        ]
        if errors:
            self._give_up(manifest, "; ".join(errors))
            return
        parts, writers = answers.parts(self._nodes, found)
        self.copy(msgspec.structs.replace(manifest, parts=parts, uneven=uneven), best=best, writers=writers)

    def copy(self, manifest: Manifest, *, best: bool, writers: Sequence[int] = ()) -> None:
        """Have a checkpoint that is written copied. writers: which node of the plan wrote each part; () for part i by node i."""
        self._saver.save(manifest, best=best, writers=writers)
        self._settle()

    def keep_data(self, source: NodeId, blobs: tuple[BlobId, ...]) -> None:
        """Have data that only `source` holds copied to another node; no checkpoint is complete before that is done."""
        self._saver.keep_data(source, blobs)
        self._settle()

    def kept(self, node: NodeId, request: int, error: str) -> None:
        """`node` keeps the blobs of a KeepBlobs, or could not."""
        self._saver.kept(node, request, error)
        self._settle()

    def member_failed(self, node: NodeId) -> None:
        """What a lost member was to keep is asked of another."""
        self._saver.member_failed(node)
        self._settle()

    def get_timer(self) -> float | None:
        """When handle_timer is to be called, for copies that nobody answers for."""
        return self._saver.get_timer()

    def handle_timer(self) -> None:
        self._saver.handle_timer()
        self._settle()

    # --- how

    def _settle(self) -> None:
        """Carry out what the saver wants, and take what has come of it."""
        while self._saver.requests:
            self._ledger.do(self._saver.requests.popleft())
        while (outcome := self._saver.next_outcome()) is not None:
            match outcome:
                case Complete(manifest, best, warnings):
                    for text in warnings:
                        self._ledger.publish("warning", text=f"the checkpoint of step {manifest.step} has {text}")
                    self._complete(manifest, best)
                case Torn(manifest, error, best):
                    self._give_up(manifest, error, (manifest, best))
                case DataAlone(error):
                    self._ledger.publish("warning", text=f"the data has {error}")

    def _give_up(self, manifest: Manifest, error: str, torn: tuple[Manifest, bool] | None = None) -> None:
        self.last_error = error
        self._publish(manifest, complete=False, error=error)
        self._failed(error, torn)

    def _complete(self, manifest: Manifest, best: bool) -> None:
        if (
            manifest not in self._ledger.record.checkpoints
        ):  # else copied twice, because the coordinator changed meanwhile
            kept = (*self._ledger.record.checkpoints, manifest)[-KEPT_CHECKPOINTS:]
            best_now = manifest if best else self._ledger.record.best
            self._ledger.change(checkpoints=kept, step=manifest.step, best=best_now)
            self._ledger.remember()
            self._publish(manifest, complete=True, error="")
        self._completed(manifest)

    def _publish(self, manifest: Manifest, *, complete: bool, error: str) -> None:
        fields = {"step": manifest.step, "epoch": manifest.epoch, "complete": complete, "error": error}
        self._ledger.publish("checkpoint", **fields)


def oldest_best(writing: Iterable[tuple[int, Manifest, bool]], copying: Iterable[tuple[Manifest, bool]]) -> int | None:
    """The step of the oldest checkpoint of a best epoch among these."""
    pending = [*copying, *((manifest, best) for _, manifest, best in writing)]
    return min((manifest.step for manifest, best in pending if best), default=None)


def cut_of(spec: JobSpec, plan: Plan, resumed: Manifest | None) -> str:
    """The plan's cut, as the checkpoints of a start from `resumed` name it."""
    found = cut(spec, plan)
    return found if resumed is None or resumed.cut == found else RECUT + found


def tell_cut(spec: JobSpec, plan: Plan, ledger: Ledger) -> None:
    """Say so where the run will not repeat the bits of a run without a break."""
    resumed = ledger.record.newest
    if resumed is not None and resumed.cut.removeprefix(RECUT) != cut(spec, plan):
        ledger.publish(
            "warning",
            text=f"the run goes on from step {resumed.step} over another cut, with other delays: its bits will differ "
            "from those of a run without a break",
        )
