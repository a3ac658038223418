"""`eval` and `predict`: a saved run on other data, its numbers printed, saved, or as JSON."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.cli import evaluate, main
from p2pnn.cli.http import Daemon
from p2pnn.data import chunks
from p2pnn.errors import CheckpointError
from tests.cli.fake import FakeDaemon
from tests.cli.made import EVALUATION, JOB, blob_name, flower_data, flowers, saved_run, state, submitted, take

Capture = pytest.CaptureFixture[str]
SCORES = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run and data for it."""
    monkeypatch.chdir(tmp_path)
    saved_run(tmp_path / "run")
    flower_data(tmp_path)
    return ["run", "--data", "flowers.npz"]


def ends_with(daemon: FakeDaemon, *more: dict[str, Any], last: str = "done", reason: str = "") -> None:
    take(daemon)
    found = [*more, state(0, last, reason)]
    numbered = [{"time": 0.0, **event, "number": number} for number, event in enumerate(found, 1)]
    daemon[f"GET jobs/{JOB}"] = {"state": last, "reason": reason}
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter(numbered)
    daemon[f"GET jobs/{JOB}"] = {"state": last}


def predicts(daemon: FakeDaemon, *pieces: Any, damage: bool = False) -> None:
    """The job of the daemon left these rows, a blob each, of the output `class`."""
    ends_with(daemon)
    named = []
    for rows in pieces:
        data = chunks.write(rows)
        named.append([blob_name(data), len(rows)])
        daemon[f"GET blobs/{blob_name(data)}"] = data[:-1] + b"!" if damage else data
    shape = list(pieces[0].shape[1:])
    daemon[f"GET jobs/{JOB}/results"] = {"predictions": {"outputs": {"class": ["float32", shape, named]}}}


def test_eval(words: list[str], daemon: FakeDaemon, capsys: Capture) -> None:
    ends_with(daemon, {"kind": "evaluation", **EVALUATION})
    assert main(["eval", *words]) == 0
    out, err = capsys.readouterr()
    assert "accuracy 97.5 %   (39 of 40)" in out.splitlines()[0]
    assert "loss 0.4000" in out
    assert "\x1b" not in out + err
    spec = submitted(daemon)
    assert (spec.kind, spec.batch_size) == ("evaluate", 256)
    assert main(["eval", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {key: EVALUATION[key] for key in ("rows", "loss", "metrics")}


def test_predict_prints_classes(words: list[str], daemon: FakeDaemon, capsys: Capture) -> None:
    predicts(daemon, SCORES[:2], SCORES[2:])
    assert main(["predict", *words]) == 0
    assert capsys.readouterr().out.splitlines() == ["tulip\t0.7500", "rose\t0.5000", "rose\t1.0000"]
    assert submitted(daemon).kind == "predict"
    assert main(["predict", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"class": SCORES.tolist(), "classes": ["rose", "tulip"]}


def test_predict_saves(words: list[str], daemon: FakeDaemon, capsys: Capture) -> None:
    predicts(daemon, SCORES)
    assert main(["predict", *words, "--out", "scores.npz"]) == 0
    assert capsys.readouterr().out == "scores.npz: class [3, 2]\n"
    with np.load("scores.npz") as found:
        np.testing.assert_array_equal(found["class"], SCORES)
    assert main(["predict", *words, "--out", "scores.npz"]) == 2
    assert "scores.npz exists already" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["flowers.npz", "run", "scores.npz"]


def test_damaged_predictions_are_refused(words: list[str], daemon: FakeDaemon, capsys: Capture) -> None:
    predicts(daemon, SCORES, damage=True)
    assert main(["predict", *words, "--out", "scores.npz"]) == 2
    assert "arrived damaged" in capsys.readouterr().err
    assert not Path("scores.npz").exists()


def test_no_predictions(daemon: FakeDaemon) -> None:
    daemon[f"GET jobs/{JOB}/results"] = {"predictions": None}
    with pytest.raises(CheckpointError, match="left no predictions"):
        evaluate.fetch_predictions(Daemon(daemon.path), JOB)


def test_lines_of_outputs_that_are_no_classes() -> None:
    assert evaluate.prediction_lines({"y": np.array([[0.5], [2.0]])}, ()) == ["y\t0.5", "y\t2"]
    assert evaluate.prediction_lines({"y": np.array([3, 4])}, ("a", "b")) == ["y\t3", "y\t4"]


def test_lines_of_images_end_with_their_files() -> None:
    scores = {"p": np.array([[0.1, 0.9], [0.8, 0.2]]), "q": np.array([[1.0], [2.0]])}
    found = evaluate.prediction_lines(scores, ("a", "b"), ("1.png", "2.png"))
    assert found == ["b\t0.9000\t1.png", "a\t0.8000\t2.png", "q\t1\t1.png", "q\t2\t2.png"]


def test_a_class_that_a_terminal_would_obey_is_spelt_out() -> None:
    assert evaluate.prediction_lines({"p": np.array([[0.1, 0.9]])}, ("a", "\x1b")) == ["'\\x1b'\t0.9000"]


def test_lines_of_a_text_are_its_likeliest_characters() -> None:
    scores = np.eye(3, dtype=np.float32)[[[0, 2, 1, 0], [1, 1, 2, 2]]]
    assert evaluate.prediction_lines({"p": scores}, ("a", "\n", "c")) == ["'ac\\na'", "'\\n\\ncc'"]


def test_a_job_that_fails(words: list[str], daemon: FakeDaemon, capsys: Capture) -> None:
    ends_with(daemon, {"kind": "warning", "text": "slow"}, last="failed", reason="node b is gone")
    assert main(["eval", *words]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "measuring all 50 rows of flowers",
        "warning: slow",
        f"p2pnn: the job {JOB} failed: node b is gone",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["rum", "--data", "flowers.npz"], "no run 'rum'"),
        (["run", "--data", "gone.npz"], "no file gone.npz"),
        (["run", "--data", "digits"], "(3,)"),
        (["run", "--data", "flowers.npz", "--batch-size", "0"], "batch_size = 0"),
        (["run", "--data", "flowers.npz", "--label", "colour"], "colour"),
        (["run", "--data", "flowers.npz", "--local", "99"], "--local 99"),
    ],
)
@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_bad_words_start_nothing(
    words: list[str], daemon: FakeDaemon, capsys: Capture, verb: str, more: list[str], said: str
) -> None:
    assert main([verb, *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert [call for call in daemon.calls if call[0] != "GET"] == []


def test_classes_without_names_are_called_by_their_numbers() -> None:
    graph = flowers()
    assert evaluate.class_names(graph) == ("rose", "tulip")
    assert evaluate.class_names(msgspec.structs.replace(graph, classes=())) == ("0", "1")
