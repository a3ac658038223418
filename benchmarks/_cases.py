"""What `./run bench engine` measures: one row per case, told in words that every contestant understands.

A case is a kind, the rows of a batch, the shape of one row and the kind's own settings; `_ours` and `_torch` each have a table
from kinds to what to build. Only the standard library is imported here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """at_most: what ours / torch's time must not exceed; 0 where there is no target. steps: whole training steps."""

    name: str
    kind: str
    rows: int
    shape: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    at_most: float = 0.0
    steps: bool = False

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def op(name: str, kind: str, rows: int, shape: tuple[int, ...], at_most: float = 0.0, **settings: Any) -> Case:
    return Case(name, kind, rows, shape, settings, at_most)


OPS = (
    op("Linear 2048 → 2048, 128 rows", "linear", 128, (2048,), features=2048),
    op("Linear 784 → 2048, 512 rows", "linear", 512, (784,), features=2048),
    op("conv 3×3 64 → 64, 28×28, 32 rows", "conv", 32, (64, 28, 28), 1.3, channels=64, size=3, padding=1),
    op("conv 3×3 64 → 64, 56×56, 8 rows", "conv", 8, (64, 56, 56), 1.3, channels=64, size=3, padding=1),
    op(
        "conv 3×3 stride 2 64 → 128, 28×28, 32 rows",
        "conv",
        32,
        (64, 28, 28),
        channels=128,
        size=3,
        padding=1,
        stride=2,
    ),
    op("conv 1×1 64 → 64, 28×28, 32 rows", "conv", 32, (64, 28, 28), channels=64, size=1),
    op(
        "conv 5×5 1 → 16, 28×28, 128 rows (LeNet-5)",
        "conv",
        128,
        (1, 28, 28),
        channels=16,
        size=5,
        padding=2,
        first=True,
    ),
    op("conv 5×5 16 → 32, 14×14, 128 rows (LeNet-5)", "conv", 128, (16, 14, 14), channels=32, size=5),
    op("max pool 2×2, 64×28×28, 32 rows", "max_pool", 32, (64, 28, 28), 1.0, size=2),
    op("max pool 3×3 stride 2, 64×28×28, 32 rows", "max_pool", 32, (64, 28, 28), 1.0, size=3, stride=2, padding=1),
    op("batch normalization 64×28×28, 32 rows", "batch_norm", 32, (64, 28, 28), 1.0),
    op("layer normalization 128×256, 16 rows", "layer_norm", 16, (128, 256)),
    op("relu 64×28×28, 32 rows", "relu", 32, (64, 28, 28)),
    op("gelu 128×1024, 16 rows", "gelu", 16, (128, 1024)),
    op("softmax and loss, 65 classes, 2048 rows", "loss", 2048, (65,)),
    op("embedding of 65, 128×256, 16 rows", "embedding", 16, (128,), count=65, features=256),
    op("attention 4 heads of 64, 128 tokens, 16 rows", "attention", 16, (128, 768), heads=4),
)
"""Forward and backward of one op, with the gradient of its input except at a network's first layer."""

OPTIMIZERS = tuple(
    op(f"{words}, 10 million parameters", "optimizer", 0, (10_000_000,), optimizer=kind)
    for kind, words in (
        ("sgd", "sgd"),
        ("momentum", "momentum"),
        ("adam", "adam"),
        ("adam fused", "adam, torch's fused"),
    )
)


def steps(name: str, kind: str, rows: int, at_most: float, optimizer: str = "sgd", **settings: Any) -> Case:
    return Case(name, kind, rows, settings={"optimizer": optimizer, **settings}, at_most=at_most, steps=True)


STEPS = (
    steps("MLP 784-2048-2048-2048-10, SGD, 128 rows", "mlp", 128, 0.9, hidden=[2048] * 3),
    steps("MLP 784-2048-2048-2048-10, SGD, 512 rows", "mlp", 512, 0.9, hidden=[2048] * 3),
    steps("LeNet-5, Adam, 128 rows", "lenet5", 128, 1.4, "adam"),
    steps("ResNet-8, Adam, 128 rows", "resnet8", 128, 1.4, "adam"),
    steps("char-GPT, AdamW, 32 rows of 128", "char-gpt", 32, 1.4, "adamw", context=128, classes=65),
)
"""Whole training steps: rows chosen from data in memory, forward, loss, backward, update."""

MEMORY_AT_MOST = 1.2
"""Of torch's memory for the same step."""

ALL = (*OPS, *OPTIMIZERS, *STEPS)
