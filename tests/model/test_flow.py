from __future__ import annotations

from p2pnn import nn
from p2pnn.model.flow import Flow


def test_which_ops_run() -> None:
    image, label = nn.Input("image", (4,)), nn.Input("label", (), dtype="int64")
    scores = nn.Linear(3, name="head")(nn.relu(image, name="first"))
    graph = nn.Model(
        {"probability": nn.softmax(scores, name="probability")},
        nn.cross_entropy(scores, label, name="loss"),
        {"accuracy": nn.accuracy(scores, label, name="metric")},
    ).graph
    flow, names = Flow(graph), [op.name for op in graph.ops]
    assert {names[i] for i in flow.training} == {"first", "head", "loss", "metric"}
    assert {names[i] for i in flow.inference} == {"first", "head", "probability"}
    assert {names[i] for i in flow.with_gradient} == {"head", "loss"}
    assert flow.gradient_consumers("head") == [names.index("loss")]
    assert flow.gradient_consumers("first") == []


def test_every_consumer_of_a_value_sends_its_own_gradient_in_graph_order() -> None:
    image, target = nn.Input("image", (4,)), nn.Input("target", (4,))
    h = nn.Linear(4, name="h")(image)
    joined = nn.concat([nn.relu(h, name="a"), h, nn.tanh(h, name="b")], name="joined")
    y = nn.Linear(4, name="y")(joined)
    graph = nn.Model({"class": nn.argmax(h, name="class")}, nn.mean_squared_error(y, target, name="loss")).graph
    flow, names = Flow(graph), [op.name for op in graph.ops]
    assert [names[i] for i in flow.consumers["h"]] == ["a", "b", "joined", "class"]
    assert [names[i] for i in flow.gradient_consumers("h")] == ["a", "b", "joined"]
    assert flow.gradient_consumers("image") == []


def test_which_parameters_backward_passes_read() -> None:
    image, target = nn.Input("image", (1, 6, 6)), nn.Input("target", (3,))
    h = nn.BatchNorm(name="bn")(nn.Conv2d(2, 3, name="conv1")(image))
    h = nn.Conv2d(2, 3, name="conv2")(nn.relu(h))
    pooled = nn.global_average_pool(h)
    shared = nn.Linear(2, name="shared")
    y = nn.Linear(3, name="head")(shared(shared(pooled)))
    unused = nn.Linear(3, name="unused")(pooled)
    graph = nn.Model({"unused": unused}, nn.mean_squared_error(y, target)).graph
    flow = Flow(graph)
    found = {p.name for p in graph.parameters if flow.read_back(p.name)}
    assert {"conv2/weight", "shared/weight", "head/weight", "bn/weight"} <= found
    assert not found & {"conv1/weight", "conv1/bias", "conv2/bias", "bn/bias", "shared/bias", "head/bias"}
    assert not found & {"unused/weight", "unused/bias"}
