"""Flags and job file as one request, and a request as a job file.

A job file is TOML whose tables are the structs of `request`; a flag is a shorter way to write one of its keys and wins over it.
An unknown key is refused with the nearest known one. Paths in a job file are read relative to its folder; in the resolved
`job.toml`, which is saved with the results and repeats the run, they are absolute.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pnn.cli.request import FORMAT, Request, TrainPart, check
from p2pnn.config import unknown
from p2pnn.errors import UsageError
from p2pnn.job.spec import Optimizer

RATES: Final = {
    "sgd": 0.1,
    "momentum": 0.01,
    "nesterov": 0.01,
    "adagrad": 0.01,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "adamw": 1e-3,
}
"""The rate where none is given. Plain SGD on normalized inputs stands ten times the rate of SGD with momentum 0.9."""

ADAMW_WEIGHT_DECAY: Final = 0.01

FLAGS: Final[dict[str, tuple[str, ...]]] = {
    "name": ("name",),
    "seed": ("seed",),
    "model": ("model", "source"),
    "arguments": ("model", "arguments"),
    "data": ("data", "train"),
    "label": ("data", "label"),
    "inputs": ("data", "inputs"),
    "scale": ("data", "scale"),
    "validation_fraction": ("data", "validation_fraction"),
    "context": ("data", "context"),
    "image_size": ("data", "image_size"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "micro_batches": ("train", "micro_batches"),
    "patience": ("train", "patience"),
    "monitor": ("train", "monitor"),
    "checkpoint_steps": ("train", "checkpoint_steps"),
    "init": ("train", "init"),
    "optimizer": ("train", "optimizer", "kind"),
    "rate": ("train", "optimizer", "rate"),
    "momentum": ("train", "optimizer", "momentum"),
    "weight_decay": ("train", "optimizer", "weight_decay"),
    "lr_schedule": ("train", "optimizer", "schedule"),
    "warmup_steps": ("train", "optimizer", "warmup_steps"),
    "step_size": ("train", "optimizer", "step_size"),
    "gamma": ("train", "optimizer", "gamma"),
    "clip_norm": ("train", "optimizer", "clip_norm"),
    "parallel": ("mesh", "parallel"),
    "schedule": ("mesh", "schedule"),
    "nodes": ("mesh", "nodes"),
    "pins": ("mesh", "pins"),
    "threads": ("mesh", "threads"),
    "memory": ("mesh", "memory"),
    "workers": ("data_parallel", "workers"),
    "shards": ("data_parallel", "shards"),
    "replicas": ("data_parallel", "replicas"),
    "consistency": ("data_parallel", "consistency"),
    "backup": ("data_parallel", "backup"),
    "push_every": ("data_parallel", "push_every"),
    "fetch_every": ("data_parallel", "fetch_every"),
    "push_compression": ("data_parallel", "push_compression"),
    "pull_compression": ("data_parallel", "pull_compression"),
    "local_rate": ("data_parallel", "local_rate"),
    "warm_start": ("data_parallel", "warm_start"),
    "staleness_max": ("data_parallel", "staleness_max"),
    "scale_by_staleness": ("data_parallel", "scale_by_staleness"),
    "shard_policy": ("data_parallel", "shard_policy"),
    "segments": ("data_parallel", "segments"),
}
"""Flag → where it stands in a job file. Paths on the command line are relative to the working folder."""


def resolve(flags: Mapping[str, Any], job_file: Path | None = None) -> Request:
    """The request of a job file (or of none) with the flags over it; a flag of None was not given.

    Raises UsageError with one sentence that names the file, the key and what it may be.
    """
    tree = _read(job_file) if job_file else {}
    where = str(job_file) if job_file else "the flags"
    for flag, value in flags.items():
        if value is None:
            continue
        table = tree
        *parents, key = FLAGS[flag]
        for parent in parents:
            table = table.setdefault(parent, {})
        if flag in ("data", "init", "model"):
            value = _absolute(str(value), Path.cwd(), key)
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            value = table[key] | value  # one more argument or pin leaves the file's others
        table[key] = value
    _set_parallel(tree, flags)
    _set_rate(tree)
    _set_micro_batches(tree)
    try:
        request = msgspec.convert(tree, Request)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_said(error)}") from error
    check(request)
    return request


REPEATS: Final = "Repeats this run: p2pnn train job.toml"


def to_toml(request: Request, remark: str = REPEATS) -> str:
    """The request as a job file that repeats it. Defaults are written out, so that a later version repeats it too."""
    lines = [f"# {remark}"]
    tree: dict[str, Any] = msgspec.to_builtins(request)
    lines += [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    if not request.deals_data:
        del tree["data_parallel"]
    for table, values in tree.items():
        if isinstance(values, dict):
            given = (f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)
            lines += ["", f"[{table}]", *given]
    return "\n".join(lines) + "\n"


def with_cut(text: str, cut: Sequence[int], *, broken: bool) -> str:
    """A run's job file with the cut that its bits depend on, in place of wishes for nodes by name, which another mesh lacks.

    broken: the run was cut anew on its way, so nothing repeats it.
    """
    request = msgspec.convert(tomllib.loads(text), Request)
    if broken:
        return to_toml(
            request, "The settings of this run, which went on over another cut after a break: its bits do not repeat"
        )
    mesh = msgspec.structs.replace(request.mesh, cut=list(cut), nodes=len(set(cut)), pins={})
    return to_toml(msgspec.structs.replace(request, mesh=mesh))


def with_roles(text: str, workers: int, shards: int, nodes: int = 1) -> str:
    """A data-parallel run's job file with the numbers of workers and shards that it ran with. nodes: of each worker."""
    request = msgspec.convert(tomllib.loads(text), Request)
    segments = nodes if request.is_hybrid else 0
    part = msgspec.structs.replace(request.data_parallel, workers=workers, shards=shards, segments=segments)
    return to_toml(msgspec.structs.replace(request, data_parallel=part))


