"""Which Python has torch. It need not be this one, and there need be none: then torch is left out.

A Python that somebody named, by --torch-python or P2PNN_BENCH_PYTHON, must have it: who names one wants to see both sides.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from benchmarks._measure import Report
from benchmarks._worker import ROOT
from p2pnn.errors import UsageError

OPTION = "--torch-python"
VARIABLE = "P2PNN_BENCH_PYTHON"
_QUESTION = "import numpy, torch; print('torch', torch.__version__)"


def add_option(parser: Any) -> None:
    parser.add_argument(OPTION, metavar="PATH", help=f"a Python that has torch and numpy (or {VARIABLE}=PATH)")


def torch_python(chosen: str | None, report: Report) -> str:
    """The Python that has torch, whose version is noted; empty where none does and none was named, which the report then says.

    chosen: --torch-python's value. Raises UsageError for a Python that was named and has no torch.
    """
    words, named = f"{OPTION} {chosen}", chosen
    if chosen is None and os.environ.get(VARIABLE):
        named = os.environ[VARIABLE]
        words = f"{VARIABLE}={named}"
    python = sys.executable if named is None else _absolute(named)
    version, problem = _ask(python)
    if version:
        report.versions["torch"] = version
        return python
    if named is not None:
        raise UsageError(f"{words} has no torch ({problem}); name a Python that has torch and numpy")
    report.absent["torch"] = (
        f"this Python has none ({problem}); name one that has torch and numpy with {OPTION} PATH or {VARIABLE}=PATH"
    )
    return ""


def _absolute(program: str) -> str:
    """A path, since workers run in another folder; a word without a slash is looked for in PATH. Links stay: an
    environment's Python is one, and knows itself by it."""
    return os.path.abspath(os.path.expanduser(program)) if os.sep in program else program


def _ask(python: str) -> tuple[str, str]:
    """(torch's version, "") or ("", why there is none)."""
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return "", error.strerror or str(error)
    word, _, version = done.stdout.strip().rpartition("\n")[2].partition(" ")
    if done.returncode == 0 and word == "torch":
        return version, ""
    return "", done.stderr.strip().rpartition("\n")[2] or f"it ended with status {done.returncode} and said no version"
