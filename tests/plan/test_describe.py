"""What a person reads."""

from __future__ import annotations

import pytest

from p2pnn.plan import describe
from p2pnn.plan.cost import Workload
from p2pnn.plan.predict import Prediction

from .builder import job, mesh, mlp, node


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(12, "12 bytes"), (1536, "1.5 KiB"), (262144, "256 KiB"), (3.25 * 2**20, "3.2 MiB"), (2**31, "2.0 GiB")],
)
def test_sizes(nbytes: float, text: str) -> None:
    assert describe.size(nbytes) == text


@pytest.mark.parametrize(("value", "text"), [(38_512.7, "38,500"), (412.4, "412"), (12.3, "12"), (0.5, "0.50")])
def test_rates(value: float, text: str) -> None:
    assert describe.rate(value) == text


def test_layers_read_as_runs() -> None:
    work = Workload(job(mlp(20, 20, 20)))
    assert describe.layers(work, [0, 1, 2]) == "fc0 … fc1"
    assert describe.layers(work, [0, 1]) == "fc0, relu0"
    assert describe.layers(work, [0, 4]) == "fc0, fc2"
    assert describe.layers(work, [6]) == "head"


def spoken(alone: float, cut: float, step_s: float, **changes: object) -> str:
    work = Workload(job(mlp(2000, features=2000)))
    nodes = [node("a", **changes), node("b", **changes)]
    links = mesh(*nodes, bytes_per_s=1e7)
    return describe.headline(work, nodes, links, Prediction(1, cut, ()), Prediction(step_s, alone, ()), "a")


def test_the_first_line_tells_the_truth() -> None:
    assert spoken(41_000, 38_500, 0.003) == (
        "one node 41,000 samples/s, this cut 38,500: slower, because the network is small; cut anyway"
    )
    assert spoken(400, 980, 0.3) == "one node 400 samples/s, this cut 980: 2.5 times as fast as a alone"
    assert "3 nodes" not in spoken(400, 300, 0.1)
    assert "because the links are slow (9.5 MiB/s)" in spoken(400, 300, 0.1)
    assert "because 2 nodes share the 1 core of one machine" in spoken(400, 300, 0.3, machine="pc", cores=1)
    work = Workload(job(mlp(20)))
    nodes = [node("a"), node("b")]
    line = describe.headline(work, nodes, {}, Prediction(1, 55, ()), None, "")
    assert line == "no single node has room for it; this cut 55 samples/s"
    assert describe.headline(work, nodes[:1], {}, Prediction(1, 55, ()), None, "") == "one node (a) 55 samples/s"
