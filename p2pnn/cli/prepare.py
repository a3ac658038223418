"""From a request to a job: model and data are read here and checked whole.

Everything that needs no mesh is done here, so that a bad value in the last row of the data is refused before a single process
has started. All data is read once, to check it and to name its chunks; what does not fit into memory is read a second time
while `submit` sends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pnn import zoo
from p2pnn.cli import jobfile, models, request, runs
from p2pnn.cli.submit import Keeper, Prepared, parts, plain
from p2pnn.config import unknown
from p2pnn.data.fit import channels, context, fit, image_size
from p2pnn.data.images import ImageTable
from p2pnn.data.ingest import Ingested, Put, divide, fingerprint, ingest, ingest_rows
from p2pnn.data.source import Wanted, from_arrays, open_source
from p2pnn.data.table import Source
from p2pnn.data.text import TextTable
from p2pnn.errors import DataError, ModelError, PlanError, UsageError
from p2pnn.job.spec import JobSpec, Pin, Split
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph, Parameter
from p2pnn.model.verify import verify
from p2pnn.types import BlobId

_CLASS_FOLDERS: Final = "put those of each class into a subfolder that is named as the class"


def training(
    asked: request.Request,
    *,
    model: Any = None,
    arrays: Mapping[str, Any] | None = None,
    test_arrays: Mapping[str, Any] | None = None,
    test: str | None = None,
) -> Prepared:
    """The training job of a request. model, arrays: given from Python in place of names and paths.

    Raises UsageError and its kinds with one sentence; nothing has been started then.
    """
    if model is None:
        models.check_exists(asked.model.source)
    if test is not None:
        asked = msgspec.structs.replace(
            asked, data=msgspec.structs.replace(asked.data, test=jobfile.absolute_data(test))
        )
    elif test_arrays is not None:
        asked = msgspec.structs.replace(asked, data=msgspec.structs.replace(asked.data, test_fraction=0.0))
    given = models.graph_of(model, "the model") if model is not None else None
    own_name = asked.name or (given.name if given else Path(asked.model.source.rpartition("/")[2]).stem)
    if given is None and not models.is_zoo_name(asked.model.source):
        given = models.load(asked.model.source, asked.model.arguments, (), 0)
    source, apart = _sources(asked, arrays, test_arrays, own_name, given)
    _check_settings(asked, source, given)
    asked = request.settled(asked, ordered=source.ordered, validated=source.validation is not None)
    graph = given or _of_the_zoo(asked, source, "--label" if arrays is None else 'label="…"')
    if not graph.losses:
        raise ModelError(f"the model {graph.name} has no loss, so it cannot be trained; give nn.Model a loss")
    features = fit(
        graph,
        source.columns,
        source.name,
        wanted=asked.data.inputs,
        label=asked.data.label,
        inputs=_read(graph, "train"),
    )

    def read(put: Put) -> Ingested:
        return ingest(
            source,
            features,
            put,
            seed=asked.seed,
            validation_fraction=asked.data.validation_fraction or 0.0,
            test_fraction=asked.data.test_fraction or 0.0,
            test=apart,
            normalize=asked.data.scale,
        )

    keeper = Keeper()
    found = read(keeper.put)
    graph = found.complete(graph)
    verify(graph)
    initial = _initial(asked.train.init, graph, keeper)
    name = plain(asked.name or source.name)
    spec = _spec(asked, name, graph, found, initial)
    return Prepared(name, spec, keeper.kept, read, [*source.remarks, *_remarks(spec)])


def of_run(named: str, data: str, *, label: str | None, kind: str, batch_size: int) -> Prepared:
    """An `evaluate` or `predict` job of a saved run on data: its test part where it has one, else every row.

    Of the very data that the run was trained on, evaluate takes the rows that were kept for testing then.
    label, and which column feeds which input: as in training, where nothing else is said and the data has such columns.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size = {batch_size}: it must be at least 1")
    run = runs.opened_run(named)
    graph = run.graph
    if kind == "evaluate" and not (graph.losses or graph.metrics):
        raise ModelError(f"the model {graph.name} has neither a loss nor a metric, so there is nothing to measure")
    asked, read_inputs = run.request(), _read(graph, kind)
    size = asked.image_size or image_size(graph)
    wants = replace(_wanted(asked, graph), size=size, labelled=kind == "evaluate")
    source = open_source(data, label or "", graph.classes, usual_label=asked.data.label, wanted=wants)
    if kind == "evaluate" and isinstance(source.train, ImageTable) and "y" not in source.columns:
        raise DataError(f"{data} holds images without classes, so there is nothing to measure; {_CLASS_FOLDERS}")
    pairs = {name: c for name, c in asked.data.inputs.items() if name in read_inputs and c in source.columns}
    wanted = fit(graph, source.columns, source.name, wanted=pairs, label=label or asked.data.label, inputs=read_inputs)
    table = source.test or source.validation or source.train

    def read(put: Put) -> Split:
        return ingest_rows(table, source.name, wanted, put)

    keeper = Keeper()
    rows = read(keeper.put)
    remarks = list(source.remarks)
    if isinstance(table, ImageTable) and table.resized and size and not asked.image_size:
        remarks.append(f"images are resized to {size[0]} × {size[1]}, as the model takes them, such as {table.resized}")
    if kind == "evaluate":
        rows, remark = _measured(rows, asked, apart=table is not source.train, ordered=source.ordered)
        remarks.append(remark)
    spec = JobSpec(
        name=plain(f"{kind}-{run.name}"),
        graph=graph,
        inputs={feature.input: feature.column for feature in wanted},
        kind=kind,
        test=rows,
        batch_size=batch_size,
        micro_batches=1,
        initial=parts(run.tensors(), keeper),
    )
    files = table.files if isinstance(table, ImageTable) else []
    return Prepared(source.name, spec, keeper.kept, read, remarks, files)


