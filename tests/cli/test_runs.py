"""Saved runs: found by name or path, and refused where they are damaged or do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnn.cli.results import to_safetensors
from p2pnn.cli.runs import opened_run, read_tensors
from p2pnn.config import Places
from p2pnn.errors import CheckpointError, ModelError, UsageError
from tests.cli.made import flowers, saved_run, tensors_of


def test_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved_run(Places.of().runs / "flowers-1")
    monkeypatch.chdir(tmp_path)
    for named in ("flowers-1", str(folder)):
        run = opened_run(named)
        assert (run.name, run.graph, run.model) == ("flowers-1", flowers(), folder / "model.safetensors")
        for name, tensor in tensors_of(flowers()).items():
            np.testing.assert_array_equal(run.tensors()[name], tensor)
    saved_run(tmp_path / "flowers-1")
    assert opened_run("flowers-1").folder == tmp_path / "flowers-1"  # here is nearer


def test_no_such_run() -> None:
    saved_run(Places.of().runs / "flowers-1")
    with pytest.raises(UsageError, match=r"no run .*flower-1.*flowers-1"):
        opened_run("flower-1")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no graph\.msgpack"):
        opened_run(str(tmp_path))
    folder = saved_run(tmp_path / "run")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
        opened_run(str(folder))


def test_a_damaged_graph(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "run")
    (folder / "graph.msgpack").write_bytes((folder / "graph.msgpack").read_bytes()[:-9])
    with pytest.raises(ModelError, match=r"graph\.msgpack is not a graph"):
        opened_run(str(folder))


def test_tensors_that_cannot_be_read_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        read_tensors(path, flowers())
    whole = to_safetensors(tensors_of(flowers()), {})
    for damaged in (b"", b"\xff" * 40, whole[:-1], whole[4:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            read_tensors(path, flowers())
        assert path.read_bytes() == damaged


def test_a_dtype_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors: dict[str, Any] = {**tensors_of(flowers()), "head/bias": np.zeros(2)}
    path.write_bytes(to_safetensors(tensors, {}))
    with pytest.raises(CheckpointError, match=r"head/bias in .* is float64\[2\], but the model needs float32\[2\]"):
        read_tensors(path, flowers())


def test_a_tensor_that_is_missing_is_named_with_the_nearest(tmp_path: Path) -> None:
    tensors = tensors_of(flowers())
    tensors["heads/bias"] = tensors.pop("head/bias")
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_safetensors(tensors, {}))
    with pytest.raises(CheckpointError, match=r"holds no tensor .*head/bias.*heads/bias"):
        read_tensors(path, flowers())


def test_a_path_is_not_taken_for_a_name() -> None:
    with pytest.raises(UsageError, match="there is no folder /nope; name a run's folder"):
        opened_run("/nope")
