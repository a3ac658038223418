"""`train` and `plan`: what the words on the command line become, and every word that is refused before anything starts."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.cli import main
from p2pnn.cli.local import LocalMesh
from p2pnn.cli.train import asked_for
from p2pnn.errors import UsageError
from p2pnn.job.spec import JobSpec
from tests.cli.fake import FakeDaemon
from tests.cli.made import EVALUATION, FLOWERS_PY, JOB, PLAN, MadeJob, flower_data, submitted, take
from tests.job.test_trace import FIRST, SECOND


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model file and data of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers.py").write_text(FLOWERS_PY)
    flower_data(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where any process is started, or anything is sent to a daemon."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    monkeypatch.setattr("p2pnn.cli.local.LocalMesh", refuse)
    monkeypatch.setattr("p2pnn.cli.submit.send", refuse)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one sentence with which the command line refuses."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    *before, sentence = err.splitlines()
    assert before == []
    assert sentence.startswith("p2pnn: ")
    return sentence.removeprefix("p2pnn: ")


OWN = ["train", "flowers.py:net", "--data", "flowers.npz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "mpl", "--data", "digits"], ["no network of the zoo", "mpl", "mlp"]),
        (["train", "gone.py:net", "--data", "digits"], ["no model file", "gone.py"]),
        (["train", "flowers.py:nett", "--data", "flowers.npz"], ["flowers.py has no function", "nett", "net"]),
        (["train", "flowers.py", "--data", "flowers.npz"], ["flowers.py:net"]),
        (["train", "flowers.py:broken", "--data", "flowers.npz"], ["ValueError on line 13", "no such petal"]),
        (["train", "flowers.py:nothing", "--data", "flowers.npz"], ["gave an int", "nn.Model"]),
        (["train", "mlp", "--data", "gone.csv"], ["no file", "gone.csv"]),
        (["train", "mlp"], ["mlp", "without --data"]),
        (["train", "--data", "digits"], ["--data digits without a MODEL"]),
        (["train", "gone.toml"], ["no job file", "gone.toml"]),
        ([*OWN, "--label", "colour"], ["no column", "colour", "image, label"]),
        (["train", "flowers.py:net", "--data", "digits"], ["(3,)", "(1, 8, 8)"]),
        ([*OWN, "--batch-size", "10", "--micro-batches", "3"], ["10 rows", "3 micro-batches", "2 or 5"]),
        ([*OWN, "--batch-size", "64"], ["batch of 64", "40 rows", "--batch-size 32"]),
        ([*OWN, "--epochs", "0"], ["epochs = 0"]),
        ([*OWN, "--rate", "0"], ["rate = 0.0"]),
        ([*OWN, "--momentum", "1"], ["momentum = 1.0"]),
        ([*OWN, "--optimizer", "adamm"], ["unknown optimizer", "adamm", "adam"]),
        ([*OWN, "--lr-schedule", "cosin"], ["learning rate", "cosin", "cosine"]),
        ([*OWN, "--scale", "much"], ["scale = 'much'"]),
        ([*OWN, "--memory", "plenty"], ["plenty"]),
        ([*OWN, "--parallel", "hybrid"], ["not there yet", "--parallel data"]),
        ([*OWN, "--workers", "2"], ["--workers 2", "add --parallel data"]),
        ([*OWN, "--parallel", "data", "--workers", "4", "--local", "3"], ["--workers 4", "--local 4"]),
        ([*OWN, "--parallel", "data", "--consistency", "sspp:2"], ["there is no consistency 'sspp:2'", "ssp:S"]),
        ([*OWN, "--nodes", "4", "--local", "3"], ["--nodes 4", "3 nodes"]),
        ([*OWN, "--nodes", "a,,b"], ["--nodes 'a,,b'"]),
        ([*OWN, "--batch-size", "20", "--nodes", "a,a"], ["named twice"]),
        ([*OWN, "--nodes", "-1"], ["nodes = -1"]),
        ([*OWN, "--pin", "hidden"], ["--pin 'hidden'", "PATTERN=NODE"]),
        ([*OWN, "--local", "0"], ["--local 0", "1 to 26"]),
        ([*OWN, "--local", "2", "--socket", "x"], ["--local", "--socket"]),
        ([*OWN, "--local", "2", "--detach"], ["--detach needs a daemon"]),
        ([*OWN, "--out", "."], ["exists already"]),
        ([*OWN, "--init", "gone.safetensors"], ["gone.safetensors"]),
        (["train", "job.toml", "--epochs", "1"], ["job.toml names no [model] source"]),
    ],
)
def test_bad_words_are_refused_in_one_sentence(
    here: Path, nothing_starts: None, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    (here / "job.toml").write_text("[data]\ntrain = 'flowers.npz'\n")
    sentence = refused(arguments, capsys)
    for word in words:
        assert word in sentence


def labels(**more: Any) -> dict[str, Any]:
    return {"image": np.ones((20, 3), np.float32), "label": np.zeros(20, np.int64), **more}


def with_(array: Any, index: Any, value: Any) -> Any:
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (labels(label=with_(np.zeros(20, np.int64), 17, 2)), ["label", "2"]),
        (labels(label=with_(np.zeros(20, np.int64), 17, -1)), ["label", "-1"]),
        (labels(image=with_(np.ones((20, 3), np.float32), (19, 2), np.nan)), ["image", "19"]),
        (labels(image=with_(np.ones((20, 3), np.float32), (19, 2), np.inf)), ["image", "19"]),
        (labels(image=np.ones((20, 4), np.float32)), ["(4,)", "(3,)"]),
        (labels(label=np.zeros(19, np.int64)), ["19", "20"]),
        ({"image": np.ones((20, 3), np.float32)}, ["label"]),
    ],
)
def test_bad_data_is_refused_to_the_last_row(
    here: Path, nothing_starts: None, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], words: list[str]
) -> None:
    np.savez(here / "bad.npz", **columns)
    sentence = refused(["train", "flowers.py:net", "--data", "bad.npz", "--batch-size", "8"], capsys)
    assert "bad" in sentence
    for word in words:
        assert word in sentence


def test_a_bad_cell_of_a_csv_is_named(here: Path, nothing_starts: None, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.csv").write_text("width,height,kind\n1,2,rose\n3,,tulip\n")
    sentence = refused(["train", "mlp", "--data", "bad.csv", "--label", "kind"], capsys)
    assert "bad.csv" in sentence
    assert "height" in sentence
    assert "3" in sentence or "2" in sentence
    sentence = refused(["train", "mlp", "--data", "bad.csv", "--label", "kin"], capsys)
    assert "kin" in sentence
    assert "kind" in sentence


def test_no_daemon_where_one_was_named(here: Path, nothing_starts: None, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused([*OWN, "--socket", "none.sock"], capsys, status=3)
    assert "none.sock" in sentence


def test_unknown_options_and_words_for_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OWN, "--epoch", "3"]) == 2
    assert "--epochs" in capsys.readouterr().err
    assert main([*OWN, "--epochs", "three"]) == 2
    err = capsys.readouterr().err
    assert "--epochs" in err
    assert "a whole number is wanted here, not 'three'" in err


def test_defaults() -> None:
    request = asked_for({"model": "mlp", "data": "digits"}).request
    train = request.train
    assert (train.epochs, train.batch_size, train.micro_batches, request.seed) == (10, 128, 4, 0)
    assert (train.optimizer.kind, train.optimizer.schedule, train.optimizer.rate) == ("adam", "cosine", 1e-3)
    assert (request.mesh.parallel, request.mesh.schedule, request.mesh.nodes) == ("model", "sync", 0)
    assert request.data.scale == "auto"


def test_without_words_it_is_the_demonstration() -> None:
    asked = asked_for({})
    assert asked.demonstration
    assert (asked.request.model.source, asked.request.data.train) == ("mlp", "digits")
    more = asked_for({"epochs": 3})
    assert more.demonstration
    assert more.request.train.epochs == 3
    flying = asked_for({"schedule": "async:2"})
    assert flying.demonstration
    assert (flying.request.mesh.schedule, flying.request.train.micro_batches) == ("async:2", 1)
    assert not asked_for({"model": "mlp", "data": "digits"}).demonstration


def test_pins_nodes_and_scale_are_read() -> None:
    request = asked_for(
        {"model": "mlp", "data": "digits", "pin": ["fc=1*=b", "fc2 = a"], "nodes": "a, b", "scale": "0.5"}
    ).request
    assert request.mesh.pins == {"fc=1*": "b", "fc2": "a"}
    assert request.mesh.nodes == ["a", "b"]
    assert request.data.scale == 0.5
    assert asked_for({"model": "mlp", "data": "digits", "nodes": "2"}).request.mesh.nodes == 2
    with pytest.raises(UsageError, match="--pin '=b'"):
        asked_for({"model": "mlp", "data": "digits", "pin": ["=b"]})


def test_arguments_of_the_model_are_values_or_texts() -> None:
    words = ["layers=6", "hidden = [64, 32]", "kind=plain", "dropout=0.1", 'name="a=b"']
    request = asked_for({"model": "mlp", "data": "digits", "argument": words}).request
    wanted = {"layers": 6, "hidden": [64, 32], "kind": "plain", "dropout": 0.1, "name": "a=b"}
    assert request.model.arguments == wanted
    for wrong in ("layers", "=6", "two words=6", "layers="):
        with pytest.raises(UsageError, match="is not NAME=VALUE"):
            asked_for({"model": "mlp", "data": "digits", "argument": [wrong]})


def test_a_run_from_its_words_to_its_folder(here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeJob(daemon)
    words = ["--out", "results", "--batch-size", "20", "--seed", "5", "--pin", "head=a"]
    assert main([*OWN, *words]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("test accuracy 97.5 %   (39 of 40)")
    assert f"bits         {made.bits}" in out.splitlines()
    assert "one node alone" in err
    assert [line.split()[1] for line in err.splitlines() if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert sorted(path.name for path in (here / "results").iterdir()) == [
        "graph.msgpack", "job.toml", "load_torch.py", "metrics.jsonl", "model.safetensors", "plan.json", "predict.py",
    ]  # fmt: skip
    spec = submitted(daemon)
    assert (spec.kind, spec.batch_size, spec.seed, spec.name) == ("train", 20, 5, "flowers")
    assert [(pin.pattern, pin.node) for pin in spec.pins] == [("head", "a")]
    assert spec.train is not None
    assert spec.test is not None
    assert (spec.train.rows, spec.test.rows) == (40, 10)


def test_the_answer_in_json(here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeJob(daemon)
    assert main([*OWN, "--batch-size", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["job"], found["bits"]) == (JOB, made.bits)
    assert found["evaluation"] == EVALUATION
    assert [epoch["epoch"] for epoch in found["epochs"]] == [1, 2]
    assert (Path(found["folder"]) / "model.safetensors").exists()
    assert Path(found["folder"]).name == "flowers-1"


def test_the_job_file_of_a_run_repeats_it(here: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, to the last default: the very same spec."""
    take(daemon)
    words = ["--batch-size", "12", "--micro-batches", "3", "--optimizer", "sgd", "--clip-norm", "1.5"]
    words += ["--seed", "9", "--epochs", "4", "--patience", "2"]
    words += ["--nodes", "a,b", "--pin", "hid*=b", "--validation-fraction", "0.25", "--memory", "2 GB"]
    assert main([*OWN, *words, "--detach"]) == 0
    first = submitted(daemon)
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "job.toml").write_text(first.request)
    monkeypatch.chdir(here / "elsewhere")
    assert main(["train", "job.toml", "--detach"]) == 0
    assert submitted(daemon) == first
    assert main(["train", "job.toml", "--epochs", "7", "--detach"]) == 0
    assert submitted(daemon).epochs == 7


