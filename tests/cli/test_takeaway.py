"""The generated scripts against the engine, and as programs of their own."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnn import nn
from p2pnn.cli import takeaway
from p2pnn.cli.results import to_safetensors
from p2pnn.job.sampling import Sampler
from p2pnn.job.spec import JobSpec, Sampling
from p2pnn.model import ops
from p2pnn.model.graph import Graph, Scaling
from p2pnn.model.initial import initial


def every_kind() -> nn.Model:
    """A network that holds every kind of op that can stand before an output."""
    image = nn.Input("image", (3, 9, 8))
    label = nn.Input("label", (), dtype="int64")
    h = nn.Conv2d(6, 3, stride=(2, 1), padding=1, name="conv")(image)
    h = nn.relu(nn.BatchNorm(name="norm")(h))
    left = nn.MaxPool2d(3, stride=2, padding=1, name="largest")(h)
    right = nn.AveragePool2d(3, stride=2, padding=1, name="average")(h)
    both = nn.concat([left, right], axis=1)
    grouped = nn.sigmoid(nn.Conv2d(12, 2, groups=3, bias=False, name="grouped")(both))
    pooled = nn.flatten(nn.global_average_pool(grouped))
    mixed = nn.tanh(nn.Linear(12, name="class")(pooled)) * pooled - pooled + pooled  # a keyword as a layer's name
    table = nn.transpose(nn.reshape(mixed, (0, 3, 4)), (0, 2, 1))
    product = nn.matmul(nn.reshape(mixed, (0, 3, 4)), table)
    means = nn.reduce_mean(product, axes=(1,)) + reader(mixed)[:, 1:]
    logits = nn.Linear(4, name="head")(nn.Dropout(0.5)(means))
    return nn.Model(
        outputs={"probability": nn.softmax(logits), "class": nn.argmax(logits)},
        loss=nn.cross_entropy(logits, label),
        name="every_kind",
        classes=("a", 'b"', "c c", "d"),
    )


def reader(x: nn.Value) -> nn.Value:
    """What reads sequences, and the elementwise and moving kinds: (batch, 12) → (batch, 4)."""
    h = nn.LayerNorm(name="lines")(nn.reshape(x, (0, 3, 4)))
    h = nn.MultiHeadAttention(2, causal=True, name="attention")(h)
    h = nn.attention(nn.Linear(8, name="queries")(h), h, h, heads=4, key_heads=2, name="shared")[:, :, 1::2]
    h = nn.gelu(h) - nn.gelu(h, approximate="tanh") + nn.erf(nn.identity(h))
    chosen = nn.Embedding(12, 4, name="table")(nn.argmax(x))
    largest = nn.squeeze(nn.reduce_max(nn.unsqueeze(h, (2,)), (1,)), (1,))
    first, second = nn.split(nn.reduce_sum(h, (1,)), 2)
    bounded = nn.exp(nn.clip(chosen, -1, 0.5)) ** 1.5
    return nn.log(nn.sqrt(bounded) / 2 + 1) + nn.concat([first, -second]) * largest


def tensors_of(graph: Graph) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(5)
    found = {p.name: generator.normal(0, 0.1, p.shape).astype(np.float32) for p in graph.parameters}
    return found | {p.name: generator.uniform(0.5, 2, p.shape).astype(np.float32) for p in graph.state}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A take-away folder of `every_kind`, with a scaling per channel."""
    graph = msgspec.structs.replace(every_kind().graph, scaling={"image": Scaling((1.0, 2.0, 3.0), (0.5, 0.25, 2.0))})
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(tensors_of(graph), {"format": "pt"}))
    (tmp_path / "predict.py").write_text(takeaway.predict_script(graph))
    (tmp_path / "load_torch.py").write_text(takeaway.torch_script(graph))
    return tmp_path


def expected(raw: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The outputs by the operators' definitions in ONNX's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    from tests.engine.numpy.checks import to_onnx

    graph = every_kind().graph
    shift = np.array([1, 2, 3], np.float32).reshape(-1, 1, 1)
    scale = np.array([0.5, 0.25, 2], np.float32).reshape(-1, 1, 1)
    image = (raw.astype(np.float32) - shift) * scale
    kept = [op for op in graph.ops if op.kind != "SoftmaxCrossEntropyLoss"]
    graph = msgspec.structs.replace(graph, ops=tuple(kept))
    model = to_onnx(graph, list(graph.outputs.values()), tensors_of(graph))
    found = ReferenceEvaluator(model).run(None, {"image": image})
    return dict(zip(graph.outputs, found, strict=True))


RAW = np.random.default_rng(9).integers(0, 20, (7, 3, 9, 8)).astype(np.uint8)


def test_predict_is_a_program_of_numpy_alone(folder: Path) -> None:
    np.save(folder / "input.npy", RAW)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ONLY_NUMPY, str(folder / "predict.py"), "input.npy", "output.npz"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(folder / "output.npz") as outputs:
        for name, wanted in expected(RAW).items():
            np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-6)


