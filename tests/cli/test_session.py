"""A run as Python and the command line hold it: followed once, gathered once, written once."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import p2pnn
from p2pnn.cli import main, session
from p2pnn.cli.http import Daemon
from p2pnn.cli.jobfile import resolve
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.mesh import Mesh
from p2pnn.config import Places
from p2pnn.errors import JobFailedError, NoDaemonError, StorageError, UsageError
from p2pnn.job.spec import DataParallel
from tests.cli.fake import FakeDaemon
from tests.cli.made import EVALUATION, JOB, MadeJob, events, flower_data, flowers, state, submitted, take


def run_on(daemon: FakeDaemon, folder: Path, **more: Any) -> session.Run:
    return session.Run(Mesh(Daemon(daemon.path)), JOB, folder, chosen=True, **more)


def test_train_from_python(tmp_path: Path, daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    data = {"image": np.ones((40, 3), np.float32), "label": np.zeros(40, np.int64)}
    run = p2pnn.train(
        flowers(), data, out=str(tmp_path / "r"), epochs=2, batch_size=16, pins={"head": "b"}, nodes=["b"]
    )
    assert run.job == JOB
    spec = submitted(daemon)
    assert (spec.epochs, spec.nodes, spec.pins[0].pattern) == (2, ("b",), "head")
    seen: list[str] = []
    assert run.follow(lambda event: seen.append(event["kind"])) is run
    assert seen == ["state", "plan", "epoch", "epoch", "evaluation", "state"]
    assert run.evaluation == EVALUATION
    assert run.bits == made.bits
    assert [record["epoch"] for record in run.metrics] == [1, 2]
    for name, tensor in run.parameters().items():
        np.testing.assert_array_equal(tensor, made.tensors[name])
    assert run.save() == run.save() == tmp_path / "r"
    run.close()


def test_parameters_wait_for_the_end(tmp_path: Path, daemon: FakeDaemon) -> None:
    made = MadeJob(daemon)
    assert run_on(daemon, tmp_path / "r").parameters().keys() == made.tensors.keys()
    assert [path for _, path, _ in daemon.calls if "events" in path]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epoch": 3}, "no setting .*epoch.*epochs"),
        ({"modell": "mlp"}, "no setting .*modell"),
        ({"optimizer": "sdg"}, "unknown optimizer .*sdg.*sgd"),
        ({"epochs": "many"}, "train.epochs: expected `?int"),
        ({"local": 99}, "--local 99"),
        ({"nodes": 4, "local": 3}, "4"),
    ],
)
def test_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str) -> None:
    def refuse(count: int) -> None:
        raise AssertionError("a mesh was started")

    monkeypatch.setattr("p2pnn.cli.local.LocalMesh", refuse)
    with pytest.raises(UsageError, match=words):
        p2pnn.train(flowers(), {"image": np.ones((400, 3)), "label": np.zeros(400, np.int64)}, **settings)


def test_train_asks_for_the_daemon_that_was_named(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"none\.sock"):
        p2pnn.train("mlp", "digits", socket=str(tmp_path / "none.sock"))


def test_out_is_looked_at_before_anything_is_sent(tmp_path: Path, daemon: FakeDaemon) -> None:
    take(daemon)
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        p2pnn.train(flowers(), str(flower_data(tmp_path)), out=str(tmp_path), batch_size=20)
    assert not daemon.bodies("POST jobs")
    assert (tmp_path / "kept").read_text() == "mine"


@pytest.mark.parametrize(("name", "words"), [("failed", "failed: node b is gone"), ("cancelled", "was cancelled")])
def test_a_job_that_does_not_get_there(
    tmp_path: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([state(1, name, "node b is gone")])
    daemon[f"GET jobs/{JOB}"] = {"state": name}
    with pytest.raises(JobFailedError, match=words):
        session.complete(run_on(daemon, tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    assert capsys.readouterr().out == ""


def test_a_mesh_of_its_own_is_closed_however_it_ends(tmp_path: Path, daemon: FakeDaemon) -> None:
    closed = threading.Event()
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([state(1, "failed", "no memory")])
    daemon[f"GET jobs/{JOB}"] = {"state": "failed"}
    with pytest.raises(JobFailedError), run_on(daemon, tmp_path / "r", close=closed.set) as run:
        run.follow()
    assert closed.is_set()


def test_a_paused_job_leaves_no_folder(tmp_path: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([state(1, "paused")])
    daemon[f"GET jobs/{JOB}"] = {"state": "paused"}
    session.complete(run_on(daemon, tmp_path / "r"))
    assert f"p2pnn jobs resume {JOB}" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()


def test_what_is_printed(tmp_path: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeJob(daemon)
    session.complete(run_on(daemon, tmp_path / "r"))
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("test accuracy 97.5 %   (39 of 40)   ")
    assert first.endswith(" s")
    assert second.startswith(f"results      {tmp_path}/r ")
    assert third == f"bits         {made.bits}"
    session.complete(run_on(daemon, tmp_path / "s"), json=True)
    assert json.loads(capsys.readouterr().out)["bits"] == made.bits


def test_results_that_a_daemon_still_has_are_not_lost(tmp_path: Path, daemon: FakeDaemon) -> None:
    MadeJob(daemon)
    (tmp_path / "taken").write_text("in the way since the job began")
    with pytest.raises(StorageError, match=rf"not be written .*; get them with `p2pnn jobs fetch {JOB} --out DIR`"):
        session.complete(run_on(daemon, tmp_path / "taken"))


def test_results_of_a_local_mesh_are_not_lost(
    tmp_path: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    made = MadeJob(daemon)
    (tmp_path / "taken").write_text("in the way since the job began")
    mesh = Mesh(Daemon(daemon.path), LocalMesh(1))
    session.complete(session.Run(mesh, JOB, tmp_path / "taken", chosen=True, name="flowers"))
    out, err = capsys.readouterr()
    folder = Places.of().runs / "flowers-1"
    assert made.bits in out
    assert f"not be written to {tmp_path}/taken" in err
    assert err.endswith(f"; they lie in {folder} instead\n")
    assert (folder / "model.safetensors").is_file()


def test_a_run_that_diverged_is_printed_as_json(
    tmp_path: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    MadeJob(daemon)
    lost = {"number": 1, "time": 0.0, "kind": "evaluation", "split": "test", "rows": 9, "loss": float("nan")}
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([lost, state(2, "done")])
    session.complete(run_on(daemon, tmp_path / "r"), json=True)
    assert '"loss": null' in capsys.readouterr().out


def test_the_closing_record_is_the_evaluation() -> None:
    assert session.closing({"result": {"evaluation": EVALUATION}}) == {"evaluation": [EVALUATION]}
    assert session.closing({"result": None}) == {"evaluation": []}


def test_where_nodes_run_behind_the_same_bits_take_the_same_plan(
    tmp_path: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    made = MadeJob(daemon)
    session.complete(run_on(daemon, tmp_path / "r"))
    assert f"bits         {made.bits}\n" in capsys.readouterr().out
    made = MadeJob(daemon, schedule="async:2")
    results = daemon.answers["GET", f"/api/v1/jobs/{JOB}/results"]
    results["plan"] = results["plan"] | {"assignment": [0, 0, 1]}
    session.complete(run_on(daemon, tmp_path / "s"))
    assert f"bits         {made.bits}   (the same wherever its job.toml runs)\n" in capsys.readouterr().out
    assert resolve({}, tmp_path / "s" / "job.toml").mesh.cut == [0, 0, 1]
    results["manifest"] = results["manifest"] | {"cut": ">0123"}  # a node was lost on the way
    session.complete(run_on(daemon, tmp_path / "t"))
    assert f"bits         {made.bits}\n" in capsys.readouterr().out
    assert "went on over another cut after a break" in (tmp_path / "t" / "job.toml").read_text()
    assert resolve({}, tmp_path / "t" / "job.toml").mesh.cut == []


@pytest.mark.parametrize(
    ("data", "bitwise", "same"),
    [
        (DataParallel("sync"), True, "   (the same with --parallel model)"),
        (DataParallel("sync"), False, ""),
        (DataParallel("sync", backup=1), True, ""),
        (DataParallel("sync", push="bf16"), True, ""),
        (DataParallel("async"), True, ""),
    ],
)
def test_a_data_parallel_run_says_what_was_exchanged_and_saves_its_roles(
    tmp_path: Path,
    daemon: FakeDaemon,
    capsys: pytest.CaptureFixture[str],
    data: DataParallel,
    bitwise: bool,
    same: str,
) -> None:
    made = MadeJob(daemon, data=data, micro_batches=2)
    results = daemon.answers["GET", f"/api/v1/jobs/{JOB}/results"]
    dealt = {"replicas": [{"nodes": [0]}, {"nodes": [1]}], "shards": [{"nodes": [0]}], "bitwise": bitwise}
    results["plan"] = results["plan"] | dealt
    told = {
        "kind": "progress",
        "step": 7,
        "steps": 8,
        "epoch": 2,
        "epochs": 2,
        "staleness": {"0": 9},
        "pushed_bytes": 64.0,
        "fetched_bytes": 32.0,
        "pushed_bytes_total": 512,
        "fetched_bytes_total": 256,
    }
    happened = [
        {"time": 0.0, **event, "number": n} for n, event in enumerate([state(1, "running"), told, *events()], 1)
    ]
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter(happened)
    session.complete(run_on(daemon, tmp_path / "r"))
    out = capsys.readouterr().out
    assert f"bits         {made.bits}{same}\n" in out
    assert "staleness    0 of all 9 pushes\nexchanged    512 B pushed, 256 B fetched\n" in out
    saved = resolve({}, tmp_path / "r" / "job.toml")
    assert (saved.mesh.parallel, saved.data_parallel.workers, saved.data_parallel.shards) == ("data", 2, 1)
    session.complete(run_on(daemon, tmp_path / "s"), json=True)
    exchange = json.loads(capsys.readouterr().out)["exchange"]
    assert (exchange["staleness"], exchange["pushed_bytes"], exchange["fetched_bytes"]) == ({"0": 9}, 512, 256)


@pytest.mark.usefixtures("warm_processes")
def test_what_a_local_mesh_recorded_goes_into_the_folder(own_home: Path) -> None:
    run = p2pnn.train("mlp", "digits", local=2, out=str(own_home / "r"), epochs=1, nodes=2)
    run.follow(lambda event: None)
    folder = run.save()
    found = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    assert [node["name"] for node in found["otherData"]["nodes"]] == ["a", "b"]
    assert run.trace().parts


@pytest.mark.usefixtures("warm_processes")
def test_a_run_in_flight_repeats_from_its_job_file_over_its_own_cut(own_home: Path, tmp_path: Path) -> None:
    pins = {"hidden1": "b", "hidden2": "c", "head": "a"}
    settings = {"schedule": "async:3", "epochs": 1, "optimizer": "sgd"}
    run = p2pnn.train("mlp", "digits", local=3, out=str(tmp_path / "r"), pins=pins, **settings)
    run.follow(lambda event: None)
    first = run.save()
    assert main(["train", str(first / "job.toml"), "--local", "4", "--out", str(tmp_path / "s")]) == 0
    plans = [json.loads((folder / "plan.json").read_text()) for folder in (first, tmp_path / "s")]
    assert plans[0]["assignment"] == plans[1]["assignment"]
    assert max(plans[0]["delays"]) == 2
    last = json.loads((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["bits"] == run.bits


@pytest.mark.usefixtures("warm_processes")
def test_a_run_in_flight_on_one_node_repeats_on_more(own_home: Path, tmp_path: Path) -> None:
    run = p2pnn.train("mlp", "digits", local=1, out=str(tmp_path / "r"), schedule="async:2", epochs=1, optimizer="sgd")
    run.follow(lambda event: None)
    assert main(["train", str(run.save() / "job.toml"), "--local", "2", "--out", str(tmp_path / "s")]) == 0
    assert json.loads((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()[-1])["bits"] == run.bits
