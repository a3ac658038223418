"""What a node must do for one micro-batch, on a graph small enough to read."""

from __future__ import annotations

from p2pnn.model.graph import BATCH, Graph, Initializer, Metric, Op, Parameter, Value
from p2pnn.train.schedule import Routes, owned_parameters


def value(name: str) -> Value:
    return Value(name, "float32", (BATCH, 3))


# x → a → b → loss on nodes 0, 1, 0; b also feeds c (an output only) on node 1; the label goes to the loss alone.
GRAPH = Graph(
    inputs=(value("x"), value("label"), value("unused")),
    parameters=tuple(Parameter(name, (3,), Initializer("constant")) for name in ("wa", "wb", "wc")),
    state=(),
    ops=(
        Op("Add", "a", ("x", "wa"), ("va",)),
        Op("Add", "b", ("va", "wb"), ("vb",)),
        Op("Add", "c", ("vb", "wc"), ("vc",)),
        Op("MeanSquaredError", "loss", ("vb", "label"), ("l",)),
        Op("SquaredError", "metric", ("vb", "label"), ("m",)),
    ),
    values=(value("va"), value("vb"), value("vc"), Value("l", "float32", ()), Value("m", "float64", (2,))),
    outputs={"out": "vc"},
    losses=("l",),
    metrics=(Metric("mse", "mean", "m"),),
)
ASSIGNMENT = (0, 1, 1, 0, 0)


def names(ops: tuple[int, ...]) -> list[str]:
    return [GRAPH.ops[i].name for i in ops]


def test_modes_run_what_they_need() -> None:
    routes = Routes(GRAPH, ASSIGNMENT, 0, 2)
    ran = {mode: sorted(n for t in tasks.tasks for n in names(t.ops)) for mode, tasks in routes.modes.items()}
    assert ran == {"train": ["a", "loss", "metric"], "evaluate": ["a", "loss", "metric"], "predict": ["a"]}
    other = Routes(GRAPH, ASSIGNMENT, 1, 2)
    assert [names(t.ops) for t in other.modes["train"].tasks] == [["b"]]
    assert [names(t.ops) for t in other.modes["predict"].tasks] == [["b", "c"]]


def test_each_mode_reads_only_its_inputs() -> None:
    routes = Routes(GRAPH, ASSIGNMENT, 0, 2)
    assert routes.modes["train"].inputs == ("x", "label")
    assert routes.modes["predict"].inputs == ("x",)
    assert Routes(GRAPH, ASSIGNMENT, 1, 2).modes["train"].inputs == ()


def test_gradients_wait_for_every_consumer_that_has_one() -> None:
    routes = Routes(GRAPH, ASSIGNMENT, 1, 2)
    [task] = routes.modes["train"].tasks
    crossing = {(t.value, t.consumer): t.index for t in routes.transfers}
    loss = 3
    assert task.backward_needs == task.makes | 1 << crossing["vb", loss]
    assert task.backward_sends == (crossing["va", 1],)
    assert task.sends == (crossing["vb", -1],)
    [predicting] = routes.modes["predict"].tasks
    assert predicting.sends == ()
    assert not predicting.has_backward


def test_metrics_alone_have_no_backward_pass() -> None:
    routes = Routes(GRAPH, (0, 0, 0, 0, 1), 1, 2)
    [task] = routes.modes["train"].tasks
    assert not task.has_backward


def test_parameters_belong_to_the_node_that_reads_them() -> None:
    assert owned_parameters(GRAPH, ASSIGNMENT, 2) == (("wa",), ("wb", "wc"))
