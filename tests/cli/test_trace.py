"""Traces as files and as lines: of a scripted daemon, to where they may go."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.cli import main, trace
from p2pnn.cli.http import Daemon
from p2pnn.errors import CheckpointError, NotFoundError, StorageError, UsageError
from p2pnn.job.trace import NodePart
from tests.cli.fake import FakeDaemon
from tests.cli.made import JOB, MadeJob
from tests.job.test_trace import FIRST, SECOND, validate

Capture = pytest.CaptureFixture[str]
HEAD = {"job": JOB, "generation": 1, "nodes": ["a", "b"]}


def line(part: NodePart) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode({"part": part}))
    return found


def tell(daemon: FakeDaemon, *lines: dict[str, Any]) -> Daemon:
    daemon[f"GET jobs/{JOB}/trace"] = lambda body: iter([HEAD, *lines])
    return Daemon(daemon.path)


def test_parts_and_reasons_are_gathered(daemon: FakeDaemon) -> None:
    found = trace.fetch(tell(daemon, line(FIRST), {"missing": "b", "reason": "it is not connected"}), JOB)
    assert found.parts == (FIRST,)
    assert found.missing == {"b": "it is not connected"}
    broken = trace.fetch(tell(daemon, line(SECOND)), JOB)
    assert broken.missing == {"a": "the daemon broke off before its part"}


def test_what_cannot_be_used_is_one_sentence(daemon: FakeDaemon) -> None:
    with pytest.raises(NotFoundError, match=r"no node has a trace of .* \(node a: gone; node b: away\)"):
        trace.fetch(tell(daemon, {"missing": "a", "reason": "gone"}, {"missing": "b", "reason": "away"}), JOB)
    with pytest.raises(CheckpointError, match="cannot be read by this version"):
        trace.fetch(tell(daemon, {"part": {"job": JOB}}), JOB)
    damaged = line(FIRST)
    damaged["part"]["computed"] = base64.b64encode(b"no spans").decode()
    with pytest.raises(CheckpointError, match="is damaged"):
        trace.fetch(tell(daemon, damaged), JOB)


def test_only_an_older_trace_is_written_over(tmp_path: Path, daemon: FakeDaemon) -> None:
    found = trace.fetch(tell(daemon, line(FIRST), line(SECOND)), JOB)
    (tmp_path / "mine.txt").write_text("dear diary")
    with pytest.raises(UsageError, match=r"mine\.txt exists and is no trace"):
        trace.target(str(tmp_path / "mine.txt"))
    with pytest.raises(UsageError, match="there is no folder"):
        trace.target(str(tmp_path / "nowhere" / "t.json"))
    with pytest.raises(UsageError, match="cannot be written"):
        trace.target(str(tmp_path))
    for number, other in enumerate((gzip.compress(b"dear diary"), gzip.compress(b""), b"\x1f\x8bdamaged")):
        (tmp_path / f"backup{number}.tar.gz").write_bytes(other)
        with pytest.raises(UsageError, match=r"backup\d\.tar\.gz exists and is no trace"):
            trace.target(str(tmp_path / f"backup{number}.tar.gz"))
        (tmp_path / f"backup{number}.tar.gz").unlink()
    for name in ("t.json", "t.json.gz"):
        (tmp_path / name).touch()  # as mktemp makes it
        for _ in range(2):
            path = trace.target(str(tmp_path / name))
            trace.write(found, path)
    plain = (tmp_path / "t.json").read_bytes()
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes()) == plain
    validate(json.loads(plain))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".gz", ".txt")) == [
        "mine.txt", "t.json", "t.json.gz",
    ]  # fmt: skip


def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trace.fetch(tell(daemon, line(FIRST)), JOB)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        trace.write(found, tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_jobs_show_trace(tmp_path: Path, daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    MadeJob(daemon)
    tell(daemon, line(FIRST), line(SECOND))
    assert main(["jobs", "show", JOB[:4], "--trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    validate(json.loads((tmp_path / f"{JOB}.trace.json").read_bytes()))
    assert f"{JOB}.trace.json" in lines[0]
    assert "3.50 s" in lines[1]
    assert "older spans are gone" in lines[1]
    assert lines[2].split(maxsplit=2)[2] == (
        "computed 57%, waited 43% (43% for gradient of conv1 from b), sending 0%, receiving 14%,"
        " computed during 0% of that"
    )
    assert "neither" in lines[3] or "waited" in lines[3]
    assert main(["jobs", "show", JOB, "--trace", "here.json.gz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trace"] == str(tmp_path / "here.json.gz")
    assert [node["name"] for node in found["nodes"]] == ["a", "b"]
    assert (tmp_path / "here.json.gz").exists()


def test_jobs_show_with_a_file_and_no_trace_is_refused(daemon: FakeDaemon, capsys: Capture) -> None:
    MadeJob(daemon)
    assert main(["jobs", "show", JOB, "here.json"]) == 2
    assert "--trace" in capsys.readouterr().err
