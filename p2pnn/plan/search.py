"""Local search: what a contiguous cut cannot express, tried group by group.

Branches of one block may lie on different nodes, and a value that skips stages goes straight to its reader; the DP knows
neither. So the best cuts are played by `predict`, and from the best of them single groups (ops that share a parameter, else one
op) move to a node that one of their neighbours lies on, as long as the predicted step gets clearly shorter. The
order of trials is fixed and their number bounded, so the same arguments give the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnn.plan.cost import Links, Workload, limits, memory_bytes
from p2pnn.plan.partition import Cut
from p2pnn.plan.pins import groups
from p2pnn.plan.predict import STREAM_MAX, Prediction, predict, steps_played
from p2pnn.plan.profile import Profile

TRIALS_MAX: Final = 150
PASSES_MAX: Final = 60_000
"""Passes of segments over micro-batches that all trials together may play: about a second."""

GAIN_MIN: Final = 0.01
"""A move that gains less than this fraction of the step is noise of the model: a plain chain stays contiguous."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A cut with its prediction; `profiles` are the cut's nodes in stage order."""

    profiles: tuple[Profile, ...]
    assignment: tuple[int, ...]
    frames: int
    prediction: Prediction


def choose(
    work: Workload,
    cuts: Sequence[Cut],
    profiles: Sequence[Profile],
    links: Links,
    frames: int,
    pins: Mapping[int, int],
    cap: int,
) -> Choice:
    """Play every cut, take the fastest, and improve it. cuts: at least one; pins: op → index into profiles."""
    played = []
    for number, cut in enumerate(cuts):
        nodes = tuple(profiles[n] for n in cut.nodes)
        prediction = predict(work, cut.assignment, nodes, links, frames)
        played.append((prediction.step_s, number, Choice(nodes, cut.assignment, frames, prediction)))
    return improve(work, min(played, key=lambda row: row[:2])[2], links, frozenset(pins), cap)


def improve(work: Workload, choice: Choice, links: Links, fixed: frozenset[int], cap: int) -> Choice:
    """Move groups while it pays; ops in `fixed` stay. Never empties a node of parameters, never exceeds its memory."""
    room = limits(choice.profiles, cap)
    trials, trials_max = 0, _trials_max(work, len(choice.profiles))
    holders = [i for i in range(work.count) if work.parameter_ops[i]]
    movable = [g for g in groups(work.graph) if holders and g[0] < holders[-1] and not fixed & set(g)]
    improved = len(choice.profiles) > 1
    while improved and trials < trials_max:
        improved = False
        for group in movable:
            for target in sorted(_neighbours(work, choice.assignment, group)):
                moved = list(choice.assignment)
                for op in group:
                    moved[op] = target
                if trials >= trials_max or len({moved[i] for i in holders}) < len(
                    {choice.assignment[i] for i in holders}
                ):
                    continue
                if any(memory_bytes(work, moved, n, choice.frames) > r for n, r in enumerate(room)):
                    continue
                trials += 1
                prediction = predict(work, moved, choice.profiles, links, choice.frames)
                if prediction.step_s < choice.prediction.step_s * (1 - GAIN_MIN):
                    choice = Choice(choice.profiles, tuple(moved), choice.frames, prediction)
                    improved = True
    return choice


def _trials_max(work: Workload, nodes: int) -> int:
    micro_batches = min(work.micro_batches, STREAM_MAX)
    passes = steps_played(work) * micro_batches * nodes * 8  # both ways, sent and received, about two segments each
    return max(4, min(TRIALS_MAX, PASSES_MAX // passes))


def _neighbours(work: Workload, assignment: Sequence[int], group: Sequence[int]) -> set[int]:
    """Other nodes that hold an op which writes or reads a value of this group."""
    found = set()
    for op in group:
        for value in work.graph.ops[op].inputs:
            if value in work.flow.producer:
                found.add(assignment[work.flow.producer[value]])
        for value in work.graph.ops[op].outputs:
            found.update(assignment[c] for c in work.flow.consumers.get(value, ()))
    return found - {assignment[group[0]]}
