"""torch's side of `./run bench engine` and of `./run bench mesh`: the same cases, in whatever environment has torch.

One thread, eager mode, the modules and optimizers that torch's own documentation would lead to. Imports nothing of ours but the
protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._networks import Attention, CharGPT, lenet5, mlp, resnet8
from benchmarks._worker import Absent, Task, serve

RATE = 1e-4
BATCHES = 4
Settings = Mapping[str, Any]


def conv(shape: tuple[int, ...], s: Settings) -> torch.nn.Module:
    stride, padding = s.get("stride", 1), s.get("padding", 0)
    return torch.nn.Conv2d(shape[0], s["channels"], s["size"], stride=stride, padding=padding, bias=False)


OPS: dict[str, Callable[[tuple[int, ...], Settings], torch.nn.Module]] = {
    "linear": lambda shape, s: torch.nn.Linear(shape[0], s["features"]),
    "conv": conv,
    "max_pool": lambda shape, s: torch.nn.MaxPool2d(s["size"], s.get("stride", s["size"]), s.get("padding", 0)),
    "batch_norm": lambda shape, s: torch.nn.BatchNorm2d(shape[0]),
    "layer_norm": lambda shape, s: torch.nn.LayerNorm(shape[-1]),
    "relu": lambda shape, s: torch.nn.ReLU(),
    "gelu": lambda shape, s: torch.nn.GELU(),
    "embedding": lambda shape, s: torch.nn.Embedding(s["count"], s["features"]),
    "attention": lambda shape, s: Attention(s["heads"]),
}


class OpTask:
    """Forward and backward of one module; a given gradient goes in, the input's comes out where it is wanted."""

    def __init__(self, case: Settings) -> None:
        shape, settings, rows = tuple(case["shape"]), case["settings"], case["rows"]
        self._loss = case["kind"] == "loss"
        self._x = torch.randn(rows, *shape)
        self._x.requires_grad_(not settings.get("first"))
        if case["kind"] == "embedding":
            self._x = torch.randint(0, settings["count"], (rows, *shape))
        self._label = torch.randint(0, shape[0], (rows,))
        self._module = torch.nn.Identity() if self._loss else OPS[case["kind"]](shape, settings)
        self._dy = torch.ones(()) if self._loss else torch.randn_like(self._module(self._x))

    def run(self, count: int) -> None:
        for _ in range(count):
            self._x.grad = None
            self._module.zero_grad()
            y = F.cross_entropy(self._x, self._label) if self._loss else self._module(self._x)
            y.backward(self._dy)

    def close(self) -> None:
        pass


class OptimizerTask:
    """One update of one large parameter."""

    def __init__(self, case: Settings) -> None:
        parameter = torch.nn.Parameter(torch.randn(case["shape"][0]))
        parameter.grad = torch.randn_like(parameter)
        self._optimizer = optimizer(case["settings"]["optimizer"], [parameter])

    def run(self, count: int) -> None:
        for _ in range(count):
            self._optimizer.step()

    def close(self) -> None:
        pass


def optimizer(kind: str, parameters: Any) -> torch.optim.Optimizer:
    name, _, fused = kind.partition(" ")
    if name in ("adam", "adamw"):
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](
            parameters, lr=RATE, fused=bool(fused) or None
        )
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9 if kind == "momentum" else 0.0)


class Steps:
    """Whole training steps, on rows chosen from data in memory."""

    def __init__(self, case: Settings) -> None:
        torch.manual_seed(0)
        self._rows = case["rows"]
        settings, count = case["settings"], self._rows * BATCHES
        shape: tuple[int, ...] = (1, 28, 28)
        if case["kind"] == "mlp":
            self._model, shape = mlp(settings["hidden"]), (784,)
        elif case["kind"] == "char-gpt":
            self._model, shape = CharGPT(settings["context"], settings["classes"]), (settings["context"],)
        elif case["kind"] in ("lenet5", "resnet8"):
            self._model = {"lenet5": lenet5, "resnet8": resnet8}[case["kind"]]()
        else:
            raise Absent(f"there is no {case['kind']} for torch here yet")
        text = case["kind"] == "char-gpt"
        self._x = torch.randint(0, settings["classes"], (count, *shape)) if text else torch.randn(count, *shape)
        self._label = torch.randint(0, 10, (count, *shape) if text else (count,))
        self._optimizer = optimizer(case["settings"]["optimizer"], self._model.parameters())
        self._step = 0

    def run(self, count: int) -> None:
        for _ in range(count):
            if self._step % BATCHES == 0:
                self._order = torch.randperm(len(self._x))
            chosen = self._order[self._step % BATCHES * self._rows :][: self._rows]
            self._step += 1
            self._optimizer.zero_grad()
            scores = self._model(self._x[chosen])
            loss = F.cross_entropy(scores.flatten(0, -2), self._label[chosen].flatten())
            loss.backward()
            self._optimizer.step()
            assert loss.item() == loss.item(), "the loss is not a number"

    def close(self) -> None:
        pass


def make(case: dict[str, Any]) -> Task:
    if case["steps"]:
        return Steps(case)
    return OptimizerTask(case) if case["kind"] == "optimizer" else OpTask(case)


def warm(case: Mapping[str, Any]) -> None:
    """Have torch take what it keeps for itself, by the same kind of case with hardly any rows or parameters.

    With many parameters the memory that this frees again would be taken for torch's own, and the case for smaller than it is.
    """
    settings = case["settings"] | ({"hidden": [8]} if "hidden" in case["settings"] else {})
    make({**case, "rows": 2, "settings": settings}).run(2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(make, warm=warm)
    sys.exit(0)
