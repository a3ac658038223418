"""`p2pnn eval` and `p2pnn predict`: a run's network on other data, over the mesh or on this machine.

Both are jobs like any other: the run's weights go to the mesh as a blob, the data as chunks, and the network runs forward
only. Scaling and class names are those of the run. What a network of text writes by itself is `sample`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag

if TYPE_CHECKING:
    from p2pnn.cli.http import Daemon
    from p2pnn.cli.submit import Prepared
    from p2pnn.model.graph import Graph

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name, such as digits-1.")]
_DATA: Final = typer.Option(
    "--data",
    metavar="PATH|digits",
    help="A file (IDX, npz, npy, CSV, text, image), a folder of images, or MNIST's; digits: the packaged ones.",
)
Data = Annotated[str, _DATA]
DataOrNone = Annotated[str | None, _DATA]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", metavar="TEXT", help="Of a network of text: go on with TEXT.  [default: a new line]"),
]
Length = Annotated[
    int | None, typer.Option("--length", metavar="N", help="How many characters to write.  [default: 500]")
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help="Below 1 bolder, 0 the likeliest always.  [default: 0.8]"),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="K", help="Choose from the K likeliest; 0 for all.  [default: 0]")
]
SampleSeed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Another number, another text.  [default: 0]")
]
Label = Annotated[
    str | None,
    typer.Option("--label", metavar="COLUMN", help="The column with the labels.  [default: that of the training]"),
]
Batch = Annotated[int, typer.Option("--batch-size", metavar="N", help="Rows at once; more take more memory.")]
Local = Annotated[
    int | None,
    typer.Option(
        "--local",
        metavar="N",
        help="Start N nodes on this machine, for this command alone.  [default: 1 where no daemon answers]",
    ),
]


def evaluate(
    run: RunArgument,
    data: Data,
    label: Label = None,
    batch_size: Batch = 256,
    local: Local = None,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Measure a run's network on data. Loss and metrics are those of the test rows, where the data has some that the run was
    not trained on, else of all rows; it says which.
    """
    from p2pnn.cli import prepare, render, terminal

    prepared = prepare.of_run(run, data, label=label, kind="evaluate", batch_size=batch_size)
    outcome, _ = _run(prepared, local, socket, lambda daemon, job: None)
    found = outcome.evaluations[-1] if outcome.evaluations else {}
    shown = {key: found.get(key) for key in ("rows", "loss", "metrics")}
    if json:
        terminal.print_json(shown)
    else:
        terminal.say(render.evaluation({**found, "split": prepared.name}))
        if found.get("loss") is not None:
            terminal.say(f"loss {render.loss(found['loss'])}")