_ONLY_NUMPY = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("p2pnn", "safetensors", "msgspec", "torch", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_predict_prints_class_names(folder: Path) -> None:
    np.save(folder / "input.npy", RAW)
    ran = subprocess.run(
        [sys.executable, "predict.py", "input.npy"], cwd=folder, capture_output=True, text=True, check=True
    )
    best = expected(RAW)["probability"]
    first = ("a", 'b"', "c c", "d")[int(best[0].argmax())]
    assert ran.stdout.startswith(f"{first}\t{best[0].max():.4f}\n")


def test_load_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(folder))
    import load_torch  # type: ignore[import-not-found]

    net = load_torch.model()
    with torch.no_grad():
        outputs = net(RAW)
    for name, wanted in expected(RAW).items():
        np.testing.assert_allclose(outputs[name].numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_the_torch_script_is_python_and_names_every_tensor(folder: Path) -> None:
    text = (folder / "load_torch.py").read_text()
    graph = every_kind().graph
    compile(text, "load_torch.py", "exec")
    for parameter in (*graph.parameters, *graph.state):
        assert repr(parameter.name) in text


def test_every_kind_of_the_op_table_has_its_place() -> None:
    """An operator that is added to the table is added here; losses and metrics stand behind no output."""
    kinds = {kind for kind, row in ops.TABLE.items() if not row.domain} - {"SoftmaxCrossEntropyLoss"}
    assert kinds == set(takeaway.NUMPY) == set(takeaway.TORCH)
    assert kinds - {op.kind for op in every_kind().graph.ops} == {"Where"}, "which needs a bool input"


def test_a_condition_chooses(tmp_path: Path) -> None:
    left, right = nn.Input("left", (2,)), nn.Input("right", (2,))
    graph = nn.Model(outputs={"y": nn.where(nn.Input("flag", (1,), dtype="bool"), left, right)}).graph
    (tmp_path / "model.safetensors").write_bytes(to_safetensors({}, {}))
    (tmp_path / "predict.py").write_text(takeaway.predict_script(graph))
    columns = {"flag": np.array([[True], [False]]), "left": np.ones((2, 2)), "right": np.zeros((2, 2))}
    order = [value.name for value in graph.inputs]
    found = runpy.run_path(str(tmp_path / "predict.py"))["predict"](*(columns[name] for name in order))
    np.testing.assert_array_equal(found["y"], [[1, 1], [0, 0]])
    assert "torch.where(" in takeaway.torch_script(graph)


def test_hostile_names_stay_text() -> None:
    """Names come from whoever built the graph: they are quoted, or made into identifiers."""
    evil = "__import__('os').system('false')"
    graph = every_kind().graph
    renamed = msgspec.structs.replace(
        graph, outputs={f'"""\n{evil}': graph.outputs["class"]}, classes=(f"'''{evil}",), name=f'"""\n{evil}'
    )
    for text in (takeaway.predict_script(renamed), takeaway.torch_script(renamed)):
        assert evil not in text.replace(repr(f'"""\n{evil}'), "").replace(repr([f"'''{evil}"]), "")


def test_a_model_that_reads_two_inputs(tmp_path: Path) -> None:
    left, right = nn.Input("left", (2,)), nn.Input("right", (2,))
    graph = nn.Model(outputs={"sum": left + right}).graph
    (tmp_path / "model.safetensors").write_bytes(to_safetensors({}, {}))
    (tmp_path / "predict.py").write_text(takeaway.predict_script(graph))
    found = runpy.run_path(str(tmp_path / "predict.py"))["predict"](np.ones((3, 2)), np.full((3, 2), 2.0))
    np.testing.assert_array_equal(found["sum"], np.full((3, 2), 3.0))


OTHER_SHAPES = [(7, 8, 9), (6, 3, 9), (8,), (2, 3, 9, 9), ()]
"""8×8 pictures make as many numbers as fewer pictures of another size: they must not become those."""

REFUSAL = r"'image' takes rows of the shape \(3, 9, 8\); this array has the shape \("


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_rows_of_another_shape_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=REFUSAL):
        runpy.run_path(str(folder / "predict.py"))["predict"](np.zeros(shape, np.uint8))


