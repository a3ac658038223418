"""MODEL: files, names and saved graphs, and one sentence for whatever is wrong."""

from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli import models
from p2pnn.errors import ModelError, UsageError
from p2pnn.model.graph import encode

FILE = """
from p2pnn import nn
import neighbour

def net(width=4):
    x, y = nn.Input("x", (3,)), nn.Input("y", (), dtype="int64")
    logits = nn.Linear(neighbour.CLASSES, name="head")(nn.relu(nn.Linear(width, name="first")(x)))
    return nn.Model(outputs={"p": nn.softmax(logits)}, loss=nn.cross_entropy(logits, y))

def number():
    return 7

def faulty():
    raise KeyError("no")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("CLASSES = 5\n")
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path / "own.py"


def load(source: str, **arguments: Any) -> Any:
    return models.load(source, arguments, (1, 8, 8), 10)


def test_a_function_of_a_file(file: Path) -> None:
    graph = load(f"{file}:net", width=6)
    assert [p.shape for p in graph.parameters] == [(6, 3), (6,), (5, 6), (5,)]


def test_a_zoo_name_takes_the_datas_shape() -> None:
    assert load("mlp").inputs[0].shape == (-1, 1, 8, 8)
    assert load("mlp", hidden=[4]).parameters[0].shape == (4, 64)


def test_a_saved_graph(file: Path, tmp_path: Path) -> None:
    graph = load(f"{file}:net")
    (tmp_path / "graph.msgpack").write_bytes(encode(graph))
    assert load(str(tmp_path / "graph.msgpack")) == graph


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{file}:nett", r"own\.py has no function 'nett'; did you mean net\?"),
        ("{file}:number", r"number gave an int; it must return nn\.Model"),
        ("{file}:faulty", r"own\.py:faulty raised KeyError on line 14: 'no'"),
        ("{file}", r"name the function in it that builds the model"),
        ("{folder}/none.py:net", r"no model file .*none\.py"),
        ("mpl", r"no network of the zoo is called 'mpl'; did you mean mlp\?"),
        ("{folder}/x.onnx", "write FILE.py:FUNCTION, a name of the zoo, or"),
        ("{folder}/none.msgpack", "no graph file"),
        ("{folder}/bad.msgpack", "is not a graph of p2pnn"),
        ("{folder}/syntax.py:net", r"syntax\.py raised SyntaxError on line 2"),
        ("{folder}/raises.py:net", r"raises\.py raised ZeroDivisionError on line 1: division by zero"),
    ],
)
def test_refusals(file: Path, tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "bad.msgpack").write_bytes(b"\x93" * 5000)
    (tmp_path / "syntax.py").write_text("\ndef net(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=sentence):
        load(source.format(file=file, folder=tmp_path))


def test_arguments_that_do_not_fit(file: Path) -> None:
    with pytest.raises(UsageError, match=r"own\.py:net has no argument 'widht'; did you mean width\?"):
        load(f"{file}:net", widht=3)
    with pytest.raises(UsageError, match=r"mlp has no argument 'hiden'; did you mean hidden\?"):
        load("mlp", hiden=[3])


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("mlp", {"hidden": 32}, r"mlp: hidden = 32: expected a list, got a whole number"),
        ("mlp", {"hidden": [3, "x"]}, r"mlp: hidden = \[3, 'x'\]: expected a whole number, got a text"),
        ("mlp", {"dropout": "much"}, r"mlp: dropout = 'much': expected a number, got a text"),
        ("resnet8", {"width": 2.5}, r"resnet8: width = 2\.5: expected a whole number, got a number"),
        ("resnet8", {"width": 10**30}, r"resnet8: width = 10+: it is at most 1,000,000"),
        ("char-gpt", {"layers": 5000}, r"char-gpt: layers = 5000; it has 1 to 1000"),
    ],
)
def test_arguments_of_another_kind_or_size(name: str, arguments: dict[str, Any], sentence: str) -> None:
    shape = {"char-gpt": (8,), "mlp": (4,)}.get(name, (3, 8, 8))
    with pytest.raises((UsageError, ModelError), match=sentence):
        models.load(name, arguments, shape, 3)


def test_labels_that_are_no_classes() -> None:
    with pytest.raises(ModelError, match="mlp tells classes apart"):
        models.load("mlp", {}, (4,), 0)


def test_what_is_missing_is_known_before_the_data_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean lenet5"):
        models.check_exists("lenet")
    with pytest.raises(UsageError, match="no model file"):
        models.check_exists(f"{tmp_path}/none.py:net")
    models.check_exists("mlp")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit(3)", "raised SystemExit on line 2: it ended itself with 3"),
        ("def net(:", "raised SyntaxError on line 1: invalid syntax$"),
        ("def net():\n    raise SystemExit('no')", "raised SystemExit on line 2: it ended itself with 'no'"),
    ],
)
def test_files_that_end_or_cannot_be_parsed(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(ModelError, match=said):
        load(f"{tmp_path}/odd.py:net")
