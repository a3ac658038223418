"""What a person asks for: flags and job file as one tree of settings, checked before anything starts.

A job file is TOML whose tables are the structs below; a flag is a shorter way to write one of its keys and wins over it. An
unknown key is refused with the nearest known one. Paths in a job file are read relative to its folder; in the resolved
`job.toml`, which is saved with the results and repeats the run, they are absolute.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pnn.config import parse_bytes, unknown
from p2pnn.errors import PlanError, UsageError
from p2pnn.job.spec import OPTIMIZERS, SCHEDULES, Optimizer, check_schedule

FORMAT: Final = 1

RATES: Final = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adam": 1e-3, "adamw": 1e-3}
"""The rate where none is given. Plain SGD on normalized inputs stands ten times the rate of SGD with momentum 0.9."""

ADAMW_WEIGHT_DECAY: Final = 0.01
VALIDATION_FRACTION: Final = 0.1
"""Of the training rows, where a job has patience and no validation split of its own; of a text, always."""

TEST_FRACTION: Final = 0.2
"""Of the rows, where the data has no part to test on; of a text nothing."""

FRACTION_MAX: Final = 0.9

WHOLE_MAX: Final = 2**53 - 1
"""Of whole numbers: what JSON and TOML readers keep exactly, and 64 bits hold."""


class ModelPart(msgspec.Struct, frozen=True):
    """source: `file.py:function`, the name of a network of the zoo, or a saved `graph.msgpack`. arguments: the function's."""

    source: str = ""
    arguments: dict[str, Any] = {}


class DataPart(msgspec.Struct, frozen=True):
    """train, test: a path, or `digits`. Without test, test_fraction of the rows are kept apart for it.

    label: the column that is learnt. inputs: graph input → column. scale: `auto`, `none`, or a number to multiply with.
    The fractions, where nobody gave them, are as `settled` says. context: of text, characters of a row; 0 for what the model
    takes. image_size: images are resized to this, as `32x32`; empty leaves them.
    fingerprint: of the data that a saved run was trained on, so that eval knows them again; nothing else reads it.
    """

    train: str = ""
    test: str = ""
    label: str = ""
    inputs: dict[str, str] = {}
    scale: float | str = "auto"
    validation_fraction: float | None = None
    test_fraction: float | None = None
    fingerprint: str = ""
    context: int = 0
    image_size: str = ""


class TrainPart(msgspec.Struct, frozen=True):
    """The training itself; as in JobSpec. init: a model.safetensors or a run's folder to start from."""

    epochs: int = 10
    batch_size: int = 128
    micro_batches: int = 4
    optimizer: Optimizer = Optimizer()
    patience: int = 0
    monitor: str = ""
    checkpoint_steps: int = 0
    init: str = ""


class MeshPart(msgspec.Struct, frozen=True):
    """Where it runs. nodes: how many (0: every one that has room) or which. pins: name pattern → node. memory: per node.

    cut: which node (0, 1, …) each op of the graph ran on, in its order; the planner chooses what machine each is. A run with
    mini-batches in flight (`async:K`) writes it, because its bits depend on it; empty, the planner cuts.
    """

    parallel: str = "model"
    schedule: str = "sync"
    nodes: int | list[str] = 0
    pins: dict[str, str] = {}
    threads: int = 1
    memory: int | str = 0
    cut: list[int] = []


