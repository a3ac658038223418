"""The work of `./run bench mesh`, the same for all contestants: rows, the order in which they are trained on, first parameters.

Ours is told by a job; torch's processes read the same from a folder: x.npy, y.npy, p0.npy, p1.npy, … (weight and bias of each
layer, in order), and for each job a file with the order of its rows (int64[steps, batch], row numbers).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnn.cli.request import DataParallelPart, DataPart, MeshPart, Request, TrainPart
from p2pnn.cli.request import check as check_request
from p2pnn.data.batches import epoch_order
from p2pnn.data.source import DIGITS, open_source
from p2pnn.data.table import Table
from p2pnn.errors import DataError
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.model.initial import initial

WIDTHS = (784, 2048, 2048, 2048, 10)
SEED = 7
WANTED = "data of 28 × 28 images in ten classes, such as MNIST's folder"

Rows = dict[str, NDArray[Any]]


def load(path: str, rows_max: int) -> Rows:
    """float32[rows, 784] between 0 and 1 and int64[rows], from a data set of columns x and y (such as MNIST's folder).

    Raises DataError for what cannot be read, and for data that is not images of 28 × 28 bytes with labels 0 to 9.
    """
    if path != DIGITS and not Path(path).expanduser().exists():
        raise DataError(f"there is no {path}; name {WANTED}")
    table = open_source(path).train
    check(path, table)
    blocks = [{name: np.array(found) for name, found in block.items()} for block in table.blocks(4096, ("x", "y"))]
    image, label = (np.concatenate([block[name] for block in blocks])[:rows_max] for name in ("x", "y"))
    if label.max() >= WIDTHS[-1] or label.min() < 0:
        raise DataError(
            f"{path} has labels from {label.min()} to {label.max()}; name {WANTED}, whose labels are 0 to 9"
        )
    return {"image": image.reshape(len(image), -1).astype(np.float32) / 255, "label": label.astype(np.int64)}


def check(path: str, table: Table) -> None:
    """Raise DataError where a table's columns cannot be what is trained on here."""
    x, y = table.columns.get("x"), table.columns.get("y")
    fits = x is not None and x.dtype == "uint8" and math.prod(x.shape) == WIDTHS[0]
    if not fits or y is None or y.shape or not y.is_integer:
        found = [f"{name} ({column.dtype}, {_size(column.shape)} a row)" for name, column in table.columns.items()]
        raise DataError(
            f"{path} holds {', '.join(found[:4])}, but wanted are x (uint8, 28 × 28 a row) and y (a whole number a row); "
            f"name {WANTED}"
        )


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "1"


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


def request(
    batch: int,
    micro_batches: int,
    epochs: int,
    rate: float,
    nodes: int,
    schedule: str,
    data: DataParallelPart | None = None,
) -> Request:
    """A job for all rows, without validation or test. data: of a data-parallel one. Raises UsageError for what cannot be."""
    asked = Request(
        name="bench",
        seed=SEED,
        data=DataPart(scale="none", test_fraction=0.0, validation_fraction=0.0),
        train=TrainPart(
            epochs=epochs,
            batch_size=batch,
            micro_batches=micro_batches,
            optimizer=Optimizer("sgd", rate=rate, schedule="constant"),
        ),
        mesh=MeshPart(nodes=nodes, schedule=schedule, parallel="model" if data is None else "data"),
        data_parallel=data or DataParallelPart(),
    )
    check_request(asked)
    return asked


def write(folder: Path, rows: Rows, spec: JobSpec) -> None:
    """The rows, and the first parameters of the job: they depend on its seed alone."""
    np.save(folder / "x.npy", rows["image"])
    np.save(folder / "y.npy", rows["label"])
    for number, parameter in enumerate(spec.graph.parameters):
        np.save(folder / f"p{number}.npy", initial(parameter, spec.seed))


def write_order(path: Path, spec: JobSpec) -> None:
    """The rows of each step of the job."""
    assert spec.train is not None
    whole = spec.steps_per_epoch * spec.batch_size
    epochs = [epoch_order(spec.train, spec.seed, number)[:whole] for number in range(spec.epochs)]
    np.save(path, np.concatenate(epochs).reshape(spec.steps, spec.batch_size))
