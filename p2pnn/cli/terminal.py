"""Where words go: results to standard output, progress and remarks to standard error.

So `p2pnn jobs ls --json | jq` and `p2pnn train … > result.txt` hold nothing but the answer. Nothing is coloured or redrawn
without a terminal, or with NO_COLOR set (no-color.org).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from p2pnn.errors import StorageError


def say(line: str = "") -> None:
    """One line of the answer. Raises StorageError where it cannot be written."""
    write(f"{line}\n")


def write(text: str) -> None:
    """A part of the answer, at once. Raises StorageError where it cannot be written, BrokenPipeError where nobody reads."""
    if sys.stdout is None:  # closed by who called
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = None  # what it holds back must not fail again at the end
        raise StorageError(f"standard output cannot be written: {error.strerror or error}") from error


def remark(line: str) -> None:
    """One line beside the answer: progress, advice, warnings."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    say(to_json(value))


def to_json(value: Any, indent: int = 2) -> str:
    """JSON as its standard has it: NaN, which a run that diverged has as its loss, becomes null. indent 0: on one line."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()


def can_redraw() -> bool:
    """Whether a line on standard error may be drawn again over itself."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def can_ask() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def short_path(path: os.PathLike[str] | str) -> str:
    """The path with the home folder as `~`, for reading; never for use in a file."""
    text, home = os.fspath(path), os.path.expanduser("~")
    return "~" + text[len(home) :] if home != "/" and text.startswith(home + "/") else text
