"""Gathering a run's results into one folder, at whoever asks for them.

A run's last (or best) checkpoint lies in parts on the nodes. The daemon says which parts, and gives each as a blob, from
whichever peer has it; here every byte is checked against its hash before it counts. The folder is written under a temporary
name and renamed when it is whole, so that a reader sees all of it or nothing, and never over a folder that exists.

    model.safetensors   parameters and state by name, `scope/layer/weight`
    graph.msgpack       the network, with scaling and class names; eval, predict and export read it
    job.toml            repeats the run
    plan.json           what ran where
    metrics.jsonl       one record per epoch, and a last one with the evaluation, the job, its step and the bits
    load_torch.py       the network as a torch module
    predict.py          the network with numpy alone
    trace.json.gz       of a local mesh: who computed, waited and sent when, for chrome://tracing and Perfetto
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from p2pnn.cli.http import Daemon, segment
from p2pnn.cli.jobfile import with_cut, with_roles
from p2pnn.cli.terminal import to_json
from p2pnn.config import Places
from p2pnn.errors import CheckpointError, StorageError, UsageError
from p2pnn.job.checkpoint import FORMAT, RECUT, Manifest, Part, add_bits, fingerprint, tensor_bits
from p2pnn.job.spec import JobSpec
from p2pnn.model.graph import Graph, encode
from p2pnn.ps.consistency import is_bitwise
from p2pnn.types import BlobId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILES = ("model.safetensors", "graph.msgpack", "job.toml", "plan.json", "metrics.jsonl", "load_torch.py", "predict.py")


@dataclass(frozen=True, slots=True)
class Results:
    """What a run left: its spec, parameters and state by name (float32), and the fingerprint of them.

    best: these are the best epoch's, not the last one's. history: one record per epoch. plan: as JSON.
    """

    spec: JobSpec
    manifest: Manifest
    tensors: dict[str, NDArray[np.float32]]
    bits: str
    best: bool
    history: tuple[Mapping[str, Any], ...] = ()
    plan: Mapping[str, Any] | None = None

    @property
    def depends_on_cut(self) -> bool:
        """Whether the bits depend on the cut: with mini-batches in flight it decides which node is how many updates behind,
        also where it is a single node, which is not."""
        return self.spec.in_flight > 1 or self.recut

    @property
    def recut(self) -> bool:
        """Whether such a run had another cut before."""
        return self.manifest.cut.startswith(RECUT)

    @property
    def job_file(self) -> str:
        """What repeats the run, as far as anything does."""
        request, plan = self.spec.request, self.plan or {}
        if request and self.spec.data is not None and plan.get("replicas"):
            replicas = plan["replicas"]
            return with_roles(request, len(replicas), len(plan["shards"]), len(replicas[0]["nodes"]))
        if not self.depends_on_cut or not request:
            return request
        return with_cut(request, plan.get("assignment") or (), broken=self.recut)

    @property
    def equals_one_node(self) -> bool:
        """Whether a data-parallel run has, bit for bit, what one node has with as many micro-batches."""
        plan = self.plan or {}
        workers = len(plan.get("replicas") or ())
        return bool(self.spec.data and workers and plan.get("bitwise") and is_bitwise(self.spec, workers))


def gather(daemon: Daemon, job: str) -> Results:
    """Fetch and check the parts of a job's results. Raises CheckpointError, NotFoundError, NoDaemonError."""
    answer = daemon.get(f"jobs/{segment(job)}/results")
    if not answer.get("manifest"):
        raise CheckpointError(f"{job} trained nothing, so there are no parameters of it to fetch")
    try:
        manifest = msgspec.convert(answer["manifest"], Manifest)
        spec = msgspec.msgpack.decode(blob(daemon, BlobId(answer["spec"])), type=JobSpec)
    except (msgspec.ValidationError, msgspec.DecodeError, KeyError) as error:
        raise CheckpointError(f"the results of {job} cannot be read by this version of p2pnn: {error}") from error
    if manifest.format > FORMAT:
        raise CheckpointError(
            f"the results of {job} have format {manifest.format}; this p2pnn reads up to {FORMAT}: install a newer one"
        )
    parts, graph = manifest.parts, spec.graph
    names = [p.name for p in (*graph.parameters, *graph.state)]
    tensors = _merge(daemon, parts, names, job)
    history = tuple(answer.get("history") or ())
    bits = fingerprint(parts)
    shares = (tensor_bits(name, tensor.tobytes()) for name, tensor in tensors.items())
    if bits != fingerprint([Part(BlobId(""), 0, add_bits(shares))]):
        raise CheckpointError(
            f"the parameters of {job} are not those that its nodes counted; resume the job to write them again"
        )
    return Results(spec, manifest, tensors, bits, bool(answer.get("best")), history, answer.get("plan"))


def blob(daemon: Daemon, name: BlobId) -> bytes:
    """A blob's bytes, checked against its name."""
    found = daemon.raw(f"blobs/{name}")
    if hashlib.sha256(found).hexdigest() != name:
        raise CheckpointError(f"the blob {name[:12]}… arrived damaged: its bytes do not have that hash; try again")
    return found


