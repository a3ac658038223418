"""One executor process: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from p2pnn.data import chunks
from p2pnn.data.blobs import BlobStore
from p2pnn.executor import channel, commands
from p2pnn.executor.process import spawn
from p2pnn.job import script
from p2pnn.job.spec import JobSpec, Optimizer, Sampling
from p2pnn.model.initial import initial
from p2pnn.zoo import char_gpt
from tests.executor import models
from tests.executor.mesh import Mesh, contiguous, digests, interleaved, manifest, spec_for


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("loop") / "blobs")


def test_training_learns_and_reports(blobs: BlobStore) -> None:
    graph = models.scaled(models.convolutional())
    spec = spec_for(graph, blobs, epochs=12, optimizer=Optimizer("adam", rate=0.02))
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        before = mesh.evaluate("test")[0]
        mesh.train(5)
        first = mesh.progress[0][-1]
        mesh.train(60)
        after = mesh.evaluate("test")[0]
        assert mesh.finish() == [0]
    assert before.rows == after.rows == 10
    assert after.loss_sum < before.loss_sum / 2
    assert after.metrics["a"][0] >= 7
    assert after.metrics["a"][1] == 10
    assert first.step == 5
    assert sum(p.losses[1] for p in mesh.progress[0]) == 60 * 16
    assert sum(p.metrics["a"][1] for p in mesh.progress[0] if p.metrics) == 60 * 16
    assert all(0 <= p.compute_s <= p.wall_s for p in mesh.progress[0])


def test_a_part_is_a_safetensors_file_with_names_and_optimizer_state(blobs: BlobStore) -> None:
    graph = models.dense()
    spec = spec_for(graph, blobs, optimizer=Optimizer("momentum", rate=0.1))
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        mesh.train(1)
        [part] = mesh.checkpoint()
    assert part.size == blobs.size(part.blob)
    with safe_open(str(blobs.path(part.blob)), framework="np") as file:
        assert file.metadata() == {"p2pnn": "1"}
        names = {p.name: p.shape for p in graph.parameters}
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert shapes == names | {f"optimizer/momentum/{name}": shape for name, shape in names.items()}


def test_predictions_are_rows_in_order_of_every_output(blobs: BlobStore) -> None:
    graph = models.diamond()
    train = spec_for(graph, blobs)
    with Mesh(train, [0] * len(graph.ops), blobs) as mesh:
        parts = mesh.checkpoint()
    initial = tuple(part.blob for part in parts)
    spec = msgspec.structs.replace(train, kind="predict", train=None, validation=None, initial=initial)
    found: list[Any] = []
    for nodes in (1, 2):
        with Mesh(spec, interleaved(graph, nodes), blobs, nodes=nodes) as mesh:
            answers = mesh.results(mesh.command(script.Predict))
            assert mesh.finish() == [0] * nodes
        outputs: dict[str, Any] = {}
        for answer in answers:
            outputs |= msgspec.msgpack.decode(answer.result, type=script.Predictions).outputs
        found.append(outputs)
        assert {name: (dtype, shape) for name, (dtype, shape, _) in outputs.items()} == {
            "probability": ("float32", (models.CLASSES,)),
            "best": ("int64", ()),
            "guess": ("float32", (3,)),
        }
        rows = {name: np.concatenate([chunks.open(blobs.path(b)) for b, _ in o[2]]) for name, o in outputs.items()}
        assert len(rows["best"]) == 10
        np.testing.assert_array_equal(rows["probability"].argmax(1), rows["best"])
        np.testing.assert_allclose(rows["probability"].sum(1), 1, rtol=1e-5)
    assert found[0] == found[1]


def failure(mesh: Mesh) -> str:
    """Route until an executor fails; its sentence."""
    with pytest.raises(AssertionError):
        mesh.route(lambda: False)
    [sentence] = mesh.failed.values()
    return sentence


def test_a_loss_that_is_no_number_ends_the_job(blobs: BlobStore, capfd: pytest.CaptureFixture[str]) -> None:
    graph = models.residual()
    spec = spec_for(graph, blobs, optimizer=Optimizer("sgd", rate=1e30, schedule="constant"))
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        mesh.command(lambda number: script.Train(number, 10))
        assert "lower the learning rate" in failure(mesh)
        mesh.spawned[0].socket.close()
        assert mesh.spawned[0].process.wait() == 1


def test_what_does_not_fit_is_refused_with_both_figures(blobs: BlobStore, capfd: pytest.CaptureFixture[str]) -> None:
    graph = models.dense()
    spec = spec_for(graph, blobs, memory_bytes_max=10_000)
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        sentence = failure(mesh)
    assert "takes " in sentence
    assert "the job's limit (--memory) is 10,000" in sentence


def test_a_checkpoint_that_lacks_a_tensor_is_named(blobs: BlobStore, capfd: pytest.CaptureFixture[str]) -> None:
    other, graph = models.residual(), models.dense()
    with Mesh(spec_for(other, blobs), [0] * len(other.ops), blobs) as mesh:
        parts = mesh.checkpoint()
    with Mesh(spec_for(graph, blobs), [0] * len(graph.ops), blobs, checkpoint=manifest(0, parts)) as mesh:
        assert "the checkpoint has no tensor hidden1/weight" in failure(mesh)


def test_a_full_disk_fails_the_checkpoint_and_not_the_training(blobs: BlobStore) -> None:
    """A limit on file sizes stands in for the full disk."""
    graph = models.dense()
    with Mesh(spec_for(graph, blobs), [0] * len(graph.ops), blobs) as mesh:
        mesh.prepare()
        pid = mesh.spawned[0].process.pid
        kept = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        mesh.train(1)
        [done] = mesh.results(mesh.command(script.Checkpoint))
        assert done.error
        assert done.result == b""
        assert list((blobs.root / "temporary").iterdir()) == []
        resource.prlimit(pid, resource.RLIMIT_FSIZE, kept)
        mesh.train(2)
        assert digests(mesh.checkpoint(), blobs)
        assert mesh.finish() == [0]


def test_an_executor_ends_when_its_socket_closes() -> None:
    spawned = spawn(0)
    spawned.socket.close()
    assert spawned.process.wait(10) == 1
    spawned.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_executor_leaves_a_reason(number: signal.Signals) -> None:
    spawned = spawn(1 << 16)
    spawned.process.send_signal(number)
    assert spawned.socket.recv(1) == b""
    reason = spawned.reap()
    assert f"killed by signal {number.value} ({number.name}" in reason
    spawned.kill()


def test_a_command_before_prepare_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    spawned = spawn(0)
    spawned.socket.sendall(channel.encode(script.Train(0, 1)))
    codec = channel.Codec[commands.FromExecutor](commands.FromExecutor)
    messages: list[Any] = []
    while not messages:
        messages = codec.feed(spawned.socket.recv(1 << 16))
    assert messages == [commands.Failed("the executor was told Train before Prepare")]
    spawned.socket.close()
    assert spawned.process.wait() == 1
    spawned.kill()


def test_a_spec_that_is_none_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec").write_bytes(b"\x93\x01\x02\x03")
    spawned = spawn(0)
    spawned.socket.sendall(channel.encode(commands.Prepare(str(tmp_path / "spec"), b"", 0, str(tmp_path / "blobs"))))
    codec = channel.Codec[commands.FromExecutor](commands.FromExecutor)
    messages: list[Any] = []
    while not messages:
        messages = codec.feed(spawned.socket.recv(1 << 16))
    assert "cannot be read" in messages[0].error
    spawned.kill()


def probabilities(w: dict[str, Any], tokens: tuple[int, ...], layers: int, heads: int) -> np.ndarray:
    """char-gpt over a row of just these tokens, in float64: [tokens, classes]."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return (x - x.mean(-1, keepdims=True)) / spread * w[f"{name}/weight"] + w[f"{name}/bias"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}/weight"].T.astype(np.float64) + w[f"{name}/bias"]

    n = len(tokens)
    x = w["token/weight"][list(tokens)].astype(np.float64) + w["position"][:n]
    for number in range(layers):
        block = f"block{number}"
        q, k, v = np.split(dense(norm(x, f"{block}/norm1"), f"{block}/attention/qkv"), 3, axis=1)
        joined = []
        for one in np.split(np.arange(q.shape[1]), heads):
            scores = q[:, one] @ k[:, one].T / np.sqrt(len(one))
            chances = np.exp(np.where(np.tri(n) > 0, scores, -np.inf))
            joined.append(chances / chances.sum(1, keepdims=True) @ v[:, one])
        x = x + dense(np.concatenate(joined, axis=1), f"{block}/attention/projection")
        h = dense(norm(x, f"{block}/norm2"), f"{block}/widen")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + dense(h, f"{block}/narrow")
    chances = np.exp(norm(x, "norm") @ w["head/weight"].T.astype(np.float64))
    return chances / chances.sum(1, keepdims=True)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_text_is_asked_for_character_by_character(blobs: BlobStore, nodes: int) -> None:
    """The scores are those of the last token's position, whatever fills the row up; one node has them."""
    graph = msgspec.structs.replace(char_gpt.build((6,), 5, layers=2, heads=2, width=8).graph, classes=tuple("abcde"))
    weights = {p.name: initial(p, 9) * np.float32(1 if "norm" in p.name else 20) for p in graph.parameters}
    start = (blobs.put(to_bytes(weights)),)
    spec = JobSpec("text", graph, {"tokens": "x"}, kind="sample", batch_size=1, micro_batches=1, initial=start,
                   sampling=Sampling((1,)))  # fmt: skip
    rows = [(1,), (1, 2), (4, 3, 2, 1, 0, 3)]
    with Mesh(spec, contiguous(graph, nodes), blobs, nodes=nodes) as mesh:
        answers = [mesh.results(mesh.command(lambda n, row=row: script.Sample(n, row))) for row in rows]
        assert mesh.finish() == [0] * nodes
    for row, answer in zip(rows, answers, strict=True):
        assert [bool(done.result) for done in answer] == [False] * (nodes - 1) + [True]
        found = np.frombuffer(answer[-1].result, "<f4")
        np.testing.assert_allclose(
            found, probabilities(weights, row, layers=2, heads=2)[len(row) - 1], rtol=2e-5, atol=1e-7
        )


@pytest.mark.parametrize("tokens", [(0,) * 7, (5,), (-1,)])
def test_tokens_that_are_none_end_the_executor_with_a_sentence(blobs: BlobStore, tokens: tuple[int, ...]) -> None:
    graph = msgspec.structs.replace(char_gpt.build((6,), 5, layers=1, heads=2, width=8).graph, classes=tuple("abcde"))
    spec = JobSpec(
        "text", graph, {"tokens": "x"}, kind="sample", batch_size=1, micro_batches=1, sampling=Sampling((1,))
    )
    with Mesh(spec, [0] * len(graph.ops), blobs) as mesh:
        number = mesh.command(lambda n: script.Sample(n, tokens))
        with pytest.raises(AssertionError, match="tokens do not go into the input tokens"):
            mesh.results(number)
