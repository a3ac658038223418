"""torch's side of `./run bench mesh`: the same network in one process, or as a pipeline of two (1F1B over gloo).

    python -m benchmarks._pipeline 0 1 -          one process
    python -m benchmarks._pipeline RANK 2 FILE    one of two; FILE is where they find each other

As torch's documentation has it: `torch.distributed.pipelining` with Schedule1F1B, one thread per process, plain SGD.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks._notes import Notes
from benchmarks._worker import serve


class Work:
    """What both kinds share: rows in order, and the layers with the job's first parameters."""

    def __init__(self, asked: dict[str, Any]) -> None:
        folder = Path(asked["folder"])
        self.x = torch.from_numpy(np.load(folder / "x.npy"))
        self.y = torch.from_numpy(np.load(folder / "y.npy"))
        self.order = torch.from_numpy(np.load(folder / asked["order"]))
        layers = []
        for number in range(0, asked["parameters"], 2):
            weight, bias = (torch.from_numpy(np.load(folder / f"p{n}.npy")) for n in (number, number + 1))
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            layers.append(layer)
        self.layers = layers
        self.rate = asked["rate"]
        self.step = 0

    def rows(self) -> torch.Tensor:
        return self.order[self.step]

    def close(self) -> None:
        pass


def stack(layers: list[torch.nn.Linear], *, last: bool) -> torch.nn.Sequential:
    modules: list[torch.nn.Module] = []
    for layer in layers:
        modules += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*(modules[:-1] if last else modules))


class Single(Work):
    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__(asked)
        self.model = stack(self.layers, last=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.rate)

    def run(self, count: int) -> dict[str, Any]:
        notes = Notes()
        for number in range(count):
            rows = self.rows()
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
            loss.backward()
            self.optimizer.step()
            self.step += 1
            notes.add(number + 1, loss.item(), last=number + 1 == count)
        return {"losses": notes.rows}


class Pipeline(Work):
    """cut: so many layers lie on the first of the two."""

    def __init__(self, asked: dict[str, Any], rank: int) -> None:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        super().__init__(asked)
        self.rank = rank
        cut, micro = asked["cut"], asked["micro_batches"]
        mine = self.layers[cut:] if rank else self.layers[:cut]
        self.model = stack(mine, last=rank == 1)
        stage = PipelineStage(self.model, rank, 2, torch.device("cpu"))
        self.schedule = Schedule1F1B(stage, n_microbatches=micro, loss_fn=F.cross_entropy)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.rate)

    def run(self, count: int) -> dict[str, Any]:
        torch.distributed.barrier()
        notes = Notes()
        for number in range(count):
            rows = self.rows()
            self.optimizer.zero_grad()
            if self.rank:
                losses: list[torch.Tensor] = []
                self.schedule.step(target=self.y[rows], losses=losses)
                notes.add(number + 1, torch.stack(losses).mean().item(), last=number + 1 == count)
            else:
                self.schedule.step(self.x[rows])
            self.optimizer.step()
            self.step += 1
        torch.distributed.barrier()
        return {"losses": notes.rows}


def main() -> None:
    rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    if size == 1:
        serve(Single)
        return
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        serve(lambda asked: Pipeline(asked, rank))
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
