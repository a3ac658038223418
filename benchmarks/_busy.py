"""A process that computes as an executor does, and tells how fast: GEMMs and elementwise passes of numpy, one thread, behind
the machine's other programs.

A line `alone` computes for a moment and answers with passes per second; `go` computes until the next line, `stop`, which is
answered with passes per second since.
"""

from __future__ import annotations

import os
import select
import sys
import time

import numpy as np
import threadpoolctl

from benchmarks._worker import NICE

ALONE_S = 0.15


def main() -> None:
    os.nice(NICE)
    threadpoolctl.threadpool_limits(1)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((128, 512), np.float32)
    w = generator.standard_normal((512, 512), np.float32)
    y = np.empty_like(x)

    def one_pass() -> None:
        np.matmul(x, w, out=y)
        np.maximum(y, 0, out=y)
        np.multiply(y, 0.5, out=y)

    def compute(until: float) -> float:
        """Until that time, or until a line has come; passes per second."""
        count, began = 0, time.perf_counter()
        while True:
            for _ in range(4):
                one_pass()
            count += 4
            now = time.perf_counter()
            if now >= until or (until == float("inf") and select.select([sys.stdin], [], [], 0)[0]):
                return count / (now - began)

    while verb := sys.stdin.readline().strip():
        if verb == "alone":
            print(compute(time.perf_counter() + ALONE_S), flush=True)
        elif verb == "go":
            speed = compute(float("inf"))
            sys.stdin.readline()
            print(speed, flush=True)


if __name__ == "__main__":
    main()
