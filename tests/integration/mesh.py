"""Real daemons for tests: started, killed and started again, on loopback ports that the system gives.

Each daemon holds the reading end of this process's lifeline pipe, so none outlives the test run, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pnn.cli.http import Daemon
from p2pnn.data import chunks
from p2pnn.data.blobs import blob_id
from p2pnn.job.spec import Chunk, Column, Dataset, JobSpec, Split
from p2pnn.nn import Model
from p2pnn.types import BlobId
from tests.support import warm

READY_TIMEOUT_S = 30.0
PAUSE_MS_MIN, PAUSE_MS_MAX = 10, 50


@dataclass
class Node:
    """One daemon process."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    address: str
    daemon: Daemon

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(10)
        self.daemon.close()

    @property
    def log(self) -> str:
        return (self.folder.parent / f"{self.name}.log").read_text()


@dataclass
class Mesh:
    """`with mesh(folder, 3) as m:` starts nodes a, b, c that see each other.

    cold: each daemon is a Python of its own from its first instruction on; otherwise it is forked from one that has imported
    its modules, which is half a second sooner. secured: with keys and TLS; the first founds, the others join by tokens.
    """

    folder: Path
    cold: bool = False
    secured: bool = False
    nodes: dict[str, Node] = field(default_factory=dict)
    lifeline: tuple[int, int] = (-1, -1)

    def __getitem__(self, name: str) -> Daemon:
        return self.nodes[name].daemon

    def start(self, name: str, *, join: str | None = None, more: tuple[str, ...] = ()) -> Node:
        """Start one daemon; join: the name of a node to join, by default the first living one."""
        living = [n for n in self.nodes.values() if n.process.poll() is None]
        target = self.nodes[join] if join else next(iter(living), None)
        ready, announce = os.pipe()
        arguments = [] if self.secured else ["--plain"]
        arguments += ["--name", name, "--state-dir", str(self.folder / name), "--listen", "127.0.0.1:0"]
        arguments += ["--lifeline", str(self.lifeline[0]), "--ready-fd", str(announce), *more]
        arguments += ["--profile-cache", str(self.folder / "profile")]
        if target is not None:
            arguments += ["--join", target.address]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("P2PNN_")} | {"P2PNN_CONFIG": os.devnull}
        if self.secured and target is not None and not (self.folder / name).exists():
            environ["P2PNN_TOKEN"] = target.daemon.post("tokens")["token"]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = (subprocess.Popen if self.cold else warm.start)(
                [sys.executable, "-m", "p2pnn", "node", "start", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                pass_fds=(self.lifeline[0], announce),
                env=environ,
            )
        os.close(announce)
        try:
            assert select.select([ready], [], [], READY_TIMEOUT_S)[0], f"node {name} is not ready"
            line = os.read(ready, 4096)
        finally:
            os.close(ready)
        assert line, (self.folder / f"{name}.log").read_text()
        facts = json.loads(line)
        node = Node(name, self.folder / name, process, facts["address"], Daemon(Path(facts["socket"])))
        self.nodes[name] = node
        return node

    def await_peers(self, *names: str) -> None:
        """Wait until each of the nodes sees all of them."""
        for name in names:
            wait_until(lambda name=name: self.alive(name) >= set(names), f"{name} sees all of {names}")

    def alive(self, name: str) -> set[str]:
        return {p["name"] for p in self[name].get("peers")["peers"] if p["state"] in ("self", "alive")}

    def members(self, name: str) -> set[str]:
        """Who is in, by the charter that this node knows."""
        return {member["name"] for member in self[name].get("cluster")["members"]}

    def submit(self, name: str, spec: JobSpec, blobs: dict[BlobId, bytes]) -> str:
        """Put the data and the spec on node `name` and submit the job there; its id."""
        daemon = self[name]
        data = msgspec.msgpack.encode(spec)
        for blob, content in (blobs | {blob_id(data): data}).items():
            daemon.put(f"blobs/{blob}", content)
        return str(daemon.post("jobs", {"spec": blob_id(data)})["job"])

    def job(self, name: str, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self[name].get(f"jobs/{job}")
        return found

    def await_state(self, name: str, job: str, *states: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the job is in one of the states, as node `name` knows it. Fails at once where it ends otherwise."""
        ends = {"done", "failed", "cancelled", "paused"}

        def reached() -> bool:
            state = self.job(name, job)["state"]
            assert state in states or state not in ends, self.job(name, job)["reason"]
            return state in states

        wait_until(reached, f"job {job} is {' or '.join(states)}", timeout_s)
        return self.job(name, job)

    def close(self) -> None:
        for node in self.nodes.values():
            node.daemon.close()
        for descriptor in self.lifeline:
            os.close(descriptor)
        for node in self.nodes.values():
            try:
                node.process.wait(10)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()


@contextlib.contextmanager
def mesh(folder: Path, count: int = 0, *, cold: bool = False, secured: bool = False) -> Iterator[Mesh]:
    """A mesh of `count` nodes a, b, c, … that see each other."""
    found = Mesh(folder, cold, secured, lifeline=os.pipe())
    try:
        with warm.measured(folder / "profile"):
            names = list("abcdefgh"[:count])
            for name in names:
                found.start(name)
            found.await_peers(*names)
            yield found
    finally:
        found.close()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Ask again until it holds; fails with `what` when it does not in time.

    The longer it has taken, the seldomer: an answer costs a millisecond of the processors that the daemons need.
    """
    begin = time.monotonic()
    pause = select.poll()
    while not condition():
        waited = time.monotonic() - begin
        assert waited < timeout_s, f"after {timeout_s:.0f} s it is still not so that {what}"
        pause.poll(min(PAUSE_MS_MAX, max(PAUSE_MS_MIN, 50 * waited)))


def make_data(name: str, columns: dict[str, NDArray[Any]], parts: int = 3) -> tuple[Dataset, dict[BlobId, bytes]]:
    """Arrays as a data set in several chunks per column, and the chunks."""
    blobs: dict[BlobId, bytes] = {}
    described = []
    rows = len(next(iter(columns.values())))
    for column, array in columns.items():
        found = []
        for piece in np.array_split(array, parts):
            data = chunks.write(piece)
            blobs[blob_id(data)] = data
            found.append(Chunk(blob_id(data), len(piece)))
        described.append(Column(column, array.dtype.name, array.shape[1:], tuple(found)))
    return Dataset(name, rows, tuple(described)), blobs


def make_job(
    model: Model, columns: dict[str, NDArray[Any]], *, train: float = 0.8, **settings: Any
) -> tuple[JobSpec, dict[BlobId, bytes]]:
    """A training job whose model inputs are named like the columns; the last rows are for validation and test."""
    data, blobs = make_data("made", columns)
    first, second = int(data.rows * train), int(data.rows * (1 + train) / 2)
    defaults: dict[str, Any] = {
        "name": "made",
        "graph": model.graph,
        "inputs": {name: name for name in columns},
        "train": Split(data, 0, first, seed=1),
        "validation": Split(data, first, second, seed=1),
        "test": Split(data, second, data.rows, seed=1),
        "seed": 3,
        "epochs": 2,
        "batch_size": 16,
        "micro_batches": 2,
    }
    return JobSpec(**(defaults | settings)), blobs


def blobs_of(classes: int = 4, rows: int = 400, size: int = 8, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Gaussian blobs as 1 × size × size images with labels: learnt within a few epochs."""
    dice = np.random.default_rng(seed)
    centres = dice.normal(size=(classes, 1, size, size))
    label = dice.integers(0, classes, rows)
    image = centres[label] + 0.7 * dice.normal(size=(rows, 1, size, size))
    return {"image": image.astype(np.float32), "label": label.astype(np.int64)}
