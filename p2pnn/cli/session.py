"""A run from its submission to its results: what `p2pnn train` prints, and what `p2pnn.train(…)` returns.

One code path serves both. A Run is a job on a mesh together with the folder that its results will go to.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pnn.cli import exchanged, render, results, terminal
from p2pnn.cli import follow as following
from p2pnn.cli import trace as tracing
from p2pnn.cli.http import segment
from p2pnn.cli.mesh import Mesh
from p2pnn.errors import P2pnnError, StorageError, UsageError
from p2pnn.job import trace as made

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from p2pnn.job.trace import Trace


class Run:
    """A job that was submitted. Use it as a context, or call close(), where a local mesh was started for it.

    after: the number of the last event that is past; that of a job that was resumed tells of its earlier end.
    """

    def __init__(
        self,
        mesh: Mesh,
        job: str,
        folder: Path,
        *,
        chosen: bool = False,
        name: str = "",
        after: int = 0,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.job = job
        self.mesh = mesh
        self.name = name or job
        self.outcome: following.Outcome | None = None
        self._folder = folder
        self._chosen = chosen
        self._after = after
        self._close = close
        self._results: results.Results | None = None
        self._trace: Trace | None = None
        self._written: Path | None = None

    def __repr__(self) -> str:
        state = f", {self.outcome.state}" if self.outcome else ""
        return f"<Run {self.job}{state}>"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def follow(self, show: Callable[[dict[str, Any]], None] | None = None) -> Run:
        """Wait until the job has ended; show gets every event (by default a line per epoch on standard error).

        Raises JobFailedError with the reason where it fails. On a local mesh the results are fetched before that ends.
        """
        lines = following.Lines()
        try:
            self.outcome = following.follow(
                self.mesh.daemon,
                self.job,
                show or lines.show,
                after=self._after,
                may_detach=self.mesh.local is None,
                fallen=self.mesh.fallen,
            )
        finally:
            lines.clear()
            if self.outcome is None:
                self.close()
        try:
            if self.mesh.local is not None:
                self._keep_trace()
                if self.outcome.state == "done":
                    self._gathered()
        finally:
            if self.outcome.state in ("failed", "cancelled", "done"):
                self.close()
        self.outcome.raise_if_failed()
        return self

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """The trained parameters and state by name, float32; follows the job to its end first."""
        if self.outcome is None:
            self.follow()
        return dict(self._gathered().tensors)

    def save(self) -> Path:
        """Write the take-away folder (once) and return its path.

        Where it cannot be written, the results of a local mesh, which has ended, go to the person's runs or a temporary
        folder, with a remark. Raises StorageError otherwise: a daemon still has them.
        """
        if self._written is None:
            gathered, last = self._gathered(), self.closing
            more = {"trace.json.gz": tracing.compressed(made.chrome(self._trace))} if self._trace else {}
            try:
                self._written = results.write(gathered, self._folder, chosen=self._chosen, last=last, more=more)
            except StorageError as error:
                if self.mesh.local is None:
                    raise StorageError(f"{error}; get them with `p2pnn jobs fetch {self.job} --out DIR`") from error
                self._written = results.write_anywhere(
                    gathered, self._folder, self.name, chosen=self._chosen, last=last, more=more
                )
                terminal.remark(f"{error}; they lie in {self._written} instead")
        return self._written

    def trace(self) -> Trace:
        """Who computed, waited and sent when; of a job that runs, so far. Raises NotFoundError where nobody recorded it."""
        return self._trace or tracing.fetch(self.mesh.daemon, self.job)

    def cancel(self) -> None:
        """End the job."""
        self.mesh.daemon.post(f"jobs/{segment(self.job)}/cancel")

    def close(self) -> None:
        """End the local mesh, if one was started for this run; its job ends with it. Results fetched before stay."""
        self._close()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record per epoch so far."""
        return [results.counted(record) for record in self._gathered().history]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The evaluation on the test split: rows, loss, metrics; empty where there is none."""
        return self._evaluations[-1] if self._evaluations else {}

    @property
    def bits(self) -> str:
        """The run's fingerprint."""
        return self._gathered().bits

    @property
    def same_bits(self) -> str:
        """What gives the same bits: another cut too, unless nodes work with parameters of some updates ago."""
        found = self._gathered()
        if found.spec.data is not None:
            return "the same with --parallel model" if found.equals_one_node else ""
        if found.depends_on_cut:
            return "" if found.recut else "the same wherever its job.toml runs"
        return "the same with --local 1" if self.mesh.local is not None else ""

    @property
    def closing(self) -> dict[str, Any]:
        """The last record of metrics.jsonl."""
        return closing({"result": {"evaluation": self._evaluations}})

    @property
    def _evaluations(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in found.items() if key not in ("number", "time", "kind")}
            for found in (self.outcome.evaluations if self.outcome else ())
        ]

    def _keep_trace(self) -> None:
        """What a local mesh has recorded goes with it."""
        try:
            self._trace = tracing.fetch(self.mesh.daemon, self.job)
        except P2pnnError as error:
            if (
                self.outcome is None or not self.outcome.interrupted
            ):  # who broke it off may have done so before any step
                terminal.remark(f"{error}; the run has no trace")

    def _gathered(self) -> results.Results:
        if self._results is None:
            self._results = results.gather(self.mesh.daemon, self.job)
        return self._results


