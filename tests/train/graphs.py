"""Random graphs and assignments for the schedule's tests: only their wiring matters."""

from __future__ import annotations

import random

from p2pnn.job.plan import NodeShare, Plan
from p2pnn.model.graph import BATCH, Graph, Initializer, Metric, Op, Parameter, Value
from p2pnn.types import NodeId


def random_graph(dice: random.Random, ops_max: int = 8) -> Graph:
    """A connected DAG: 1–3 inputs per op, some parameters (now and then shared), some ops that stop gradients."""
    values = ["x"]
    ops: list[Op] = []
    parameters: list[str] = []
    for index in range(dice.randint(2, ops_max)):
        reads = dice.sample(values, min(len(values), dice.randint(1, 3)))
        if len(values) > 1 and values[-1] not in reads and dice.random() < 0.5:
            reads[0] = values[-1]
        if dice.random() < 0.6:
            parameters.append(f"w{index}")
            reads.append(f"w{index}")
        kind = "ArgMax" if dice.random() < 0.07 else "Add"
        values.append(f"v{index}")
        ops.append(Op(kind, f"op{index}", tuple(reads), (values[-1],)))
    return Graph(
        inputs=(Value("x", "float32", (BATCH, 3)),),
        parameters=tuple(Parameter(name, (3,), Initializer("constant")) for name in parameters),
        state=(),
        ops=tuple(ops),
        values=tuple(Value(name, "float32", (BATCH, 3)) for name in values[1:]),
        outputs={"out": dice.choice(values[1:])},
        losses=(values[-1],),
        metrics=(Metric("m", "mean", dice.choice(values[1:])),),
    )


def plan_for(assignment: list[int], nodes: int, frames: int) -> Plan:
    shares = tuple(NodeShare(NodeId(f"{n:032x}"), f"n{n}", "", 0, 0, 0, 0.0) for n in range(nodes))
    return Plan(shares, tuple(assignment), frames, 0.0, 0.0)