def with_way(text: str, parallel: str, nodes: int | list[str] | None = None) -> str:
    """A job file that asked for `auto`, with what that came to. nodes: how many or which; None leaves them."""
    request = msgspec.convert(tomllib.loads(text), Request)
    part = request.data_parallel if parallel in ("data", "hybrid") else type(request.data_parallel)()
    mesh = msgspec.structs.replace(
        request.mesh, parallel=parallel, nodes=request.mesh.nodes if nodes is None else nodes
    )
    return to_toml(msgspec.structs.replace(request, mesh=mesh, data_parallel=part))


def absolute_data(place: str) -> str:
    """Data named relative to the working folder, as a job file of any folder can name it."""
    return _absolute(place, Path.cwd(), "train")


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no job file {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not a readable job file: {error}") from error
    if isinstance(tree.get("format"), int) and tree["format"] > FORMAT:
        raise UsageError(f"{path} has format {tree['format']}; this p2pnn reads up to {FORMAT}: install a newer one")
    _check_keys(tree, Request, path, "")
    folder = path.resolve().parent
    for table, key in (("model", "source"), ("data", "train"), ("data", "test"), ("train", "init")):
        found = tree.get(table, {})
        if isinstance(found.get(key), str):
            found[key] = _absolute(found[key], folder, key)
    return tree


def _check_keys(tree: Mapping[str, Any], struct: type[msgspec.Struct], path: Path, prefix: str) -> None:
    """Refuse a key that the struct has not; go into tables whose type is a struct."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in tree.items():
        if key not in fields:
            raise UsageError(unknown(f"{path}: unknown key", prefix + key, [prefix + name for name in fields]))
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if not isinstance(value, dict):
                raise UsageError(f"{path}: {prefix}{key} is a table; write [{prefix}{key}]")
            _check_keys(value, kind, path, f"{prefix}{key}.")


def _absolute(text: str, folder: Path, key: str) -> str:
    """A path as an absolute one; a word that names something packaged (zoo, digits) stays as it is."""
    path, colon, function = text.rpartition(":") if key == "source" and ".py:" in text else (text, "", "")
    looks_like_path = bool(colon) or "/" in path or "." in path or (key != "source" and path != "digits")
    if not path or not looks_like_path:
        return text
    expanded = Path(path).expanduser()
    return str((folder / expanded).resolve()) + colon + function


def _set_parallel(tree: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Refuse flags of data parallelism where the model is spread; a file's settings of it give way to --parallel model, and its
    number of segments to any but hybrid."""
    dealt = tree.get("data_parallel")
    if flags.get("parallel") not in (None, "hybrid") and flags.get("segments") is None and isinstance(dealt, dict):
        dealt.pop("segments", None)
    mesh = tree.get("mesh", {})
    if (mesh.get("parallel", "model") if isinstance(mesh, dict) else "") != "model":
        return
    for flag, value in flags.items():
        if value is not None and FLAGS[flag][0] == "data_parallel":
            name = f"--{flag.replace('_', '-')}" + ("" if isinstance(value, bool) else f" {value}")
            kind = "hybrid" if flag == "segments" else "data"
            raise UsageError(f"{name} is for {kind} parallelism: add --parallel {kind}, or leave it away")
    if flags.get("parallel") == "model":
        tree.pop("data_parallel", None)


def _set_rate(tree: dict[str, Any]) -> None:
    train = tree.get("train")
    optimizer = train.get("optimizer") if isinstance(train, dict) else None
    if not isinstance(optimizer, dict):
        return
    kind = optimizer.get("kind", Optimizer().kind)
    optimizer.setdefault("rate", RATES.get(kind, Optimizer().rate) if isinstance(kind, str) else Optimizer().rate)
    if kind == "adamw":
        optimizer.setdefault("weight_decay", ADAMW_WEIGHT_DECAY)


def _set_micro_batches(tree: dict[str, Any]) -> None:
    """With several mini-batches in flight each is one piece, where nothing else is asked for; so is that of a worker which
    shares it with nobody; and workers that share one have a piece each."""
    mesh, dealt = tree.get("mesh"), tree.get("data_parallel", {})
    if not isinstance(mesh, dict) or not isinstance(dealt, dict):
        return
    way, workers = mesh.get("parallel"), dealt.get("workers")
    deals, cut = way in ("data", "hybrid"), way == "hybrid"
    in_shares = deals and dealt.get("consistency", "async") == "sync"
    alone = way == "data" and dealt.get("consistency", "async") != "sync"
    schedule = mesh.get("schedule")
    train = tree.setdefault("train", {}) if alone or (isinstance(schedule, str) and schedule != "sync") else None
    if isinstance(train, dict):
        train.setdefault("micro_batches", 1)
    elif in_shares and isinstance(workers, int) and workers > 0:  # a piece for each; for each that is cut, several
        whole = tree.setdefault("train", {})
        if isinstance(whole, dict) and isinstance(size := whole.get("batch_size", TrainPart().batch_size), int):
            pieces = [n * workers for n in ((4, 2, 1) if cut else (1,)) if size % (n * workers) == 0]
            whole.setdefault("micro_batches", next(iter(pieces), TrainPart().micro_batches))


def _said(error: msgspec.ValidationError) -> str:
    """msgspec's `Expected X, got Y - at `$.a.b`` as `a.b: expected X, got Y`."""
    text, at, place = str(error).partition(" - at `$")
    text = text.replace("`", "")
    return f"{place.strip('`.')}: {text[:1].lower()}{text[1:]}" if at else text


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case dict():
            inside = ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items() if item is not None)
            return "{ " + inside + " }" if inside else "{}"
        case _:
            raise UsageError(f"a value of type {type(value).__name__} cannot stand in a job file: {value!r}")


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else json.dumps(key, ensure_ascii=False)
