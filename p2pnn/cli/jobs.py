"""`p2pnn jobs ls|show|logs|cancel|pause|resume|fetch`: from any node of the mesh."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from p2pnn.cli.mesh import JsonFlag, SocketFlag, connect

app = typer.Typer(help="The mesh's jobs.", no_args_is_help=True)

IDLE_S: Final = 0.3
"""`jobs logs` of a running job ends when no event has come for so long; what has happened so far comes at once."""

UNDER_WAY: Final = ("queued", "preparing", "running", "recovering", "parked")
"""States in which a job of eval or predict is worth a line without being asked for."""

Job = Annotated[str, typer.Argument(metavar="JOB", help="A job's name, such as digits-3f2a; its beginning is enough.")]


@app.command("ls")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Show jobs of eval and predict too.")] = False,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """The trainings that the mesh remembers, newest last."""
    import time

    from p2pnn.cli import render, terminal

    found = connect(socket).get("jobs")
    if json:
        terminal.print_json(found)
    elif not found["jobs"]:
        terminal.remark("there are no jobs yet; p2pnn train starts one")
    else:
        shown = [job for job in found["jobs"] if every or job["kind"] == "train" or job["state"] in UNDER_WAY]
        for line in render.jobs_table(shown, time.time()):
            terminal.say(line)
        if hidden := len(found["jobs"]) - len(shown):
            terminal.remark(f"{hidden:,} more of eval and predict; see them with --all")


@app.command()
def show(
    job: Job,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where --trace writes.  [default: JOB.trace.json]")] = "",
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Write who computed, waited and sent when, for chrome://tracing and Perfetto."),
    ] = False,
    socket: SocketFlag = None,
    json: JsonFlag = False,
) -> None:
    """One job: its state, plan, checkpoints and result."""
    from p2pnn.cli import render, terminal
    from p2pnn.errors import UsageError

    daemon = connect(socket)
    if trace:
        _write_trace(daemon, job, file, json)
        return
    if file:
        raise UsageError(f"{file}: a file is written for --trace only; add it")
    found = daemon.get(f"jobs/{_full(daemon, job)}")
    if json:
        terminal.print_json(found)
        return
    for line in describe(found):
        terminal.say(line)
    if found.get("plan"):
        terminal.say(render.label("plan", render.plan_headline(found["plan"])))
        for line in render.plan_table(found["plan"], [one["name"] for one in found.get("gone") or ()]):
            terminal.say(line)


@app.command()
def logs(
    job: Job,
    socket: SocketFlag = None,
    json: JsonFlag = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """A job's events, one per line."""
    import msgspec

    from p2pnn.cli import follow as following
    from p2pnn.cli import render, terminal

    daemon = connect(socket)
    name = _full(daemon, job)
    for event in following.events(daemon, name, idle_s=None if follow else IDLE_S):
        line = msgspec.json.encode(event).decode() if json else render.event(event)
        if line:
            terminal.say(line if json else f"{render.time_of_day(event.get('time'))}  {line}")


@app.command()
def cancel(job: Job, socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """End a job; its checkpoints stay."""
    _order(job, "cancel", socket, json)


@app.command()
def pause(job: Job, socket: SocketFlag = None, json: JsonFlag = False) -> None:
    """Stop a job at a checkpoint, to be resumed later."""
    _order(job, "pause", socket, json)


@app.command()
def resume(
    job: Job,
    socket: SocketFlag = None,
    json: JsonFlag = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow it.")] = False,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Where the results go.")] = None,
) -> None:
    """Go on with a paused, failed or cancelled job. It starts at its last complete checkpoint, on the nodes that are there."""
    from p2pnn.cli import session, terminal
    from p2pnn.cli.mesh import Mesh
    from p2pnn.cli.results import run_folder

    daemon = connect(socket)
    name = _full(daemon, job)
    folder = run_folder(str(daemon.get(f"jobs/{name}")["name"]), out)
    answer = daemon.post(f"jobs/{name}/resume")
    if detach:
        terminal.print_json(answer) if json else terminal.say(f"{answer['job']} goes on")
        return
    after = int(answer.get("after", 0))
    run = session.Run(Mesh(daemon), str(answer["job"]), folder, chosen=out is not None, after=after)
    session.complete(run, json=json)


