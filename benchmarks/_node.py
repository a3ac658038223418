"""`python -m benchmarks._node CABLE WAIT_S node start …`: the program itself, in a network namespace, for measurements.

CABLE is a descriptor of the namespace. WAIT_S is what a training step takes in place of its computing (see `_waiting`); 0: it
computes.
"""

from __future__ import annotations

import sys

from p2pnn.executor import process
from tests.chaos import cables


def main() -> int:
    cable, wait_s, *arguments = sys.argv[1:]
    cables.enter(int(cable))
    if float(wait_s):
        process.PROGRAM[:] = ["-m", "benchmarks._waiting", "--wait", wait_s]
    from p2pnn.cli import main as program

    return program(arguments)


if __name__ == "__main__":
    sys.exit(main())
