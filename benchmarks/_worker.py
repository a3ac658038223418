"""Contestants in processes of their own that take turns: each computes only when it is asked to.

A worker is `python -m benchmarks.MODULE` in some environment: ours in this one, torch's in whichever has torch. It reads one
JSON object per line and answers each with one:

    {"do": "prepare", …}   make ready what the rest describes     {"count": runs per round} or {"absent": why not}
                           (least_s: how long a round shall take; 0: a run's count comes with each round, and none is tried)
    {"do": "round", …}     one short round                         {"seconds": per run, "processor_seconds": per run, …}
    {"do": "memory"}       what preparing and running it took      {"bytes": n, …}

Only the standard library is imported here, since another environment may hold nothing of ours. All workers have one BLAS
thread, by the environment that they start with.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
PYTHON_VARIABLE = "P2PNN_BENCH_PYTHON"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
END_S = 10.0
NICE = 5
"""p2pnn's executors step behind the person's other programs by so much; so does whoever is compared with them."""

MEMORY_RUNS = 3


class Absent(Exception):
    """This contestant cannot do this case; the message says why."""


class Task(Protocol):
    """A case, ready to run."""

    def run(self, count: int) -> Mapping[str, Any] | None:
        """Do it `count` times; what it returns is added to the answer."""

    def close(self) -> None: ...


class Worker:
    """The asking end. Raises Absent where the worker says that it cannot, RuntimeError with its last words where it dies."""

    def __init__(self, python: str, module: str, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self.module = module
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **(environ or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, do: str, **what: Any) -> None:
        """Ask without waiting; `hear` returns the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process benchmarks.{self.module} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        self.tell(do, **what)
        return self.hear()

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


def serve(make: Callable[[dict[str, Any]], Task], nice: int = NICE) -> None:
    """The answering end, until stdin ends. make: raises Absent for what cannot be done. nice: how much to step behind."""
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
                    known = task.memory() if task is not None and hasattr(task, "memory") else {}
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


def torch_python(chosen: str | None) -> str:
    """A Python that has torch: the one chosen, that of P2PNN_BENCH_PYTHON, or this one. Raises Absent with what to do."""
    named = chosen or os.environ.get(PYTHON_VARIABLE)
    python = named or sys.executable
    try:
        done = subprocess.run([python, "-c", "import numpy, torch"], capture_output=True, text=True)
        problem = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if not problem:
        return python
    if named:
        raise Absent(f"{python} has no torch ({problem})")
    raise Absent(
        "torch is not installed here; for the other side, name a Python that has torch and numpy, with --torch-python PATH or "
        f"{PYTHON_VARIABLE}=PATH"
    )