def predict(
    run: RunArgument,
    data: DataOrNone = None,
    label: Label = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE.npz", help="Save the outputs as arrays.")] = None,
    batch_size: Batch = 256,
    prompt: Prompt = None,
    length: Length = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    seed: SampleSeed = None,
    local: Local = None,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """Run a network on data; print or save its outputs. There is one line per row, in the data's order.

    Without --data a network of text writes one: it goes on with --prompt.
    """
    from pathlib import Path

    from p2pnn.cli import prepare, terminal
    from p2pnn.errors import UsageError

    numbers = {"length": length, "temperature": temperature, "top_k": top_k, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if data is None:
        _write(run, prompt, given, out, local, socket, json)
        return
    if prompt is not None or given:
        flag = "--prompt" if prompt is not None else "--" + next(iter(given)).replace("_", "-")
        raise UsageError(f"{flag} is for a text that is gone on with, --data for rows to predict: give one of them")
    target = Path(out).expanduser() if out else None
    if target is not None and target.exists():
        raise UsageError(f"{target} exists already; name another file")
    prepared = prepare.of_run(run, data, label=label, kind="predict", batch_size=batch_size)
    _, outputs = _run(prepared, local, socket, fetch_predictions)
    if target is not None:
        _save(target, outputs)
        terminal.say(f"{target}: " + ", ".join(f"{name} {list(a.shape)}" for name, a in outputs.items()))
        return
    classes, files = class_names(prepared.spec.graph), [str(path) for path in prepared.files]
    if json:
        found = {name: array.tolist() for name, array in outputs.items()} | {"classes": list(classes)}
        terminal.print_json(found | ({"files": files} if files else {}))
        return
    for line in prediction_lines(outputs, classes, files):
        terminal.say(line)


def class_names(graph: Graph) -> tuple[str, ...]:
    """What the classes are called; by their numbers where the labels were numbers, () where there are none."""
    from p2pnn.data.fit import class_counts

    return graph.classes or tuple(str(number) for number in range(max(class_counts(graph).values(), default=0)))


def fetch_predictions(daemon: Daemon, job: str) -> dict[str, Any]:
    """Named output → its rows in order, put together from the blobs that the nodes stored."""
    import msgspec
    import numpy as np

    from p2pnn.cli.http import segment
    from p2pnn.cli.results import blob
    from p2pnn.errors import CheckpointError
    from p2pnn.job.script import Predictions

    found = daemon.get(f"jobs/{segment(job)}/results")["predictions"]
    if not found:
        raise CheckpointError(f"{job} left no predictions")
    outputs = {}
    for name, (dtype, shape, blobs) in msgspec.convert(found, Predictions).outputs.items():
        parts = []
        for identifier, rows in blobs:
            raw = blob(daemon, identifier)
            parts.append(np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"), offset=64).reshape(rows, *shape))
        outputs[name] = np.concatenate(parts)
    return outputs


def prediction_lines(outputs: dict[str, Any], classes: tuple[str, ...], files: Sequence[str] = ()) -> list[str]:
    """One line per row: the most likely class and its score where the output is one score per class; the most likely one of
    each position where it is that many times over, as in a text; else the numbers. files: of rows that are an image each, for
    the end of the line."""
    lines: list[str] = []
    for name, array in outputs.items():
        if classes and array.ndim == 3 and array.shape[2] == len(classes):
            lines += [repr("".join(classes[best] for best in row)) for row in array.argmax(axis=2)]
            continue
        for row in array.reshape(len(array), -1):
            if classes and row.size == len(classes):
                best = int(row.argmax())
                name_of_best = classes[best] if classes[best].isprintable() else repr(classes[best])
                lines.append(f"{name_of_best}\t{row[best]:.4f}")
            else:
                lines.append(f"{name}\t" + " ".join(f"{value:.6g}" for value in row))
    if not files:
        return lines
    return [f"{line}\t{files[n % len(files)]}" for n, line in enumerate(lines)]


def _write(
    run: str,
    prompt: str | None,
    given: dict[str, Any],
    out: str | None,
    local: int | None,
    socket: str | None,
    json: bool,
) -> None:
    """Go on with a text; where nothing says that it is one, a run of another kind asks for data."""
    from p2pnn.cli import sample
    from p2pnn.errors import ModelError, UsageError

    if out is not None:
        raise UsageError("--out saves arrays of what is predicted on --data; a text goes to a file with > FILE")
    try:
        prepared = sample.prepare(run, prompt=prompt or "", **given)
    except ModelError as error:
        if prompt is not None or given:
            raise
        raise UsageError(f"name the rows to predict with --data; {error}") from error
    sample.write(prepared, prompt or "", local=local, socket=socket, json=json)


def _run(prepared: Prepared, local: int | None, socket: str | None, fetch: Any) -> tuple[Any, Any]:
    """Submit, follow to the end, and fetch while the mesh is still there."""
    from p2pnn.cli import follow as following
    from p2pnn.cli import submit, terminal
    from p2pnn.cli.mesh import opened, wants_local

    count = wants_local(local, socket, default=1)
    for line in prepared.remarks:
        terminal.remark(line)
    with opened(count, socket) as mesh:
        job = submit.send(mesh.daemon, prepared)
        outcome = following.follow(mesh.daemon, job, _only_warnings, may_detach=False, fallen=mesh.fallen)
        outcome.raise_if_failed()
        return outcome, fetch(mesh.daemon, job)


def _only_warnings(event: dict[str, Any]) -> None:
    from p2pnn.cli import render, terminal

    if event["kind"] in ("warning", "queued"):
        terminal.remark(render.event(event))


def _save(target: Any, outputs: dict[str, Any]) -> None:
    import os

    import numpy as np

    from p2pnn.errors import StorageError

    temporary = target.with_name(f".{target.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, **outputs)
        temporary.rename(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{target} could not be written: {error.strerror}") from error