def _sources(
    asked: request.Request,
    arrays: Mapping[str, Any] | None,
    test_arrays: Mapping[str, Any] | None,
    name: str,
    graph: Graph | None,
) -> tuple[Source, Source | None]:
    """What to train on, and what to test on where that was named apart. graph: the model, where the data does not make it."""
    label, wants = asked.data.label, _wanted(asked, graph)
    if arrays is not None:
        source = from_arrays(arrays, test_arrays, name or "data")
    else:
        source = open_source(asked.data.train, label, _known_classes(asked.train.init), wanted=wants)
    place = asked.data.test
    return source, open_source(place, label, source.classes, wanted=wants) if place else None


def _wanted(asked: request.Request, graph: Graph | None) -> Wanted:
    """What rows must be to go into the model, as far as a format leaves it open."""
    if graph is None:
        return Wanted(asked.data.context, asked.image_size)
    return Wanted(asked.data.context or context(graph), asked.image_size, channels(graph), image_size(graph))


def _check_settings(asked: request.Request, source: Source, graph: Graph | None) -> None:
    """Raise UsageError for a setting that would change nothing of such data, DataError for images of another size than the
    model's."""
    data, table = asked.data, source.train
    if data.image_size and not isinstance(table, ImageTable):
        raise UsageError(f"image_size = {data.image_size}: {source.name} holds no image files to resize; leave it away")
    if data.context and not isinstance(table, TextTable):
        raise UsageError(
            f"context = {data.context}: {source.name} is no text, of which it tells the row; leave it away"
        )
    if isinstance(table, TextTable) and data.scale not in ("auto", "none"):
        raise UsageError(
            f"scale = {data.scale}: the characters of {source.name} are no amounts to scale; leave it away"
        )
    wanted = image_size(graph) if graph else None
    if isinstance(table, ImageTable) and wanted and not data.image_size and table.columns["x"].shape[1:] != wanted:
        height, width = table.columns["x"].shape[1:]
        raise DataError(
            f"the images of {source.name} have {height} × {width} pixels, but the model takes {wanted[0]} × {wanted[1]}; "
            f"say --image-size {wanted[0]}x{wanted[1]} to have them resized"
        )


def _known_classes(init: str) -> tuple[str, ...]:
    """Those of the run that training starts from: what its numbers mean must not change. () where no run is named."""
    folder = _run_folder(init) if init else None
    graph = folder / "graph.msgpack" if folder is not None else None
    return models.read_graph(graph).classes if graph is not None and graph.is_file() else ()


def _of_the_zoo(asked: request.Request, source: Source, hint: str) -> Graph:
    """A network of the zoo, made to the data's shape and classes. hint: how one says which column is to be learnt."""
    inputs, columns = asked.data.inputs, source.columns
    image = next((n for n in (inputs.get("image"), "image", "x") if n in columns), None)
    label = next((n for n in (inputs.get("label"), "label", asked.data.label, "y") if n in columns), None)
    if isinstance(source.train, ImageTable) and label is None:
        raise DataError(
            f"{asked.data.train} holds images without classes, so there is nothing to learn; {_CLASS_FOLDERS}"
        )
    if isinstance(source.train, TextTable) and asked.model.source not in zoo.OF_TEXT:
        raise UsageError(
            f"{asked.model.source} tells what class a row is of, but {source.name} is a text; learn it with "
            f"{' or '.join(zoo.OF_TEXT)} (a table in .txt is read as one with --label)"
        )
    if image is None or label is None:
        found = (
            f"{source.name} has the column{'s' if len(source.train.named) > 1 else ''} {_listed(source.train.named)}"
        )
        raise DataError(
            f"{found}, but {asked.model.source} also needs labels to learn: name the column that holds them with {hint}"
        )
    return models.load(asked.model.source, asked.model.arguments, columns[image].shape, source.class_count(label))


def _read(graph: Graph, kind: str) -> list[str]:
    """The graph inputs that this kind of job reads."""
    flow = Flow(graph)
    active = flow.inference if kind == "predict" else flow.training
    read = {name for index in active for name in graph.ops[index].inputs}
    return [value.name for value in graph.inputs if value.name in read]


