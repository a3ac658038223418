"""`python -m benchmarks._waiting --wait S …`: a compute process that waits where it would train: for more workers than cores.

Everything else of it is the real one: what it sends is as long, and leaves when a gradient would have been made. A pass over the
network backwards takes twice the time of the one forwards, and makes its gradients, which are zeros, from the last to the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from p2pnn.engine.base import Array, Context, Edge, Look, Program
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.executor import __main__ as executor
from p2pnn.executor import session
from p2pnn.model.graph import Graph

OPTION = "--wait"
FORWARD = 1 / 3


class Waiting:
    """A program for training whose passes take time and make nothing."""

    def __init__(self, program: Program, seconds: float, names: Sequence[str], ready: Callable[[str], None]) -> None:
        self._program, self._seconds, self._names, self._ready = program, seconds, names, ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def forward(self, frame: int, context: Context, values: Mapping[str, Array], look: Look | None = None) -> None:
        time.sleep(self._seconds * FORWARD)

    def backward(self, frame: int, context: Context, gradients: Mapping[Edge, Array], *, index: int) -> None:
        for name in self._names:
            time.sleep(self._seconds * (1 - FORWARD) / len(self._names))
            self._ready(name)


def main() -> int:
    at = sys.argv.index(OPTION)
    seconds = float(sys.argv[at + 1])
    del sys.argv[at : at + 2]

    class Engine(NumpyEngine):
        def compile(self, graph: Graph, *what: Any, **how: Any) -> Any:
            program = super().compile(graph, *what, **how)
            if how["mode"] != "train":
                return program
            names = [parameter.name for parameter in graph.parameters][::-1]
            return Waiting(program, seconds, names, how.get("ready") or (lambda name: None))

    session.NumpyEngine = Engine  # type: ignore[attr-defined]
    return executor.main()


if __name__ == "__main__":
    sys.exit(main())
