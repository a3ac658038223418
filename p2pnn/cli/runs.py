"""Runs that lie on disk: finding one by name, and reading what eval, predict and export need of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2pnn.cli.jobfile import resolve
from p2pnn.cli.models import read_graph
from p2pnn.cli.request import Request
from p2pnn.config import Places, unknown
from p2pnn.errors import CheckpointError, P2pnnError, UsageError
from p2pnn.model.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run's folder: its graph (with scaling and class names) and the file of its weights."""

    folder: Path
    graph: Graph

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def request(self) -> Request:
        """What was asked for, by the folder's job.toml; the defaults where there is none that can be read."""
        try:
            return resolve({}, self.folder / "job.toml")
        except P2pnnError:
            return Request()

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Parameters and state by name, checked against the graph."""
        return read_tensors(self.model, self.graph)


def opened_run(named: str) -> SavedRun:
    """The run of a folder's path, or of a name under the person's runs. Raises UsageError with the nearest name."""
    runs = Places.of().runs
    path = Path(named).expanduser()
    if not path.is_dir():
        path = runs / named
    if not path.is_dir():
        if "/" in named or named.startswith((".", "~")):
            raise UsageError(
                f"there is no folder {Path(named).expanduser()}; name a run's folder, or a run, such as digits-1"
            )
        known = [p.name for p in runs.iterdir() if (p / "graph.msgpack").exists()] if runs.is_dir() else []
        raise UsageError(unknown("there is no run", named, known))
    for needed in ("graph.msgpack", "model.safetensors"):
        if not (path / needed).is_file():
            raise UsageError(f"{path} is not the folder of a run: it holds no {needed}")
    return SavedRun(path.resolve(), read_graph(path / "graph.msgpack"))


def read_tensors(path: Path, graph: Graph) -> dict[str, NDArray[np.float32]]:
    """The parameters and state of a graph from a safetensors file. Raises CheckpointError for one that does not fit."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path} to start from") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that numpy has not
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    tensors = {}
    for wanted in (*graph.parameters, *graph.state):
        tensor = found.get(wanted.name)
        if tensor is None:
            raise CheckpointError(unknown(f"{path} holds no tensor", wanted.name, found))
        if tensor.shape != wanted.shape or tensor.dtype.name != "float32":
            raise CheckpointError(
                f"{wanted.name} in {path} is {tensor.dtype}{list(tensor.shape)}, but the model needs"
                f" float32{list(wanted.shape)}"
            )
        tensors[wanted.name] = tensor
    return tensors
