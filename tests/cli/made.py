"""A trained job on a scripted daemon: everything that the command line asks about a job that has ended well."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pnn import nn
from p2pnn.cli import jobfile, request
from p2pnn.cli.results import to_safetensors
from p2pnn.job.checkpoint import Manifest, Part, add_bits, fingerprint, tensor_bits
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.model.graph import Graph, encode
from p2pnn.types import BlobId, JobId
from tests.cli.fake import FakeDaemon

JOB = "flowers-3f2a"
EPOCHS = [{"epoch": 1.0, "step": 4.0, "loss": 0.9}, {"epoch": 2.0, "step": 8.0, "loss": 0.5}]
EVALUATION = {"split": "test", "rows": 40, "loss": 0.4, "metrics": {"accuracy": 0.975}}
PLAN: dict[str, Any] = {
    "nodes": [{"name": "a", "layers": "hidden … head", "parameters": 23, "memory_bytes": 4096, "why": "all of it"}],
    "samples_per_s": 1000.0,
    "reasons": ["one node alone 1,000 samples/s", "no cut pays"],
}
SUMMARY: dict[str, Any] = {
    "job": JOB,
    "name": "flowers",
    "kind": "train",
    "state": "done",
    "coordinator": "0" * 32,
    "coordinator_name": "a",
    "nodes": ["a", "b"],
    "epoch": 2,
    "epochs": 2,
    "step": 8,
    "steps": 8,
    "loss": 0.5,
    "metrics": {},
    "reason": "",
}

FLOWERS_PY = """
from p2pnn import nn


def net(width=4, inputs=3):
    image = nn.Input("image", (inputs,))
    label = nn.Input("label", (), dtype="int64")
    logits = nn.Linear(2, name="head")(nn.relu(nn.Linear(width, name="hidden")(image)))
    return nn.Model(outputs={"class": nn.softmax(logits)}, loss=nn.cross_entropy(logits, label), name="flowers")


def broken():
    raise ValueError("no such petal")


def nothing():
    return 3
"""


def flowers() -> Graph:
    """Three numbers in, two classes out."""
    image, label = nn.Input("image", (3,)), nn.Input("label", (), dtype="int64")
    logits = nn.Linear(2, name="head")(nn.relu(nn.Linear(4, name="hidden")(image)))
    return nn.Model(
        outputs={"class": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
        name="flowers",
        classes=("rose", "tulip"),
    ).graph


def tensors_of(graph: Graph) -> dict[str, NDArray[np.float32]]:
    dice = np.random.default_rng(3)
    return {p.name: dice.normal(size=p.shape).astype(np.float32) for p in (*graph.parameters, *graph.state)}


def bits_of(tensors: dict[str, NDArray[np.float32]]) -> bytes:
    return add_bits(tensor_bits(name, tensor.tobytes()) for name, tensor in tensors.items())


def blob_name(data: bytes) -> BlobId:
    return BlobId(hashlib.sha256(data).hexdigest())


def flower_data(folder: Path, rows: int = 50) -> Path:
    """An npz of `rows` rows with the columns of `flowers`."""
    dice = np.random.default_rng(7)
    image = dice.normal(size=(rows, 3)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "flowers.npz", image=image, label=(image[:, 0] > 0).astype(np.int64))
    return folder / "flowers.npz"


def saved_run(folder: Path, graph: Graph | None = None) -> Path:
    """A run's folder as eval, predict and export read it."""
    graph = graph or flowers()
    folder.mkdir(parents=True)
    (folder / "graph.msgpack").write_bytes(encode(graph))
    (folder / "model.safetensors").write_bytes(to_safetensors(tensors_of(graph), {"format": "pt"}))
    return folder


def state(number: int, name: str, reason: str = "") -> dict[str, Any]:
    return {"number": number, "time": 0.0, "kind": "state", "state": name, "reason": reason}


