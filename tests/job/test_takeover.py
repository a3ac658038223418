"""Runs whose coordinators die between any two messages, against one whose coordinator lives; and what cannot be taken over."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.job import actions, records, run_state, takeover
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.part_log import PartLog, PartState, Totals
from p2pnn.job.records import JobRecord
from p2pnn.job.run_state import RunState
from p2pnn.job.script import Checkpoint, Command, Done, Evaluate, Evaluation, Finish, Progress, Restore, Train
from p2pnn.job.spec import JobSpec
from p2pnn.job.supervisor import Supervisor
from p2pnn.job.takeover import Takeover
from p2pnn.types import BlobId, NodeId
from tests.job.test_supervisor import NAMES, NODES, make_plan, make_record, make_spec

_commands = msgspec.msgpack.Decoder(list[Command])
_records = msgspec.msgpack.Decoder(JobRecord)

Down = actions.Order | actions.Remember
ACCURACY = {1: 5.0, 2: 9.0, 3: 6.0, 4: 7.0, 5: 9.5}


class Node:
    """A node of the plan: it carries out commands one after the other, and answers what depends only on what it did before."""

    def __init__(self, mesh: Mesh, node: NodeId) -> None:
        self.mesh, self.node = mesh, node
        self.log = PartLog()
        self.record = b""
        self.queue: deque[Any] = deque()
        self.step = 0
        self.restored: tuple[str, ...] = ()
        self.trained: list[tuple[int, int]] = []
        self.done: list[str] = []
        self.over = False

    def hear(self, message: Down) -> None:
        """As `node.part` does."""
        if isinstance(message, actions.Remember):
            self.record = records.encode(message.record)
            return
        for command in _commands.decode(msgspec.msgpack.encode(list(message.commands))):
            data = msgspec.msgpack.encode(command)
            if isinstance(command, Finish) or self.log.command(command.sequence, data, message.oldest, message.state):
                self.queue.append(command)

    def work(self) -> None:
        """Carry out one command, or some steps of one."""
        command = self.queue[0]
        if isinstance(command, Train) and self.step < command.until_step:
            until = min(command.until_step, self.step + self.mesh.dice.randint(1, 4))
            self.trained.append((self.step, until))
            steps = range(self.step + 1, until + 1)
            self.step = until
            share = (float(sum(steps)), 8 * len(steps)) if self.node == NODES[1] else (0.0, 0)
            metrics = {"accuracy": (share[0] / 2, float(share[1]))} if share[1] else {}
            self.say(Progress(until, share, metrics, 0.1, 0.2))
            return
        self.queue.popleft()
        if isinstance(command, Finish):
            self.over = True
            return
        self.done.append(f"{type(command).__name__} at {self.step}")
        result = b""
        if isinstance(command, Evaluate) and self.node == NODES[1]:
            hits = ACCURACY.get(self.step // 10, 1.0) + len(self.restored)
            result = msgspec.msgpack.encode(Evaluation(float(self.step), 10, {"accuracy": (hits, 10.0)}))
        elif isinstance(command, Checkpoint):
            parts = [
                Part(BlobId(f"{self.step:062d}{number}{self.node[0]}"), 10, bytes(30) + self.step.to_bytes(2, "big"))
                for number in range(2)
            ]
            result = msgspec.msgpack.encode(parts[0])
            if self.mesh.uneven:  # as where one node serves shards too, and the other has nothing to write
                result = msgspec.msgpack.encode(parts) if self.node == NODES[0] else b""
        elif isinstance(command, Restore):
            self.restored = command.parts
        self.say(Done(command.sequence, result))

    def say(self, report: Progress | Done) -> None:
        if isinstance(report, Progress):
            self.log.progress(report)
        else:
            self.log.answered(report.sequence, msgspec.msgpack.encode(report))
        self.mesh.up[self.node].append(report)


class Mesh:
    """Nodes, the links to and from their coordinator, and coordinators that die. One seed decides all."""

    def __init__(
        self, spec: JobSpec, seed: int, deaths: int, pause_at: int | None = None, uneven: bool = False
    ) -> None:
        self.uneven = uneven
        self.spec, self.dice, self.deaths, self.pause_at = spec, random.Random(seed), deaths, pause_at
        self.now, self.term, self.died = 0.0, 1, 0
        self.nodes = {node: Node(self, node) for node in NODES[:2]}
        self.links()
        self.supervisor = Supervisor(make_record(spec, starts=1), spec, dict(NAMES), 0.0)
        self.supervisor.planned(make_plan(NODES[:2]), 0.0)
        self.supervisor.decided(1, 0.0)
        for node in NODES[:2]:
            self.supervisor.granted(node, 0.0)
        for node in NODES[:2]:
            self.supervisor.prepared(node, 1, 0.0)
        self.take()

    def links(self) -> None:
        self.down: dict[NodeId, deque[Down]] = {node: deque() for node in self.nodes}
        self.up: dict[NodeId, deque[Progress | Done]] = {node: deque() for node in self.nodes}
        self.keeps: deque[actions.KeepBlobs] = deque()

    def take(self) -> None:
        while (action := self.supervisor.next_action()) is not None:
            match action:
                case actions.Order() | actions.Remember():
                    for queue in self.down.values():
                        queue.append(action)
                case actions.KeepBlobs():
                    self.keeps.append(action)

    def run(self) -> JobRecord:
        for _ in range(20_000):
            if self.supervisor.ended and not any(self.down.values()):
                return self.supervisor.record
            self.now += 0.05
            self.turn()
        pytest.fail(f"the run never ends: {self.supervisor.record}")

    def turn(self) -> None:
        """One thing happens."""
        reached = max(node.step for node in self.nodes.values())
        if self.pause_at is not None and reached >= self.pause_at and self.supervisor.record.state == "running":
            self.supervisor.pause(self.now)
            self.pause_at = None
            self.take()
            return
        commanded = any(node.log.last for node in self.nodes.values())
        if self.died < self.deaths and commanded and not self.supervisor.ended and self.dice.random() < 0.03:
            self.die()
            return
        choices = [self.deliver] * any(self.down.values()) + [self.hear] * any(self.up.values())
        choices += [self.keep] * bool(self.keeps) + [self.work] * any(n.queue for n in self.nodes.values())
        assert choices, self.supervisor.record
        self.dice.choice(choices)()
        self.take()

    def deliver(self) -> None:
        node = self.dice.choice([n for n, queue in self.down.items() if queue])
        self.nodes[node].hear(self.down[node].popleft())

    def hear(self) -> None:
        node = self.dice.choice([n for n, queue in self.up.items() if queue])
        self.supervisor.report(node, self.up[node].popleft(), self.now)

    def keep(self) -> None:
        keep = self.keeps.popleft()
        self.supervisor.kept(keep.node, keep.request, "", self.now)

    def work(self) -> None:
        self.dice.choice([n for n in self.nodes.values() if n.queue]).work()

    def die(self) -> None:
        """The coordinator is killed; of what it sent, each node gets the beginning. Then others speak, and one takes over."""
        self.died += 1
        self.term += 1
        for node, queue in self.down.items():
            for _ in range(self.dice.randint(0, len(queue))):
                self.nodes[node].hear(queue.popleft())
        for _ in range(self.dice.randint(0, 12)):
            if any(node.queue for node in self.nodes.values()):
                self.work()
        self.links()
        parts = {n: self.through_the_wire(node.log.tell(node.record)) for n, node in self.nodes.items()}
        told = [_records.decode(part.record) for part in parts.values() if part.record]
        newest = max(told, key=lambda record: record.version)
        found = takeover.of(newest, parts)
        assert isinstance(found, Takeover), found
        here = self.dice.choice(NODES)
        mine = records.taken_over(newest, here, NAMES[here], self.term)
        for _ in range(self.dice.randint(0, 6)):  # nodes go on, and what they say is held back
            if any(node.queue for node in self.nodes.values()):
                self.work()
        self.supervisor = Supervisor(mine, self.spec, dict(NAMES), self.now, begins=False)
        self.supervisor.take_over(found, self.now)
        self.take()

    @staticmethod
    def through_the_wire(part: PartState) -> PartState:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=PartState)


def test_a_move_off_a_draining_node_is_none_the_less_one_when_its_coordinator_dies() -> None:
    mesh = Mesh(make_spec(epochs=4), 3, 0)
    while max(node.step for node in mesh.nodes.values()) < 6:
        mesh.turn()
    mesh.supervisor.vacate(NODES[1], mesh.now)
    mesh.take()
    assert mesh.supervisor.record.state == "pausing"
    while any(mesh.down.values()):
        mesh.deliver()
    mesh.die()
    while mesh.supervisor.record.state == "pausing":
        mesh.turn()
    assert mesh.supervisor.record.state == "recovering"


def outcome(record: JobRecord) -> dict[str, Any]:
    """What must not depend on who coordinated."""
    history = [{name: value for name, value in entry.items() if name != "samples_per_s"} for entry in record.history]
    return {
        "state": record.state,
        "generation": record.generation,
        "bits": record.bits,
        "history": history,
        "checkpoints": [(m.step, m.epoch, m.parts, m.finished) for m in record.checkpoints],
        "best": record.best and (record.best.step, record.best.best_value),
        "results": record.results,
        "stopped_early": record.stopped_early,
        "epoch": record.epoch,
        "step": record.step,
    }


def job(patience: int) -> JobSpec:
    return make_spec(epochs=6 if patience else 3, patience=patience, monitor="accuracy")


UNDISTURBED = {
    (patience, uneven): Mesh(job(patience), 0, 0, uneven=uneven) for patience in (0, 2) for uneven in (False, True)
}
EXPECTED = {kind: outcome(mesh.run()) for kind, mesh in UNDISTURBED.items()}


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), deaths=st.integers(1, 6), patience=st.sampled_from([0, 2]), uneven=st.booleans())
def test_a_run_whose_coordinators_die_ends_as_if_none_had(seed: int, deaths: int, patience: int, uneven: bool) -> None:
    mesh = Mesh(job(patience), seed, deaths, uneven=uneven)
    found = outcome(mesh.run())
    assert found == EXPECTED[patience, uneven]
    for name, node in mesh.nodes.items():
        while node.queue:
            node.work()
        assert node.over
        ends = [until for _, until in node.trained]
        assert [begin for begin, _ in node.trained] == [0, *ends[:-1]], "every step once, and in its order"
        assert ends[-1] == found["checkpoints"][-1][0]
        undisturbed = UNDISTURBED[patience, uneven].nodes[name]
        assert [d for d in node.done if not d.startswith("Train")] == [
            d for d in undisturbed.done if not d.startswith("Train")
        ]
        assert node.restored == undisturbed.restored


def test_coordinators_did_die_in_such_runs() -> None:
    meshes = [Mesh(job(2), seed, 6) for seed in range(20)]
    for mesh in meshes:
        mesh.run()
    assert sum(mesh.died for mesh in meshes) > 40
    assert EXPECTED[2, False]["stopped_early"]
    assert UNDISTURBED[2, False].nodes[NODES[0]].restored


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), deaths=st.integers(1, 4), at=st.integers(1, 25))
def test_a_pause_survives_the_coordinator_that_was_asked_for_it(seed: int, deaths: int, at: int) -> None:
    mesh = Mesh(job(0), seed, deaths, pause_at=at)
    record = mesh.run()
    if mesh.pause_at is not None:
        assert record.state == "done", "nobody paused it in time"
        return
    assert record.state in ("paused", "done")
    if record.state == "paused":
        for node in mesh.nodes.values():
            while node.queue:
                node.work()
        assert {node.step for node in mesh.nodes.values()} == {record.newest.step if record.newest else 0}


# --- why a start is begun anew


def bench() -> tuple[JobRecord, dict[NodeId, PartState]]:
    """A record and what two nodes tell, with which a start is gone on with."""
    mesh = Mesh(job(0), 1, 0)
    while not all(node.log.last for node in mesh.nodes.values()) or not any(n.trained for n in mesh.nodes.values()):
        mesh.turn()
    parts = {n: node.log.tell(node.record) for n, node in mesh.nodes.items()}
    record = _records.decode(parts[NODES[0]].record)
    assert isinstance(takeover.of(record, parts), Takeover)
    return record, parts


def changed(parts: dict[NodeId, PartState], node: NodeId, **fields: Any) -> dict[NodeId, PartState]:
    return parts | {node: msgspec.structs.replace(parts[node], **fields)}


def test_without_all_nodes_running_the_start_is_begun_anew() -> None:
    record, parts = bench()
    assert takeover.of(msgspec.structs.replace(record, plan=None), parts) == "its plan is not known here"
    assert takeover.of(record, {NODES[0]: parts[NODES[0]]}) == "node b does not answer"
    ended = changed(parts, NODES[1], stage="ended", text="its compute process was killed by signal 9")
    assert takeover.of(record, ended) == "node b: its compute process was killed by signal 9"
    assert takeover.of(record, changed(parts, NODES[1], stage="preparing")) == "node b: preparing"


def test_without_a_state_or_the_commands_that_it_names_the_start_is_begun_anew() -> None:
    record, parts = bench()
    none = {node: msgspec.structs.replace(part, state=b"") for node, part in parts.items()}
    assert takeover.of(record, none) == "its coordinator left no word where it stood"
    for data in (b"\xc1", b"\x91" * 5000):
        broken = {node: msgspec.structs.replace(part, state=data) for node, part in parts.items()}
        assert "where the last coordinator stood cannot be read" in str(takeover.of(record, broken))
    lost = {node: msgspec.structs.replace(part, commands=()) for node, part in parts.items()}
    assert "does not fit together" in str(takeover.of(record, lost))
    answers = changed(parts, NODES[0], answers=((1, b"\xc1"),))
    assert "cannot be read" in str(takeover.of(record, answers))


def test_a_record_that_is_older_than_the_state_does_not_do() -> None:
    record, parts = bench()
    old = msgspec.structs.replace(record, revision=0)
    assert takeover.of(old, parts) == "the newest record of it is not here"
    state = run_state.decode(max(parts.values(), key=lambda part: part.last).state)
    others = run_state.encode(msgspec.structs.replace(state, counted=()))
    other = {node: msgspec.structs.replace(part, state=others) for node, part in parts.items()}
    assert takeover.of(record, other) == "the newest record of it is not here"


@pytest.mark.parametrize("writers", [((0, 1),), ((0,), (0,)), ((0, 2),)])
def test_parts_of_a_checkpoint_that_no_node_wrote_do_not_do(writers: tuple[tuple[int, ...], ...]) -> None:
    record, parts = bench()
    state = run_state.decode(max(parts.values(), key=lambda part: part.last).state)
    part = Part(BlobId("6" * 64), 1, bytes(32))
    whole = Manifest(record.job, record.spec, 4, 0, (part, part))
    for given_writers, does in ((((0, 0),), True), (((1, 1),), True), ((), True), (writers, writers == ((0, 1),))):
        state = msgspec.structs.replace(state, saving=((whole, False),), writers=given_writers)
        other = {n: msgspec.structs.replace(p, state=run_state.encode(state)) for n, p in parts.items()}
        assert isinstance(takeover.of(record, other), Takeover) == does


@pytest.mark.parametrize("fields", [{"state": "done"}, {"state": "nonsense"}, {"stage": "predict"}, {"stage": ""}])
def test_a_state_that_no_training_run_has_does_not_do(fields: dict[str, str]) -> None:
    record, parts = bench()
    state = run_state.decode(max(parts.values(), key=lambda part: part.last).state)
    data = run_state.encode(msgspec.structs.replace(state, **fields))
    other = {node: msgspec.structs.replace(part, state=data) for node, part in parts.items()}
    assert "what its nodes told does not fit together: it was " in str(takeover.of(record, other))


def test_the_newest_state_of_all_counts_and_what_one_node_missed_is_had_from_another() -> None:
    record, parts = bench()
    full = parts[NODES[0]] if parts[NODES[0]].last >= parts[NODES[1]].last else parts[NODES[1]]
    behind = msgspec.structs.replace(full, last=0, commands=(), answers=(), state=b"", totals=Totals())
    found = takeover.of(record, {NODES[0]: behind, NODES[1]: full})
    assert isinstance(found, Takeover)
    assert set(found.commands) == set(run_state.decode(full.state).outstanding)
    assert {node for node, _ in found.answers} <= {NODES[1]}
    assert found.totals == [Totals(), full.totals]


def test_a_pause_that_was_asked_for_behind_the_last_command_is_not_forgotten() -> None:
    record, parts = bench()
    state = run_state.decode(max(parts.values(), key=lambda part: part.last).state)
    for revision, expected in ((state.revision, "running"), (state.revision + 1, "pausing")):
        asked = msgspec.structs.replace(record, state="pausing", reason="pausing at the end", revision=revision)
        found = takeover.of(asked, parts)
        assert isinstance(found, Takeover)
        assert found.state.state == expected, "a state that is newer than the record knows better"


def test_an_answer_to_a_command_that_all_have_answered_is_not_taken_again() -> None:
    record, parts = bench()
    state = run_state.decode(max(parts.values(), key=lambda part: part.last).state)
    late = (999, msgspec.msgpack.encode(Done(999)))
    found = takeover.of(record, changed(parts, NODES[0], answers=(*parts[NODES[0]].answers, late)))
    assert isinstance(found, Takeover)
    assert 999 not in state.outstanding
    assert all(done.sequence != 999 for _, done in found.answers)


def test_a_state_that_is_too_large_is_not_sent() -> None:
    _, parts = bench()
    state: RunState = run_state.decode(max(parts.values(), key=lambda part: part.last).state)
    assert run_state.decode(run_state.encode(state)) == state
    long = msgspec.structs.replace(state, history=({"loss": 0.5, "epoch": 1.0},) * 2000)
    assert run_state.encode(long) == b""
