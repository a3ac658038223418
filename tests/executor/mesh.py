"""Real executor processes, wired by a router that does what daemons do: copies tensors, passes credits and squares on."""

from __future__ import annotations

import fnmatch
import hashlib
import random
import select
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.executor import channel, commands
from p2pnn.executor.process import Spawned, spawn
from p2pnn.job import script
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.segment import delays, transfers
from p2pnn.job.spans import Span, read, unpack
from p2pnn.job.spec import Chunk, Column, Dataset, JobSpec, Split
from p2pnn.model.graph import Graph
from p2pnn.node.room import Room
from p2pnn.train.cuts import places
from p2pnn.train.frames import layout
from p2pnn.train.gate import Gate
from p2pnn.types import BlobId, JobId
from tests.executor.models import CLASSES, IMAGE
from tests.support import warm
from tests.train.graphs import plan_for

DEADLINE_S = 60.0
ROWS = 100


def dataset(blobs: BlobStore, rows: int = ROWS) -> Dataset:
    """Pixels, labels and targets that have something to do with each other, in chunks of uneven size."""
    dice = np.random.default_rng(0)
    label = dice.integers(0, CLASSES, rows).astype(np.uint8)
    pixel = (dice.integers(0, 120, (rows, *IMAGE)) + 25 * label[:, None, None, None]).astype(np.uint8)
    target = (label[:, None] * np.array([0.1, -0.2, 0.3])).astype(np.float32)
    columns = []
    for name, array in (("pixel", pixel), ("label", label), ("target", target)):
        pieces = [array[:37], array[37:]]
        stored = tuple(Chunk(blobs.put(chunks.write(piece)), len(piece)) for piece in pieces)
        columns.append(Column(name, array.dtype.name, array.shape[1:], stored))
    return Dataset("made-up", rows, tuple(columns))


def spec_for(graph: Graph, blobs: BlobStore, **settings: Any) -> JobSpec:
    """80 rows to train on in batches of 16 (5 steps an epoch), 10 to validate, 10 to test; 4 rows per micro-batch."""
    data = dataset(blobs)
    names = {"image": "pixel", "label": "label", "target": "target"}
    defaults = {
        "train": Split(data, 0, 80, seed=3),
        "validation": Split(data, 80, 90, seed=3),
        "test": Split(data, 90, 100, seed=3),
        "seed": 7,
        "epochs": 2,
        "batch_size": 16,
        "micro_batches": 4,
    }
    inputs = {value.name: names[value.name] for value in graph.inputs}
    return JobSpec("test", graph, inputs, **{**defaults, **settings})


def assign(graph: Graph, nodes: int, rule: Callable[[int, str], int]) -> list[int]:
    """Ops to nodes by a rule on (index, name); ops that share a parameter follow the first."""
    owner: dict[str, int] = {}
    parameters = {p.name for p in (*graph.parameters, *graph.state)}
    assignment = []
    for index, op in enumerate(graph.ops):
        node = rule(index, op.name) % nodes
        for name in op.inputs:
            if name in parameters:
                node = owner.setdefault(name, node)
        owner.update((name, node) for name in op.inputs if name in parameters)
        assignment.append(node)
    return assignment


