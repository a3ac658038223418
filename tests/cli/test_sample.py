"""A run of text goes on with a prompt: what is asked of the mesh, and what is printed as it comes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnn.cli import main
from p2pnn.job.spec import Sampling
from tests.cli.fake import FakeDaemon
from tests.cli.made import JOB, flower_data, saved_run, state, submitted, take
from tests.model.test_text import speller

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    saved_run(tmp_path / "speller", speller())
    return tmp_path


def writes(daemon: FakeDaemon, *tokens: int, last: str = "done", reason: str = "") -> None:
    take(daemon)
    found: list[dict[str, Any]] = [{"kind": "tokens", "tokens": [token]} for token in tokens]
    found += [{"kind": "warning", "text": "slow"}, state(0, last, reason)]
    numbered = [{"time": 0.0, **event, "number": number} for number, event in enumerate(found, 1)]
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter(numbered)
    daemon[f"GET jobs/{JOB}"] = {"state": last, "reason": reason}


def test_a_prompt_is_gone_on_with(here: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    writes(daemon, 2, 0, 1)
    words = ["--prompt", "ab", "--length", "3", "--temperature", "0.5", "--top-k", "2", "--seed", "7"]
    assert main(["predict", "speller", *words]) == 0
    out, err = capsys.readouterr()
    assert out == "ab" + "b\na" + "\n"
    assert err == "warning: slow\n"
    spec = submitted(daemon)
    assert (spec.kind, spec.inputs, spec.test, spec.batch_size) == ("sample", {"tokens": "x"}, None, 1)
    assert spec.sampling == Sampling((1, 2), 3, 0.5, 2, 7)
    assert spec.name == "sample-speller"
    assert main(["predict", "speller", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompt": "ab", "text": "b\na", "tokens": [2, 0, 1]}


def test_without_a_prompt_a_new_line_begins(here: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    writes(daemon, *[1] * 500)
    assert main(["predict", "speller"]) == 0
    assert capsys.readouterr().out == "a" * 500 + "\n"
    assert submitted(daemon).sampling == Sampling((0,))
    saved_run(here / "lineless", speller(classes=("x", "y")))
    assert main(["predict", "lineless", "--length", "500"]) == 0
    assert submitted(daemon).sampling == Sampling((0,))


def test_of_a_long_prompt_the_end_counts(here: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    writes(daemon, 1)
    assert main(["predict", "speller", "--prompt", "aabbab", "--length", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == "aabbaba\n"
    assert err.splitlines()[0] == "the prompt has 6 characters; the network sees the last 4"
    assert submitted(daemon).sampling == Sampling((2, 2, 1, 2), 1)


def test_a_text_that_ends_early_fails(here: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    writes(daemon, 1, 2, last="failed", reason="node b is gone")
    assert main(["predict", "speller", "--length", "9"]) == 1
    out, err = capsys.readouterr()
    assert out == "ab\n"
    assert err.splitlines()[-1] == f"p2pnn: the job {JOB} failed: node b is gone"
    writes(daemon, 1, 2)
    assert main(["predict", "speller", "--length", "9"]) == 1
    assert "of the 9 characters" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_the_job(here: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        written = ""

        def write(self, text: str) -> None:
            self.written += text
            if len(self.written) > 3:
                raise BrokenPipeError

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return False

    writes(daemon, *[1] * 500)
    daemon[f"POST jobs/{JOB}/cancel"] = {"state": "cancelled"}
    monkeypatch.setattr("sys.stdout", Full())
    assert main(["predict", "speller"]) == 0
    assert len(daemon.bodies(f"POST jobs/{JOB}/cancel")) == 1


def test_ctrl_c_cancels_and_leaves_what_was_written(
    here: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    writes(daemon, 1)
    from p2pnn.cli.http import Daemon

    streams = 0

    def stream(self: Daemon, path: str, idle_s: float | None = None) -> Iterator[dict[str, Any]]:
        nonlocal streams
        streams += 1
        if streams == 1:
            yield {"number": 1, "time": 0.0, "kind": "tokens", "tokens": [1]}
            raise KeyboardInterrupt
        yield {"number": 2, "time": 0.0, "kind": "tokens", "tokens": [2]}
        yield {"time": 0.0, **state(3, "cancelled")}

    monkeypatch.setattr(Daemon, "stream", stream)
    daemon[f"POST jobs/{JOB}/cancel"] = {"state": "cancelled"}
    daemon[f"GET jobs/{JOB}"] = {"state": "cancelled", "reason": ""}
    assert main(["predict", "speller"]) == 130
    out, err = capsys.readouterr()
    assert out == "a\n"
    assert f"cancelling {JOB}" in err


def test_a_terminal_gets_nothing_that_it_would_obey(
    here: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    saved_run(here / "wild", speller(classes=("\x1b", "\t", "z")))
    writes(daemon, 0, 1, 2)
    assert main(["predict", "wild", "--length", "3"]) == 0
    assert capsys.readouterr().out == "\x1b\tz\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["predict", "wild", "--length", "3"]) == 0
    assert capsys.readouterr().out == "\ufffd\tz\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speller", "--prompt", "abba cab"], "--prompt: ' ', 'c' are not among the 3 characters that the model knows"),
        (["speller", "--prompt", "a", "--data", "flowers.npz"], "--prompt is for a text that is gone on with, --data"),
        (["speller", "--top-k", "3", "--data", "flowers.npz"], "--top-k is for a text"),
        (["speller", "--out", "a.npz"], "a text goes to a file with > FILE"),
        (["speller", "--length", "0"], "length = 0"),
        (["speller", "--temperature", "-1"], "temperature = -1.0"),
        (["speller", "--temperature", "inf"], "temperature = inf: it is a number from 0"),
        (["speller", "--seed", "9" * 20], "it lies from 0 to 9,007,199,254,740,991"),
        (["speller", "--top-k", "-1"], "top_k = -1"),
        (["speller", "--seed", "-1"], "seed = -1"),
        (["flowers", "--prompt", "a"], "the model flowers does not go on with text: its classes are not characters"),
        (["flowers"], "name the rows to predict with --data"),
    ],
)
def test_bad_words_start_nothing(here: Path, daemon: FakeDaemon, capsys: Capture, words: list[str], said: str) -> None:
    saved_run(here / "flowers")
    flower_data(here)
    assert main(["predict", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert [call for call in daemon.calls if call[0] != "GET"] == []


@pytest.mark.usefixtures("warm_processes")
def test_a_local_mesh_writes_the_same_text_on_one_node_and_on_two(here: Path, capsys: Capture) -> None:
    texts = []
    for nodes in ("1", "2"):
        assert main(["predict", "speller", "--prompt", "ab", "--length", "40", "--local", nodes]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 43
    assert set(texts[0]) <= set("\nab")
    assert np.unique(list(texts[0])).size > 1
