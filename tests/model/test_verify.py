from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnn import nn, zoo
from p2pnn.errors import ModelError
from p2pnn.model import ops
from p2pnn.model.graph import BATCH, Graph, Initializer, Metric, Op, Parameter, Scaling, Value, encode
from p2pnn.model.verify import decode, verify


def small() -> Graph:
    """A convolution with batch normalization, a loss and a metric."""
    image, label = nn.Input("image", (2, 6, 6)), nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.BatchNorm(name="bn")(nn.Conv2d(3, 3, name="conv")(image)))
    logits = nn.Linear(4, name="head")(nn.flatten(h))
    return nn.Model(
        {"probability": nn.softmax(logits)}, nn.cross_entropy(logits, label), {"accuracy": nn.accuracy(logits, label)}
    ).graph


SMALL = small()
ENCODED = encode(SMALL)


def with_op(index: int, **changes: Any) -> Graph:
    ops_ = list(SMALL.ops)
    ops_[index] = msgspec.structs.replace(ops_[index], **changes)
    return msgspec.structs.replace(SMALL, ops=tuple(ops_))


def with_input(**changes: Any) -> Graph:
    return msgspec.structs.replace(SMALL, inputs=(msgspec.structs.replace(SMALL.inputs[0], **changes), SMALL.inputs[1]))


def with_parameter(**changes: Any) -> Graph:
    first = msgspec.structs.replace(SMALL.parameters[0], **changes)
    return msgspec.structs.replace(SMALL, parameters=(first, *SMALL.parameters[1:]))


def graph(**changes: Any) -> Graph:
    return msgspec.structs.replace(SMALL, **changes)


def scaled(**numbers: Any) -> Graph:
    return graph(scaling={"image": Scaling(**numbers)})


def test_a_constant_is_state_that_arithmetic_reads() -> None:
    graph = nn.Model({"y": nn.Input("x", (3,)) * 2.5}).graph
    assert [p.name for p in graph.state] == ["mul_1/number"]
    assert decode(encode(graph)) == graph


def test_running_statistics_are_no_constants() -> None:
    graph = nn.Model({"y": nn.BatchNorm(name="bn")(nn.Input("x", (3,)))}).graph
    late = Op("Mul", "late", ("bn", "bn/running_mean"), ("late",))
    more = msgspec.structs.replace(
        graph, ops=(*graph.ops, late), values=(*graph.values, Value("late", "float32", (BATCH, 3)))
    )
    with pytest.raises(ModelError, match=r"late \(Mul\) may not read saved state"):
        verify(more)


def test_an_op_of_several_outputs_describes_each() -> None:
    graph = nn.Model({"y": nn.split(nn.Input("x", (6,)), (1, 2, 3))[1]}).graph
    assert [v.name for v in graph.values] == ["split_1", "split_1:1", "split_1:2"]
    assert decode(encode(graph)) == graph
    with pytest.raises(ModelError, match="has 2 outputs, but makes 3"):
        verify(
            msgspec.structs.replace(
                graph,
                ops=(msgspec.structs.replace(graph.ops[0], outputs=graph.ops[0].outputs[:2]),),
                values=graph.values[:2],
            )
        )


def test_a_valid_graph_survives_the_wire_unchanged() -> None:
    verify(SMALL)
    assert decode(ENCODED) == SMALL
    assert encode(decode(ENCODED)) == ENCODED
    scaling = scaled(shift=(0.5,), scale=(2.0, 3.0))
    assert decode(encode(scaling)) == scaling


def test_fields_of_a_later_version_are_ignored() -> None:
    later = msgspec.msgpack.decode(ENCODED)
    later["invented"] = [1, 2, 3]
    assert decode(msgspec.msgpack.encode(later)) == SMALL


