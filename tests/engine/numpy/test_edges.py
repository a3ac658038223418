from __future__ import annotations

import random

from p2pnn.engine.numpy.edges import Edges, accumulators
from p2pnn.job.segment import segments, transfers
from p2pnn.model.flow import Flow
from tests.engine.numpy.networks import NETWORKS, diamond, lenet


def test_borders_of_all_segments_fit_together() -> None:
    """What one segment reads another writes, and what crosses nodes is what the transfers say."""
    rng = random.Random(0)
    for make in NETWORKS.values():
        graph = make()
        for nodes in (1, 2, 3, 4):
            assignment = [rng.randrange(nodes) for _ in graph.ops]
            flow = Flow(graph)
            cut = [Edges(graph, s.ops, "train") for s in segments(graph, assignment)]
            made = {v for e in cut for v in e.values_out} | {v.name for v in graph.inputs}
            read = {v for e in cut for v in e.values_in}
            sent, received = (
                [edge for e in cut for edge in getattr(e, name)] for name in ("gradients_out", "gradients_in")
            )
            assert read <= made
            assert sorted(sent) == sorted(received)
            assert len(set(sent)) == len(sent)
            for transfer in transfers(graph, assignment):
                if transfer.backward:
                    assert (transfer.value, transfer.consumer) in sent
                else:
                    readers = [i for i in flow.consumers[transfer.value] if assignment[i] == transfer.target]
                    assert (transfer.value in read) or flow.training.isdisjoint(readers)


def test_sources_are_in_graph_order() -> None:
    graph = diamond()
    edges = Edges(graph, range(len(graph.ops)), "train")
    consumers = [c for _, c in edges.sources(graph.ops[0].outputs[0])]
    assert consumers == sorted(consumers)
    assert len(consumers) == 4


def test_only_training_wants_gradients_and_only_for_what_is_trained() -> None:
    graph = lenet()
    assert not Edges(graph, range(len(graph.ops)), "evaluate").trained
    assert Edges(graph, range(len(graph.ops)), "train").wants(0) == (False, True, True)
    loss = next(i for i, op in enumerate(graph.ops) if op.kind == "SoftmaxCrossEntropyLoss")
    assert Edges(graph, range(len(graph.ops)), "train").wants(loss) == (True, False)
    assert accumulators(graph, [0, 1, 2]) == [("parameter0", 0), ("parameter1", 0)]
