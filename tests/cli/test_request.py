"""Settings that cannot be, and those that nobody gave."""

from typing import Any

import pytest

from p2pnn.cli.jobfile import resolve
from p2pnn.cli.request import Request, settled
from p2pnn.errors import P2pnnError, UsageError
from p2pnn.job.spec import DataParallel


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
        ({"parallel": "datta"}, r"unknown kind of parallelism 'datta'; did you mean data\?"),
        ({"parallel": "hybrid"}, "hybrid parallelism .* is not there yet; say --parallel data where a node has room"),
        (
            {"parallel": "data", "pins": {"fc*": "a"}},
            r"pins = fc\*=a: it is for model parallelism; .* leave --pin away",
        ),
        ({"parallel": "data", "schedule": "async:2"}, "schedule = async:2: .* say --consistency async instead"),
        ({"workers": 3}, "--workers 3 is for data parallelism: add --parallel data, or leave it away"),
        ({"consistency": "async"}, "--consistency async is for data parallelism"),
        ({"scale_by_staleness": True, "parallel": "model"}, "--scale-by-staleness is for data parallelism"),
        (
            {"parallel": "data", "consistency": "ssp"},
            "there is no consistency 'ssp': write async, ssp:S, sync, or local:H",
        ),
        ({"parallel": "data", "push_compression": "fp8"}, "there is no compression 'fp8': write float32, bf16, int8"),
        ({"parallel": "data", "pull_compression": "top:2"}, "top"),
        ({"parallel": "data", "shard_policy": "even"}, "unknown shard policy 'even'"),
        ({"parallel": "data", "push_every": 0}, "push_every = 0: it must be at least 1"),
        ({"parallel": "data", "workers": -1}, "workers = -1: it must not be negative"),
        ({"parallel": "data", "push_every": 2**64}, "push_every = 18446744073709551616: it is at most"),
        ({"parallel": "data", "workers": 2**64}, "workers = 18446744073709551616: it is at most"),
        ({"parallel": "data", "local_rate": float("nan")}, "local_rate = nan: it is a number from 0 on"),
        ({"parallel": "data", "local_rate": float("nan")}, "local_rate = nan"),
        ({"parallel": "data", "backup": 1}, "backup:1 goes with sync alone"),
        (
            {"parallel": "data", "consistency": "sync", "push_every": 4},
            "push_every = 4 with sync: it is for async; say --consistency local:H",
        ),
        (
            {"parallel": "data", "consistency": "ssp:2", "warm_start": 9},
            "warm_start = 9 with ssp:2: it is for async alone",
        ),
        (
            {"parallel": "data", "consistency": "sync", "clip_norm": 1.0},
            "clip_norm = 1 with sync: no shard sees the whole",
        ),
        (
            {"parallel": "data", "consistency": "sync", "workers": 4, "backup": 4},
            "backup = 4 with 4 workers: a step needs at least one gradient, so it is from 0 to 3",
        ),
        (
            {"parallel": "data", "consistency": "sync", "workers": 3, "micro_batches": 4},
            "3 workers cannot share the 4 micro-batches of a step evenly: take 1 or 2 or 4 workers, or a --batch-size that 3",
        ),
        (
            {"parallel": "data", "consistency": "sync", "workers": 3, "batch_size": 96, "micro_batches": 4},
            "take 1 or 2 or 4 workers, or --micro-batches 3$",
        ),
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


def test_auto_goes_with_the_settings_of_both() -> None:
    asked = resolve({"parallel": "auto", "workers": 2, "consistency": "sync", "pins": {"fc*": "a"}})
    assert (asked.deals_data, asked.data_parallel.workers, asked.train.micro_batches) == (True, 2, 4)


def test_the_record_of_data_parallelism() -> None:
    given: dict[str, Any] = {
        "consistency": "async", "workers": 3, "shards": 2, "push_every": 4, "fetch_every": 2, "push_compression": "bf16",
        "pull_compression": "int8", "local_rate": 0.5, "warm_start": 7, "staleness_max": 9, "scale_by_staleness": True,
        "shard_policy": "greedy",
    }  # fmt: skip
    assert resolve({"parallel": "data", **given}).data_parallel.spec() == DataParallel(
        "async", workers=3, shards=2, n_push=4, n_fetch=2, push="bf16", pull="int8", local_rate=0.5, warm_start=7,
        staleness_max=9, scale_by_staleness=True, cut="greedy",
    )  # fmt: skip


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