TARGET = Op("MeanSquaredError", "bad", ("flatten_1", "flatten_1"), ("bad",))
CONV, BN = 0, 1
BAD: list[tuple[str, Graph]] = [
    ("format 2", graph(format=2)),
    ("no ops", graph(ops=(), values=())),
    ("at most 100000", graph(ops=SMALL.ops * 20_000)),
    ("the model is called", graph(name="")),
    ("the model is called", graph(name="a\nb")),
    ("dtype 'uint8'", with_input(dtype="uint8")),
    ("batch at axis 0", with_input(shape=(2, 6, 6))),
    ("batch at axis 0", with_input(shape=())),
    ("must be at least 1", with_input(shape=(BATCH, 2, BATCH, 6))),
    ("must be at least 1", with_input(shape=(BATCH, 0, 6, 6))),
    ("at most 8", with_input(shape=(BATCH, *[1] * 8))),
    ("elements", with_input(shape=(BATCH, 2**21, 2**20))),
    ("is called", with_input(name="x" * 201)),
    ("used twice", with_input(name="label")),
    ("used twice", with_input(name="conv/weight")),
    ("starts with 'magic'", with_parameter(initializer=Initializer("magic"))),
    ("not finite", with_parameter(initializer=Initializer("constant", value=float("nan")))),
    ("not finite", with_parameter(initializer=Initializer("uniform", scale=float("inf")))),
    ("not finite", with_parameter(initializer=Initializer("uniform", scale=1e39))),
    ("negative", with_parameter(initializer=Initializer("uniform", scale=-1.0))),
    ("must be at least 1", with_parameter(shape=(BATCH, 2, 3, 3))),
    ("(3, 1, 3, 3)", with_parameter(shape=(3, 1, 3, 3))),
    ("no op reads the parameter spare", graph(parameters=(*SMALL.parameters, Parameter("spare", (1,), Initializer("constant"))))),
    ("no op reads the parameter spare", graph(state=(*SMALL.state, Parameter("spare", (1,), Initializer("constant"))))),
    ("exactly one entry", graph(values=SMALL.values[:-1])),
    ("exactly one entry", graph(values=(*SMALL.values[:-1], SMALL.values[0]))),
    ("described as float32(batch, 9)", graph(values=(Value("conv", "float32", (BATCH, 9)), *SMALL.values[1:]))),
    ("described as nothing", graph(values=(Value("other", "float32", (BATCH, 9)), *SMALL.values[1:]))),
    ("no operator 'Exec'", with_op(CONV, kind="Exec")),
    ("two ops are called 'bn'", with_op(CONV, name="bn")),
    ("reads 'nobody'", with_op(CONV, inputs=("nobody", "conv/weight", "conv/bias"))),
    ("reads 'bn'", with_op(CONV, inputs=("bn", "conv/weight", "conv/bias"))),
    ("reads ''", with_op(CONV, inputs=("image", "conv/weight", ""))),
    ("inputs, but needs", with_op(CONV, inputs=("image",))),
    ("canonical", with_op(CONV, attributes={"group": 1})),
    ("'secret' is not supported", with_op(CONV, attributes={**SMALL.ops[0].attributes, "secret": 1})),
    ("needs saved state", with_op(BN, inputs=("conv", "bn/weight", "bn/bias", "bn/weight", "bn/running_var"))),
    ("may not read saved state", with_op(BN, inputs=("conv", "bn/running_mean", *SMALL.ops[1].inputs[2:]))),
    ("has 2 outputs, but makes 1", graph(
        ops=(msgspec.structs.replace(SMALL.ops[0], outputs=("conv", "more")), *SMALL.ops[1:]),
        values=(*SMALL.values, Value("more", "float32", (BATCH,))))),
    ("is called ''", graph(outputs={"": SMALL.outputs["probability"]})),
    ("output loss", graph(outputs={"loss": SMALL.losses[0]})),
    ("output raw", graph(outputs={"raw": "image"})),
    ("neither outputs nor a loss", graph(outputs={}, losses=())),
    ("given twice", graph(losses=SMALL.losses * 2)),
    ("is no loss", graph(losses=("relu_1",))),
    ("is no loss", graph(losses=("nobody",))),
    ("two metrics", graph(metrics=SMALL.metrics * 2)),
    ("not the output of a metric op", graph(metrics=(Metric("m", "mean", SMALL.losses[0]),))),
    ("kind 'median'", graph(metrics=(Metric("m", "median", SMALL.metrics[0].value),))),
    ("goal 'up'", graph(metrics=(Metric("m", "mean", SMALL.metrics[0].value, "up"),))),
    ("depends on trained parameters", graph(ops=(*SMALL.ops, TARGET), values=(*SMALL.values, Value("bad", "float32", ())))),
    ("a loss or metric", graph(
        ops=(*SMALL.ops, Op("Add", "bad", ("flatten_1", SMALL.losses[0]), ("bad",))),
        values=(*SMALL.values, Value("bad", "float32", (BATCH, 48))))),
    ("which is no input", graph(scaling={"nobody": Scaling()})),
    ("only float32", graph(scaling={"label": Scaling()})),
    ("has 3 numbers, but needs 1 or 2", scaled(shift=(1.0, 2.0, 3.0))),
    ("has 0 numbers", scaled(scale=())),
    ("not finite", scaled(scale=(float("nan"),))),
    ("a convolution's weight; give it one of its own", graph(
        ops=(*SMALL.ops, Op("Gather", "rows", ("conv/weight", "label"), ("rows",), {"axis": 0})),
        values=(*SMALL.values, Value("rows", "float32", (BATCH, 2, 3, 3))))),
    ("a class", graph(classes=("cat", ""))),
    ("a class", graph(classes=("cat", "two\nlines"))),
]  # fmt: skip


