"""Where a coordinator's script of a training run stands, as bytes that travel with each command.

Whoever has the state that came with the newest command, and all answers to commands since, can go on exactly where the
coordinator was: what it did after that command followed from answers alone (`job.run`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnn.errors import CheckpointError
from p2pnn.job.checkpoint import Manifest
from p2pnn.job.part_log import Totals
from p2pnn.job.records import SplitResult

BYTES_MAX: Final = 24 * 1024
"""A larger one is not sent, and a takeover then begins a new start."""

STAGES: Final = frozenset({"train", "close", "end"})
"""Those that a training run goes through."""


class RunState(msgspec.Struct, frozen=True, array_like=True):
    """See `job.run.Run`, whose fields these are. revision: of the record whose first `told` epochs `history` goes on from.

    outstanding: numbers of commands without all answers. checkpointing: (number, manifest without parts, best) of
    those among them that write one. saving: (manifest, best) of checkpoints that wait for copies. counted: by node of the plan,
    the totals that its epochs hold; epoch_sums: of the epoch under way. writers: for each of `saving`, which node of the plan
    wrote each part; () where part i is node i's. gone: indices of the plan's nodes that the script does without. uneven: as of
    `checkpoint.Manifest`.
    """

    sequence: int
    step_granted: int
    step_done: int
    epoch: int
    told: int
    history: tuple[dict[str, float], ...]
    stage: str
    state: str
    reason: str
    evaluating: bool
    steps_per_s: float
    best_value: float | None
    best_epoch: int
    stopped_early: bool
    results: tuple[SplitResult, ...]
    outstanding: tuple[int, ...]
    checkpointing: tuple[tuple[int, Manifest, bool], ...]
    saving: tuple[tuple[Manifest, bool], ...]
    cut: str
    revision: int
    counted: tuple[Totals, ...]
    epoch_sums: Totals
    writers: tuple[tuple[int, ...], ...] = ()
    gone: tuple[int, ...] = ()
    uneven: tuple[int, int] = (0, 0)

    def copies(self, nodes: int) -> list[tuple[Manifest, bool, tuple[int, ...]]]:
        """`saving`, with who of so many nodes wrote each part. Raises CheckpointError where they do not fit together."""
        writers = self.writers or tuple(tuple(range(nodes)) for _ in self.saving)
        if len(writers) != len(self.saving) or any(not 0 <= writer < nodes for each in writers for writer in each):
            raise CheckpointError("the parts of its checkpoints are of other nodes")
        found = [(manifest, best, each) for (manifest, best), each in zip(self.saving, writers, strict=True)]
        if any(len(manifest.parts) != len(each) for manifest, _, each in found):
            raise CheckpointError("its checkpoints have other parts than nodes wrote")
        return found


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(RunState)


def encode(state: RunState) -> bytes:
    """Its bytes; none where they would be too many."""
    data = _encoder.encode(state)
    return data if len(data) <= BYTES_MAX else b""


def decode(data: bytes) -> RunState:
    """Raises CheckpointError for bytes that are none, as those of another p2pnn may be."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CheckpointError(f"where the last coordinator stood cannot be read: {error}") from None
