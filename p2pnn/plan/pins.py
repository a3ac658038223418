"""What may not be parted, and what a person pinned.

*Groups* are ops that must share a node because they read the same parameter or state: only one node updates it. A *pin* puts
every op that its shell-style pattern matches, with the rest of that op's group, on one node. A pattern is
compared with an op's name, with its layer's name (what stands before a `#`, or before a parameter's last `/`), and with
the scopes around both, so `block2`, `block2/*` and `block?/conv1` all do what they look like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from p2pnn.errors import PlanError
from p2pnn.job.spec import Pin
from p2pnn.model.graph import Graph


def groups(graph: Graph) -> list[tuple[int, ...]]:
    """The ops of each group, ascending; groups by their first op. Every op is in exactly one."""
    parent = list(range(len(graph.ops)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    kept = {p.name for p in (*graph.parameters, *graph.state)}
    first: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        for name in op.inputs:
            if name in kept:
                one, other = root(first.setdefault(name, index)), root(index)
                parent[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for index in range(len(graph.ops)):
        members.setdefault(root(index), []).append(index)
    return [tuple(ops) for ops in members.values()]


def names(graph: Graph, index: int) -> tuple[str, ...]:
    """What a pattern may match op number `index` by: its name, its layer's, and the scopes around them, inmost first."""
    op = graph.ops[index]
    kept = {p.name for p in (*graph.parameters, *graph.state)}
    found = dict.fromkeys([op.name, op.name.partition("#")[0], *(v.rpartition("/")[0] for v in op.inputs if v in kept)])
    for name in list(found):
        parts = name.split("/")
        found.update(dict.fromkeys("/".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)))
    return tuple(n for n in found if n)


def layer(graph: Graph, index: int) -> str:
    """A short name of the op for a person: its layer's where it has parameters, else its own."""
    op = graph.ops[index]
    kept = {p.name for p in (*graph.parameters, *graph.state)}
    layers = [v.rpartition("/")[0] for v in op.inputs if v in kept]
    return next((name for name in layers if name), op.name or op.kind)


def resolve(graph: Graph, pins: Sequence[Pin], nodes: Mapping[str, int], known: Mapping[str, int]) -> dict[int, int]:
    """Op → node number, for every op that a pin decides.

    nodes: names and ids of the job's nodes → their numbers. known: the same of all nodes in the mesh, for the sentence.
    Raises PlanError for a pattern that matches nothing, a node that is not there, and pins that contradict each other.
    """
    member = {index: ops for ops in groups(graph) for index in ops}
    decided: dict[int, tuple[int, Pin]] = {}
    for pin in pins:
        node = _node(pin, nodes, known)
        matched = [i for i in range(len(graph.ops)) if any(fnmatchcase(n, pin.pattern) for n in names(graph, i))]
        if not matched:
            raise PlanError(f"the pin {pin.pattern}={pin.node} matches no layer of the model; {_nearest(graph, pin)}")
        for index in dict.fromkeys(i for m in matched for i in member[m]):
            there, before = decided.setdefault(index, (node, pin))
            if there != node:
                shared = " (ops that share a parameter stay together)" if len(member[index]) > 1 else ""
                raise PlanError(
                    f"the pins {before.pattern}={before.node} and {pin.pattern}={pin.node} both decide "
                    f"{layer(graph, index)}{shared}; make one pattern narrower"
                )
    return {index: node for index, (node, _) in decided.items()}


def _node(pin: Pin, nodes: Mapping[str, int], known: Mapping[str, int]) -> int:
    if pin.node in nodes:
        return nodes[pin.node]
    if pin.node in known:
        listed = ", ".join(sorted(n for n in nodes if not _is_id(n)))
        raise PlanError(f"the pin {pin.pattern}={pin.node} names a node that this job does not use; it uses {listed}")
    there = ", ".join(sorted(n for n in known if not _is_id(n))) or "none"
    raise PlanError(f"the pin {pin.pattern}={pin.node} names no node of this mesh; there are {there}")


def _is_id(text: str) -> bool:
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)


def _nearest(graph: Graph, pin: Pin) -> str:
    listed = list(dict.fromkeys(n for i in range(len(graph.ops)) for n in reversed(names(graph, i))))
    near = get_close_matches(pin.pattern.rstrip("/*?"), listed, n=3, cutoff=0.5)
    return f"nearest are {', '.join(near)}" if near else f"there are {', '.join(listed[:8])}{' …' * (len(listed) > 8)}"