def events() -> list[dict[str, Any]]:
    """What the daemon tells of the job, from its beginning to its end."""
    found: list[dict[str, Any]] = [state(1, "running"), {"kind": "plan", "plan": PLAN}]
    found += [{"kind": "epoch", "epochs": 2, **record} for record in EPOCHS]
    found += [{"kind": "evaluation", **EVALUATION}, state(0, "done")]
    return [{"time": 0.0, **event, "number": number} for number, event in enumerate(found, 1)]


class MadeJob:
    """Puts a job on a scripted daemon. parts: its tensors lie in so many blobs; what is set later is served then."""

    def __init__(
        self,
        daemon: FakeDaemon,
        *,
        parts: int = 2,
        schedule: str = "sync",
        data: DataParallel | None = None,
        micro_batches: int = 4,
        **settings: Any,
    ) -> None:
        self.daemon = daemon
        self.graph = flowers()
        self.tensors = tensors_of(self.graph)
        asked = request.Request(name="flowers", mesh=request.MeshPart(parallel="data" if data else "model"))
        spec = JobSpec(
            "flowers", self.graph, {"image": "image"}, micro_batches=micro_batches, schedule=schedule,
            request=jobfile.to_toml(asked), data=data,
        )  # fmt: skip
        self.spec = msgspec.msgpack.encode(spec)
        names = list(self.tensors)
        shares = [{name: self.tensors[name] for name in names[start::parts]} for start in range(parts)]
        self.blobs = [to_safetensors(share, {}) for share in shares]
        found = [Part(blob_name(data), len(data), bits_of(s)) for data, s in zip(self.blobs, shares, strict=True)]
        defaults: dict[str, Any] = {"step": 8, "epoch": 2, "parts": tuple(found), "finished": True}
        self.manifest = Manifest(JobId(JOB), blob_name(self.spec), **(defaults | settings))
        self.bits = fingerprint(self.manifest.parts)
        self.serve()

    def serve(self) -> None:
        daemon = self.daemon
        result = {"bits": self.bits, "evaluation": EVALUATION}
        daemon["GET jobs"] = {"jobs": [SUMMARY]}
        daemon[f"GET jobs/{JOB}"] = {**SUMMARY, "plan": PLAN, "checkpoints": [], "result": result}
        daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter(events())
        daemon[f"GET jobs/{JOB}/results"] = {
            "job": JOB,
            "spec": self.manifest.spec,
            "manifest": msgspec.to_builtins(self.manifest),
            "best": False,
            "predictions": None,
            "history": EPOCHS,
            "plan": PLAN,
        }
        for data in (self.spec, *self.blobs):
            daemon[f"GET blobs/{blob_name(data)}"] = data
        take(daemon)


def take(daemon: FakeDaemon, job: str = JOB) -> None:
    """The daemon has no blob, takes every one, and accepts every job."""

    class Everything(dict[tuple[str, str], Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return {} if key[0] == "PUT" and key[1].startswith("/api/v1/blobs/") else super().get(key, default)

    daemon.answers = Everything(daemon.answers)
    daemon["POST blobs/missing"] = lambda body: {"missing": msgspec.json.decode(body)["blobs"]}
    daemon["POST jobs"] = {"job": job}


def submitted(daemon: FakeDaemon) -> JobSpec:
    """The spec of the last job that the daemon was given; all that it names was given too."""
    put = {path.rpartition("/")[2]: body for method, path, body in daemon.calls if method == "PUT"}
    assert all(blob_name(body) == name for name, body in put.items())
    spec = msgspec.msgpack.decode(put[msgspec.json.decode(daemon.bodies("POST jobs")[-1])["spec"]], type=JobSpec)
    datasets = [split.dataset for split in (spec.train, spec.validation, spec.test) if split]
    named = {chunk.blob for dataset in datasets for column in dataset.columns for chunk in column.chunks}
    assert named | set(spec.initial) <= put.keys()
    return spec
