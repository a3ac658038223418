"""Gathering and writing results: every byte is checked, and nothing that exists is written over."""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p2pnn.cli import results
from p2pnn.cli.http import Daemon
from p2pnn.cli.runs import opened_run
from p2pnn.config import Places
from p2pnn.errors import CheckpointError, P2pnnError, StorageError, UsageError
from p2pnn.job.checkpoint import FORMAT
from tests.cli.fake import FakeDaemon
from tests.cli.made import EPOCHS, JOB, PLAN, MadeJob, blob_name


def gathered(daemon: FakeDaemon) -> results.Results:
    return results.gather(Daemon(daemon.path), JOB)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_however_the_parts_lie_the_results_are_the_same(daemon: FakeDaemon, parts: int) -> None:
    made = MadeJob(daemon, parts=parts)
    found = gathered(daemon)
    assert found.bits == made.bits
    assert list(found.tensors) == [p.name for p in made.graph.parameters]
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor, made.tensors[name])
    assert MadeJob(daemon, parts=3).bits == made.bits


def test_a_damaged_blob_is_refused(daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    name = blob_name(made.blobs[1])
    daemon[f"GET blobs/{name}"] = made.blobs[1][:-1] + bytes([made.blobs[1][-1] ^ 1])
    with pytest.raises(CheckpointError, match=f"the blob {name[:12]}… arrived damaged"):
        gathered(daemon)


def test_a_blob_that_no_peer_has(daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    daemon[f"GET blobs/{blob_name(made.blobs[0])}"] = (404, {"error": "no peer that is alive has it", "exit": 2})
    with pytest.raises(UsageError, match=r"^no peer that is alive has it$"):
        gathered(daemon)


def test_a_part_that_is_no_safetensors_file(daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    part = msgspec.structs.replace(made.manifest.parts[0], blob=blob_name(b"nonsense"))
    made.manifest = msgspec.structs.replace(made.manifest, parts=(part, made.manifest.parts[1]))
    made.blobs[0] = b"nonsense"
    made.serve()
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        gathered(daemon)


def test_a_part_that_is_missing(daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    made.manifest = msgspec.structs.replace(made.manifest, parts=made.manifest.parts[:1])
    made.serve()
    with pytest.raises(CheckpointError, match=r"hold no .*; their checkpoint is not complete"):
        gathered(daemon)


def test_parameters_that_are_not_those_that_were_counted(daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    part = msgspec.structs.replace(made.manifest.parts[0], bits=bytes(32))
    made.manifest = msgspec.structs.replace(made.manifest, parts=(part, made.manifest.parts[1]))
    made.serve()
    with pytest.raises(CheckpointError, match="are not those that its nodes counted"):
        gathered(daemon)


def test_a_newer_format(daemon: FakeDaemon) -> None:
    MadeJob(daemon, format=FORMAT + 1)
    with pytest.raises(CheckpointError, match=f"have format {FORMAT + 1}; this p2pnn reads up to {FORMAT}"):
        gathered(daemon)


def test_a_manifest_that_is_none(daemon: FakeDaemon) -> None:
    MadeJob(daemon)
    answer = dict(daemon.answers["GET", f"/api/v1/jobs/{JOB}/results"])
    daemon[f"GET jobs/{JOB}/results"] = answer | {"manifest": None}
    with pytest.raises(CheckpointError, match="trained nothing"):
        gathered(daemon)
    daemon[f"GET jobs/{JOB}/results"] = answer | {"manifest": {"step": "eight"}}
    with pytest.raises(CheckpointError, match="cannot be read by this version"):
        gathered(daemon)


def test_the_folder(tmp_path: Path, daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    folder = results.write(gathered(daemon), tmp_path / "r", chosen=True, last={"evaluation": []})
    assert sorted(path.name for path in folder.iterdir()) == sorted(results.FILES)
    run = opened_run(str(folder))
    assert run.graph == made.graph
    np.testing.assert_array_equal(run.tensors()["head/weight"], made.tensors["head/weight"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [*EPOCHS, {"evaluation": [], "job": JOB, "step": 8, "bits": made.bits}]
    assert '"epoch": 1,' in (folder / "metrics.jsonl").read_text()
    assert json.loads((folder / "plan.json").read_text()) == PLAN
    assert 'name = "flowers"' in (folder / "job.toml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_run_that_diverged_leaves_json(tmp_path: Path, daemon: FakeDaemon) -> None:
    MadeJob(daemon)
    answer = daemon.answers["GET", f"/api/v1/jobs/{JOB}/results"]
    daemon[f"GET jobs/{JOB}/results"] = answer | {"history": [{"epoch": 1, "loss": float("nan")}]}
    folder = results.write(gathered(daemon), tmp_path / "r", chosen=True, last={})
    assert (folder / "metrics.jsonl").read_text().splitlines()[0] == '{"epoch": 1, "loss": null}'


def test_equal_runs_give_equal_files(tmp_path: Path, daemon: FakeDaemon) -> None:
    MadeJob(daemon, parts=1)
    one = results.write(gathered(daemon), tmp_path / "one", chosen=True, last={})
    MadeJob(daemon, parts=3)
    two = results.write(gathered(daemon), tmp_path / "two", chosen=True, last={})
    for name in results.FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_others_may_read_what_they_could_read_anyway(tmp_path: Path, daemon: FakeDaemon) -> None:
    MadeJob(daemon)
    before = os.umask(0o027)
    try:
        folder = results.write(gathered(daemon), tmp_path / "r", chosen=True, last={})
        assert folder.stat().st_mode & 0o777 == 0o750
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_never_over_a_folder_that_exists(tmp_path: Path, daemon: FakeDaemon) -> None:
    MadeJob(daemon)
    found = gathered(daemon)
    taken = tmp_path / "r-9"
    taken.mkdir()
    (taken / "mine").write_text("kept")
    assert results.write(found, taken, chosen=False, last={}) == tmp_path / "r-10"
    with pytest.raises(StorageError, match=r"could not be written to .*r-9"):
        results.write(found, taken, chosen=True, last={})
    assert [path.name for path in taken.iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r-10", "r-9"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    MadeJob(daemon)
    found = gathered(daemon)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(P2pnnError, match=r"could not be written to .*r: No space left on device"):
        results.write(found, tmp_path / "r", chosen=True, last={})
    assert list(tmp_path.iterdir()) == []


def test_the_next_free_name() -> None:
    runs = Places.of().runs
    assert results.run_folder("digits") == runs / "digits-1"
    (runs / "digits-1").mkdir(parents=True)
    (runs / "digits-2").write_text("a file")
    assert results.run_folder("digits") == runs / "digits-3"
    assert results.run_folder("other") == runs / "other-1"


def test_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert results.run_folder("digits", "new/folder") == tmp_path / "new/folder"
    (tmp_path / "empty").mkdir()
    assert results.run_folder("digits", "empty") == tmp_path / "empty"
    (tmp_path / "file").write_text("")
    for taken in ("file", "."):
        with pytest.raises(UsageError, match="exists already"):
            results.run_folder("digits", taken)


def test_out_where_no_folder_can_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only trying shows it: root may write everywhere, and yet not make a folder in /proc or on a full disk."""

    def refuse(prefix: str, dir: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UsageError, match=f"no folder can be made in {tmp_path}: No space left on device"):
        results.run_folder("digits", str(tmp_path / "new" / "folder"))


def test_looking_at_out_leaves_nothing(tmp_path: Path) -> None:
    results.run_folder("digits", str(tmp_path / "new" / "folder"))
    assert list(tmp_path.iterdir()) == []


def refusing(monkeypatch: pytest.MonkeyPatch, *prefixes: Path) -> None:
    """Nothing can be moved into these folders."""
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if any(target.is_relative_to(prefix) for prefix in prefixes):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)


def test_results_that_nobody_else_has_go_where_there_is_room(
    tmp_path: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    MadeJob(daemon)
    found, runs = gathered(daemon), Places.of().runs
    refusing(monkeypatch, tmp_path / "out")
    folder = results.write_anywhere(found, tmp_path / "out" / "r", "flowers", chosen=True, last={})
    assert folder == runs / "flowers-1"
    assert (folder / "model.safetensors").is_file()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    refusing(monkeypatch, tmp_path / "out", runs)
    folder = results.write_anywhere(found, tmp_path / "out" / "r", "flowers", chosen=True, last={})
    assert folder.parent.parent == tmp_path / "temporary"
    assert (folder / "model.safetensors").is_file()
    folder = results.write_anywhere(found, runs / "flowers-2", "flowers", chosen=False, last={})
    assert folder.parent.parent == tmp_path / "temporary"
    refusing(monkeypatch, tmp_path, runs)
    with pytest.raises(StorageError, match="No space left"):
        results.write_anywhere(found, tmp_path / "out" / "r", "flowers", chosen=True, last={})
    assert len(list((tmp_path / "temporary").iterdir())) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_where_nothing_may_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="no folder can be made"):
        results.run_folder("digits", str(tmp_path / "new"))
    tmp_path.chmod(0o700)
