"""`p2pnn train` and `p2pnn plan`: the same arguments; the one runs the job, the other shows what it would be.

Without MODEL and --data, train is the demonstration: the packaged digits and a small network, to see a mesh at work.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnn.cli.dataflags import (
    Backup,
    Consistency,
    FetchEvery,
    LocalRate,
    PullCompression,
    PushCompression,
    PushEvery,
    Replicas,
    ScaleByStaleness,
    Segments,
    ShardPolicy,
    Shards,
    StalenessMax,
    WarmStart,
    Workers,
)
from p2pnn.cli.flags import (
    MESH_PANEL,
    Argument,
    BatchSize,
    CheckpointSteps,
    ClipNorm,
    Context,
    Data,
    Epochs,
    Fraction,
    Gamma,
    ImageSize,
    Init,
    Label,
    Local,
    LrSchedule,
    Memory,
    MicroBatches,
    ModelArgument,
    Momentum,
    Monitor,
    Nodes,
    Optimizer,
    Out,
    Parallel,
    Patience,
    PinFlag,
    Rate,
    Scale,
    Schedule,
    Seed,
    StepSize,
    Threads,
    TraceFile,
    Warmup,
    WeightDecay,
)
from p2pnn.cli.mesh import JsonFlag, SocketFlag

if TYPE_CHECKING:
    from p2pnn.cli.request import Request

DIGITS_IN_WORDS: Final = "the packaged handwritten digits (UCI, 1,797 images)"

DEMONSTRATION: Final[dict[str, Any]] = {
    "model": "mlp",
    "data": "digits",
    "epochs": 20,
    "batch_size": 32,
    "micro_batches": 4,
    "rate": 2e-3,
}
"""Reaches 97 % within ten seconds on a laptop, over three nodes."""


def train(
    model: ModelArgument = None,
    data: Data = None,
    label: Label = None,
    scale: Scale = None,
    context: Context = None,
    image_size: ImageSize = None,
    argument: Argument = None,
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
    workers: Workers = None,
    segments: Segments = None,
    shards: Shards = None,
    replicas: Replicas = None,
    consistency: Consistency = None,
    backup: Backup = None,
    push_every: PushEvery = None,
    fetch_every: FetchEvery = None,
    push_compression: PushCompression = None,
    pull_compression: PullCompression = None,
    local_rate: LocalRate = None,
    warm_start: WarmStart = None,
    staleness_max: StalenessMax = None,
    scale_by_staleness: ScaleByStaleness = None,
    shard_policy: ShardPolicy = None,
    local: Local = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit the job and return; it runs on.", rich_help_panel=MESH_PANEL)
    ] = False,
    rehearse_failure: Annotated[
        bool,
        typer.Option(
            "--rehearse-failure",
            help="Kill a node of a local mesh in the middle of the run, and show how it goes on.",
            rich_help_panel=MESH_PANEL,
        ),
    ] = False,
    trace: TraceFile = None,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Train a network over the mesh. Without MODEL and --data it is a demonstration on the packaged digits."""
    asked = asked_for(dict(locals()))
    if rehearse_failure:
        _rehearse(asked, local=local, socket=socket, detach=detach, json=json)
        return
    _train(asked, local=local, socket=socket, out=out, detach=detach, trace=trace, json=json)


