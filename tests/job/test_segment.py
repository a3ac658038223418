"""Segments and transfers over random graphs and assignments."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn import nn, zoo
from p2pnn.job.segment import Flow, Segment, delays, segments, transfers
from p2pnn.model.graph import Graph, encode
from p2pnn.model.verify import decode


@dataclass(frozen=True)
class Case:
    graph: Graph
    assignment: tuple[int, ...]


def random_case(seed: int) -> Case:
    """A model of dense layers, sums, joins and activations, some of them shared or unused by the loss."""
    dice = random.Random(seed)
    image, target = nn.Input("image", (4,)), nn.Input("target", (4,))
    values, layers = [image], [nn.Linear(4) for _ in range(2)]
    for _ in range(dice.randint(1, 14)):
        a, b = dice.choice(values), dice.choice(values)
        values.append(
            dice.choice(
                [
                    lambda a=a: nn.Linear(4)(a),
                    lambda a=a: dice.choice(layers)(a),
                    lambda a=a: nn.relu(a),
                    lambda a=a, b=b: a + b,
                    lambda a=a, b=b: nn.Linear(4)(nn.concat([a, b])),
                ]
            )()
        )
    head = nn.Linear(4)(values[-1])
    spare = nn.argmax(dice.choice(values))
    losses = [nn.mean_squared_error(head, target)]
    if dice.random() < 0.3:
        losses.append(nn.mean_squared_error(nn.Linear(4)(dice.choice(values)), target))
    graph = nn.Model({"head": head, "spare": spare}, losses, {"rmse": nn.rmse(head, target)}).graph
    nodes = dice.randint(1, 4)
    return Case(graph, tuple(dice.randrange(nodes) for _ in graph.ops))


cases = st.integers(0, 2**32).map(random_case)
quick = settings(max_examples=150)


def owners(parts: list[Segment]) -> dict[int, int]:
    return {op: part.index for part in parts for op in part.ops}


def edges(graph: Graph) -> set[tuple[int, int, str]]:
    """(producing op, reading op, value): computed apart from `model.flow`, on which segments rest."""
    maker = {name: index for index, op in enumerate(graph.ops) for name in op.outputs}
    return {(maker[name], index, name) for index, op in enumerate(graph.ops) for name in op.inputs if name in maker}


@quick
@given(cases)
def test_segments_part_the_ops_and_their_graph_has_no_cycle(case: Case) -> None:
    parts = segments(case.graph, case.assignment)
    assert sorted(op for part in parts for op in part.ops) == list(range(len(case.graph.ops)))
    assert [part.index for part in parts] == list(range(len(parts)))
    owner = owners(parts)
    for part in parts:
        assert list(part.ops) == sorted(part.ops)
        assert {case.assignment[op] for op in part.ops} == {part.node}
    for source, target, _ in edges(case.graph):
        # Every edge goes up in depth between segments, so numbering by depth is a topological order.
        a, b = parts[owner[source]], parts[owner[target]]
        assert a is b or a.depth < b.depth
        assert owner[source] <= owner[target]
        if case.assignment[source] == case.assignment[target] and a.depth == b.depth:
            assert a is b


@quick
@given(cases)
def test_segments_are_connected(case: Case) -> None:
    for part in segments(case.graph, case.assignment):
        reached, inside = {part.ops[0]}, set(part.ops)
        links = [(a, b) for a, b, _ in edges(case.graph) if a in inside and b in inside]
        for _ in part.ops:
            reached |= {b for a, b in links if a in reached} | {a for a, b in links if b in reached}
        assert reached == inside


@quick
@given(cases)
def test_transfers_cover_every_crossing_edge_once_and_nothing_else(case: Case) -> None:
    made = transfers(case.graph, case.assignment)
    assert [t.index for t in made] == list(range(len(made)))
    forward = [(t.value, t.source, t.target) for t in made if not t.backward]
    crossing = {
        (value, case.assignment[a], case.assignment[b])
        for a, b, value in edges(case.graph)
        if case.assignment[a] != case.assignment[b]
    }
    assert len(forward) == len(set(forward))
    assert set(forward) == crossing


def gradients(graph: Graph) -> set[tuple[str, int]]:
    """(value, consumer) pairs along which gradients flow, by reachability from every parameter and to every loss."""
    reads = edges(graph)
    trained = {p.name for p in graph.parameters}
    holds = {i for i, op in enumerate(graph.ops) if trained & set(op.inputs)}
    ends = {i for i, op in enumerate(graph.ops) if set(graph.losses) & set(op.outputs)}
    after, before = set(holds), set(ends)
    for _ in graph.ops:
        after |= {b for a, b, _ in reads if a in after}
        before |= {a for a, b, _ in reads if b in before}
    labels = {"MeanSquaredError"}
    return {
        (value, b)
        for a, b, value in reads
        if a in after and b in before and not (graph.ops[b].kind in labels and value not in graph.ops[b].inputs[:1])
    }


@quick
@given(cases)
def test_a_gradient_crosses_for_every_remote_consumer(case: Case) -> None:
    maker = {name: index for index, op in enumerate(case.graph.ops) for name in op.outputs}
    backward = [(t.value, t.consumer, t.source, t.target) for t in transfers(case.graph, case.assignment) if t.backward]
    wanted = {
        (value, consumer, case.assignment[consumer], case.assignment[maker[value]])
        for value, consumer in gradients(case.graph)
        if case.assignment[consumer] != case.assignment[maker[value]]
    }
    assert len(backward) == len(set(backward))
    assert set(backward) == wanted


@quick
@given(cases)
def test_numbering_depends_on_graph_and_assignment_alone(case: Case) -> None:
    again = decode(encode(case.graph))
    assert segments(again, list(case.assignment)) == segments(case.graph, case.assignment)
    assert transfers(again, list(case.assignment)) == transfers(case.graph, case.assignment)
    renamed = [n * 7 + 3 for n in case.assignment]  # other node numbers: the same cut
    assert [s.ops for s in segments(case.graph, renamed)] == [s.ops for s in segments(case.graph, case.assignment)]


def test_one_node_is_one_segment_per_component_without_transfers() -> None:
    graph = zoo.build("resnet8", (1, 8, 8), 10).graph
    parts = segments(graph, [0] * len(graph.ops))
    assert len(parts) == 1
    assert transfers(graph, [0] * len(graph.ops)) == []


def test_the_branches_of_a_block_on_two_nodes() -> None:
    graph = zoo.build("resnet8", (1, 8, 8), 10).graph
    index = {op.name: i for i, op in enumerate(graph.ops)}
    assignment = [0] * len(graph.ops)
    assignment[index["block1/skip"]] = assignment[index["block1/skip_bn"]] = 1
    made = [(t.value, t.backward, t.source, t.target) for t in transfers(graph, assignment)]
    assert made == [
        ("block0/relu2", False, 0, 1),
        ("block0/relu2", True, 1, 0),
        ("block1/skip_bn", False, 1, 0),
        ("block1/skip_bn", True, 0, 1),
    ]
    # Node 0's other branch needs nothing from node 1, so it runs beside it, in the segment before the sum.
    parts = segments(graph, assignment)
    owner = owners(parts)
    assert owner[index["block1/conv2"]] == owner[index["block0/relu2"]] == 0
    assert parts[owner[index["block1/skip"]]].depth == 1
    assert parts[owner[index["block1/add_1"]]].depth == 2


def chain(layers: int) -> Graph:
    x, target = nn.Input("x", (4,)), nn.Input("target", (4,))
    h = x
    for _ in range(layers):
        h = nn.Linear(4)(h)
    return nn.Model({"h": h}, nn.mean_squared_error(h, target)).graph


def test_delays_fall_from_the_first_node_to_the_last() -> None:
    graph = chain(3)
    assert len(graph.ops) == 4
    assert delays(graph, (0, 1, 2, 2), 0, 3) == ()
    assert delays(graph, (0, 1, 2, 2), 1, 3) == (0, 0, 0)
    assert delays(graph, (0, 1, 2, 2), 2, 3) == (1, 1, 0)
    assert delays(graph, (0, 1, 2, 2), 3, 3) == (2, 1, 0)
    assert delays(graph, (0, 1, 2, 2), 6, 3) == (5, 3, 0)
    assert delays(graph, (1, 1, 0, 0), 4, 2) == (0, 3)
    assert delays(graph, (0, 0, 0, 0), 4, 1) == (0,)


def test_a_node_that_returns_later_in_the_chain_is_as_late_as_its_first_segment() -> None:
    assert delays(chain(3), (0, 1, 0, 0), 3, 2) == (2, 1)


def test_a_node_that_trains_nothing_has_no_delay() -> None:
    x, target = nn.Input("x", (4,)), nn.Input("target", (4,))
    h = nn.Linear(4)(x)
    graph = nn.Model({"sign": nn.argmax(h), "h": h}, nn.mean_squared_error(nn.Linear(4)(h), target)).graph
    place = tuple(2 if op.kind == "ArgMax" else int(n > 0) for n, op in enumerate(graph.ops))
    assert sorted(set(place)) == [0, 1, 2]
    assert delays(graph, place, 3, 3) == (2, 0, 0)


@quick
@given(case=cases, in_flight=st.integers(1, 5))
def test_a_mini_batch_is_never_older_downstream(case: Case, in_flight: int) -> None:
    nodes = max(case.assignment) + 1
    found = delays(case.graph, case.assignment, in_flight, nodes)
    training = Flow(case.graph).training
    parts = [p for p in segments(case.graph, case.assignment) if training & set(p.ops)]
    first = {n: min((p.depth for p in parts if p.node == n), default=None) for n in range(nodes)}
    assert all(0 <= delay < in_flight for delay in found)
    trained = [n for n in range(nodes) if found[n]]
    assert all(found[a] >= found[b] for a in trained for b in trained if first[a] < first[b])  # type: ignore[operator]
