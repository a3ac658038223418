"""A job whose result says how often each of its batches was pushed.

A batch is one row of the data, and its gradient is one-hot and whole: whatever the parameters are, it is +1 for one number and −1
for another one of that row, in each of two tables. At rate 1 a number is a count, then, with its sign. The two tables are as
large as each other, so with two shards each holds one, and every push has its half in both. No push is alike to that of another
row, and none depends on the values that it was computed from: so neither order nor staleness shows, and only what was lost,
doubled, torn or mangled does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from p2pnn import nn
from p2pnn.data.batches import split_order
from p2pnn.job.spec import DataParallel, JobSpec, Optimizer
from p2pnn.ps.layout import WINDOW
from p2pnn.types import BlobId
from tests.integration.mesh import make_job

Job = tuple[JobSpec, dict[BlobId, bytes]]
ROWS = 200
TABLES = ("left", "right")

FAR = 1000.0
"""By so much the wrong one of two classes leads: e to its negative is 0, so softmax is exactly (1, 0) for far more counts."""


def counting(epochs: int, rows: int = ROWS, *, train: float = 0.8, classes: int = 2, **data: Any) -> Job:
    """rows: of the data, of which that part trains. classes: of each row; its push has rows · classes
    float32 per table. data: of `DataParallel`; `async`, two replicas unless it says otherwise."""
    chosen = nn.Input("row", (), dtype="int64")
    ahead = nn.Input("ahead", (classes,))
    label = nn.Input("label", (), dtype="int64")
    left, right = (nn.Embedding(rows, classes, scale=0.0, name=name)(chosen) for name in TABLES)
    scores = left + right + ahead
    model = nn.Model(outputs={"scores": scores}, loss=nn.cross_entropy(scores, label))
    columns = {
        "row": np.arange(rows, dtype=np.int64),
        "ahead": np.tile(np.array([FAR] + [0.0] * (classes - 1), np.float32), (rows, 1)),
        "label": np.ones(rows, np.int64),
    }
    return make_job(
        model,
        columns,
        train=train,
        epochs=epochs,
        batch_size=1,
        micro_batches=1,
        optimizer=Optimizer("sgd", rate=1.0, schedule="constant"),
        parallel="data",
        data=DataParallel(**({"consistency": "async", "replicas": 2} | data)),
    )


def counts(of: Job, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
    """Of each table: how often each row was pushed. arrays: the parameters by name. Raises AssertionError where a value is none
    that whole pushes make, or where a row has some that is never trained."""
    train = of[0].train
    assert train is not None
    trained = split_order(train)
    found = {}
    for parameter, name in zip(sorted(of[0].graph.parameters, key=lambda p: p.name), TABLES, strict=True):
        value = arrays[parameter.name].astype(np.float64)
        whole = np.rint(value[:, 1]).astype(np.int64)
        torn = np.flatnonzero((value[:, 1] != whole) | (value[:, 0] != -whole) | (whole < 0))
        assert not torn.size, (
            f"row {torn[0]} of {parameter.name} is {value[torn[0]].tolist()}, which whole pushes never make"
        )
        others = np.delete(np.arange(len(whole)), trained)
        assert not whole[others].any(), f"rows of {parameter.name} were pushed that are not trained"
        found[name] = whole[trained]
    return found


def broken(found: Mapping[str, NDArray[np.int64]], epochs: int, again: int, lost: int = 0) -> list[str]:
    """What is wrong with the counts of a run that has ended; nothing, if all is well.

    again: batches that the run says were trained again. That is counted at the shard that deals out the data, which has the first
    table. lost: how many workers were lost; 0 where both tables are on one shard. Of each up to WINDOW pushes were on their way,
    which one shard may have taken and the other not: as many rows may differ.
    """
    said = []
    first, second = (found[name] for name in TABLES)
    for name, count in found.items():
        if missing := int(np.maximum(epochs - count, 0).sum()):
            said.append(f"{missing} pushes are missing in {name}")
    if (beyond := int((first - epochs).sum())) != again:
        said.append(
            f"{beyond} pushes more than once per epoch in {TABLES[0]}, and {again} are told to be trained again"
        )
    if (apart := int(np.abs(first - second).sum())) > WINDOW * lost:
        said.append(
            f"{apart} pushes are in one of the tables only, and {WINDOW * lost} may be after {lost} lost workers"
        )
    return said


def arrays_of(manifest: Mapping[str, Any], folders: Iterable[Path]) -> dict[str, NDArray[Any]]:
    """All that the parts of a result hold, by name. folders: of the nodes that may have them."""
    stores = list(folders)
    found: dict[str, NDArray[Any]] = {}
    for part in manifest["parts"]:
        path = next((path for folder in stores for path in folder.rglob(part["blob"])), None)
        assert path is not None, f"part {part['blob'][:12]} of the result is nowhere"
        found |= load_file(path)
    return found
