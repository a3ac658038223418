"""The scenarios of testdata happen as they are written there; REWRITE=1 writes what happens now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulator.transcript import Transcript

FILES = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


def played(text: str) -> str:
    """The same commands and comments, with what comes of them."""
    transcript, lines = Transcript(), []
    for line in text.splitlines():
        if line.startswith("    "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            lines += ["    " + told for told in transcript.play(line)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario(path: Path) -> None:
    text = path.read_text()
    now = played(text)
    if os.environ.get("REWRITE"):
        path.write_text(now)
    else:
        assert now == text


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 5
