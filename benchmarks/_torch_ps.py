"""torch's side of `./run bench ps`: a parameter server and its workers over `torch.distributed.rpc`.

    python -m benchmarks._torch_ps RANK SIZE FILE     rank 0 is the server, the others are workers; FILE is where they meet

As torch's tutorials have it: the parameters live in an object on rank 0; a worker calls a function there with its gradients,
which applies them under a lock with torch.optim.SGD and answers with the parameters. One call per push does both, the fewest
that can be, and neither side copies: a worker computes from the tensors that it received. `ahead`: the call is not waited for
before the next step but before the one after it, and happens while the worker computes, whose parameters are a step older then.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of connections that end when a process does

import torch
import torch.nn.functional as F
from torch.distributed import rpc

from benchmarks._notes import Notes
from benchmarks._pipeline import Work, stack
from benchmarks._worker import serve

SERVER = "server"
THREADS = 4
"""Of the server, for calls that come at the same time; they take turns at the parameters."""


class Server(Work):
    """Parameters of one training; the newest one is what calls mean."""

    current: Server

    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__(asked)
        self.lock = threading.Lock()
        self.parameters = list(stack(self.layers, last=True).parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.rate)
        Server.current = self

    def push(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        with self.lock:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        return self.pull()

    def pull(self) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in self.parameters]

    def run(self, count: int) -> dict[str, Any]:
        return {"losses": []}


def push(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Called by workers."""
    return Server.current.push(gradients)


def pull() -> list[torch.Tensor]:
    return Server.current.pull()


class Pushing(Work):
    """Trains its share of the batches. every: steps per push; their gradients add up."""

    def __init__(self, asked: dict[str, Any], rank: int, workers: int) -> None:
        super().__init__(asked)
        self.every, self.ahead = asked["every"], asked["ahead"]
        self.workers = workers
        self.order = self.order[rank - 1 :: workers]
        self.model = stack(self.layers, last=True)
        self.called: list[Any] = []

    def run(self, count: int) -> dict[str, Any]:
        self.take(rpc.rpc_sync(SERVER, pull))
        notes, steps = Notes(), len(self.order)
        for number in range(steps):
            rows = self.rows()
            loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
            loss.backward()
            self.step += 1
            last = number + 1 == steps
            if self.step % self.every == 0 or last:
                self.push(last)
            notes.add(self.workers * (number + 1), loss.item(), last=last)
        return {"losses": notes.rows}

    def push(self, last: bool) -> None:
        gradients = [parameter.grad for parameter in self.model.parameters()]
        for parameter in self.model.parameters():
            parameter.grad = None
        self.called.append(rpc.rpc_async(SERVER, push, args=(gradients,)))
        while len(self.called) > (self.ahead and not last):
            self.take(self.called.pop(0).wait())

    def take(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            parameter.data = value


def main() -> None:
    rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=THREADS, rpc_timeout=0, init_method=f"file://{store}")
    name = f"worker{rank}" if rank else SERVER
    rpc.init_rpc(name, rank=rank, world_size=size, rpc_backend_options=options)
    try:
        serve(lambda asked: Pushing(asked, rank, size - 1) if rank else Server(asked))
    finally:
        rpc.shutdown(graceful=False)


if __name__ == "__main__":
    # What is called is found by its module's name, so it must not be `__main__`'s.
    from benchmarks import _torch_ps

    _torch_ps.main()
