"""What an executor did and waited for, written into its ring (`job.spans`) as it goes.

A wait is put down to the news upon which work could go on: of a tensor that came, or one that left and freed a frame, or the
coordinator's next command. So it costs nothing to know, and is what happened, not what was guessed.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pnn.executor import commands
from p2pnn.job import script
from p2pnn.job.spans import HEAD_BYTES, RECORD, RING_BYTES, Kind, Ring
from p2pnn.train import machine as m

_FORWARDS = {"train": Kind.FORWARD, "evaluate": Kind.EVALUATE, "predict": Kind.PREDICT}
_OTHERS = {m.Squares: Kind.SQUARES, m.Update: Kind.UPDATE, m.Answer: Kind.ANSWER}
_ANSWERS = {script.Checkpoint: Kind.CHECKPOINT, script.Restore: Kind.RESTORE}


class Spans:
    """memory: begins with the ring, behind which other things may lie; None for one that nobody reads. All times are the caller's
    clock."""

    def __init__(self, memory: memoryview | None) -> None:
        self._ring = Ring(bytearray(HEAD_BYTES + RECORD.size) if memory is None else memory[:RING_BYTES])
        self._since = 0.0
        self._cause = (-1, Kind.FOR_ORDER, -1)

    def waits(self, now: float) -> None:
        """There is nothing to do. Said again while that lasts, it changes nothing."""
        if not self._since:
            self._since = now
            self._ring.waits(now)

    def news(self, messages: Iterable[commands.ToExecutor]) -> None:
        """These came during a wait. The newest counts, a tensor before what left; that a peer retired lets nothing begin."""
        came = False
        for message in messages:
            match message:
                case commands.Arrived():
                    self._cause, came = (message.micro_batch, Kind.FOR_TENSOR, message.transfer), True
                case commands.Sent():
                    if not came:
                        self._cause = (message.micro_batch, Kind.FOR_SENT, message.transfer)
                case commands.PeerSquares():
                    self._cause, came = (-1, Kind.FOR_SQUARES, message.node_index), True
                case commands.Answered():
                    self._cause, came = (-1, Kind.FOR_VALUES, message.shard), True
                case commands.Left():
                    if not came:
                        self._cause = (-1, Kind.FOR_PUSHED, -1)
                case commands.PeerRetired():
                    pass
                case _:
                    self._cause, came = (-1, Kind.FOR_ORDER, -1), True

    def did(self, action: m.Action, stage: m.Stage, start: float, end: float) -> None:
        """An action was carried out; a wait, if there was one, ended as it began. stage: the action's."""
        if self._since:
            micro_batch, kind, what = self._cause
            self._ring.add(self._since, start, micro_batch, -1, kind, what)
            self._since = 0.0
            self._ring.waits(0.0)
        step = _step(action, stage)
        if isinstance(action, m.Forward):
            self._ring.add(start, end, action.micro_batch, step, _FORWARDS[stage.mode], action.task.segment)
        elif isinstance(action, m.Backward):
            self._ring.add(start, end, action.micro_batch, step, Kind.BACKWARD, action.task.segment)
        elif not isinstance(action, m.Finished):
            kind = _OTHERS[type(action)]
            if isinstance(action, m.Answer):
                kind = _ANSWERS.get(type(action.command), kind)
            self._ring.add(start, end, -1, step, kind, -1)


def _step(action: m.Action, stage: m.Stage) -> int:
    """The training step that an action is of; -1 for none. With several steps in flight those of one stage differ."""
    if isinstance(action, (m.Squares, m.Update)):
        return action.step
    if isinstance(action, (m.Forward, m.Backward)) and stage.mode == "train":
        return stage.at(action.micro_batch)[0]
    return -1
