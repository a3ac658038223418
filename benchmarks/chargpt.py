"""The network char-gpt on a text, through a mesh of two nodes and in torch: the same validation loss after equally many steps?

    ./run bench chargpt [--json] [--quick] [--data FILE.txt] [--epochs N] [--torch-python PATH]

Both begin with the same parameters, see the same rows in the same order, and have the same rates, weight decay and clipping;
both are float32 with one BLAS thread per process. p2pnn is two real daemons and executors with the schedule `sync` and 4
micro-batches, as `p2pnn train --local 2` starts them; torch is one process with whole batches, `scaled_dot_product_attention`
and torch.optim.AdamW. Sums are ordered differently, so that the losses drift apart by their last digits, and no more.

Without --data the text is made up. The usual one is tinyshakespeare (github.com/karpathy/char-rnn, 1.1 MB).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import _jobs
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from benchmarks._torch_python import add_option, torch_python
from benchmarks._worker import Worker
from p2pnn.cli import prepare, submit
from p2pnn.cli.jobfile import resolve
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.request import VALIDATION_FRACTION
from p2pnn.data.batches import epoch_order
from p2pnn.data.ingest import divide
from p2pnn.data.text import is_text, open_text
from p2pnn.errors import DataError
from p2pnn.job.spec import JobSpec
from p2pnn.model.initial import initial
from p2pnn.train.rates import rate

OURS, TORCH = "p2pnn, 2 nodes", "torch, 1 process"
NETWORK = {"layers": 4, "heads": 4, "width": 64}
CONTEXT = 64
TRAINING: dict[str, Any] = {
    "batch_size": 32,
    "micro_batches": 4,
    "optimizer": "adamw",
    "rate": 2e-3,
    "weight_decay": 0.1,
    "warmup_steps": 100,
    "clip_norm": 1.0,
    "seed": 7,
}
LOSS_RATIO_MAX = 1.02
"""What is promised: within 2 % of torch's loss."""


