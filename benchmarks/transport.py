"""Tensors from process to process on this machine: p2pnn's transport against raw sockets, asyncio streams and grpc.aio.

    ./run bench transport [--json] [--quick]

One way: how fast bodies of one size come to lie in the receiver's memory, up to its word that the last one does. Raw sockets
are the limit: blocking, sendall and recv_into, one buffer each, no header. asyncio streams carry MessagePack with the tensor
inside. Everything under the congestion control that p2pnn chooses on loopback, and under the machine's own ("stock").

One way, TLS: the same with TLS 1.3 and certificates of both sides, as between machines, against raw blocking TLS sockets.

Round trip: a body of 64 KiB and back while another process computes as an executor does (GEMMs and elementwise passes of numpy
in one thread), nothing pinned; and what that process keeps of the speed that it has alone, measured in turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._contestants import CREDENTIALS, make_credentials
from benchmarks._measure import Contest, Report, Target, arguments, conclude
from benchmarks._worker import next_line, send_line, start

NAMES = {"p2pnn": "p2pnn", "raw": "raw sockets", "streams": "asyncio streams", "grpc": "grpc.aio"}
"""Contestants, in this order, as `_contestants` calls them and as people do."""
SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
TARGETS = {
    "64 KiB": (Target("raw sockets", at_least=0.8), Target("grpc.aio", at_least=6)),
    "1 MiB": (Target("raw sockets", at_least=0.8), Target("grpc.aio", at_least=6)),
}
TLS_NAMES = {"p2pnn-tls": "p2pnn", "raw-tls": "raw TLS sockets"}
TLS_TARGETS = dict.fromkeys(("64 KiB", "1 MiB"), (Target("raw TLS sockets", at_least=0.8),))
ROUND_BYTES = 128 << 20
BODIES_MAX = 4000
SLOWER = {"streams": 2, "grpc": 2}
"""These get so many times fewer bodies; still so many that beginning a round does not count."""

TRIP_BYTES = 64 << 10
P99 = Target(at_most=0.5)
KEPT = Target(at_least=0.95)
PAUSES_S = {"one after the other": 0.0, "one each 2 ms": 0.002}


class Pair:
    """A contestant's two processes."""

    def __init__(self, name: str, congestion: str, stack: ExitStack) -> None:
        self.name = name
        receiver = stack.enter_context(_process("_contestants", name, "receive", congestion))
        port = next_line(receiver).strip()
        self._sender = stack.enter_context(_process("_contestants", name, "send", congestion, port))

    def one_way(self, size: int, count: int) -> float:
        """GB/s."""
        seconds = float(self._ask(f"one-way {size} {count}"))
        return size * count / seconds / 1e9

    def round_trips(self, size: int, count: int, pause_s: float) -> list[float]:
        """Seconds each."""
        trips: list[float] = self._ask(f"round-trip {size} {count} {pause_s}")
        return trips

    def _ask(self, line: str) -> Any:
        send_line(self._sender, line)
        return json.loads(next_line(self._sender))


def main() -> int:
    options = arguments(__doc__ or "")
    report = Report("transport", quick=options.quick)
    present = dict(NAMES)
    try:
        report.versions["grpc"] = version("grpcio")
    except PackageNotFoundError:
        del present["grpc"]
        report.absent["grpc.aio"] = "grpcio is not installed here (pip install grpcio)"
    rounds = 3 if options.quick else 15
    for congestion, words in (("reno", "reno"), ("system", "stock congestion control")):
        with ExitStack() as stack:
            pairs = {NAMES[name]: Pair(name, congestion, stack) for name in present}
            for size in ("64 KiB",) if options.quick else SIZES:
                report.add(_one_way(size, words, pairs, rounds), *TARGETS.get(size, ()))
            _with_tls(congestion, words, rounds, report, options.quick)
            if congestion == "reno":
                for words, pause_s in PAUSES_S.items():
                    _while_computing(words, pause_s, pairs, rounds, report)
    return report.end(options)


def _with_tls(congestion: str, words: str, rounds: int, report: Report, quick: bool) -> None:
    with TemporaryDirectory() as folder, ExitStack() as stack:
        make_credentials(Path(folder))
        os.environ[CREDENTIALS] = folder
        pairs = {words: Pair(name, congestion, stack) for name, words in TLS_NAMES.items()}
        for size in ("64 KiB", "1 MiB") if quick else SIZES:
            report.add(_one_way(size, f"{words}, TLS", pairs, rounds), *TLS_TARGETS.get(size, ()))


def _one_way(size: str, words: str, pairs: dict[str, Pair], rounds: int) -> Contest:
    nbytes = SIZES[size]
    contest = Contest(f"one way, {size}, {words}", "GB/s", higher_is_better=True)

    def round_of(pair: Pair) -> Callable[[], float]:
        count = max(4, min(BODIES_MAX, ROUND_BYTES // nbytes) // SLOWER.get(pair.name, 1))
        return lambda: pair.one_way(nbytes, count)

    return contest.run({name: round_of(pair) for name, pair in pairs.items()}, rounds)


def _while_computing(words: str, pause_s: float, pairs: dict[str, Pair], rounds: int, report: Report) -> None:
    """Each round: compute alone, then compute while a contestant makes its round trips."""
    trips_each = 200 if pause_s else 1000
    p50 = Contest(f"round trip of 64 KiB while a process computes, {words}: median", "ms")
    p99 = Contest(f"round trip of 64 KiB while a process computes, {words}: p99", "ms")
    kept = Contest(f"speed that the computing process keeps meanwhile, {words}", "of its own", higher_is_better=True)
    with _process("_busy") as busy:

        def work(verb: str) -> float:
            send_line(busy, verb)
            return float(next_line(busy)) if verb != "go" else 0.0

        for number in range(rounds + 1):
            middle: dict[str, float] = {}
            last: dict[str, float] = {}
            share: dict[str, float] = {}
            for name, pair in pairs.items():
                before = work("alone")
                work("go")
                trips = pair.round_trips(TRIP_BYTES, trips_each, pause_s)
                meanwhile = work("stop")
                after = work("alone")
                middle[name] = 1e3 * statistics.median(trips)
                last[name] = 1e3 * statistics.quantiles(trips, n=100)[98]
                share[name] = meanwhile / ((before + after) / 2)
            if number:
                p50.add(middle)
                p99.add(last)
                kept.add(share)
    report.add(p50)
    report.add(p99, P99)
    report.add(kept, KEPT)


@contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module of benchmarks/ as a process that is killed at the end."""
    with start(sys.executable, module, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    sys.exit(conclude(main))