def test_the_torch_module_refuses_them_too(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    net = runpy.run_path(str(folder / "load_torch.py"))["model"](folder / "model.safetensors")
    for shape in OTHER_SHAPES:
        with torch.no_grad(), pytest.raises(ValueError, match=REFUSAL):
            net(np.zeros(shape, np.uint8))


def test_the_torch_script_checks_rows_too(folder: Path) -> None:
    assert "image = rows(image, 'image', 'float32')" in (folder / "load_torch.py").read_text()


def test_rows_may_be_flat(folder: Path) -> None:
    predict = runpy.run_path(str(folder / "predict.py"))["predict"]
    for name, wanted in predict(RAW).items():
        np.testing.assert_array_equal(predict(RAW.reshape(7, -1))[name], wanted)


def _told(arguments: list[str], script: Path) -> str:
    """What predict.py says as it ends with status 1."""
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script))["main"](arguments)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_a_file_that_is_none_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    script = folder / "predict.py"
    assert _told(["gone.npy"], script) == "gone.npy: No such file or directory"
    Path("empty.npy").write_bytes(b"")
    assert _told(["empty.npy"], script).startswith("empty.npy: ")
    Path("broken.npz").write_bytes(b"PK\x03\x04 no archive")
    assert _told(["broken.npz"], script).startswith("broken.npz: ")
    np.save("small.npy", np.zeros((49, 8, 8)))
    assert _told(["small.npy"], script) == (
        "small.npy: 'image' takes rows of the shape (3, 9, 8); this array has the shape (49, 8, 8)"
    )
    np.save("none.npy", np.zeros((0, 3, 9, 8)))
    assert _told(["none.npy"], script) == "none.npy: it holds no rows"
    np.save("words.npy", np.full((2, 216), "cat"))
    assert _told(["words.npy"], script).startswith("words.npy: ")
    np.savez("other.npz", picture=RAW)
    assert _told(["other.npz"], script) == "other.npz: it holds no array 'image'"


def test_columns_that_do_not_fit_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = nn.Input("left", (2,)), nn.Input("right", (2,))
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(to_safetensors({}, {}))
    Path("predict.py").write_text(takeaway.predict_script(nn.Model(outputs={"sum": left + right}).graph))
    np.savez("uneven.npz", left=np.ones((3, 2)), right=np.ones((2, 2)))
    assert _told(["uneven.npz"], Path("predict.py")) == "uneven.npz: its arrays do not have equally many rows"
    np.save("one.npy", np.ones((3, 2)))
    assert _told(["one.npy"], Path("predict.py")) == "one.npy: it holds no array 'right'"


@pytest.mark.parametrize("softmax", [True, False])
def test_a_network_of_text_writes_as_the_mesh_does(tmp_path: Path, softmax: bool) -> None:
    tokens = nn.Input("tokens", (6,), dtype="int64")
    scores = nn.Embedding(4, 4, scale=2.0, name="write")(tokens) + nn.parameter("hashlib", (6, 4), std=1.0)
    graph = nn.Model(
        {"s": nn.softmax(scores) if softmax else scores}, name="letters", classes=("\n", "é", '"', "b")
    ).graph
    tensors = {p.name: initial(p, 3) for p in graph.parameters}
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(tensors, {}))
    (tmp_path / "predict.py").write_text(takeaway.predict_script(graph))
    words = ["--prompt", 'bé"bé"bé', "--length", "60", "--temperature", "0.7", "--top-k", "3", "--seed", "5"]
    done = subprocess.run(
        [sys.executable, "predict.py", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    settings = Sampling(tuple('\né"b'.index(c) for c in '"bé"bé'), 60, 0.7, 3, 5)
    sampler = Sampler(JobSpec("s", graph, {}, kind="sample", batch_size=1, micro_batches=1, sampling=settings))
    program = runpy.run_path(str(tmp_path / "predict.py"))
    drawn = []
    while not sampler.done:
        window = sampler.window()
        row = program["predict"](np.array([window + (0,) * (6 - len(window))]))["s"][0, len(window) - 1]
        drawn.append(graph.classes[sampler.take(row.astype("<f4").tobytes())])
    assert done.stdout == 'bé"bé"bé' + "".join(drawn) + "\n"
    assert len(set(drawn)) > 2
    again = "".join(program["write"](length=20, temperature=0))
    assert subprocess.run([sys.executable, "predict.py", "--length", "20", "--temperature", "0"], cwd=tmp_path,
                          capture_output=True, text=True, check=True).stdout == again + "\n"  # fmt: skip
    wrong = subprocess.run(
        [sys.executable, "predict.py", "--prompt", "abc"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (wrong.returncode, wrong.stderr) == (1, "the network does not know 'a', 'c'\n")
    for flags, said in (
        (["--length", "0"], "length = 0: it must be a number from 1"),
        (["--temperature", "nan"], "temperature = nan: it must be a number from 0"),
        (["--top-k", "-1"], "top_k = -1: it must be a number from 0"),
    ):
        wrong = subprocess.run([sys.executable, "predict.py", *flags], cwd=tmp_path, capture_output=True, text=True)
        assert (wrong.returncode, wrong.stdout, wrong.stderr) == (1, "", said + "\n")
    enough = f"{sys.executable} predict.py --length 20000 | head -c 5"
    read = subprocess.run(["bash", "-o", "pipefail", "-c", enough], cwd=tmp_path, capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")
    np.save(tmp_path / "rows.npy", np.zeros((2, 6), np.int64))
    done = subprocess.run([sys.executable, "predict.py", "rows.npy"], cwd=tmp_path, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 2


def test_a_network_of_no_text_has_nothing_of_it(folder: Path) -> None:
    text = (folder / "predict.py").read_text()
    assert "--prompt" not in text
    assert "hashlib" not in text
