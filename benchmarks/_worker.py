"""Contestants in processes of their own that take turns: each computes only when it is asked to.

A worker is `python -m benchmarks.MODULE` in some environment: ours in this one, torch's in whichever has torch. It reads one
JSON object per line and answers each with one:

    {"do": "prepare", …}   make ready what the rest describes     {"count": runs per round} or {"absent": why not}
                           (least_s: how long a round shall take; 0: a run's count comes with each round, and none is tried)
    {"do": "round", …}     one short round                         {"seconds": per run, "processor_seconds": per run, …}
    {"do": "about"}        what preparing and running it took      {"bytes": n, …}

Only the standard library is imported here, since another environment may hold nothing of ours. All workers have one BLAS
thread, by the environment that they start with, and sessions of their own: Ctrl-C reaches the measurement alone, which ends
them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
END_S = 10.0
NICE = 5
"""p2pnn's executors step behind the person's other programs by so much; so does whoever is compared with them."""

MEMORY_RUNS = 3


class Absent(Exception):
    """This contestant cannot do this case; the message says why."""


class Ended(Exception):
    """A process that is needed has ended by itself; the message names it."""


class Task(Protocol):
    """A case, ready to run."""

    def run(self, count: int) -> Mapping[str, Any] | None:
        """Do it `count` times; what it returns is added to the answer."""

    def close(self) -> None: ...


def start(python: str, module: str, *arguments: str) -> subprocess.Popen[str]:
    """A module of benchmarks/ as a process, found from whatever folder the person stands in."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [python, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def send_line(process: subprocess.Popen[str], line: str) -> None:
    """Say a line to a process. That it has ended is told by `next_line`."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line + "\n")
        process.stdin.flush()


def next_line(process: subprocess.Popen[str]) -> str:
    """What a process says next. Raises Ended where it says no more."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        words = " ".join(map(str, process.args[2:]))  # type: ignore[index]
        raise Ended(f"the process {words} ended with status {process.wait()}")
    return line


class Worker:
    """The asking end. Raises Absent where the worker says that it cannot, Ended where it dies."""

    def __init__(self, python: str, module: str, *arguments: str) -> None:
        self._process = start(python, module, *arguments)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self.close()

    def tell(self, do: str, **what: Any) -> None:
        """Ask without waiting; `hear` returns the answer."""
        send_line(self._process, json.dumps({"do": do, **what}))

    def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(next_line(self._process))
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        self.tell(do, **what)
        return self.hear()

    def stop(self) -> None:
        """Ask it to leave what it is doing."""
        self._process.terminate()

    def close(self) -> None:
        """End it: its stdin ends, and where that does not help, it is killed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def together(python: str, module: str, each: Sequence[Sequence[str]]) -> Iterator[list[Worker]]:
    """Workers that need each other, one for each line of arguments: when work is broken off, all are stopped before any is
    waited for, so that none finds the others gone and says so."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(python, module, *arguments)) for arguments in each]
        try:
            yield workers
        except BaseException:
            for worker in workers:
                worker.stop()
            raise


def serve(
    make: Callable[[dict[str, Any]], Task],
    nice: int = NICE,
    warm: Callable[[dict[str, Any]], None] = lambda asked: None,
) -> None:
    """The answering end, until stdin ends. make: raises Absent for what cannot be done. nice: how much to step behind.

    warm: done before each case is made, so that what a library keeps for itself does not count as the case's memory.
    """
    os.nice(nice)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for answers
    task: Task | None = None
    count, base, peak = 1, 0, 0
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            do = asked.pop("do")
            try:
                if do == "prepare":
                    if task is not None:
                        task.close()
                        task = None
                    gc.collect()
                    least_s = asked.pop("least_s", 0.05)
                    warm(asked)
                    gc.collect()
                    base = reset_peak()
                    task = make(asked)
                    if least_s > 0:
                        task.run(MEMORY_RUNS)
                    peak = peak_bytes()
                    answer: dict[str, Any] = {"count": (count := _count(task, least_s) if least_s > 0 else 1)}
                elif do == "round":
                    assert task is not None, "a round before anything was prepared"
                    gc.collect()
                    runs = asked.pop("count", count)
                    processor_s = getattr(task, "processor_s", time.process_time)
                    start, began = time.perf_counter(), processor_s()
                    more = task.run(runs)
                    spent = {"seconds": time.perf_counter() - start, "processor_seconds": processor_s() - began}
                    answer = {**{name: value / runs for name, value in spent.items()}, **(more or {})}
                else:
                    known = task.about() if task is not None and hasattr(task, "about") else {}
                    answer = {"bytes": peak - base, **known}
            except Absent as reason:
                answer = {"absent": str(reason)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        if task is not None:
            task.close()


def _count(task: Task, least_s: float) -> int:
    """Runs that take at least so long together."""
    count = 1
    while True:
        start = time.perf_counter()
        task.run(count)
        took = time.perf_counter() - start
        if took >= least_s:
            return count
        count = max(count + 1, int(count * min(10.0, 1.2 * least_s / max(took, 1e-6))))


def resident_bytes(process: int | str = "self", field: str = "VmRSS") -> int:
    """Memory of a process, as Linux tells it; 0 elsewhere. field: VmRSS, or VmHWM for the most it ever had."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak(process: int | str = "self") -> int:
    """Forget the peak so far where the system can do that; the memory of now."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")
    return resident_bytes(process)


def peak_bytes(process: int | str = "self") -> int:
    return resident_bytes(process, "VmHWM")
