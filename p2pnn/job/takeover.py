"""Whether a new coordinator can go on with a start that another one led, from what the start's nodes tell it.

All nodes must run, but for those that the start can go on without (`job.failover`). The state that came with the newest command
anywhere is where the script stands; the other nodes get the commands that they lack, and every answer is taken again. The old
coordinator cannot interfere: a node obeys nobody of a lower term once it has answered, so what all have told is all that there
will be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pnn.errors import CheckpointError
from p2pnn.job import life, run_state
from p2pnn.job.assignment import Assignment, check, initial, is_spare
from p2pnn.job.checkpointing import oldest_best
from p2pnn.job.part_log import PartState, Totals
from p2pnn.job.records import JobRecord
from p2pnn.job.run_state import RunState
from p2pnn.job.script import Command, Done, Report
from p2pnn.job.spec import JobSpec
from p2pnn.types import NodeId

_commands = msgspec.msgpack.Decoder(Command)
_reports = msgspec.msgpack.Decoder(Report)


@dataclass(frozen=True, slots=True)
class Takeover:
    """What `Supervisor.take_over` needs. nodes: of the plan, in its order; totals: of each. commands: those that some node has
    not answered, by number. answers: to these. assignment: what is committed. lost: those of the nodes that do not run any more,
    and why, as a clause."""

    nodes: list[NodeId]
    state: RunState
    commands: dict[int, Command]
    answers: list[tuple[NodeId, Done]]
    totals: list[Totals]
    assignment: Assignment = field(default_factory=Assignment)
    lost: Mapping[NodeId, str] = field(default_factory=dict)


def of(record: JobRecord, told: Mapping[NodeId, PartState], held: Assignment | None = None) -> Takeover | str:
    """The takeover of a start, or why it has to begin anew, as a clause. told: by the nodes of the record's plan, their large
    answers unpacked. held: what is committed of who has which role; None for as the plan has it."""
    if record.plan is None:
        return "its plan is not known here"
    nodes = [share.node for share in record.plan.nodes]
    held = initial(record.plan, record.generation) if held is None else held
    try:
        check(held, record.plan)
    except CheckpointError as error:
        return str(error)
    parts = {node: told[node] for index, node in enumerate(nodes) if index not in held.gone and node in told}
    lost: dict[NodeId, str] = {}
    for index, share in enumerate(record.plan.nodes):
        if index in held.gone or (share.node in parts and parts[share.node].stage == "running"):
            continue
        part = parts.pop(share.node, None)
        lost[share.node] = "it does not answer" if part is None else part.text or part.stage
        if not (held.shards or is_spare(held, record.plan, index)):
            return f"node {share.name} does not answer" if part is None else f"node {share.name}: {lost[share.node]}"
    if not parts:
        return "none of its nodes runs any more"
    newest = max(parts.values(), key=lambda part: part.last)
    if not newest.state:
        return "its coordinator left no word where it stood"
    try:
        state = run_state.decode(newest.state)
        state.copies(len(nodes))
        known = {number: data for part in parts.values() for number, data in part.commands}
        commands = {number: _commands.decode(known[number]) for number in state.outstanding}
        answers: list[tuple[NodeId, Done]] = []
        for node, part in parts.items():
            for number, data in sorted(part.answers):
                report = _reports.decode(data)
                if number in commands and isinstance(report, Done):
                    answers.append((node, report))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return f"what its nodes told cannot be read: {error}"
    except (KeyError, CheckpointError) as error:
        return f"what its nodes told does not fit together: {error}"
    if state.state not in life.RUNNING or state.stage not in run_state.STAGES:
        return f"what its nodes told does not fit together: it was {state.state!r} at {state.stage!r}"
    if len(state.counted) != len(nodes) or record.revision < state.revision:
        return "the newest record of it is not here"
    if record.state == "pausing" and state.state == "running" and record.revision > state.revision:
        state = msgspec.structs.replace(
            state, state=record.state, reason=record.reason
        )  # asked for behind the last command
    totals = [parts[node].totals if node in parts else state.counted[index] for index, node in enumerate(nodes)]
    return Takeover(nodes, state, commands, answers, totals, held, lost)


def known(record: JobRecord, spec: JobSpec, parts: dict[NodeId, PartState]) -> tuple[JobRecord, int | None]:
    """The record of a start that is over, with the epochs that its nodes know of, and the last step of which a cut can be gone on
    from: behind it an epoch may lie that nobody left has heard of, or a best one whose checkpoint was not complete."""
    limits = []
    newest = max(parts.values(), key=lambda part: part.last, default=None)
    if newest is not None and newest.state:
        try:
            state = run_state.decode(newest.state)
        except CheckpointError:
            pass
        else:
            if record.revision >= state.revision:
                history = (*record.history[: state.told], *state.history)
                record = msgspec.structs.replace(record, history=max(history, record.history, key=len))
            if spec.patience and (best := oldest_best(state.checkpointing, state.saving)) is not None:
                limits.append(best)
    elif spec.patience:
        limits.append(((record.newest.epoch if record.newest else 0) + 1) * spec.steps_per_epoch)
    limits.append((len(record.history) + 1) * spec.steps_per_epoch)
    return record, min(limits) if spec.kind == "train" else None


def record_as_of(state: RunState, record: JobRecord) -> dict[str, Any]:
    """The fields of the record as they were where the script stood."""
    return {
        "state": state.state,
        "reason": state.reason,
        "epoch": state.epoch,
        "history": (*record.history[: state.told], *state.history),
        "results": state.results,
        "stopped_early": state.stopped_early,
    }