def _spec(asked: request.Request, name: str, graph: Graph, data: Ingested, initial: tuple[BlobId, ...]) -> JobSpec:
    train, mesh = asked.train, asked.mesh
    if data.train.rows < train.batch_size:
        raise UsageError(
            f"a batch of {train.batch_size} rows is more than the {data.train.rows} rows to train on;"
            f" use --batch-size {1 << (data.train.rows.bit_length() - 1)} or less"
        )
    if mesh.cut and len(mesh.cut) != len(graph.ops):
        raise PlanError(
            f"cut has {len(mesh.cut)} numbers, but the model {graph.name} has {len(graph.ops)} ops; leave cut out to have it cut "
            "anew"
        )
    known = ["loss", *(metric.name for metric in graph.metrics)]
    if train.monitor and train.monitor not in known:
        raise UsageError(unknown("monitor names no metric of the model:", train.monitor, known))
    names = tuple(mesh.nodes) if isinstance(mesh.nodes, list) else ()
    saved = msgspec.structs.replace(asked.data, fingerprint=fingerprint(data.train.dataset))
    return JobSpec(
        name=name,
        graph=graph,
        inputs=data.inputs,
        train=data.train,
        validation=data.validation,
        test=data.test,
        seed=asked.seed,
        epochs=train.epochs,
        batch_size=train.batch_size,
        micro_batches=train.micro_batches,
        optimizer=train.optimizer,
        parallel="data" if mesh.parallel == "auto" else mesh.parallel,
        schedule=mesh.schedule,
        node_count=mesh.nodes if isinstance(mesh.nodes, int) else 0,
        nodes=names,
        pins=tuple(Pin(pattern, node) for pattern, node in mesh.pins.items()),
        patience=train.patience,
        monitor=train.monitor,
        checkpoint_steps=train.checkpoint_steps,
        initial=initial,
        threads=mesh.threads,
        memory_bytes_max=asked.memory_bytes_max,
        request=jobfile.to_toml(msgspec.structs.replace(asked, data=saved)),
        cut=tuple(mesh.cut),
        snapshot_steps=train.snapshot_steps,
        data=asked.data_parallel.spec(hybrid=asked.is_hybrid) if asked.deals_data else None,
    )


def _initial(named: str, graph: Graph, keeper: Keeper) -> tuple[BlobId, ...]:
    if not named:
        return ()
    folder = _run_folder(named)
    path = Path(named) if folder is None else folder / "model.safetensors"
    return parts(runs.read_tensors(path, graph), keeper)


def _run_folder(named: str) -> Path | None:
    """The folder of the run that `init` names; None where it names a file. Raises UsageError where there is neither."""
    path = Path(named)
    if path.exists():
        return path if path.is_dir() else None
    if path.parent != Path.cwd() or path.suffix:  # else the name of a run, which was made a path of the working folder
        raise UsageError(f"there is no file {path} to start from; name a model.safetensors, or a run, such as digits-1")
    return runs.opened_run(path.name).folder


def _remarks(spec: JobSpec) -> list[str]:
    """What a person should know before the job starts."""
    assert spec.train is not None
    lines = []
    dropped = spec.train.rows - spec.steps_per_epoch * spec.batch_size
    if dropped * 10 > spec.train.rows:
        lines.append(
            f"each epoch leaves out {dropped:,} of {spec.train.rows:,} rows that do not fill a batch of {spec.batch_size}"
        )
    steps, warmup = spec.steps_per_epoch * spec.epochs, spec.optimizer.warmup_steps
    if warmup and warmup >= steps:
        lines.append(f"the rate rises for {warmup:,} steps, but there are {steps:,}: it never gets to its full value")
    unused = _unused(spec.graph)
    if unused:
        lines.append(f"no loss depends on {', '.join(p.name for p in unused[:3])}: it will not be trained")
    return lines


def _unused(graph: Graph) -> list[Parameter]:
    flow = Flow(graph)
    read = {name for index in flow.needed(*graph.losses) for name in graph.ops[index].inputs}
    return [p for p in graph.parameters if p.name not in read]


def _measured(every: Split, asked: request.Request, *, apart: bool, ordered: bool) -> tuple[Split, str]:
    """The rows that evaluate measures, and a line that says which. apart: `every` is not what is trained on.

    Of a text, whose end is usually validated on, those rows count where none are left to test.
    """
    rows = every.rows
    if apart:
        return every, f"measuring the {rows:,} test rows of {every.dataset.name}"
    if asked.data.fingerprint != fingerprint(every.dataset):
        return every, f"measuring all {rows:,} rows of {every.dataset.name}"
    data = request.settled(asked, ordered=ordered, validated=False).data
    testing = 0.0 if asked.data.test else data.test_fraction or 0.0
    training, validating = divide(rows, data.validation_fraction or 0.0, testing)
    first = training if ordered and training + validating == rows else training + validating
    if first == rows:
        return every, f"measuring all {rows:,} rows of {every.dataset.name}, on which this run was trained"
    kept = Split(every.dataset, first, rows, -1 if ordered else asked.seed)
    which = "validation" if validating and first == training else "test"
    return kept, f"measuring the {kept.rows:,} {which} rows of {every.dataset.name}, on which this run was not trained"


def _listed(names: Sequence[str], most: int = 20) -> str:
    """Names with commas between; of very many, the first."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
