"""Job files and flags: precedence, refusals, and the way back to a file."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.cli.jobfile import FLAGS, resolve, to_toml, with_cut, with_roles, with_way
from p2pnn.cli.request import Request
from p2pnn.errors import P2pnnError, UsageError
from p2pnn.job.spec import Optimizer

JOB = """
format = 1
seed = 7
[model]
source = "digits.py:net"
arguments = { classes = 10 }
[data]
train = "digits.npz"
inputs = { image = "x", label = "y" }
scale = 0.00392156862745098
validation_fraction = 0.1
[train]
epochs = 3
batch_size = 64
optimizer = { kind = "adamw", schedule = "constant" }
[mesh]
nodes = ["a", "b"]
pins = { "block2/*" = "attic-pc" }
memory = "2 GiB"
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def test_a_job_file(job: Path) -> None:
    request = resolve({}, job)
    assert request.model.source == f"{job.parent}/digits.py:net"
    assert request.data.train == str(job.parent / "digits.npz")
    assert request.train.optimizer == Optimizer(kind="adamw", rate=1e-3, weight_decay=0.01, schedule="constant")
    assert request.mesh.pins == {"block2/*": "attic-pc"}
    assert request.memory_bytes_max == 2 << 30


def test_flags_win(job: Path) -> None:
    request = resolve({"epochs": 9, "optimizer": "sgd", "model": "mlp", "data": "digits", "seed": None}, job)
    assert (request.train.epochs, request.train.batch_size, request.seed) == (9, 64, 7)
    assert (request.train.optimizer.kind, request.train.optimizer.rate) == ("sgd", 0.1)
    assert (request.model.source, request.data.train) == ("mlp", "digits")


def test_flags_leave_what_they_do_not_name(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        '[model]\nsource = "char-gpt"\narguments = { layers = 1, width = 32 }\n[data]\ntrain = "digits"\n'
        '[mesh]\npins = { "block0" = "a" }\n'
    )
    found = resolve({"arguments": {"layers": 2}, "pins": {"head": "b"}}, tmp_path / "job.toml")
    assert found.model.arguments == {"layers": 2, "width": 32}
    assert found.mesh.pins == {"block0": "a", "head": "b"}


def test_what_is_saved_repeats_the_run(job: Path, tmp_path: Path) -> None:
    for request in (resolve({}, job), resolve({"model": "mlp", "data": "digits", "name": 'a "quoted" \\ name'})):
        (tmp_path / "again.toml").write_text(to_toml(request))
        assert resolve({}, tmp_path / "again.toml") == request


def test_a_cut_is_added_to_what_is_saved(tmp_path: Path) -> None:
    request = resolve({"model": "mlp", "data": "digits", "schedule": "async:2"})
    pinned = msgspec.structs.replace(
        request, mesh=msgspec.structs.replace(request.mesh, pins={"fc*": "a"}, nodes=["a", "b"])
    )
    (tmp_path / "job.toml").write_text(with_cut(to_toml(pinned), (0, 0, 1), broken=False))
    found = resolve({}, tmp_path / "job.toml")
    assert found.mesh == msgspec.structs.replace(request.mesh, cut=[0, 0, 1], nodes=2)
    assert (found.model, found.data, found.train) == (request.model, request.data, request.train)


def test_data_parallelism_in_a_job_file(tmp_path: Path) -> None:
    flags = {"model": "mlp", "data": "digits", "parallel": "data", "consistency": "local:8", "workers": 2}
    asked = resolve(flags)
    assert asked.train.micro_batches == 1, "a worker shares its batch with nobody"
    assert resolve(flags | {"consistency": "sync"}).train.micro_batches == 2, "a piece for each"
    assert resolve(flags | {"consistency": "sync", "workers": 0}).train.micro_batches == 4
    text = to_toml(asked)
    assert '[data_parallel]\nconsistency = "local:8"\nworkers = 2\nshards = 0\n' in text
    (tmp_path / "job.toml").write_text(text)
    assert resolve({}, tmp_path / "job.toml") == asked
    assert resolve({"push_compression": "bf16"}, tmp_path / "job.toml").data_parallel.push_compression == "bf16"
    spread = resolve({"parallel": "model"}, tmp_path / "job.toml")
    assert spread.data_parallel == Request().data_parallel
    assert "data_parallel" not in to_toml(spread)
    with pytest.raises(UsageError, match="--workers 3 is for data parallelism"):
        resolve({"parallel": "model", "workers": 3}, tmp_path / "job.toml")
    (tmp_path / "job.toml").write_text(text.replace('parallel = "data"', 'parallel = "model"'))
    with pytest.raises(UsageError, match=r"data_parallel\.consistency = local:8: it goes with data parallelism"):
        resolve({}, tmp_path / "job.toml")


