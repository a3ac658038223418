"""`p2pnn train` and `p2pnn plan`: the same arguments; the one runs the job, the other shows what it would be.

Without MODEL and --data, train is the demonstration: the packaged digits and a small network, to see a mesh at work.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag

if TYPE_CHECKING:
    from p2pnn.cli.request import Request

DEMONSTRATION: Final[dict[str, Any]] = {
    "model": "mlp",
    "data": "digits",
    "epochs": 20,
    "batch_size": 32,
    "micro_batches": 4,
    "rate": 2e-3,
}
"""Reaches 97 % within ten seconds on a laptop, over three nodes."""

_JOB: Final = "The job"
_TRAINING: Final = "The training"
_MESH: Final = "The mesh"


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, metavar=metavar)


ModelArgument = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="FILE.py:FUNCTION, a name of the zoo, or a job file JOB.toml.")
]
Data = Annotated[
    str | None, _option("--data", panel=_JOB, metavar="PATH|digits", help="IDX, npz, npy, CSV, or digits.")
]
Label = Annotated[str | None, _option("--label", panel=_JOB, metavar="COLUMN", help="The column to learn.")]
Scale = Annotated[str | None, _option("--scale", panel=_JOB, metavar="auto|none|NUMBER", help="Scaling of the inputs.")]
Fraction = Annotated[
    float | None, _option("--validation-fraction", panel=_JOB, metavar="F", help="Of the training rows, kept apart.")
]
Seed = Annotated[int | None, _option("--seed", panel=_JOB, metavar="N", help="Of everything that is drawn; 0.")]
Init = Annotated[str | None, _option("--init", panel=_JOB, metavar="FILE", help="A model.safetensors to start from.")]
Epochs = Annotated[int | None, _option("--epochs", panel=_TRAINING, metavar="N", help="Passes over the data; 10.")]
BatchSize = Annotated[int | None, _option("--batch-size", panel=_TRAINING, metavar="N", help="Rows per step; 128.")]
MicroBatches = Annotated[
    int | None, _option("--micro-batches", panel=_TRAINING, metavar="N", help="Pieces of a batch in the pipeline; 4.")
]
Optimizer = Annotated[
    str | None, _option("--optimizer", panel=_TRAINING, metavar="KIND", help="sgd, momentum, nesterov, adam or adamw.")
]
Rate = Annotated[float | None, _option("--rate", panel=_TRAINING, metavar="R", help="The learning rate.")]
Momentum = Annotated[float | None, _option("--momentum", panel=_TRAINING, metavar="M", help="Of momentum; 0.9.")]
WeightDecay = Annotated[float | None, _option("--weight-decay", panel=_TRAINING, metavar="W", help="Not on biases.")]
LrSchedule = Annotated[
    str | None, _option("--lr-schedule", panel=_TRAINING, metavar="KIND", help="constant, step or cosine (default).")
]
Warmup = Annotated[int | None, _option("--warmup-steps", panel=_TRAINING, metavar="N", help="The rate rises first.")]
ClipNorm = Annotated[
    float | None, _option("--clip-norm", panel=_TRAINING, metavar="C", help="Largest norm of all gradients together.")
]
Patience = Annotated[
    int | None, _option("--patience", panel=_TRAINING, metavar="N", help="Epochs without a better one, then stop.")
]
Monitor = Annotated[
    str | None, _option("--monitor", panel=_TRAINING, metavar="METRIC", help="What is better: a metric, or loss.")
]
CheckpointSteps = Annotated[
    int | None, _option("--checkpoint-steps", panel=_TRAINING, metavar="N", help="Besides one at each epoch's end.")
]
StepSize = Annotated[
    int | None, _option("--step-size", panel=_TRAINING, metavar="N", help="Steps between drops of --lr-schedule step.")
]
Gamma = Annotated[float | None, _option("--gamma", panel=_TRAINING, metavar="G", help="Factor of each drop; 0.1.")]
Parallel = Annotated[str | None, _option("--parallel", panel=_MESH, metavar="model", help="How it is spread.")]
Schedule = Annotated[
    str | None, _option("--schedule", panel=_MESH, metavar="sync", help="How steps follow each other.")
]
Nodes = Annotated[str | None, _option("--nodes", panel=_MESH, metavar="N|NAMES", help="How many, or which (a,b).")]
PinFlag = Annotated[
    list[str] | None, _option("--pin", panel=_MESH, metavar="PATTERN=NODE", help="Layers that stay on a node.")
]
Threads = Annotated[int | None, _option("--threads", panel=_MESH, metavar="N", help="BLAS threads per node; 1.")]
Memory = Annotated[str | None, _option("--memory", panel=_MESH, metavar="SIZE", help="Most memory on a node.")]
Local = Annotated[
    int | None, _option("--local", panel=_MESH, metavar="N", help="N nodes on this machine, for this command.")
]
Out = Annotated[str | None, _option("--out", panel=_JOB, metavar="DIR", help="Where the results go.")]


def train(
    model: ModelArgument = None,
    data: Data = None,
    label: Label = None,
    scale: Scale = None,
    validation_fraction: Fraction = None,
    seed: Seed = None,
    init: Init = None,
    out: Out = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    micro_batches: MicroBatches = None,
    optimizer: Optimizer = None,
    rate: Rate = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    lr_schedule: LrSchedule = None,
    warmup_steps: Warmup = None,
    clip_norm: ClipNorm = None,
    patience: Patience = None,
    monitor: Monitor = None,
    checkpoint_steps: CheckpointSteps = None,
    step_size: StepSize = None,
    gamma: Gamma = None,
    parallel: Parallel = None,
    schedule: Schedule = None,
    nodes: Nodes = None,
    pin: PinFlag = None,
    threads: Threads = None,
    memory: Memory = None,
    local: Local = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit the job and return.", rich_help_panel=_MESH)] = False,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Train a network across the mesh; without MODEL and --data, a demonstration."""
    asked = asked_for(dict(locals()))
    _train(asked, local=local, socket=socket, out=out, detach=detach, json=json)


