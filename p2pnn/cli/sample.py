"""`p2pnn predict RUN --prompt …`: a text that a run's network goes on with, character by character as they come.

It is a job like any other: the network lies on the nodes that its plan names, so that one which fits on no single machine
writes too. The characters are events of the job, and stand on standard output as soon as they are drawn.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from p2pnn.cli import follow as following
from p2pnn.cli import render, submit, terminal
from p2pnn.cli.http import segment
from p2pnn.cli.mesh import opened, wants_local
from p2pnn.cli.runs import opened_run
from p2pnn.data.text import tokens
from p2pnn.errors import DataError, JobFailedError
from p2pnn.job import sampling
from p2pnn.job.spec import JobSpec, Sampling
from p2pnn.model.text import ports

if TYPE_CHECKING:
    from p2pnn.cli.submit import Prepared

START = "\n"
"""What a text without a prompt begins behind: a new line."""


def prepare(named: str, prompt: str = "", **settings: Any) -> Prepared:
    """The job that goes on with a text. settings: as of `Sampling`, beside the prompt.

    Raises ModelError for a run that is none of text, DataError for a prompt with characters that it does not know,
    UsageError for numbers that cannot be.
    """
    run = opened_run(named)
    found, vocabulary = ports(run.graph), run.graph.classes
    start = prompt or (START if START in vocabulary else vocabulary[0])
    try:
        window = tokens(start, vocabulary)[-found.context :].tolist()
    except DataError as error:
        raise DataError(f"--prompt: {error}; leave them out") from error
    remarks = []
    if len(prompt) > found.context:
        remarks.append(f"the prompt has {len(prompt):,} characters; the network sees the last {found.context}")
    keeper = submit.Keeper()
    spec = JobSpec(
        name=submit.plain(f"sample-{run.name}"),
        graph=run.graph,
        inputs={found.input: "x"},
        kind="sample",
        batch_size=1,
        micro_batches=1,
        initial=submit.parts(run.tensors(), keeper),
        sampling=Sampling(tuple(window), **settings),
    )
    sampling.check(spec)
    return submit.Prepared(run.name, spec, keeper.kept, lambda put: None, remarks)


def write(prepared: Prepared, prompt: str, *, local: int | None, socket: str | None, json: bool) -> None:
    """Submit the job and print what it writes, behind the prompt; with json all of it at the end."""
    count = wants_local(local, socket, default=1)
    for line in prepared.remarks:
        terminal.remark(line)
    found: list[int] = []
    vocabulary = prepared.spec.graph.classes

    def show(event: dict[str, Any]) -> None:
        if event["kind"] == "tokens":
            found.extend(event["tokens"])
            if not json:
                _print("".join(vocabulary[token] for token in event["tokens"]))
        elif event["kind"] in ("warning", "queued"):
            terminal.remark(render.event(event))

    with opened(count, socket) as mesh:
        job = submit.send(mesh.daemon, prepared)
        if not json:
            _print(prompt)
        try:
            outcome = following.follow(mesh.daemon, job, show, may_detach=False, fallen=mesh.fallen)
        except BrokenPipeError:  # whoever reads has read enough
            mesh.daemon.post(f"jobs/{segment(job)}/cancel")
            raise
        finally:
            if found and not json:
                with contextlib.suppress(BrokenPipeError):
                    _print("\n")
        outcome.raise_if_failed()
    wanted = prepared.spec.sampling
    if wanted is not None and len(found) != wanted.length:
        raise JobFailedError(f"of the {wanted.length:,} characters of {job} {len(found):,} came; read them again")
    if json:
        text = "".join(vocabulary[token] for token in found)
        terminal.print_json({"prompt": prompt, "text": text, "tokens": found})


def _print(text: str) -> None:
    """Write at once. A terminal gets no character that it would obey: the model may be somebody else's."""
    if sys.stdout is not None and sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    terminal.write(text)