def test_what_is_saved_says_what_a_run_came_to(tmp_path: Path) -> None:
    def read(text: str) -> Request:
        (tmp_path / "job.toml").write_text(text)
        return resolve({}, tmp_path / "job.toml")

    asked = resolve({"model": "mlp", "data": "digits", "parallel": "auto", "consistency": "sync", "nodes": ["a", "b"]})
    dealt = read(with_roles(with_way(to_toml(asked), "data"), 2, 3))
    assert (dealt.mesh.parallel, dealt.mesh.nodes) == ("data", ["a", "b"])
    assert (dealt.data_parallel.workers, dealt.data_parallel.shards) == (2, 3)
    assert dealt.data_parallel.consistency == "sync"
    whole = read(with_way(to_toml(asked), "model", 1))
    assert (whole.mesh.parallel, whole.mesh.nodes, whole.deals_data) == ("model", 1, False)


def test_hybrid_parallelism_in_a_job_file(tmp_path: Path) -> None:
    flags = {"model": "mlp", "data": "digits", "parallel": "hybrid", "workers": 2}
    asked = resolve(flags)
    assert asked.train.micro_batches == 4, "several for the nodes of a worker to be busy at once"
    assert resolve(flags | {"consistency": "sync", "workers": 4}).train.micro_batches == 16
    assert resolve(flags | {"consistency": "sync", "workers": 3, "batch_size": 30}).train.micro_batches == 6
    assert asked.data_parallel.spec(hybrid=True).segments == 0
    (tmp_path / "job.toml").write_text(with_roles(to_toml(asked), 2, 3, 2))
    again = resolve({}, tmp_path / "job.toml")
    assert (again.data_parallel.workers, again.data_parallel.shards, again.data_parallel.segments) == (2, 3, 2)
    whole = resolve({"parallel": "data"}, tmp_path / "job.toml")
    assert (whole.data_parallel.segments, whole.data_parallel.shards) == (0, 3)
    with pytest.raises(UsageError, match=r"segments = 2: .* say --parallel hybrid"):
        resolve({"parallel": "data", "segments": 2}, tmp_path / "job.toml")


def test_every_flag_has_its_place_in_a_job_file() -> None:
    for path in FLAGS.values():
        found: Any = Request()
        for key in path:
            found = getattr(found, key)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sede = 7", r"unknown key 'sede'; did you mean seed\?"),
        ("[train]\nepoch = 7", r"unknown key 'train\.epoch'; did you mean train\.epochs\?"),
        ("[train]\noptimizer = { lr = 7 }", r"unknown key 'train\.optimizer\.lr'"),
        ("train = 7", r"train is a table; write \[train\]"),
        ("[train]\nepochs = 'many'", r"train\.epochs: expected int, got str"),
        (
            "[mesh]\ncut = [0, 2]",
            "cut = numbers from 0 to 2: each op's node by its number, 0, 1, … without a gap; leave cut out",
        ),
        ("[mesh]\ncut = [0, 99999999999999999999]", "cut = numbers from 0 to 99999999999999999999"),
        ("[mesh]\ncut = [-1, 0]", "cut = numbers from -1 to 0"),
        ("format = 9", "has format 9; this p2pnn reads up to 1: install a newer one"),
        ("seed = ", "is not a readable job file"),
    ],
)
def test_bad_job_files(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(P2pnnError, match=sentence) as caught:
        resolve({}, tmp_path / "job.toml")
    assert caught.value.exit_status == 2


def test_mini_batches_in_flight_are_one_piece_each(tmp_path: Path) -> None:
    assert resolve({}).train.micro_batches == 4
    asked = resolve({"schedule": "async:2"})
    assert (asked.mesh.schedule, asked.train.micro_batches) == ("async:2", 1)
    assert resolve({"schedule": "async:64", "micro_batches": 1}).mesh.schedule == "async:64"
    (tmp_path / "job.toml").write_text('[mesh]\nschedule = "async:3"')
    assert resolve({}, tmp_path / "job.toml").train.micro_batches == 1
    assert resolve({"schedule": "sync"}, tmp_path / "job.toml").train.micro_batches == 4
