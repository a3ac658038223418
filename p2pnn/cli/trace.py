"""A job's trace as a file for chrome://tracing and Perfetto, and as a line per node: where its time went.

The daemon gives the nodes' parts as they are; what they look like is made here, so that no daemon computes for it.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pnn.cli import render, terminal
from p2pnn.cli.http import Daemon, segment
from p2pnn.errors import CheckpointError, NotFoundError, StorageError, UsageError
from p2pnn.job import trace as made
from p2pnn.job.shares import Share, summary
from p2pnn.job.trace import NodePart, Trace

_BEGINNING: Final = b'{"traceEvents"'


def fetch(daemon: Daemon, job: str) -> Trace:
    """What the job's nodes recorded. Raises NotFoundError where none of them has anything, with each one's reason."""
    head, parts, missing = dict[str, Any](), list[NodePart](), dict[str, str]()
    for line in daemon.stream(f"jobs/{segment(job)}/trace"):
        if "nodes" in line:
            head = line
        elif "part" in line:
            parts.append(_part(line["part"], job))
        else:
            missing[str(line["missing"])] = str(line["reason"])
    told = {part.name for part in parts} | missing.keys()
    missing |= {name: "the daemon broke off before its part" for name in head.get("nodes", ()) if name not in told}
    if not parts:
        reasons = "; ".join(f"node {name}: {reason}" for name, reason in missing.items())
        raise NotFoundError(f"no node has a trace of {job}" + (f" ({reasons})" if reasons else ""))
    return Trace(job, int(head.get("generation", 0)), tuple(parts), missing)


def target(file: str) -> Path:
    """Where a trace may be written: nothing, an empty file or an older trace is there. Raises UsageError otherwise."""
    path = Path(os.path.abspath(Path(file).expanduser()))
    if not path.parent.is_dir():
        raise UsageError(f"the trace cannot be written to {path}: there is no folder {path.parent}")
    try:
        with path.open("rb") as found:
            beginning = found.read(len(_BEGINNING))
            if beginning.startswith(b"\x1f\x8b"):
                beginning = _unpacked(path)
            if beginning not in (b"", _BEGINNING):
                raise UsageError(f"{path} exists and is no trace; name another file for it")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"the trace cannot be written to {path}: {error.strerror or error}") from error
    return path


def _unpacked(path: Path) -> bytes:
    """How a compressed file begins; something that no trace begins with where it is damaged."""
    try:
        with gzip.open(path) as found:
            return found.read(len(_BEGINNING)) or b"empty"
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return b"damaged"


def write(trace: Trace, path: Path) -> None:
    """Write the trace; compressed where the name ends with .gz, which both viewers open too. Raises StorageError."""
    data = made.chrome(trace)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_bytes(compressed(data) if path.suffix == ".gz" else data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the trace could not be written to {path}: {error.strerror or error}") from error


def compressed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def answer(trace: Trace, path: Path) -> dict[str, Any]:
    """The trace in short, for programs."""
    shares = [share._asdict() for share in summary(trace)]
    return {"job": trace.job, "trace": str(path), "nodes": shares, "missing": trace.missing}


def lines(trace: Trace, path: Path) -> Iterator[str]:
    """Where it lies, and per node where its time went."""
    yield render.label(
        "trace", f"{terminal.short_path(path)}      open it in https://ui.perfetto.dev or chrome://tracing"
    )
    shares = summary(trace)
    if shares:
        gone = ", older spans are gone" if any(share.lost for share in shares) else ""
        yield render.label("of", f"{shares[0].window_s:,.2f} s from the first to the last computation{gone}")
    for share in shares:
        yield render.label(f"node {share.name}", ", ".join(_words(share)))
    for name, reason in trace.missing.items():
        yield render.label(f"node {name}", f"no trace: {reason}")


def _words(share: Share) -> Iterator[str]:
    if share.serving is not None:
        yield f"served {share.serving:.0%}"
    if not share.computes:
        yield f"sending {share.sending:.0%}"
        yield f"receiving {share.receiving:.0%}"
        return
    yield f"computed {share.computing:.0%}"
    most = f" ({share.on_share:.0%} {share.on})" if share.on and share.waiting >= 0.005 else ""
    yield f"waited {share.waiting:.0%}{most}"
    if (rest := 1 - share.computing - share.waiting) >= 0.005:
        yield f"neither {rest:.0%}"
    if share.overlap is not None:
        yield f"sending {share.sending:.0%}"
        yield f"receiving {share.receiving:.0%}"
        yield f"computed during {share.overlap:.0%} of that"


def _part(found: Any, job: str) -> NodePart:
    source = f"the daemon's trace of {job}"
    try:
        part = msgspec.convert(found, NodePart)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{source} cannot be read by this version of p2pnn: {error}") from error
    made.check(part, source)
    return part