def test_detached(here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    take(daemon)
    assert main([*OWN, "--batch-size", "20", "--detach"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{JOB} is submitted\n"
    assert f"p2pnn jobs fetch {JOB}" in err
    assert main([*OWN, "--batch-size", "20", "--detach", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"job": JOB}


def test_a_job_that_fails_ends_with_its_reason(
    here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    take(daemon)
    event = {"number": 1, "time": 0, "kind": "state", "state": "failed", "reason": "node b is gone"}
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([event])
    daemon[f"GET jobs/{JOB}"] = {"state": "failed"}
    assert main([*OWN, "--batch-size", "20", "--out", "results"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"p2pnn: the job {JOB} failed: node b is gone"
    assert not (here / "results").exists()


def test_plan_shows_and_trains_nothing(here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon["POST plan"] = {"plan": PLAN, "lines": []}
    assert main(["plan", *OWN[1:], "--batch-size", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == PLAN["reasons"][0]
    assert "  no cut pays" in lines
    assert main(["plan", *OWN[1:], "--batch-size", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == PLAN
    daemon["POST plan"] = (400, {"error": "the pin x matches nothing", "exit": 2})
    assert refused(["plan", *OWN[1:], "--batch-size", "20"], capsys) == "the pin x matches nothing"
    assert not daemon.bodies("POST jobs")


DEALT: dict[str, Any] = {
    "nodes": [
        {"name": "a", "layers": "worker 0; shard 0", "parameters": 23, "memory_bytes": 4096, "sends": [["a", 92, 92]]},
        {"name": "b", "layers": "worker 1", "parameters": 23, "memory_bytes": 2048, "sends": [["a", 92, 92]]},
    ],
    "samples_per_s": 1500.0,
    "reasons": ["one node 1,000 samples/s, data parallel 1,500 over 2 nodes: 1.5 times as fast as a alone", "async: …"],
    "replicas": [{"nodes": [0]}, {"nodes": [1]}],
    "shards": [{"nodes": [0]}],
    "predicted": [
        {"way": "single", "nodes": ["a"], "samples_per_s": 1000.0},
        {"way": "data", "nodes": ["a", "b"], "samples_per_s": 1500.0},
    ],
}


def test_auto_is_settled_before_the_plan_is_shown(
    here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon["POST plan"] = {"plan": DEALT, "lines": []}
    words = ["plan", *OWN[1:], "--batch-size", "20", "--parallel", "auto", "--workers", "2"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Auto         data parallelism: 1,500 samples/s predicted, against 1,000 on one node",
        DEALT["reasons"][0],
        "  node  roles              parameters   memory  per step",
        "  a     worker 0; shard 0          23  4.0 KiB  pushes 92 B, fetches 92 B",
        "  b     worker 1                   23  2.0 KiB  pushes 92 B, fetches 92 B",
        "  async: …",
    ]
    asked = [msgspec.msgpack.decode(body, type=JobSpec) for body in daemon.bodies("POST plan")]
    assert [spec.parallel for spec in asked] == ["data", "data"]
    assert 'parallel = "data"' in asked[1].request
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == DEALT["predicted"]


@pytest.mark.usefixtures("warm_processes")
def test_a_real_daemon_plans(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what only a daemon knows is refused in a sentence too."""
    words = ["flowers.py:net", "--data", "flowers.npz", "--batch-size", "20"]
    with LocalMesh(1) as mesh:
        socket = ["--socket", str(mesh.daemon.path)]
        assert main(["plan", *words, *socket, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["plan"]
        assert [node["name"] for node in found["nodes"]] == ["a"]
        assert "petal*" in refused(["plan", *words, *socket, "--pin", "petal*=a"], capsys)
        assert "attic" in refused(["plan", *words, *socket, "--pin", "head=attic"], capsys)
        assert "4" in refused(["plan", *words, *socket, "--nodes", "4"], capsys)
        assert "desk" in refused(["plan", *words, *socket, "--nodes", "a,desk"], capsys)


def test_a_trace_is_written_however_the_job_ends(
    here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    MadeJob(daemon)
    assert main([*OWN, "--batch-size", "20", "--trace", "t.json"]) == 0  # this daemon has none
    assert "t.json" not in {path.name for path in here.iterdir()}
    parts = [json.loads(msgspec.json.encode({"part": part})) for part in (FIRST, SECOND)]
    daemon[f"GET jobs/{JOB}/trace"] = lambda body: iter([{"nodes": ["a", "b"], "generation": 1}, *parts])
    capsys.readouterr()
    assert main([*OWN, "--batch-size", "20", "--trace", "t.json"]) == 0
    out, err = capsys.readouterr()
    assert "computed 57%" in err
    assert "computed 57%" not in out
    assert json.loads((here / "t.json").read_bytes())["traceEvents"]
    event = {"number": 1, "time": 0, "kind": "state", "state": "failed", "reason": "node b is gone"}
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([event])
    daemon[f"GET jobs/{JOB}"] = {"state": "failed"}
    assert main([*OWN, "--batch-size", "20", "--trace", "failed.json"]) == 1
    assert (here / "failed.json").exists()


def test_a_trace_is_written_of_a_run_that_was_interrupted(
    here: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    MadeJob(daemon)
    part = json.loads(msgspec.json.encode({"part": FIRST}))
    daemon[f"GET jobs/{JOB}/trace"] = lambda body: iter([{"nodes": ["a"], "generation": 1}, part])

    def interrupted(*arguments: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pnn.cli.follow.follow", interrupted)
    assert main([*OWN, "--batch-size", "20", "--trace", "t.json"]) == 130
    assert json.loads((here / "t.json").read_bytes())["traceEvents"]


def test_a_trace_that_cannot_be_is_refused_before_anything_starts(
    here: Path, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    take(daemon)
    assert "--detach" in refused([*OWN, "--trace", "t.json", "--detach"], capsys)
    assert "is no trace" in refused([*OWN, "--trace", "flowers.py"], capsys)
    assert not daemon.bodies("POST jobs")
