"""The state folder: identity, lock, records, events."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from p2pnn.errors import CheckpointError, StorageError, UsageError
from p2pnn.job.records import JobRecord
from p2pnn.node import storage as module
from p2pnn.node.storage import Storage, replace_file
from p2pnn.types import BlobId, JobId, NodeId


def record(**changes: object) -> JobRecord:
    found = JobRecord(JobId("toy-1"), "toy", "train", BlobId("5" * 64), "queued", NodeId("a"), "a", 1)
    return msgspec.structs.replace(found, **changes)


def test_a_node_keeps_its_id_and_records(tmp_path: Path) -> None:
    first = Storage(tmp_path)
    first.save_record(record())
    first.append_events(JobId("toy-1"), [{"kind": "state"}])
    first.close()
    second = Storage(tmp_path)
    assert second.node == first.node
    assert second.load_records() == {"toy-1": record()}
    assert second.load_events(JobId("toy-1")) == [{"kind": "state"}]
    second.close()


def test_a_second_daemon_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = Storage(tmp_path)
    with pytest.raises(UsageError, match="another daemon uses the state folder"):
        Storage(tmp_path)
    first.close()
    Storage(tmp_path).close()


def test_newer_and_damaged_files_are_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(tmp_path)
    newer = msgspec.msgpack.encode(msgspec.to_builtins(record()) | {"format": 99})
    (tmp_path / "jobs/toy-1.record").write_bytes(newer)
    (tmp_path / "jobs/bad-1.record").write_bytes(b"\xc1")
    assert storage.load_records() == {}
    assert "format 99" in caplog.text
    assert "bad-1.record" in caplog.text
    with pytest.raises(CheckpointError, match="format 99"):
        storage.save_record(record())
    assert (tmp_path / "jobs/toy-1.record").read_bytes() == newer
    storage.close()
    (tmp_path / "node.json").write_text(json.dumps({"format": 2, "node": "x"}))
    with pytest.raises(UsageError, match="format 2"):
        Storage(tmp_path)
    (tmp_path / "node.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        Storage(tmp_path)


@pytest.mark.parametrize("job", ["../x", "A", "", "a/b", "x" * 100])
def test_a_job_id_is_never_a_path(tmp_path: Path, job: str) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(UsageError, match="is not a job's name"):
        storage.save_record(record(job=JobId(job)))
    storage.close()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StorageError, match="is full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_event_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_BYTES_MAX", 100)
    storage = Storage(tmp_path)
    for number in range(50):
        storage.append_events(JobId("toy-1"), [{"number": number}])
    assert (tmp_path / "jobs/toy-1.events").stat().st_size <= 100
    assert storage.load_events(JobId("toy-1"))[0] == {"number": 0}
    storage.close()


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    Storage(tmp_path / "deep" / "state").close()
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"the state folder .*/file/state cannot be made: Not a directory; name another"
    ):
        Storage(tmp_path / "file" / "state")


def test_traces_of_the_newest_jobs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRACES_MAX", 2)
    storage = Storage(tmp_path)
    for number, job in enumerate((JobId("one-1"), JobId("two-2"), JobId("one-1"), JobId("three-3"))):
        storage.save_trace(job, bytes([number]))
        os.utime(tmp_path / "jobs" / f"{job}.trace", ns=(number, number))
    assert storage.load_trace(JobId("two-2")) is None
    assert storage.load_trace(JobId("one-1")) == bytes([2])
    assert storage.load_trace(JobId("three-3")) == bytes([3])
    with pytest.raises(UsageError, match="is not a job's name"):
        storage.load_trace(JobId("../node"))
    storage.close()
