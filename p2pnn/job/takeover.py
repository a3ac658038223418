"""Whether a new coordinator can go on with a start that another one led, from what the start's nodes tell it.

All nodes must run. The state that came with the newest command anywhere is where the script stands; the other nodes get the
commands that they lack, and every answer is taken again. The old coordinator cannot interfere: a node obeys nobody of
a lower term once it has answered, so what all have told is all that there will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from p2pnn.errors import CheckpointError
from p2pnn.job import life, run_state
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
    not answered, by number. answers: to these."""

    nodes: list[NodeId]
    state: RunState
    commands: dict[int, Command]
    answers: list[tuple[NodeId, Done]]
    totals: list[Totals]


def of(record: JobRecord, parts: dict[NodeId, PartState]) -> Takeover | str:
    """The takeover of a start, or why it has to begin anew, as a clause. parts: what each node of the record's plan has told, its
    large answers unpacked."""
    nodes = [share.node for share in record.plan.nodes] if record.plan else []
    if not nodes:
        return "its plan is not known here"
    silent = [share.name for share in record.plan.nodes if share.node not in parts] if record.plan else []
    if silent:
        return f"node {silent[0]} does not answer"
    for share in record.plan.nodes if record.plan else ():
        if parts[share.node].stage != "running":
            return f"node {share.name}: {parts[share.node].text or parts[share.node].stage}"
    newest = max(parts.values(), key=lambda part: part.last)
    if not newest.state:
        return "its coordinator left no word where it stood"
    try:
        state = run_state.decode(newest.state)
        state.copies(len(nodes))
        known = {number: data for part in parts.values() for number, data in part.commands}
        commands = {number: _commands.decode(known[number]) for number in state.outstanding}
        answers: list[tuple[NodeId, Done]] = []
        for node in nodes:
            for number, data in sorted(parts[node].answers):
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
    return Takeover(nodes, state, commands, answers, [parts[node].totals for node in nodes])


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