def run_folder(name: str, out: str | None = None) -> Path:
    """Where the results will lie: `--out`, or the next free `NAME-N` under the person's runs.

    Raises UsageError for an `--out` that exists and is not an empty folder, or where no folder can be made.
    """
    if out is not None:
        path = Path(os.path.abspath(Path(out).expanduser()))
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"--out {path} exists already; name a folder that does not, or an empty one")
        parent = next(p for p in path.parents if p.exists())
        try:  # trying is the only proof: permissions say nothing of /proc, or of a file system that is read-only
            Path(tempfile.mkdtemp(prefix=".p2pnn-", dir=parent)).rmdir()
        except OSError as error:
            raise UsageError(f"--out {path}: no folder can be made in {parent}: {error.strerror or error}") from error
        return path
    base, number = Places.of().runs, 1
    while (base / f"{name}-{number}").exists():
        number += 1
    return base / f"{name}-{number}"


def write(
    results: Results, folder: Path, *, chosen: bool, last: Mapping[str, Any], more: Mapping[str, bytes] | None = None
) -> Path:
    """Write the take-away folder and return its path. chosen: a person named it; else a taken name is counted up.

    last: the closing record of metrics.jsonl. more: further files by name. Raises StorageError where the disk is full or
    refuses; what was written is removed.
    """
    graph = results.spec.graph
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".p2pnn-", dir=folder.parent))
        try:
            temporary.chmod(0o755 & ~_umask())
            _write_files(results, graph, temporary, last, more or {})
            return _move(temporary, folder, chosen)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"the results could not be written to {folder}: {error.strerror or error}") from error


def write_anywhere(
    results: Results,
    folder: Path,
    name: str,
    *,
    chosen: bool,
    last: Mapping[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Like `write`, for results that nobody else has: where the folder refuses, under the person's runs, else temporary.

    Raises the StorageError of the last where all three refuse.
    """
    try:
        return write(results, folder, chosen=chosen, last=last, more=more)
    except StorageError:
        if chosen:
            with contextlib.suppress(StorageError):
                return write(results, run_folder(name), chosen=False, last=last, more=more)
    try:
        temporary = tempfile.mkdtemp(prefix="p2pnn-results-")
    except OSError as error:
        raise StorageError(f"the results could not be written anywhere: {error.strerror or error}") from error
    try:
        return write(results, Path(temporary) / folder.name, chosen=True, last=last, more=more)
    except StorageError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def to_safetensors(tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(dict(tensors), dict(metadata) or None))


def _write_files(
    results: Results, graph: Graph, folder: Path, last: Mapping[str, Any], more: Mapping[str, bytes]
) -> None:
    from p2pnn.cli import takeaway

    history = [to_json(counted(record), 0) for record in results.history]
    manifest = results.manifest
    history.append(to_json({**last, "job": manifest.job, "step": manifest.step, "bits": results.bits}, 0))
    # One entry, because safetensors writes several in an order of chance, and equal runs shall give equal files.
    model = to_safetensors(results.tensors, {"format": "pt"})
    contents = {
        "model.safetensors": model,
        "graph.msgpack": encode(graph),
        "job.toml": results.job_file.encode(),
        "plan.json": (to_json(results.plan) + "\n").encode(),
        "metrics.jsonl": ("\n".join(history) + "\n").encode(),
        "load_torch.py": takeaway.torch_script(graph).encode(),
        "predict.py": takeaway.predict_script(graph).encode(),
    }
    assert tuple(contents) == FILES
    for name, content in (contents | dict(more)).items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def counted(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the history with its counts as whole numbers, through whatever formats it came."""
    return {
        key: int(value) if key in ("epoch", "step", "trained_again", "never_trained") else value
        for key, value in record.items()
    }


def _move(temporary: Path, folder: Path, chosen: bool) -> Path:
    """Rename into place: the system refuses to rename over a folder that is not empty, so two runs cannot meet."""
    while True:
        try:
            temporary.rename(folder)
            return folder
        except OSError:
            if chosen or not folder.exists():
                raise
            stem, _, number = folder.name.rpartition("-")
            folder = folder.with_name(f"{stem}-{int(number) + 1}")


def _merge(daemon: Daemon, parts: Sequence[Part], names: Sequence[str], job: str) -> dict[str, NDArray[np.float32]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    wanted, found = set(names), dict[str, Any]()
    for part in parts:
        try:
            tensors = load(blob(daemon, part.blob))
        except SafetensorError as error:
            raise CheckpointError(f"the part {part.blob[:12]}… of {job} is not a safetensors file: {error}") from error
        found.update((name, tensors[name]) for name in wanted & tensors.keys())
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointError(f"the results of {job} hold no {missing[0]}; their checkpoint is not complete")
    return {name: found[name] for name in names}


def _umask() -> int:
    mask = os.umask(0)
    with contextlib.suppress(OSError):
        os.umask(mask)
    return mask