def plan(
    model: ModelArgument = None,
    data: Data = None,
    label: Label = None,
    scale: Scale = None,
    context: Context = None,
    image_size: ImageSize = None,
    argument: Argument = None,
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
    workers: Workers = None,
    segments: Segments = None,
    shards: Shards = None,
    replicas: Replicas = None,
    consistency: Consistency = None,
    backup: Backup = None,
    push_every: PushEvery = None,
    fetch_every: FetchEvery = None,
    push_compression: PushCompression = None,
    pull_compression: PullCompression = None,
    local_rate: LocalRate = None,
    warm_start: WarmStart = None,
    staleness_max: StalenessMax = None,
    scale_by_staleness: ScaleByStaleness = None,
    shard_policy: ShardPolicy = None,
    local: Local = None,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show what would go where, and why. It counts the bytes of each cut; nothing is trained."""
    asked = asked_for(dict(locals()))
    _plan(asked, local=local, socket=socket, json=json)


def demonstration_command() -> str:
    """The demonstration in words that a person can change."""
    flags = (f"--{key.replace('_', '-')} {value}" for key, value in DEMONSTRATION.items() if key != "model")
    return f"p2pnn train {DEMONSTRATION['model']} {' '.join(flags)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A resolved request; demonstration where neither a model nor data was named."""

    request: Request
    demonstration: bool


def asked_for(flags: dict[str, Any]) -> Asked:
    """The request that flags and job file make. Raises UsageError; a model without data, or data without one, is refused."""
    from pathlib import Path

    from p2pnn.cli.jobfile import FLAGS, resolve
    from p2pnn.errors import UsageError

    given: dict[str, Any] = {key: value for key, value in flags.items() if key in FLAGS and value is not None}
    if flags.get("pin"):
        given["pins"] = dict(_pin(text) for text in flags["pin"])
    if "nodes" in given:
        given["nodes"] = _nodes(given["nodes"])
    if "scale" in given:
        given["scale"] = _scale(given["scale"])
    if flags.get("argument"):
        given["arguments"] = dict(_argument(text) for text in flags["argument"])
    model = given.get("model")
    if model is not None and model.endswith(".toml"):
        del given["model"]
        request = resolve(given, Path(model))
        if not request.model.source or not request.data.train:
            missing = "[model] source" if not request.model.source else "[data] train"
            raise UsageError(f"{model} names no {missing}, and no flag does")
        return Asked(request, demonstration=False)
    if model is None and "data" not in given:
        alone = given.get("parallel") == "data" and given.get("consistency") != "sync"
        whole = alone or given.get("schedule", "sync") != "sync"  # so each batch is one piece
        shown = {key: value for key, value in DEMONSTRATION.items() if not (whole and key == "micro_batches")}
        return Asked(resolve(shown | given), demonstration=True)
    if model is None:
        raise UsageError(f"--data {given['data']} without a MODEL: name one too, such as mlp or FILE.py:FUNCTION")
    if "data" not in given:
        raise UsageError(f"the model {model} without --data: name the data too, such as --data digits")
    return Asked(resolve(given), demonstration=False)


def _train(
    asked: Asked, *, local: int | None, socket: str | None, out: str | None, detach: bool, trace: str | None, json: bool
) -> None:
    import contextlib

    from p2pnn.cli import auto, prepare, results, session, submit, terminal
    from p2pnn.cli import trace as tracing
    from p2pnn.cli.mesh import opened, wants_for
    from p2pnn.cli.render import label
    from p2pnn.errors import UsageError

    count = wants_for(asked.request, local, socket)
    if detach and count:
        raise UsageError("--detach needs a daemon that runs on; start one with `p2pnn node start`")
    if detach and trace is not None:
        raise UsageError("--trace writes when the job has ended; with --detach use `p2pnn jobs show JOB --trace` later")
    traced = tracing.target(trace) if trace is not None else None
    if out is not None:
        results.run_folder("", out)
    if asked.demonstration:
        terminal.remark(f"Training {DIGITS_IN_WORDS} as a demonstration: no model was named.")
        terminal.remark(f"The same by name: {demonstration_command()}")
    prepared = prepare.training(asked.request)
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
        settled = auto.settle(mesh.daemon, prepared, asked.request)
        if settled.line:
            terminal.remark(label(auto.LABEL, settled.line))
        job = submit.send(mesh.daemon, settled.prepared, terminal.remark)
        if detach:
            terminal.print_json({"job": job}) if json else terminal.say(f"{job} is submitted")
            terminal.remark(f"see it with `p2pnn jobs logs --follow {job}`, get it with `p2pnn jobs fetch {job}`")
            return
        run = session.Run(mesh, job, folder, chosen=out is not None, name=prepared.name, close=stack.pop_all().close)
        with run:
            session.complete(run, json=json, demonstration=asked.demonstration, began=began, trace=traced)


def _rehearse(asked: Asked, *, local: int | None, socket: str | None, detach: bool, json: bool) -> None:
    from p2pnn.cli import prepare, rehearse, terminal
    from p2pnn.cli.local import LocalMesh
    from p2pnn.cli.mesh import wants_local

    count = rehearse.count_for(local, socket, detach=detach, parallel=asked.request.mesh.parallel)
    wants_local(count, None, nodes=asked.request.mesh.nodes)
    if asked.demonstration:
        terminal.remark(f"Rehearsing on {DIGITS_IN_WORDS}: no model was named.")
    prepared = prepare.training(asked.request)
    for line in prepared.remarks:
        terminal.remark(line)
    with LocalMesh(count) as mesh:
        rehearse.rehearse(mesh, prepared, json=json)


def _plan(asked: Asked, *, local: int | None, socket: str | None, json: bool) -> None:
    import msgspec

    from p2pnn.cli import auto, prepare, render, terminal
    from p2pnn.cli.mesh import opened, wants_for

    count = wants_for(asked.request, local, socket)
    prepared = prepare.training(asked.request)
    with opened(count, socket) as mesh:
        settled = auto.settle(mesh.daemon, prepared, asked.request)
        found = mesh.daemon.post("plan", msgspec.msgpack.encode(settled.prepared.spec))
    if json:
        compared = {"auto": settled.line, "predicted": msgspec.to_builtins(settled.predicted)} if settled.line else {}
        terminal.print_json(found | compared)
        return
    if settled.line:
        terminal.say(render.label(auto.LABEL, settled.line))
    terminal.say(render.plan_headline(found["plan"]))
    for line in render.plan_table(found["plan"]) + render.plan_reasons(found["plan"]):
        terminal.say(line)


def _pin(text: str) -> tuple[str, str]:
    from p2pnn.errors import UsageError

    pattern, equals, node = text.rpartition("=")
    if not (equals and pattern.strip() and node.strip()):
        raise UsageError(f"--pin {text!r} is not PATTERN=NODE; write, for instance, --pin 'block2/*=attic-pc'")
    return pattern.strip(), node.strip()


def _argument(text: str) -> tuple[str, Any]:
    """`layers=6` as in `arguments = { layers = 6 }` of a job file; what is no value there is a text."""
    import tomllib

    from p2pnn.errors import UsageError

    name, equals, value = text.partition("=")
    if not (equals and name.strip().isidentifier() and value.strip()):
        raise UsageError(f"--argument {text!r} is not NAME=VALUE; write, for instance, --argument layers=6")
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        found = {"value": value.strip()}
    return name.strip(), found["value"] if len(found) == 1 else value.strip()


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