def main() -> int:
    options = arguments(__doc__ or "", extend=extend)
    report = Report("chargpt", quick=options.quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.data is None:
            text = made_up(folder / "made-up.txt", 40_000 if options.quick else 400_000)
        else:
            text = usable(Path(options.data).expanduser())
        prepared = training_on(text, options.epochs if options.epochs is not None else 1 if options.quick else 3)
        spec = prepared.spec
        write(folder, spec, text)
        python = torch_python(options.torch_python, report)
        report.facts["text"] = f"{options.data or 'made up'}, {len(spec.graph.classes)} different characters"
        report.facts["network"] = f"{NETWORK}, context {CONTEXT}; {TRAINING}; {spec.steps:,} steps"
        losses = {OURS: ours(prepared, report)}
        if python:
            losses[TORCH] = theirs(folder, spec, python, report)
    for epoch, found in enumerate(zip(*losses.values(), strict=True), 1):
        last = epoch == spec.epochs
        contest = Contest(f"validation loss after {epoch * spec.steps_per_epoch:,} steps", "nats", ours=OURS)
        contest.add(dict(zip(losses, found, strict=True)))
        report.add(contest, *([Target(TORCH, at_most=LOSS_RATIO_MAX)] if last and TORCH in losses else []))
    report.series |= {f"{name}: validation loss by epoch": list(found) for name, found in losses.items()}
    return report.end(options)


def extend(parser: Any) -> None:
    parser.add_argument("--data", metavar="FILE.txt", help="a text, such as tinyshakespeare's input.txt; else made up")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the text (3; with --quick 1)")
    add_option(parser)


def usable(path: Path) -> Path:
    """The path. Raises DataError for what is no text, or one too short for a batch."""
    if not is_text(path):
        raise DataError(f"{path} is not a text by its name; name a file of UTF-8 text that ends in .txt")
    characters = open_text(path, 1).train.rows  # each but the last is a row then
    rows, _ = divide(characters // CONTEXT, VALIDATION_FRACTION, 0.0)
    if rows < TRAINING["batch_size"]:
        raise DataError(
            f"{path} gives {rows} rows of {CONTEXT} characters to train on, but a batch takes {TRAINING['batch_size']}; "
            f"name a longer text"
        )
    return path


def training_on(text: Path, epochs: int) -> submit.Prepared:
    asked = {"model": "char-gpt", "arguments": NETWORK, "data": str(text), "context": CONTEXT, "epochs": epochs}
    return prepare.training(resolve({**asked, "nodes": 2, **TRAINING}))


def ours(prepared: submit.Prepared, report: Report) -> list[float]:
    """The validation loss after each epoch, through the mesh."""
    with LocalMesh(2) as mesh:
        began = time.monotonic()
        outcome = _jobs.run(mesh, prepared, show)
    report.facts[f"{OURS}, seconds"] = round(time.monotonic() - began, 1)
    return [float(event["validation_loss"]) for event in outcome.epochs]


def show(event: dict[str, Any]) -> None:
    if event["kind"] == "epoch":
        print(f"  {OURS}: epoch {event['epoch']}, validation loss {event['validation_loss']:.4f}", file=sys.stderr)


def write(folder: Path, spec: JobSpec, text: Path) -> None:
    """What torch reads: rows, their order by step, the first parameters and the rate of each step."""
    assert spec.train is not None
    assert spec.validation is not None
    table = open_text(text, CONTEXT, spec.graph.classes).train
    blocks = [{name: np.array(found) for name, found in block.items()} for block in table.blocks(4096, ("x", "y"))]
    for column in ("x", "y"):
        rows = np.concatenate([block[column] for block in blocks])
        np.save(folder / f"train-{column}.npy", rows[spec.train.start : spec.train.stop])
        np.save(folder / f"validation-{column}.npy", rows[spec.validation.start : spec.validation.stop])
    whole = spec.steps_per_epoch * spec.batch_size
    order = [epoch_order(spec.train, spec.seed, epoch)[:whole] for epoch in range(spec.epochs)]
    np.save(folder / "order.npy", np.concatenate(order).reshape(spec.steps, spec.batch_size))
    np.save(folder / "rates.npy", [rate(spec.optimizer, step, spec.steps) for step in range(spec.steps)])
    for number, parameter in enumerate(spec.graph.parameters):
        np.save(folder / f"p{number}.npy", initial(parameter, spec.seed))


def theirs(folder: Path, spec: JobSpec, python: str, report: Report) -> list[float]:
    """The validation loss after each epoch, in torch."""
    asked = {
        "folder": str(folder),
        "names": [parameter.name for parameter in spec.graph.parameters],
        "decayed": [parameter.name for parameter in spec.graph.parameters if parameter.decay],
        "optimizer": msgspec.to_builtins(spec.optimizer),
        "heads": NETWORK["heads"],
        "layers": NETWORK["layers"],
        "steps_per_epoch": spec.steps_per_epoch,
    }
    with Worker(python, "_chargpt") as worker:
        worker.ask("prepare", least_s=0.0, **asked)
        answer = worker.ask("round", count=spec.steps)
    report.facts[f"{TORCH}, seconds"] = round(answer["seconds"] * spec.steps, 1)
    return [float(loss) for loss in answer["losses"]]


def made_up(path: Path, characters: int) -> Path:
    """Sentences of invented words, each of which likes to be followed by few others."""
    dice = np.random.default_rng(7)
    syllables = ["".join(pair) for pair in zip("bdfgklmnprstvz" * 5, "aeiou" * 14, strict=True)]
    words = ["".join(dice.choice(syllables, int(dice.integers(1, 4)))) for _ in range(300)]
    next_words = dice.integers(0, 300, (300, 6))
    found, word, length = [], 0, 0
    while length < characters:
        word = int(next_words[word, min(int(dice.exponential(1.5)), 5)])
        found.append(words[word] + (".\n" if dice.random() < 0.1 else " "))
        length += len(found[-1])
    path.write_text("".join(found), "utf-8")
    return path


if __name__ == "__main__":
    sys.exit(conclude(main))
