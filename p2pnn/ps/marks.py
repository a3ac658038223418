"""The marks that a shard's workers have drawn; see `messages`.

A worker *draws* a mark when its pushes before it are acknowledged, and *passes* it when it has what it wanted of that moment.
While it has drawn one that others have not, it holds nobody back: it may have no more steps before the mark. Behind a mark
nothing is decided until all workers have passed it, and the server itself, which may have a checkpoint to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2pnn.ps.messages import Worker


class Marks:
    """marked: the newest mark that all workers have drawn. server: at which the server has done its part. open: that all have
    passed, the server too.
    """

    def __init__(self, workers: Iterable[Worker]) -> None:
        self.marked = self.open = self.server = 0
        self._drawn = dict.fromkeys(workers, 0)
        self._passed = dict(self._drawn)

    def draw(self, worker: Worker, sequence: int) -> bool:
        """True where all have drawn another mark with that. Of a worker that is not known, nothing happens."""
        before = self.marked
        if worker in self._drawn:
            self._drawn[worker] = max(sequence, self._drawn[worker])
            self._count()
        return self.marked > before

    def is_news(self, worker: Worker, sequence: int, passed: bool) -> bool:
        """Whether that it has drawn this mark, or passed it, would change anything."""
        known = (self._passed if passed else self._drawn).get(worker)
        return known is not None and sequence > known

    def passes(self, worker: Worker, sequence: int) -> bool:
        """It has drawn it as well. True where all have drawn another mark with that."""
        if worker in self._passed:
            self._passed[worker] = max(sequence, self._passed[worker])
        return self.draw(worker, sequence)

    def served(self, sequence: int) -> None:
        """The server has done its part at this mark."""
        self.server = max(sequence, self.server)
        self._count()

    def positions(self) -> tuple[dict[Worker, int], dict[Worker, int]]:
        """What each worker has drawn and has passed; for `load`."""
        return dict(self._drawn), dict(self._passed)

    def load(
        self, drawn: Mapping[Worker, int], passed: Mapping[Worker, int], server: int, marked: int, open: int
    ) -> None:
        """Become what was saved."""
        self._drawn, self._passed = dict(drawn), dict(passed)
        self.marked, self.open, self.server = marked, open, server

    @property
    def ahead(self) -> set[Worker]:
        """Who has drawn one that others have not."""
        return {worker for worker, sequence in self._drawn.items() if sequence > self.marked}

    def set_workers(self, workers: Iterable[Worker]) -> bool:
        """These alone count from now on. True where all of them have drawn another mark."""
        before, workers = self.marked, list(workers)
        self._drawn = {worker: self._drawn.get(worker, self.marked) for worker in workers}
        self._passed = {worker: self._passed.get(worker, self.open) for worker in workers}
        self._count()
        return self.marked > before

    def _count(self) -> None:
        self.marked = max(self.marked, min(self._drawn.values(), default=0))
        self.open = max(self.open, min(self.server, *self._passed.values())) if self._passed else self.server
