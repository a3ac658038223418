"""What workers say to the shards of one server, whose bytes lie in the arena already.

Where a shard lives in several processes, a worker may know of a new primary, or of a new generation of the same one, before that
does: the word of who has which role goes to all nodes at once, and pushes travel on other links. What it says then is kept here,
a little of it, until this process knows; dropped, it would come again only when the worker has heard nothing for long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from p2pnn.errors import JobFailedError
from p2pnn.executor import commands
from p2pnn.ps.layout import Slots
from p2pnn.ps.messages import Pull, Push, Worker
from p2pnn.ps.replicated import ReplicatedShard
from p2pnn.ps.shard import Shard

Heard = commands.PushArrived | commands.Fetched | commands.Marked | commands.Rested | commands.LeasesWished

KEPT_MAX: Final = 8
"""Per worker and part of a push: more than an honest one says before it must wait for an answer. What is too much pushes out the
oldest, which is then said again."""


class Hearing:
    """shards: by number, those of this server; slots: where their pushes lie. workers: by number."""

    def __init__(self, shards: Mapping[int, Shard], slots: Mapping[int, Slots], workers: Sequence[Worker]) -> None:
        self._shards, self._slots, self._workers = shards, slots, workers
        self._early: dict[int, deque[Heard]] = {
            number: deque(maxlen=KEPT_MAX * len(workers) * len(slots[number].parts))
            for number, shard in shards.items()
            if isinstance(shard, ReplicatedShard)
        }

    def take(self, message: Heard, now: float) -> None:
        """A worker says something to a shard. Raises JobFailedError for a shard, worker or part that there is not."""
        if message.shard not in self._shards:
            raise JobFailedError(f"shard {message.shard} is not served by this node")
        if not 0 <= message.worker < len(self._workers):
            raise JobFailedError(f"the run has no worker {message.worker}")
        shard, worker = self._shards[message.shard], self._workers[message.worker]
        if isinstance(shard, ReplicatedShard) and _is_early(shard, message):
            self._early[message.shard].append(message)
        match message:
            case commands.PushArrived():
                shard.arrived(self._push(message, worker), now)
            case commands.Fetched():
                about = message.request, message.have, message.after
                shard.pull(Pull(worker, message.by, *about, message.returns), now)
            case commands.Marked():
                shard.mark(worker, message.sequence, now)
            case commands.Rested():
                shard.rest(worker, message.pushes, now)
            case commands.LeasesWished():
                shard.wish(worker, message.wish, now)

    def again(self, now: float) -> None:
        """Who has which role has changed: what was said too early is said now, to shards of which this process is the primary."""
        for number, early in self._early.items():
            shard = self._shards[number]
            if isinstance(shard, ReplicatedShard) and shard.is_primary:
                kept = list(early)
                early.clear()
                for message in kept:
                    self.take(message, now)

    def _push(self, message: commands.PushArrived, worker: Worker) -> Push:
        sizes = self._slots[message.shard].parts
        if not 0 <= message.part < len(sizes):
            raise JobFailedError(f"shard {message.shard} has no part {message.part}")
        nbytes = sizes[message.part][1] if message.misfit < 0 else message.misfit
        return Push(
            worker,
            message.by,
            message.sequence,
            message.part,
            nbytes,
            message.based_on,
            message.based_clock,
            message.fetch,
            message.have,
            message.mark,
        )


def _is_early(shard: ReplicatedShard, message: Heard) -> bool:
    """Whether this process will be the one that is spoken to. Parts of one push may come before and after it knows."""
    by = message.by if isinstance(message, commands.PushArrived | commands.Fetched) else 0
    return not shard.is_primary or by > shard.generation