class Request(msgspec.Struct, frozen=True):
    """A whole job file. name: of the job and its results' folder; empty for the data's name."""

    format: int = FORMAT
    name: str = ""
    seed: int = 0
    model: ModelPart = ModelPart()
    data: DataPart = DataPart()
    train: TrainPart = TrainPart()
    mesh: MeshPart = MeshPart()

    @property
    def memory_bytes_max(self) -> int:
        return parse_bytes(self.mesh.memory, "memory")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width), or None. Raises UsageError for text that is no size."""
        text = self.data.image_size.lower().replace("×", "x")
        if not text:
            return None
        parts = [part.strip() for part in text.split("x")]
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(
                f"image size {self.data.image_size!r}: write height and width, such as 32x48, or one number for both"
            )
        return int(parts[0]), int(parts[-1])

    @property
    def validation_fraction(self) -> float:
        """Of rows that may be picked singly."""
        if self.train.patience and self.data.validation_fraction is None:
            return VALIDATION_FRACTION
        return self.data.validation_fraction or 0.0


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
    _set_rate(tree)
    _set_micro_batches(tree)
    try:
        request = msgspec.convert(tree, Request)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_said(error)}") from error
    check(request)
    return request


def check(request: Request) -> None:
    """Raise UsageError or PlanError for the first setting that cannot be, with its value and its bounds."""
    train, optimizer, mesh = request.train, request.train.optimizer, request.mesh
    at_least_one = {"epochs": train.epochs, "batch_size": train.batch_size, "micro_batches": train.micro_batches}
    for name, count in (at_least_one | {"threads": mesh.threads}).items():
        if count < 1:
            raise UsageError(f"{name} = {count}: it must be at least 1")
    if train.batch_size % train.micro_batches:
        raise UsageError(
            f"a batch of {train.batch_size} rows cannot be divided into {train.micro_batches} micro-batches;"
            f" {_nearest_divisors(train.batch_size, train.micro_batches)} would do"
        )
    for kind, name, known in (("optimizer", optimizer.kind, OPTIMIZERS), ("schedule", optimizer.schedule, SCHEDULES)):
        if name not in known:
            raise UsageError(
                unknown(
                    f"unknown {kind} of the learning rate" if kind == "schedule" else "unknown optimizer", name, known
                )
            )
    if optimizer.schedule == "step" and optimizer.step_size < 1:
        raise UsageError("the learning-rate schedule step needs --step-size, the steps between two drops, such as 1000")
    not_negative = {"patience": train.patience, "checkpoint_steps": train.checkpoint_steps, "seed": request.seed}
    not_negative |= {"warmup_steps": optimizer.warmup_steps, "step_size": optimizer.step_size}
    for name, number in {
        **not_negative,
        "weight_decay": optimizer.weight_decay,
        "clip_norm": optimizer.clip_norm,
    }.items():
        if not 0 <= number < float("inf"):
            raise UsageError(f"{name} = {number}: it must not be negative")
    for name, number in {**not_negative, "epochs": train.epochs, "batch_size": train.batch_size}.items():
        if number > WHOLE_MAX:
            raise UsageError(f"{name} = {number}: it is at most {WHOLE_MAX:,}")
    if not 0 < optimizer.rate < float("inf"):
        raise UsageError(f"rate = {optimizer.rate}: a learning rate is above 0")
    for name, fraction in {"momentum": optimizer.momentum, "beta1": optimizer.beta1, "beta2": optimizer.beta2}.items():
        if not 0 <= fraction < 1:
            raise UsageError(f"{name} = {fraction}: it lies from 0 to below 1")
    for name, share in {
        "validation_fraction": request.data.validation_fraction,
        "test_fraction": request.data.test_fraction,
    }.items():
        if share is not None and not 0 <= share <= FRACTION_MAX:
            raise UsageError(f"{name} = {share}: it lies from 0 to {FRACTION_MAX}")
    _check_mesh(request)


def settled(request: Request, *, ordered: bool, validated: bool) -> Request:
    """The request with both fractions given, now that the data is known.

    ordered: its rows follow one another, as those of a text. validated: it has a part of its own to validate on. Raises
    UsageError where something is to be monitored and nothing is left to monitor it on.
    """
    data = request.data
    if validated:
        validation = 0.0
    elif ordered and data.validation_fraction is None:
        validation = VALIDATION_FRACTION
    else:
        validation = request.validation_fraction
    testing = data.test_fraction
    if testing is None:
        testing = 0.0 if ordered or validated else TEST_FRACTION
    looking = "monitor" if request.train.monitor else "patience" if request.train.patience else ""
    if looking and not validation and not validated:
        value = request.train.monitor or request.train.patience
        raise UsageError(
            f"{looking} {value} looks at validation rows, and there are none; say --validation-fraction 0.1"
        )
    given = msgspec.structs.replace(data, validation_fraction=validation, test_fraction=testing)
    return msgspec.structs.replace(request, data=given)


REPEATS: Final = "Repeats this run: p2pnn train job.toml"


def to_toml(request: Request, remark: str = REPEATS) -> str:
    """The request as a job file that repeats it. Defaults are written out, so that a later version repeats it too."""
    lines = [f"# {remark}"]
    tree: dict[str, Any] = msgspec.to_builtins(request)
    lines += [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for table, values in tree.items():
        if isinstance(values, dict):
            given = (f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)
            lines += ["", f"[{table}]", *given]
    return "\n".join(lines) + "\n"


def with_cut(text: str, cut: Sequence[int], *, broken: bool) -> str:
    """A run's job file with the cut that its bits depend on. broken: the run was cut anew on its way, so nothing repeats it."""
    request = msgspec.convert(tomllib.loads(text), Request)
    if broken:
        return to_toml(
            request, "The settings of this run, which went on over another cut after a break: its bits do not repeat"
        )
    return to_toml(msgspec.structs.replace(request, mesh=msgspec.structs.replace(request.mesh, cut=list(cut))))


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
    """With several mini-batches in flight each is one piece, where nothing else is asked for."""
    mesh = tree.get("mesh")
    schedule = mesh.get("schedule") if isinstance(mesh, dict) else None
    train = tree.setdefault("train", {}) if isinstance(schedule, str) and schedule != "sync" else None
    if isinstance(train, dict):
        train.setdefault("micro_batches", 1)


def _check_mesh(request: Request) -> None:
    mesh = request.mesh
    if mesh.parallel != "model":
        raise UsageError(f"parallel = {mesh.parallel!r}: this p2pnn has model parallelism alone; write model")
    check_schedule(mesh.schedule, request.train.micro_batches)
    if isinstance(mesh.nodes, int) and mesh.nodes < 0:
        raise PlanError(f"nodes = {mesh.nodes}: a number of nodes is at least 1, or 0 for every node that has room")
    if isinstance(mesh.nodes, list) and len(set(mesh.nodes)) != len(mesh.nodes):
        raise PlanError(f"nodes = {', '.join(mesh.nodes)}: a node is named twice")
    if isinstance(request.data.scale, str) and request.data.scale not in ("auto", "none"):
        raise UsageError(f"scale = {request.data.scale!r}: write auto, none, or a number to multiply with")
    _ = request.memory_bytes_max
    _ = request.image_size
    if request.data.context < 0:
        raise UsageError(
            f"context = {request.data.context}: a row of text has at least 1 character, or 0 for the model's"
        )


def _nearest_divisors(number: int, near: int) -> str:
    below = next(d for d in range(min(near, number), 0, -1) if number % d == 0)
    above = next((d for d in range(near + 1, number + 1) if number % d == 0), None)
    return f"{below}" if above is None else f"{below} or {above}"


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
