"""The flags of `p2pnn train` and `p2pnn plan`, each with its default in its help, and the end of that help."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

JOB_PANEL: Final = "The job"
_TRAINING: Final = "The training"
MESH_PANEL: Final = "The mesh"


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, metavar=metavar)


NETWORKS: Final = {
    "mlp": "two dense layers of 128 with dropout; rows of any shape",
    "lenet5": "two convolutions, three dense layers; images from 12 × 12",
    "resnet8": "three residual blocks of convolutions; images from 8 × 8",
    "char-gpt": "four blocks of attention, 128 wide; a text, to go on with it by `p2pnn predict`",
}
"""The zoo in words. It is told here, because importing the zoo itself takes too long for a help text."""

EXAMPLES: Final = (
    "p2pnn {verb} lenet5 --data ~/mnist --epochs 3",
    "p2pnn {verb} my_model.py:net --data flowers.npz --pin 'head*=a'",
    "p2pnn {verb} mlp --data flowers.csv --label species --local 3",
    "p2pnn {verb} lenet5 --data ~/mnist --parallel data --workers 3",
    "p2pnn {verb} char-gpt --data shakespeare.txt --optimizer adamw",
    "p2pnn {verb} ~/.local/share/p2pnn/runs/digits-1/job.toml --epochs 40",
)


class Verb(TyperCommand):
    """Its help ends with the networks of the zoo and examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Networks of the zoo"):
            formatter.write_dl(list(NETWORKS.items()))
        with formatter.section("Examples"):
            for line in EXAMPLES:
                formatter.write(f"  {line.format(verb=ctx.info_name)}\n")


ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="FILE.py:FUNCTION, a network of the zoo (below), or a job file JOB.toml."),
]
Data = Annotated[
    str | None,
    _option(
        "--data",
        panel=JOB_PANEL,
        metavar="PATH|digits",
        help="A file (IDX, npz, npy, CSV, text), a folder of images by class, or MNIST's; digits: the packaged ones.",
    ),
]
Label = Annotated[
    str | None, _option("--label", panel=JOB_PANEL, metavar="COLUMN", help="The column to learn; needed for a CSV.")
]
Scale = Annotated[
    str | None,
    _option(
        "--scale",
        panel=JOB_PANEL,
        metavar="auto|none|NUMBER",
        help="Scaling of the inputs: by what the data holds, none, or times NUMBER.  [default: auto]",
    ),
]
Context = Annotated[
    int | None,
    _option(
        "--context",
        panel=JOB_PANEL,
        metavar="N",
        help="Of a text: how many characters the network sees at once.  [default: what the model takes, else 128]",
    ),
]
ImageSize = Annotated[
    str | None,
    _option(
        "--image-size", panel=JOB_PANEL, metavar="HxW", help="Resize images to this.  [default: all have one size]"
    ),
]
Argument = Annotated[
    list[str] | None,
    _option(
        "--argument",
        panel=JOB_PANEL,
        metavar="NAME=VALUE",
        help="An argument of the model's function, such as layers=6; may be given several times.",
    ),
]
Fraction = Annotated[
    float | None,
    _option(
        "--validation-fraction",
        panel=JOB_PANEL,
        metavar="F",
        help="Share of the training rows that is kept apart to validate on.  [default: 0; 0.1 with --patience, and of a text]",
    ),
]
Seed = Annotated[
    int | None,
    _option(
        "--seed",
        panel=JOB_PANEL,
        metavar="N",
        help="Decides the first parameters, the order of rows, the splits and dropout.  [default: 0]",
    ),
]
Init = Annotated[
    str | None,
    _option(
        "--init",
        panel=JOB_PANEL,
        metavar="RUN|FILE",
        help="Start from a run or a model.safetensors.  [default: fresh parameters]",
    ),
]
Epochs = Annotated[
    int | None, _option("--epochs", panel=_TRAINING, metavar="N", help="Passes over the data.  [default: 10]")
]
BatchSize = Annotated[
    int | None, _option("--batch-size", panel=_TRAINING, metavar="N", help="Rows per step.  [default: 128]")
]
MicroBatches = Annotated[
    int | None,
    _option(
        "--micro-batches",
        panel=_TRAINING,
        metavar="N",
        help="Pieces of a batch, so that nodes work at once.  [default: 4; 1 with async:K]",
    ),
]
Optimizer = Annotated[
    str | None,
    _option(
        "--optimizer",
        panel=_TRAINING,
        metavar="KIND",
        help="sgd, momentum, nesterov, adagrad, rmsprop, adam or adamw.  [default: adam]",
    ),
]
Rate = Annotated[
    float | None,
    _option(
        "--rate",
        panel=_TRAINING,
        metavar="R",
        help="The learning rate.  [default: 0.001 for adam, adamw, rmsprop, 0.01 for momentum, nesterov, adagrad, 0.1 for sgd]",
    ),
]
Momentum = Annotated[
    float | None,
    _option(
        "--momentum",
        panel=_TRAINING,
        metavar="M",
        help="Share of the last step kept by momentum and nesterov.  [default: 0.9]",
    ),
]
WeightDecay = Annotated[
    float | None,
    _option(
        "--weight-decay",
        panel=_TRAINING,
        metavar="W",
        help="Pulls weights, not biases, towards 0.  [default: 0; 0.01 for adamw]",
    ),
]
LrSchedule = Annotated[
    str | None,
    _option(
        "--lr-schedule",
        panel=_TRAINING,
        metavar="KIND",
        help="How the rate goes on: constant, step or cosine.  [default: cosine]",
    ),
]
Warmup = Annotated[
    int | None,
    _option(
        "--warmup-steps",
        panel=_TRAINING,
        metavar="N",
        help="Steps over which the rate rises from 0 to its full value.  [default: 0]",
    ),
]
ClipNorm = Annotated[
    float | None,
    _option(
        "--clip-norm",
        panel=_TRAINING,
        metavar="C",
        help="Largest norm of all gradients together (async:K: of each node's); 0 for no limit.  [default: 0]",
    ),
]
Patience = Annotated[
    int | None,
    _option(
        "--patience",
        panel=_TRAINING,
        metavar="N",
        help="Stop after N epochs in a row without a better one; 0 for never.  [default: 0]",
    ),
]
Monitor = Annotated[
    str | None,
    _option(
        "--monitor",
        panel=_TRAINING,
        metavar="METRIC",
        help="What tells a better epoch: loss, or a metric of the validation rows.  [default: loss]",
    ),
]
CheckpointSteps = Annotated[
    int | None,
    _option(
        "--checkpoint-steps",
        panel=_TRAINING,
        metavar="N",
        help="A checkpoint every N steps too, besides one at each epoch's end.  [default: 0, none]",
    ),
]
StepSize = Annotated[
    int | None,
    _option(
        "--step-size", panel=_TRAINING, metavar="N", help="Steps between two drops of the rate; for the schedule step."
    ),
]
Gamma = Annotated[
    float | None,
    _option(
        "--gamma",
        panel=_TRAINING,
        metavar="G",
        help="What each drop multiplies the rate by; for the schedule step.  [default: 0.1]",
    ),
]
Parallel = Annotated[
    str | None,
    _option(
        "--parallel",
        panel=MESH_PANEL,
        metavar="model|data|hybrid|auto",
        help="What is spread: the model's layers, the data (a whole model on each worker), both (each worker cut over several "
        "nodes), or what is fastest.  [default: model]",
    ),
]
Schedule = Annotated[
    str | None,
    _option(
        "--schedule",
        panel=MESH_PANEL,
        metavar="sync|async:K",
        help="sync, or K mini-batches in flight: faster, and other bits than sync's.  [default: sync]",
    ),
]
Nodes = Annotated[
    str | None,
    _option(
        "--nodes", panel=MESH_PANEL, metavar="N|NAMES", help="How many nodes, or which (a,b).  [default: all with room]"
    ),
]
PinFlag = Annotated[
    list[str] | None,
    _option("--pin", panel=MESH_PANEL, metavar="PATTERN=NODE", help="Layers that stay on a node; may be repeated."),
]
Threads = Annotated[
    int | None, _option("--threads", panel=MESH_PANEL, metavar="N", help="Threads of computing per node.  [default: 1]")
]
Memory = Annotated[
    str | None,
    _option(
        "--memory", panel=MESH_PANEL, metavar="SIZE", help="Most memory on a node, as 2 GB.  [default: what is free]"
    ),
]
Local = Annotated[
    int | None,
    _option(
        "--local",
        panel=MESH_PANEL,
        metavar="N",
        help="Start N nodes on this machine, for this command alone.  [default: 3 where no daemon answers]",
    ),
]
Out = Annotated[
    str | None,
    _option(
        "--out",
        panel=JOB_PANEL,
        metavar="DIR",
        help="A new folder for the results.  [default: NAME-1, NAME-2 … where `p2pnn paths` says]",
    ),
]
TraceFile = Annotated[
    str | None,
    _option(
        "--trace",
        panel=JOB_PANEL,
        metavar="FILE",
        help="Write who computed, waited and sent when, for chrome://tracing and Perfetto.",
    ),
]