@pytest.mark.parametrize(("part", "bad"), BAD, ids=[part for part, _ in BAD])
def test_what_is_wrong_is_refused_by_name(part: str, bad: Graph) -> None:
    with pytest.raises(ModelError) as caught:
        verify(bad)
    assert part in str(caught.value)
    if len(bad.ops) < 100:
        with pytest.raises(ModelError):
            decode(encode(bad))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\xc1", ENCODED[:-1], ENCODED + b"\0", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff",
     b"\xa1\xff", b"\x81\xa1\xff\xc0"],
)  # fmt: skip
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(ModelError):
        decode(data)


def test_a_refusal_quotes_only_so_much() -> None:
    bomb = with_op(CONV, kind="K" * 100_000)
    with pytest.raises(ModelError) as caught:
        decode(encode(bomb))
    assert len(str(caught.value)) <= 1000


def test_a_long_tuple_is_refused_before_it_is_multiplied() -> None:
    shape = (0, *[2**31 - 1] * 200_000)
    with pytest.raises(ModelError, match="at most 8"):
        ops.normalise("Reshape", "r", {"shape": shape}, [Value("x", "float32", (BATCH, 2))])


def survives(data: bytes) -> None:
    """decode gives a graph that verifies and encodes, or raises ModelError; any other error fails the test."""
    try:
        graph = decode(data)
    except ModelError:
        return
    verify(decode(encode(graph)))


QUICK = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.lists(st.tuples(st.integers(0, len(ENCODED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(ENCODED)
    for index, byte in changes:
        data[index] = byte
    survives(bytes(data))


@QUICK
@given(st.integers(0, len(ENCODED)), st.binary(max_size=40), st.integers(0, 40))
def test_spliced_bytes(index: int, inserted: bytes, removed: int) -> None:
    survives(ENCODED[:index] + inserted + ENCODED[index + removed :])


LEAVES = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.integers(-3, 9), st.floats(), st.text(max_size=4), st.booleans(), st.none(),
    st.sampled_from(["image", "conv", "Gemm", "Reshape", "float32", "conv/weight", "axis"]),
    st.lists(st.integers(-2, 2**40), max_size=10), st.just({}), st.just([]),
)  # fmt: skip


@QUICK
@given(st.data())
def test_mutated_structure(data: st.DataObject) -> None:
    """Some place in the tree, chosen by walking down, is replaced, removed or doubled."""
    tree = msgspec.msgpack.decode(ENCODED)
    for _ in range(data.draw(st.integers(1, 3))):
        place = tree
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = data.draw(st.sampled_from(list(keys)))
            if isinstance(place[key], dict | list) and data.draw(st.integers(0, 4)):
                place = place[key]
                continue
            change = data.draw(st.sampled_from(["replace", "remove", "double"]))
            if change == "replace":
                place[key] = data.draw(LEAVES)
            elif change == "remove":
                del place[key]
            elif isinstance(place, list):
                place.insert(key, place[key])
            break
    survives(msgspec.msgpack.encode(tree))


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_graphs_survive_the_wire(name: str) -> None:
    graph = zoo.build(name, (28,) if name == "char-gpt" else (1, 28, 28), 10).graph
    assert decode(encode(graph)) == graph
