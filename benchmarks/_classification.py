"""The work of `./run bench mesh`, the same for all contestants: rows, the order in which they are trained on, first parameters.

Ours is told by a job; torch's processes read the same from a folder: x.npy, y.npy, order.npy (int64[steps, batch], row
numbers) and p0.npy, p1.npy, … (weight and bias of each layer, in order).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.cli.request import DataPart, MeshPart, Request, TrainPart
from p2pnn.data.batches import epoch_order
from p2pnn.data.source import open_source
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.initial import initial

WIDTHS = (784, 2048, 2048, 2048, 10)
SEED = 7

Rows = dict[str, NDArray[Any]]


def load(path: str, rows_max: int) -> Rows:
    """float32[rows, 784] between 0 and 1 and int64[rows], from a data set of columns x and y (such as MNIST's folder)."""
    table = open_source(path).train
    blocks = [{name: np.array(found) for name, found in block.items()} for block in table.blocks(4096, ("x", "y"))]
    image, label = (np.concatenate([block[name] for block in blocks])[:rows_max] for name in ("x", "y"))
    return {"image": image.reshape(len(image), -1).astype(np.float32) / 255, "label": label.astype(np.int64)}


def make_up(rows: int) -> Rows:
    """Ten clouds of points whose parts overlap: a network learns them in some hundred steps, but not in ten."""
    dice = np.random.default_rng(SEED)
    label = dice.integers(0, WIDTHS[-1], rows)
    hidden = dice.standard_normal((WIDTHS[-1], 4, 32), np.float32)
    mixing = dice.standard_normal((32, WIDTHS[0]), np.float32) / np.float32(32**0.5)
    part = dice.integers(0, 4, rows)
    image = (hidden[label, part] + 0.7 * dice.standard_normal((rows, 32), np.float32)) @ mixing
    image += 0.3 * dice.standard_normal(image.shape, np.float32)
    return {"image": np.tanh(image).astype(np.float32), "label": label.astype(np.int64)}


def request(batch: int, micro_batches: int, epochs: int, rate: float, nodes: int, schedule: str) -> Request:
    """A job for all rows, without validation or test."""
    return Request(
        name="bench",
        seed=SEED,
        data=DataPart(scale="none", test_fraction=0.0, validation_fraction=0.0),
        train=TrainPart(
            epochs=epochs,
            batch_size=batch,
            micro_batches=micro_batches,
            optimizer=Optimizer("sgd", rate=rate, schedule="constant"),
        ),
        mesh=MeshPart(nodes=nodes, schedule=schedule),
    )


def write(folder: Path, rows: Rows, spec: JobSpec, steps: int) -> None:
    """What torch's processes read: the rows in the order of the job, and the job's first parameters."""
    assert spec.train is not None
    np.save(folder / "x.npy", rows["image"])
    np.save(folder / "y.npy", rows["label"])
    each, batch = spec.steps_per_epoch, spec.batch_size
    epochs = [epoch_order(spec.train, spec.seed, n)[: each * batch] for n in range(-(-steps // each))]
    np.save(folder / "order.npy", np.concatenate(epochs).reshape(-1, batch)[:steps])
    for number, parameter in enumerate(spec.graph.parameters):
        np.save(folder / f"p{number}.npy", initial(parameter, spec.seed))