def train(
    model: Any,
    data: Mapping[str, Any] | str,
    *,
    test: Mapping[str, Any] | str | None = None,
    local: int | None = None,
    socket: str | None = None,
    out: str | None = None,
    **settings: Any,
) -> Run:
    """Train a model from Python. Returns at once; `run.follow()` waits.

    model: an nn.Model, or what MODEL may be on the command line. data: graph input → array, rows first; or a path.
    test: likewise; without it a part of data is kept apart. local: nodes of a mesh of this process's own; without it the
    daemon's mesh, or three local nodes where no daemon answers. settings: as the flags, such as epochs=5, optimizer="sgd",
    rate=0.1, pins={"fc*": "b"}.

    Raises UsageError and its kinds before anything is started.
    """
    from p2pnn.cli import auto, prepare, submit
    from p2pnn.cli.jobfile import FLAGS, resolve
    from p2pnn.cli.mesh import opened, wants_for
    from p2pnn.config import unknown

    for key in settings:
        if key not in FLAGS or key in ("model", "data"):
            raise UsageError(unknown("p2pnn.train has no setting", key, FLAGS))
    paths = {"data": data} if isinstance(data, str) else {}
    named = {"model": model} if isinstance(model, str) else {}
    request = resolve({**settings, **paths, **named})
    count = wants_for(request, local, socket)
    prepared = prepare.training(
        request,
        model=None if isinstance(model, str) else model,
        arrays=None if isinstance(data, str) else data,
        test_arrays=None if isinstance(test, str) else test,
        test=test if isinstance(test, str) else None,
    )
    folder = results.run_folder(prepared.name, out)
    stack = contextlib.ExitStack()
    try:
        mesh = stack.enter_context(opened(count, socket))
        job = submit.send(mesh.daemon, auto.settle(mesh.daemon, prepared, request).prepared)
    except BaseException:
        stack.close()
        raise
    run = Run(mesh, job, folder, chosen=out is not None, name=prepared.name, close=stack.close)
    weakref.finalize(run, stack.close)  # also at the interpreter's end, for who never closes it
    return run


def complete(
    run: Run, *, json: bool = False, demonstration: bool = False, began: float | None = None, trace: Path | None = None
) -> None:
    """Follow a run to its end, write its folder, and print what came out. trace: where its trace goes too, however it ends."""
    began = time.monotonic() if began is None else began
    lines = following.Lines(demonstration=demonstration)
    try:
        run.follow(lines.show)
    except (P2pnnError, KeyboardInterrupt):
        lines.clear()
        if trace is not None:
            _write_trace(run, trace)
        if run.mesh.local is not None:
            terminal.remark(
                "the local mesh has ended and its checkpoints with it; on `p2pnn node start` they would stay"
            )
        raise
    finally:
        lines.clear()
    assert run.outcome is not None
    if run.outcome.state == "detached":
        terminal.remark(
            f"{run.job} runs on; see it with `p2pnn jobs logs --follow {run.job}`,"
            f" get it with `p2pnn jobs fetch {run.job}`"
        )
        return
    if trace is not None:
        _write_trace(run, trace)
    if run.outcome.state == "paused":
        terminal.say(f"{run.job} is paused; `p2pnn jobs resume {run.job}` goes on with it")
        return
    seconds = time.monotonic() - began
    folder = run.save()
    if json:
        summary = {"job": run.job, "folder": str(folder), "bits": run.bits, "seconds": round(seconds, 3)}
        summary |= {"evaluation": run.evaluation or None, "epochs": run.metrics}
        terminal.print_json(summary | exchanged.summary(run.outcome.last))
        return
    if run.evaluation:
        terminal.say(render.evaluation(run.evaluation, seconds))
    for line in (*exchanged.lines(run.outcome.last), *exchanged.coverage(run.outcome.epochs)):
        terminal.say(line)
    for line in result_lines(folder, run.bits, run.same_bits, demonstration=demonstration):
        terminal.say(line)


def _write_trace(run: Run, path: Path) -> None:
    """Write the trace and say what it shows. That it cannot be had or written spoils nothing else."""
    try:
        found = run.trace()
        tracing.write(found, path)
    except P2pnnError as error:
        terminal.remark(str(error))
    else:
        for line in tracing.lines(found, path):
            terminal.remark(line)


def result_lines(folder: Path, bits: str, same: str = "", *, demonstration: bool = False) -> Iterator[str]:
    """Where the results lie, the bits and what gives the same ones, and what to do next."""
    yield render.label(
        "results", f"{terminal.short_path(folder)}      {', '.join(('model.safetensors', *results.FILES[4:]))} …"
    )
    yield render.label("bits", f"{bits}   ({same})" if same else bits)
    if demonstration:
        yield render.label(
            "next", "your own model: examples/own_model.py · a mesh that stays: docs/operating.md · p2pnn train --help"
        )


def closing(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The last record of metrics.jsonl from a job's summary: its evaluations, and its state where it is not done."""
    state = summary.get("state", "done")
    unfinished = {} if state == "done" else {"state": state}
    return {"evaluation": render.evaluations(summary.get("result") or {})} | unfinished
