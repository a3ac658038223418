"""Which Python has torch, or TensorFlow. It need not be this one, and there need be none: then it is left out.

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
TENSORFLOW_OPTION = "--tensorflow-python"
TENSORFLOW_VARIABLE = "P2PNN_BENCH_TENSORFLOW_PYTHON"


def add_option(parser: Any) -> None:
    parser.add_argument(OPTION, metavar="PATH", help=f"a Python that has torch and numpy (or {VARIABLE}=PATH)")


def add_tensorflow_option(parser: Any) -> None:
    words = f"a Python that has tensorflow and numpy (or {TENSORFLOW_VARIABLE}=PATH)"
    parser.add_argument(TENSORFLOW_OPTION, metavar="PATH", help=words)


def torch_python(chosen: str | None, report: Report) -> str:
    """The Python that has torch, whose version is noted; empty where none does and none was named, which the report then says.

    chosen: --torch-python's value. Raises UsageError for a Python that was named and has no torch.
    """
    return _python_with("torch", OPTION, VARIABLE, chosen, report)


def tensorflow_python(chosen: str | None, report: Report) -> str:
    """As torch_python, of TensorFlow."""
    return _python_with("tensorflow", TENSORFLOW_OPTION, TENSORFLOW_VARIABLE, chosen, report)


def _python_with(library: str, option: str, variable: str, chosen: str | None, report: Report) -> str:
    words, named = f"{option} {chosen}", chosen
    if chosen is None and os.environ.get(variable):
        named = os.environ[variable]
        words = f"{variable}={named}"
    python = sys.executable if named is None else _absolute(named)
    version, problem = _ask(python, library)
    if version:
        report.versions[library] = version
        return python
    if named is not None:
        raise UsageError(f"{words} has no {library} ({problem}); name a Python that has {library} and numpy")
    report.absent[library] = (
        f"this Python has none ({problem}); name one that has {library} and numpy with {option} PATH or {variable}=PATH"
    )
    return ""


def _absolute(program: str) -> str:
    """A path, since workers run in another folder; a word without a slash is looked for in PATH. Links stay: an
    environment's Python is one, and knows itself by it."""
    return os.path.abspath(os.path.expanduser(program)) if os.sep in program else program


def _ask(python: str, library: str) -> tuple[str, str]:
    """(the library's version, "") or ("", why there is none)."""
    try:
        done = subprocess.run(
            [python, "-c", f"import numpy, {library}; print('{library}', {library}.__version__)"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return "", error.strerror or str(error)
    word, _, version = done.stdout.strip().rpartition("\n")[2].partition(" ")
    if done.returncode == 0 and word == library:
        return version, ""
    return "", done.stderr.strip().rpartition("\n")[2] or f"it ended with status {done.returncode} and said no version"