@app.command()
def fetch(
    job: Job,
    socket: SocketFlag = None,
    json: JsonFlag = False,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Where they go.")] = None,
) -> None:
    """Gather a job's results into a folder here. They come from whichever peers have them.

    Of a job that is not done these are its last complete checkpoint.
    """
    from p2pnn.cli import render, results, session, terminal

    daemon = connect(socket)
    name = _full(daemon, job)
    summary = daemon.get(f"jobs/{name}")
    folder = results.run_folder(str(summary["name"]), out)
    gathered = results.gather(daemon, name)
    folder = results.write(gathered, folder, chosen=out is not None, last=session.closing(summary))
    if json:
        at = {"state": summary["state"], "step": gathered.manifest.step}
        terminal.print_json({"job": name, "folder": str(folder), "bits": gathered.bits} | at)
        return
    if summary["state"] != "done":
        terminal.say(render.label("from", render.checkpoint_of(summary, gathered.manifest.step)))
    for line in session.result_lines(folder, gathered.bits):
        terminal.say(line)


def gone(one: dict[str, Any]) -> str:
    """A node that a start goes on without, as the API tells of it."""
    from p2pnn.cli import render

    if one["state"] == "alive":
        return f"{one['name']}: it was lost, and is back; it takes part from the next start on"
    since = f" for {render.age(one['since_s'])}" if one["since_s"] is not None else ""
    reason = f" ({one['reason']})" if one["reason"] else ""
    return f"{one['name']}: {one['state']}{since}{reason}; the job goes on without it"


def describe(job: dict[str, Any]) -> list[str]:
    """The lines of `jobs show` before the plan."""
    from p2pnn.cli import render
    from p2pnn.cli.exchanged import holders

    reason = f": {job['reason']}" if job.get("reason") else ""
    lines = [
        render.label("job", f"{job['job']}   {job['kind']}"),
        render.label("state", job["state"] + reason),
        render.label("nodes", " ".join(job.get("nodes") or ()) or "none yet"),
        render.label("coordinator", job.get("coordinator_name") or ""),
    ]
    if job.get("epochs"):
        lines.append(
            render.label("progress", f"epoch {job['epoch']}/{job['epochs']}, step {job['step']:,}/{job['steps']:,}")
        )
    lines += [render.label(f"shard {held['shard']}", holders(held)) for held in job.get("shards") or ()]
    lines += [render.label("gone", gone(one)) for one in job.get("gone") or ()]
    if job.get("loss") is not None:
        lines.append(
            render.label("training", "  ".join([f"loss {job['loss']:.4f}", *render.metrics(job.get("metrics"))]))
        )
    for checkpoint in job.get("checkpoints") or ():
        whole = "" if checkpoint["complete"] else ", not complete"
        lines.append(
            render.label("checkpoint", f"step {checkpoint['step']:,}, {render.size(checkpoint['bytes'])}{whole}")
        )
    result = job.get("result") or {}
    for found in render.evaluations(result):
        lines.append(render.label("result", render.evaluation(found)))
    if result.get("bits"):
        lines.append(render.label("bits", result["bits"]))
    return lines


def _write_trace(daemon: Any, job: str, file: str, json: bool) -> None:
    from p2pnn.cli import terminal
    from p2pnn.cli import trace as tracing

    name = _full(daemon, job)
    path = tracing.target(file or f"{name}.trace.json")
    found = tracing.fetch(daemon, name)
    tracing.write(found, path)
    if json:
        terminal.print_json(tracing.answer(found, path))
        return
    for line in tracing.lines(found, path):
        terminal.say(line)


def _order(job: str, verb: str, socket: str | None, json: bool) -> None:
    from p2pnn.cli import terminal

    daemon = connect(socket)
    name = _full(daemon, job)
    answer = daemon.post(f"jobs/{name}/{verb}")
    if json:
        terminal.print_json({"job": name, **answer})
    else:
        terminal.say(f"{name} is {answer['state']}")


def _full(daemon: Any, job: str) -> str:
    """The whole name of a job from its beginning. Raises UsageError for none or several, with the nearest name."""
    from p2pnn.cli.http import segment
    from p2pnn.config import unknown
    from p2pnn.errors import UsageError

    names = [found["job"] for found in daemon.get("jobs")["jobs"]]
    if job not in names:
        begins = [name for name in names if name.startswith(job)]
        if len(begins) > 1:
            raise UsageError(f"{job!r} begins several jobs: {', '.join(begins)}; write more of it")
        if not begins:
            raise UsageError(unknown("there is no job", job, names))
        job = begins[0]
    return segment(job)