def contiguous(graph: Graph, nodes: int) -> list[int]:
    return assign(graph, nodes, lambda index, _: index * nodes // len(graph.ops))


def interleaved(graph: Graph, nodes: int) -> list[int]:
    return assign(graph, nodes, lambda index, _: index)


def scattered(graph: Graph, nodes: int, seed: int = 1) -> list[int]:
    dice = random.Random(seed)
    return assign(graph, nodes, lambda index, name: dice.randrange(nodes))


def by_name(graph: Graph, nodes: int, pins: dict[str, int]) -> list[int]:
    """The first pattern that matches decides; 0 without."""

    def rule(_: int, name: str) -> int:
        return next((node for pattern, node in pins.items() if fnmatch.fnmatch(name, pattern)), 0)

    return assign(graph, nodes, rule)


class Mesh:
    """One start of a job over `nodes` executors, all on one blob store. Use as a context manager.

    every: updates from one snapshot to the next; `cuts` has the bytes of each, by node and step.
    """

    def __init__(
        self,
        spec: JobSpec,
        assignment: Sequence[int],
        blobs: BlobStore,
        *,
        nodes: int = 1,
        frames: int = 3,
        checkpoint: Manifest | None = None,
        planned_for: JobSpec | None = None,
        every: int = 0,
    ) -> None:
        self.spec = spec
        self.every = every
        self.frees = True
        in_flight = (planned_for or spec).in_flight if spec.kind == "train" else 0
        self.delays = delays(spec.graph, assignment, in_flight, nodes)
        plan = plan_for(list(assignment), nodes, in_flight or frames)
        plan = msgspec.structs.replace(plan, delays=self.delays)
        self.plan = plan
        self.transfers = transfers(spec.graph, assignment)
        self.layouts = [layout(spec.graph, plan, n, spec.rows_per_micro_batch) for n in range(nodes)]
        self.gates = [Gate(spec.graph, plan, n, self.layouts[n]) for n in range(nodes)]
        copies = [places(spec, plan, n) if every else None for n in range(nodes)]
        self.rooms = [Room(self.layouts[n], copies[n]) for n in range(nodes)]
        self.cuts: list[dict[int, bytes]] = [{} for _ in range(nodes)]
        self.spawned: list[Spawned] = [spawn_warm(room.nbytes, spec.threads) for room in self.rooms]
        self.codecs = [channel.Codec[commands.FromExecutor](commands.FromExecutor) for _ in range(nodes)]
        self.done: list[dict[int, script.Done]] = [{} for _ in range(nodes)]
        self.progress: list[list[script.Progress]] = [[] for _ in range(nodes)]
        self.prepared: dict[int, int] = {}
        self.failed: dict[int, str] = {}
        self.sends = 0
        self.sequence = 0
        self.finishing = False
        spec_path = blobs.path(blobs.put(msgspec.msgpack.encode(spec)))
        manifest = msgspec.msgpack.encode(checkpoint) if checkpoint else b""
        for node, spawned in enumerate(self.spawned):
            prepare = commands.Prepare(
                str(spec_path),
                msgspec.msgpack.encode(plan),
                node,
                str(blobs.root),
                checkpoint=manifest,
                spans=self.layouts[node].arena_bytes,
                snapshots=self.rooms[node].counter,
            )
            spawned.socket.sendall(channel.encode(prepare))

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        for spawned in self.spawned:
            spawned.kill()

    def spans(self, node: int) -> list[Span]:
        """What this executor has written down so far."""
        return unpack(read(self.spawned[node].arena.view[self.layouts[node].arena_bytes :]).spans)

    def prepare(self) -> None:
        self.route(lambda: len(self.prepared) == len(self.spawned))

    def command(self, make: Callable[[int], Any]) -> int:
        """Give every executor the command `make(sequence)`; returns the sequence number."""
        self.sequence += 1
        message = make(self.sequence)
        for spawned in self.spawned:
            spawned.socket.sendall(channel.encode(message))
        return self.sequence

    def results(self, sequence: int) -> list[script.Done]:
        """Route until all have answered; what they answered."""
        self.route(lambda: all(sequence in done for done in self.done))
        return [done[sequence] for done in self.done]

    def checkpoint(self) -> tuple[Part, ...]:
        answers = self.results(self.command(script.Checkpoint))
        assert not any(answer.error for answer in answers), answers
        return tuple(msgspec.msgpack.decode(answer.result, type=Part) for answer in answers)

    def evaluate(self, split: str) -> list[script.Evaluation]:
        answers = self.results(self.command(lambda number: script.Evaluate(number, split)))
        return [msgspec.msgpack.decode(answer.result, type=script.Evaluation) for answer in answers]

    def train(self, *until_steps: int) -> None:
        """Train up to the last of these steps, by one command for each, all sent at once."""
        commands = [
            self.command(lambda number, until=until: script.Train(number, until, self.every)) for until in until_steps
        ]
        for number in commands:
            self.results(number)

    def finish(self) -> list[int]:
        """End the script; the exit statuses."""
        self.finishing = True
        for spawned in self.spawned:
            spawned.socket.sendall(channel.encode(script.Finish()))
        self.route(lambda: all(spawned.socket.fileno() < 0 for spawned in self.spawned))
        return [spawned.process.wait() for spawned in self.spawned]

    def route(self, until: Callable[[], bool]) -> None:
        """Carry messages until the condition holds. Raises AssertionError for a failure, or when nothing happens."""
        deadline = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline, "the mesh hangs"
            by_socket: dict[socket.socket, int] = {
                s.socket: n for n, s in enumerate(self.spawned) if s.socket.fileno() >= 0
            }
            ready, _, _ = select.select(list(by_socket), [], [], 0.5)
            for connection in ready:
                node = by_socket[connection]
                data = connection.recv(1 << 16)
                if not data:
                    connection.close()
                for message in self.codecs[node].feed(data):
                    self.receive(node, message)
            if self.failed:
                raise AssertionError(str(self.failed))

    def receive(self, node: int, message: Any) -> None:
        match message:
            case commands.Send(transfer, m):
                self.carry(node, transfer, m)
            case commands.Retired(count):
                self.gates[node].retired(count)
                for sender in self.gates[node].senders:
                    self.tell(sender, commands.PeerRetired(node, count))
            case commands.Squares(step, squares):
                for peer in range(len(self.spawned)):
                    if peer != node:
                        self.tell(peer, commands.PeerSquares(node, step, squares))
            case commands.Prepared(memory):
                self.prepared[node] = memory
            case script.Progress():
                self.progress[node].append(message)
            case script.Done():
                self.done[node][message.sequence] = message
            case commands.Snapped(step, slot):
                start, size = self.rooms[node].slot(slot)
                self.cuts[node][step] = bytes(self.spawned[node].arena.view[start : start + size])
                if self.frees:
                    self.tell(node, commands.Freed(slot))
            case commands.Failed(error):
                self.failed[node] = error

    def carry(self, node: int, transfer: int, m: int) -> None:
        """Copy a tensor from arena to arena, and tell both ends."""
        way = self.transfers[transfer]
        assert way.source == node
        offset, size = self.layouts[node].place(transfer, m)
        assert self.gates[way.target].refusal(transfer, m, node, size) == ""
        to, _ = self.gates[way.target].take(transfer, m)
        source, target = self.spawned[node].arena.view, self.spawned[way.target].arena.view
        target[to : to + size] = source[offset : offset + size]
        source[offset : offset + size] = b"\xff" * size if self.only_use(transfer) else source[offset : offset + size]
        self.sends += 1
        self.tell(way.target, commands.Arrived(transfer, m))
        self.tell(node, commands.Sent(transfer, m))

    def only_use(self, transfer: int) -> bool:
        """Whether a place is a gradient's: nobody reads it here after it left, so it is spoilt to prove that."""
        return self.transfers[transfer].backward

    def tell(self, node: int, message: Any) -> None:
        """Send to an executor; one that has finished its script may be gone while others still speak."""
        try:
            self.spawned[node].socket.sendall(channel.encode(message))
        except OSError:
            if not self.finishing:
                raise


def spawn_warm(arena_bytes: int, threads: int = 1) -> Spawned:
    """An executor as `spawn` starts it, without the time that its imports take."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("p2pnn.executor.process.subprocess", warm)
        return spawn(arena_bytes, threads)


def digests(parts: Sequence[Part], blobs: BlobStore) -> dict[str, str]:
    """SHA-256 of every tensor of a checkpoint, optimizer state included."""
    found: dict[str, str] = {}
    for part in parts:
        for name, array in load_file(blobs.path(part.blob)).items():
            found[name] = hashlib.sha256(array.tobytes()).hexdigest()
    return found


def manifest(step: int, parts: Sequence[Part]) -> Manifest:
    return Manifest(JobId("job"), BlobId("0" * 64), step, 0, tuple(parts))


def store(folder: Path) -> BlobStore:
    return BlobStore(folder / "blobs")
