"""Sums, the pace of reports, and outputs that fill chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.executor.tally import PROGRESS_INTERVAL_S, Outputs, Pace, Sums
from p2pnn.job.script import Evaluation


def test_losses_are_weighted_by_rows() -> None:
    sums = Sums()
    for rows, first, second in ((4, 1.0, 0.5), (2, 2.0, 0.25)):
        sums.add_loss(first, rows)
        sums.add_loss(second, rows)
        sums.rows += rows
        sums.add_metric("a", np.array([rows - 1, rows], np.float64))
    assert sums.evaluation() == Evaluation(4 * 1.5 + 2 * 2.25, 6, {"a": (4.0, 6.0)})
    assert Sums().evaluation() == Evaluation()


def test_progress_comes_when_due_and_says_each_thing_once() -> None:
    pace = Pace(10.0, 3)
    assert pace.due_in(10.05) == pytest.approx(PROGRESS_INTERVAL_S - 0.05)
    assert pace.due_in(11.0) == 0.0
    assert pace.report(3, 11.0) is None
    pace.sums.add_loss(0.5, 8)
    pace.sums.rows += 8
    pace.compute_s = 0.75
    report = pace.report(4, 11.0)
    assert report is not None
    assert (report.step, report.losses, report.compute_s, report.wall_s) == (4, (4.0, 8), 0.75, 1.0)
    assert pace.report(4, 12.0) is None
    later = pace.report(5, 12.0)
    assert later is not None
    assert (later.losses, later.wall_s) == ((0.0, 0), 1.0)


def test_outputs_are_cut_into_full_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 40)
    blobs = BlobStore(tmp_path)
    outputs = Outputs(blobs)
    rows = np.arange(46, dtype=np.float32).reshape(23, 2)
    for start in range(0, 23, 4):
        outputs.add("p", rows[start : start + 4])
        outputs.add("best", rows[start : start + 4, 0].astype(np.int64))
    found = outputs.finish().outputs
    dtype, shape, written = found["p"]
    assert (dtype, shape) == ("float32", (2,))
    assert max(count for _, count in written) == 5
    np.testing.assert_array_equal(np.concatenate([chunks.open(blobs.path(blob)) for blob, _ in written]), rows)
    assert found["best"][:2] == ("int64", ())
    assert sum(count for _, count in found["best"][2]) == 23
    assert outputs.finish().outputs == {}