def plan(
    model: ModelArgument = None,
    data: Data = None,
    label: Label = None,
    scale: Scale = None,
    validation_fraction: Fraction = None,
    seed: Seed = None,
    init: Init = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    micro_batches: MicroBatches = None,
    optimizer: Optimizer = None,
    rate: Rate = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    lr_schedule: LrSchedule = None,
    warmup_steps: Warmup = None,
    clip_norm: ClipNorm = None,
    patience: Patience = None,
    monitor: Monitor = None,
    checkpoint_steps: CheckpointSteps = None,
    step_size: StepSize = None,
    gamma: Gamma = None,
    parallel: Parallel = None,
    schedule: Schedule = None,
    nodes: Nodes = None,
    pin: PinFlag = None,
    threads: Threads = None,
    memory: Memory = None,
    local: Local = None,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show what would go where, the bytes per cut, and why; nothing is trained."""
    asked = asked_for(dict(locals()))
    _plan(asked, local=local, socket=socket, json=json)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A resolved request; demonstration where neither a model nor data was named."""

    request: Request
    demonstration: bool


def asked_for(flags: dict[str, Any]) -> Asked:
    """The request that flags and job file make. Raises UsageError; a model without data, or data without one, is refused."""
    from pathlib import Path

    from p2pnn.cli.request import FLAGS, resolve
    from p2pnn.errors import UsageError

    given: dict[str, Any] = {key: value for key, value in flags.items() if key in FLAGS and value is not None}
    if flags.get("pin"):
        given["pins"] = dict(_pin(text) for text in flags["pin"])
    if "nodes" in given:
        given["nodes"] = _nodes(given["nodes"])
    if "scale" in given:
        given["scale"] = _scale(given["scale"])
    model = given.get("model")
    if model is not None and model.endswith(".toml"):
        del given["model"]
        request = resolve(given, Path(model))
        if not request.model.source or not request.data.train:
            missing = "[model] source" if not request.model.source else "[data] train"
            raise UsageError(f"{model} names no {missing}, and no flag does")
        return Asked(request, demonstration=False)
    if model is None and "data" not in given:
        return Asked(resolve(DEMONSTRATION | given), demonstration=True)
    if model is None:
        raise UsageError(f"--data {given['data']} without a MODEL: name one too, such as mlp or FILE.py:FUNCTION")
    if "data" not in given:
        raise UsageError(f"the model {model} without --data: name the data too, such as --data digits")
    return Asked(resolve(given), demonstration=False)


def _train(asked: Asked, *, local: int | None, socket: str | None, out: str | None, detach: bool, json: bool) -> None:
    import contextlib

    from p2pnn.cli import results, session, submit, terminal
    from p2pnn.cli.mesh import opened, wants_local
    from p2pnn.cli.render import label
    from p2pnn.errors import UsageError

    count = wants_local(local, socket, nodes=asked.request.mesh.nodes)
    if detach and count:
        raise UsageError("--detach needs a daemon that runs on; start one with `p2pnn node start`")
    if out is not None:
        results.run_folder("", out)
    if asked.demonstration:
        terminal.remark(f"Training {submit.DIGITS_IN_WORDS} as a demonstration: no model was named.")
    prepared = submit.prepare(asked.request)
    for line in prepared.remarks:
        terminal.remark(line)
    folder = results.run_folder(prepared.name, out)
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(opened(count, socket))
        if mesh.local is not None:
            nodes = f"{count} node{'s' if count > 1 else ''}"
            terminal.remark(label("Local mesh", f"{nodes} on this machine, ready in {mesh.local.ready_s:.1f} s"))
        import time

        began = time.monotonic()
        job = submit.send(mesh.daemon, prepared, terminal.remark)
        if detach:
            terminal.print_json({"job": job}) if json else terminal.say(f"{job} is submitted")
            terminal.remark(f"see it with `p2pnn jobs logs --follow {job}`, get it with `p2pnn jobs fetch {job}`")
            return
        run = session.Run(mesh, job, folder, chosen=out is not None, name=prepared.name, close=stack.pop_all().close)
        with run:
            session.complete(run, json=json, demonstration=asked.demonstration, began=began)


def _plan(asked: Asked, *, local: int | None, socket: str | None, json: bool) -> None:
    import msgspec

    from p2pnn.cli import render, submit, terminal
    from p2pnn.cli.mesh import opened, wants_local

    count = wants_local(local, socket, nodes=asked.request.mesh.nodes)
    prepared = submit.prepare(asked.request)
    with opened(count, socket) as mesh:
        found = mesh.daemon.post("plan", msgspec.msgpack.encode(prepared.spec))
    if json:
        terminal.print_json(found)
        return
    terminal.say(render.plan_headline(found["plan"]))
    for line in render.plan_table(found["plan"]) + render.plan_reasons(found["plan"]):
        terminal.say(line)


def _pin(text: str) -> tuple[str, str]:
    from p2pnn.errors import UsageError

    pattern, equals, node = text.rpartition("=")
    if not (equals and pattern.strip() and node.strip()):
        raise UsageError(f"--pin {text!r} is not PATTERN=NODE; write, for instance, --pin 'block2/*=attic-pc'")
    return pattern.strip(), node.strip()


def _nodes(text: str) -> int | list[str]:
    from p2pnn.errors import UsageError

    if text.strip().lstrip("-").isdigit():
        return int(text)
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--nodes {text!r} is neither a number nor names with commas between, such as a,b")
    return names


def _scale(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
