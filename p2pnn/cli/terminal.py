"""Where words go: results to standard output, progress and remarks to standard error.

So `p2pnn jobs ls --json | jq` and `p2pnn train … > result.txt` hold nothing but the answer. Nothing is coloured or redrawn
without a terminal, or with NO_COLOR set (no-color.org).
"""

from __future__ import annotations

import os
import sys
from typing import Any


def say(line: str = "") -> None:
    """One line of the answer."""
    print(line, flush=True)


def remark(line: str) -> None:
    """One line beside the answer: progress, advice, warnings."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(to_json(value), flush=True)


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
