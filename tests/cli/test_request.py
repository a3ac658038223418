"""Job files and flags: precedence, refusals, and the way back to a file."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.cli.request import FLAGS, Request, resolve, settled, to_toml, with_cut
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
    (tmp_path / "job.toml").write_text(with_cut(to_toml(request), (0, 0, 1), broken=False))
    found = resolve({}, tmp_path / "job.toml")
    assert found.mesh == msgspec.structs.replace(request.mesh, cut=[0, 0, 1])
    assert (found.model, found.data, found.train) == (request.model, request.data, request.train)


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
        ("format = 9", "has format 9; this p2pnn reads up to 1: install a newer one"),
        ("seed = ", "is not a readable job file"),
    ],
)
def test_bad_job_files(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        resolve({}, tmp_path / "job.toml")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"epochs": 0}, "epochs = 0: it must be at least 1"),
        ({"batch_size": 100, "micro_batches": 3}, "100 rows cannot be divided into 3 micro-batches; 2 or 4 would do"),
        ({"optimizer": "adm"}, r"unknown optimizer 'adm'; did you mean adam\?"),
        ({"lr_schedule": "cosin"}, r"unknown schedule of the learning rate 'cosin'; did you mean cosine\?"),
        ({"rate": 0.0}, "a learning rate is above 0"),
        ({"rate": float("nan")}, "a learning rate is above 0"),
        ({"momentum": 1.0}, r"momentum = 1\.0: it lies from 0 to below 1"),
        ({"clip_norm": -1.0}, "it must not be negative"),
        ({"seed": -1}, "seed = -1: it must not be negative"),
        ({"validation_fraction": 0.95}, r"it lies from 0 to 0\.9"),
        ({"parallel": "data"}, "this p2pnn has model parallelism alone"),
        (
            {"schedule": "async"},
            "schedule = 'async': write sync, or async:K for K mini-batches in flight, from 1 to 64",
        ),
        ({"schedule": "async:0"}, "schedule = 'async:0': write sync, or async:K"),
        ({"schedule": "async:x"}, "schedule = 'async:x': write sync, or async:K"),
        ({"schedule": "async:65"}, "from 1 to 64, such as async:2"),
        ({"schedule": "async:-1"}, "from 1 to 64"),
        ({"schedule": "sink"}, "schedule = 'sink': write sync"),
        ({"schedule": "async:2", "micro_batches": 4}, "micro_batches = 4: leave that away or write 1"),
        ({"nodes": -1}, "a number of nodes is at least 1"),
        ({"context": -1}, "context = -1: a row of text has at least 1 character"),
        ({"image_size": "32xx32"}, "image size '32xx32': write height and width, such as 32x48"),
        ({"image_size": "0"}, "image size '0'"),
        ({"scale": "minmax"}, "write auto, none, or a number"),
        ({"memory": "much"}, "memory = 'much' is not a size"),
    ],
)
def test_bad_settings(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(P2pnnError, match=sentence) as caught:
        resolve(flags)
    assert caught.value.exit_status == 2


def test_mini_batches_in_flight_are_one_piece_each(tmp_path: Path) -> None:
    assert resolve({}).train.micro_batches == 4
    asked = resolve({"schedule": "async:2"})
    assert (asked.mesh.schedule, asked.train.micro_batches) == ("async:2", 1)
    assert resolve({"schedule": "async:64", "micro_batches": 1}).mesh.schedule == "async:64"
    (tmp_path / "job.toml").write_text('[mesh]\nschedule = "async:3"')
    assert resolve({}, tmp_path / "job.toml").train.micro_batches == 1
    assert resolve({"schedule": "sync"}, tmp_path / "job.toml").train.micro_batches == 4


def test_patience_brings_a_validation_split() -> None:
    assert resolve({}).validation_fraction == 0.0
    assert resolve({"patience": 3}).validation_fraction == 0.1
    assert resolve({"patience": 3, "validation_fraction": 0.2}).validation_fraction == 0.2


def test_the_size_of_images() -> None:
    assert resolve({}).image_size is None
    assert resolve({"image_size": "32"}).image_size == (32, 32)
    assert resolve({"image_size": "24 X 48"}).image_size == (24, 48)


def test_fractions_that_nobody_gave_suit_the_data() -> None:
    def fractions(
        asked: Request, *, ordered: bool = False, validated: bool = False
    ) -> tuple[float | None, float | None]:
        data = settled(asked, ordered=ordered, validated=validated).data
        return data.validation_fraction, data.test_fraction

    assert fractions(resolve({})) == (0.0, 0.2)
    assert fractions(resolve({"patience": 2})) == (0.1, 0.2)
    assert fractions(resolve({}), ordered=True) == (0.1, 0.0)
    assert fractions(resolve({"validation_fraction": 0.0}), ordered=True) == (0.0, 0.0)
    assert fractions(resolve({"validation_fraction": 0.3}), validated=True) == (0.0, 0.0)
    again = settled(resolve({"seed": 1}), ordered=True, validated=False)
    assert settled(again, ordered=False, validated=False) == again


def test_what_is_monitored_needs_rows_to_look_at() -> None:
    asked = resolve({"monitor": "loss"})
    with pytest.raises(UsageError, match=r"and there are none; say --validation-fraction 0\.1"):
        settled(asked, ordered=False, validated=False)
    assert settled(asked, ordered=True, validated=False).train.monitor == "loss"
    assert settled(asked, ordered=False, validated=True).train.monitor == "loss"
