from __future__ import annotations

import math

import msgspec
import pytest

from p2pnn import zoo
from p2pnn.errors import ModelError
from p2pnn.model.initial import initial
from p2pnn.model.text import ports
from p2pnn.model.verify import verify
from p2pnn.zoo import char_gpt


def test_it_reads_text_and_gives_a_score_per_position() -> None:
    graph = zoo.build("char-gpt", (16,), 65).graph
    verify(graph)
    assert [(v.name, v.shape[1:], v.dtype) for v in graph.inputs] == [
        ("tokens", (16,), "int64"),
        ("next", (16,), "int64"),
    ]
    assert sum(math.prod(p.shape) for p in graph.parameters) == 812_032
    named = msgspec.structs.replace(graph, classes=tuple(chr(32 + n) for n in range(65)))
    assert ports(named).key == "probability"


def test_it_starts_as_gpt2_does() -> None:
    graph = char_gpt.build((16,), 65, layers=8, heads=2, width=32).graph
    weights = {p.name: initial(p, 0) for p in graph.parameters}
    deviations = {name: float(weight.std()) for name, weight in weights.items() if name.endswith("weight")}
    for name, deviation in deviations.items():
        if "norm" in name:
            assert deviation == 0
            continue
        ends_a_branch = name.endswith(("projection/weight", "narrow/weight"))
        assert deviation == pytest.approx(0.02 / 4 if ends_a_branch else 0.02, rel=0.1), name
    assert float(weights["position"].std()) == pytest.approx(0.02, rel=0.1)
    assert not any(weight.any() for name, weight in weights.items() if name.endswith("bias"))
    decayed = {p.name for p in graph.parameters if p.decay}
    assert decayed == {name for name in weights if not name.endswith("bias") and "norm" not in name}


def test_it_has_dropout_where_it_is_asked_for() -> None:
    graph = char_gpt.build((16,), 65, layers=2, heads=2, width=32, dropout=0.1).graph
    assert sum(op.kind == "Dropout" for op in graph.ops) == 5
    with pytest.raises(ModelError, match="layers = 0"):
        char_gpt.build((16,), 65, layers=0)
    with pytest.raises(ModelError, match="32 features do not divide into 5 heads"):
        char_gpt.build((16,), 65, heads=5, width=32)
