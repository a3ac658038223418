"""Starts that lose nodes and go on: simulated nodes, a charter, and coordinators that die, in any order that a seed gives."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.errors import CheckpointError
from p2pnn.job import actions, assignment, life, records, takeover
from p2pnn.job.assignment import Assignment, committed, initial, without
from p2pnn.job.checkpoint import Part
from p2pnn.job.failover import Failover, told
from p2pnn.job.healing import HEAL_S
from p2pnn.job.ledger import Ledger
from p2pnn.job.part_log import PartLog, PartState
from p2pnn.job.plan import NodeShare, Plan, Replica, ShardHome
from p2pnn.job.records import JobRecord
from p2pnn.job.recovery import Loss
from p2pnn.job.script import Checkpoint, Command, Done, Evaluate, Evaluation, Finish, Progress, Restore, Train
from p2pnn.job.spec import DataParallel, Dataset, JobSpec, Split
from p2pnn.job.supervisor import Supervisor
from p2pnn.job.takeover import Takeover
from p2pnn.replication.configuration import demoted, promoted, removed
from p2pnn.types import BlobId, NodeId
from tests.job.test_supervisor import make_record, make_spec

NODES = [NodeId(c * 32) for c in "abcd"]
NAMES = dict(zip(NODES, "abcd", strict=True))
ROWS = 10
ACCURACY = {1: 5.0, 2: 9.0, 3: 6.0, 4: 7.0}

_commands = msgspec.msgpack.Decoder(list[Command])
_records = msgspec.msgpack.Decoder(JobRecord)

Down = actions.Order | actions.Remember | actions.TellAssigned


def make_plan() -> Plan:
    """a, b and c compute; each shard has a backup, one of them on d, which only serves."""
    shares = tuple(NodeShare(n, NAMES[n], "all", 2, 100, 1000, 0.1) for n in NODES)
    shards = tuple(map(ShardHome, ((0, 1), (1, 2), (3, 0))))
    return Plan(shares, (), 1, 1.0, 1.0, replicas=tuple(Replica((n,)) for n in range(3)), shards=shards)


def make_job(patience: int = 0, consistency: str = "async") -> JobSpec:
    epochs = 6 if patience else 3
    return make_spec(epochs=epochs, patience=patience, monitor="accuracy", data=DataParallel(consistency=consistency))


class Node:
    """A node of the plan, in its first life: carries out what it is told, in its order."""

    def __init__(self, mesh: Mesh, index: int) -> None:
        self.mesh, self.index, self.node = mesh, index, NODES[index]
        self.log = PartLog()
        self.record = b""
        self.queue: deque[Command] = deque()
        self.held = initial(mesh.plan, 1)
        self.restored: tuple[str, ...] = ()
        self.numbers: list[int] = []
        self.over = False

    def hear(self, message: Down) -> None:
        """As `node.part` does."""
        if isinstance(message, actions.Remember):
            self.record = records.encode(message.record)
        elif isinstance(message, actions.TellAssigned):
            told = assignment.decode(assignment.encode(message.assignment))
            if self.node in message.nodes and told.version > self.held.version:
                assert self.index not in told.gone
                self.held = told
        elif self.node in message.nodes:
            for command in _commands.decode(msgspec.msgpack.encode(list(message.commands))):
                data = msgspec.msgpack.encode(command)
                if isinstance(command, Finish) or self.log.command(
                    command.sequence, data, message.oldest, message.state
                ):
                    self.queue.append(command)

    def work(self) -> None:
        """Carry out one command, or train one of its batches. Batches are leased: who comes first trains the next."""
        command = self.queue[0]
        worker = self.mesh.plan.worker_of(self.index)
        if isinstance(command, Train) and worker >= 0 and self.mesh.trained < command.until_step:
            self.mesh.trained += 1
            self.say(Progress(self.mesh.trained, (1.0, 8), {"accuracy": (4.0, 8.0)}, 0.1, 0.2))
            return
        self.queue.popleft()
        if isinstance(command, Finish):
            self.over = True
            return
        self.numbers.append(command.sequence)
        result = b""
        if isinstance(command, Evaluate):
            result = self.evaluate(command, worker)
        elif isinstance(command, Checkpoint):
            result = msgspec.msgpack.encode(self.parts(command, worker))
        elif isinstance(command, Restore):
            self.restored = command.parts
        again = self.mesh.again[(command.until_step - 1) // 10] if isinstance(command, Train) and worker >= 0 else 0
        self.say(Done(command.sequence, result, uneven=(again, 0)))

    def evaluate(self, command: Evaluate, worker: int) -> bytes:
        workers = [number for number in range(3) if number not in command.gone]
        if worker not in workers:
            return b""
        at = workers.index(worker)
        rows = ROWS * (at + 1) // len(workers) - ROWS * at // len(workers)
        epoch = self.mesh.trained // 10
        hits = ACCURACY.get(epoch, 1.0) / ROWS
        if command.split == "test":
            self.mesh.evaluated[command.sequence].add(self.restored)
            self.restored = ()  # the next one fetches what the shards hold
        return msgspec.msgpack.encode(Evaluation(float(rows), rows, {"accuracy": (hits * rows, float(rows))}))

    def parts(self, command: Checkpoint, worker: int) -> list[Part]:
        """The least worker that is left writes the parameters, each primary its shard's slots."""
        names = ["parameters"] if worker == min(n for n in range(3) if n not in command.gone) else []
        shards = [s for s in range(3) if assignment.primary_of(self.held, self.mesh.plan, s) == self.index]
        names += [f"shard {shard}" for shard in shards]
        return [self.mesh.part(name, self.node) for name in names]

    def say(self, report: Progress | Done) -> None:
        if isinstance(report, Progress):
            self.log.progress(report)
        else:
            self.log.answered(report.sequence, msgspec.msgpack.encode(report))
        self.mesh.up[self.node].append(report)


class Mesh:
    """Nodes, their links to a coordinator, and the charter. losses: nodes that die; deaths: coordinators that do."""

    def __init__(self, spec: JobSpec, seed: int, losses: int = 0, deaths: int = 0, wishes: int = 0) -> None:
        self.spec, self.dice, self.plan = spec, random.Random(seed), make_plan()
        self.losses, self.deaths, self.wishes = losses, deaths, wishes
        self.now, self.term, self.trained, self.died = 0.0, 1, 0, 0
        self.generation, self.entry = 1, initial(self.plan, 1)
        self.lost: list[int] = []
        self.again: Counter[int] = Counter()  # epoch → batches trained more often than once
        self.away: set[NodeId] = set()  # whose daemon is
        self.blobs: dict[str, tuple[str, NodeId]] = {}
        self.evaluated: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.released: Counter[NodeId] = Counter()
        self.told: list[Assignment] = []
        self.shared_out: set[int] = set()  # numbers of evaluations and checkpoints
        self.compares = self.replans = 0
        self.nodes = {node: Node(self, index) for index, node in enumerate(NODES)}
        self.links()
        self.supervisor = Supervisor(make_record(spec, starts=1), spec, dict(NAMES), 0.0)
        self.supervisor.planned(self.plan, 0.0)
        self.supervisor.decided(1, 0.0)
        for node in NODES:
            self.supervisor.granted(node, 0.0)
        for node in NODES:
            self.supervisor.prepared(node, 1, 0.0)
        self.take()

    @property
    def record(self) -> JobRecord:
        return self.supervisor.record

    @property
    def living(self) -> list[Node]:
        """Of the start."""
        return [node for node in self.nodes.values() if node.index not in self.lost]

    def part(self, name: str, node: NodeId) -> Part:
        blob = BlobId(f"{len(self.blobs):064x}")
        self.blobs[blob] = (name, node)
        return Part(blob, 10, bytes(30) + self.trained.to_bytes(2, "big"))

    def links(self) -> None:
        self.down: dict[NodeId, deque[Down]] = {node: deque() for node in self.nodes}
        self.up: dict[NodeId, deque[Progress | Done]] = {node: deque() for node in self.nodes}
        self.keeps: deque[actions.KeepBlobs] = deque()
        self.proposed: deque[actions.Reassign] = deque()

    def take(self) -> None:
        while (action := self.supervisor.next_action()) is not None:
            match action:
                case actions.Order() | actions.Remember() | actions.TellAssigned():
                    if isinstance(action, actions.Order):
                        shared = [c for c in action.commands if isinstance(c, Evaluate | Checkpoint)]
                        self.shared_out |= {command.sequence for command in shared}
                    for node in self.living:
                        self.down[node.node].append(action)
                    if isinstance(action, actions.TellAssigned):
                        assert action.assignment == self.entry, "nothing is told that is not committed"
                        self.told.append(action.assignment)
                case actions.KeepBlobs():
                    self.keeps.append(action)
                case actions.Reassign():
                    assert not self.proposed
                    assert action.before == self.entry
                    self.proposed.append(action)
                case actions.Publish(kind, fields):
                    self.events.append((kind, fields))
                case actions.ReleaseNode(node):
                    self.released[node] += 1
                case actions.Compare():
                    self.compares += 1
                case actions.Replan():
                    self.replans += 1

    def run(self) -> JobRecord:
        for _ in range(20_000):
            if self.supervisor.ended or self.record.state == "recovering":
                return self.record
            self.turn()
        pytest.fail(f"the run never ends: {self.record}")

    def until(self, step: int) -> None:
        while self.trained < step:
            self.turn()

    def turn(self) -> None:
        """One thing happens."""
        self.now += 0.01
        chance = self.dice.random()
        if self.losses and chance < 0.02 and len(self.lost) < len(NODES) - 1:
            self.losses -= 1
            self.lose(self.dice.choice(self.living).index)
            return
        if self.deaths and chance > 0.98 and any(node.log.last for node in self.living):
            self.deaths -= 1
            self.die()
            return
        if self.wishes and 0.5 < chance < 0.52:
            self.wishes -= 1
            self.wish()
            return
        choices = [self.deliver] * any(self.down.values()) + [self.hear] * any(self.up.values())
        choices += [self.keep] * bool(self.keeps) + [self.work] * any(node.queue for node in self.living)
        choices += [self.commit] * bool(self.proposed)
        assert choices, self.record
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
        error = "nobody has it" if keep.source in self.away else ""
        if keep.node not in self.away:
            self.supervisor.kept(keep.node, keep.request, error, self.now)

    def work(self) -> None:
        self.dice.choice([node for node in self.living if node.queue]).work()

    def commit(self, tell: bool = True) -> None:
        action = self.proposed.popleft()
        self.generation += 1
        self.entry = committed(action.before, action.after, self.generation)
        if tell:
            self.supervisor.failover.reassigned(self.generation, self.now)

    def wish(self) -> None:
        """Somebody wants another set of replicas, or asks what holds; maybe by what is old."""
        node = self.dice.choice(self.living)
        shard = self.dice.randrange(3)
        held = node.held.shards[shard]
        data = b""
        if len(held.members) > 1:
            change = promoted if held.learners else self.dice.choice((demoted, demoted, removed))
            data = assignment.encode_configuration(change(held, held.members[-1]))
        self.supervisor.failover.wish(node.node, shard, data)
        self.take()

    def lose(self, index: int) -> None:
        """A node of the start dies, or only its process; it may be back at once, with nothing of the start."""
        node = NODES[index]
        self.drop(index)
        if self.dice.random() < 0.3:
            self.supervisor.node_failed(node, "its compute process was killed", self.now, Loss.KILLED)
        else:
            self.away.add(node)
            self.supervisor.member_lost(node, "connection reset", self.now)
            if self.dice.random() < 0.5:
                self.supervisor.member_failed(node, "no process listens there", self.now)
            if self.dice.random() < 0.5:
                self.away.discard(node)
                self.supervisor.member_joined(node, NAMES[node], self.now)
        self.take()

    def drop(self, index: int) -> None:
        self.lost.append(index)
        if self.trained % 10 and self.plan.worker_of(index) >= 0:  # what it had not told is trained again
            self.again[self.trained // 10] += self.dice.randint(0, 2)
        self.down[NODES[index]].clear()
        self.up[NODES[index]].clear()

    def die(self) -> None:
        """The coordinator is killed, perhaps with the node that it is on, or between a commit and its telling."""
        self.died += 1
        self.term += 1
        if self.proposed and self.dice.random() < 0.5:
            self.commit(tell=False)
        for node in self.living:
            queue = self.down[node.node]
            for _ in range(self.dice.randint(0, len(queue))):
                node.hear(queue.popleft())
        commanded = [node.index for node in self.living if node.log.last]
        if self.losses and self.dice.random() < 0.5 and len(commanded) > 1:
            self.losses -= 1
            index = self.dice.choice(commanded)
            self.drop(index)
            self.away.add(NODES[index])
        for _ in range(self.dice.randint(0, 12)):
            if any(node.queue for node in self.living):
                self.work()
        self.links()
        parts = {n.node: n.log.tell(n.record) for n in self.living}
        for index in self.lost:
            if NODES[index] not in self.away:
                parts[NODES[index]] = PartState("absent", text="it has no part of this start")
        told = [_records.decode(part.record) for part in parts.values() if part.record]
        newest = max(told, key=lambda record: record.version)
        found = takeover.of(newest, parts, self.entry)
        assert isinstance(found, Takeover), found
        here = self.dice.choice(NODES)
        mine = records.taken_over(newest, here, NAMES[here], self.term)
        members = {node: name for node, name in NAMES.items() if node not in self.away}
        self.supervisor = Supervisor(mine, self.spec, members, self.now, begins=False)
        self.supervisor.take_over(found, self.now)
        self.take()

    def warnings(self) -> list[str]:
        return [fields["text"] for kind, fields in self.events if kind == "warning"]


def survivable(lost: list[int]) -> bool:
    """Whether a start with as many replicas as at first goes on without these."""
    return any(n not in lost for n in range(3)) and all(
        any(node not in lost for node in home.nodes) for home in make_plan().shards
    )


def check(mesh: Mesh) -> None:
    """What holds of every run that ended by itself."""
    record = mesh.record
    assert record.generation == 1, "it is one start"
    assert {result.rows for result in record.results} == {ROWS}
    assert [entry["epoch"] for entry in record.history] == list(range(1, len(record.history) + 1))
    for epoch, entry in enumerate(record.history, 1):
        assert entry.get("trained_again", 0) == mesh.again[epoch - 1], "whoever coordinates"
        assert entry["validation_accuracy"] == pytest.approx(ACCURACY.get(epoch, 1.0) / ROWS)
    for manifest in [*record.checkpoints, *([record.best] if record.best else [])]:
        names = sorted(mesh.blobs[part.blob][0] for part in manifest.parts)
        assert names == ["parameters", "shard 0", "shard 1", "shard 2"]
    for node in mesh.living:
        while mesh.down[node.node]:
            node.hear(mesh.down[node.node].popleft())
        while node.queue:
            node.work()
        assert node.over
        assert node.numbers == sorted(set(node.numbers)), "every command once, in its order"
        missed = set(range(1, node.log.last + 1)) - set(node.numbers)
        assert missed <= mesh.shared_out, "but for what was withdrawn before it came"
        assert set(node.held.gone) <= set(mesh.lost)
    assert mesh.entry.gone == tuple(dict.fromkeys(mesh.entry.gone))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), losses=st.integers(1, 3), deaths=st.integers(0, 3), patience=st.sampled_from([0, 2]))
def test_a_run_goes_through_its_script_though_it_loses_nodes_and_coordinators(
    seed: int, losses: int, deaths: int, patience: int
) -> None:
    mesh = Mesh(make_job(patience), seed, losses, deaths)
    record = mesh.run()
    if record.state == "recovering":
        is_torn = any("the checkpoint of the best epoch is lost" in text for text in mesh.warnings())
        assert is_torn or not survivable(mesh.lost), mesh.warnings()
        return
    assert record.state == "done", record.reason
    check(mesh)
    if patience:
        assert record.stopped_early
        assert record.best is not None
        assert (record.best.step, record.best.epoch) == (20, 2)
        (last,) = [n for n in mesh.evaluated if n == max(mesh.evaluated)]
        assert mesh.evaluated[last] == {tuple(part.blob for part in record.best.parts)}, "the best epoch is evaluated"


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), losses=st.integers(0, 2), deaths=st.integers(0, 2))
def test_a_run_whose_primaries_wish_this_and_that_meanwhile_ends_too(seed: int, losses: int, deaths: int) -> None:
    mesh = Mesh(make_job(), seed, losses, deaths, wishes=8)
    record = mesh.run()
    assert record.state in ("done", "recovering"), record.reason
    if record.state == "done":
        check(mesh)
    versions = [held.version for held in mesh.told]
    assert versions == sorted(versions), "what is told never goes back"


def test_such_runs_lose_nodes_and_coordinators_and_go_on() -> None:
    meshes = [Mesh(make_job(), seed, 2, 2, 4) for seed in range(30)]
    ends = Counter(mesh.run().state for mesh in meshes)
    assert ends["done"] > 8
    assert sum(mesh.died for mesh in meshes) > 20
    assert sum(len(mesh.entry.gone) for mesh in meshes if mesh.record.state == "done") > 8
    assert max(mesh.generation for mesh in meshes) > 3


# --- one loss at a time


def quiet(spec: JobSpec | None = None) -> Mesh:
    """A start that has trained a little, with nothing on its way."""
    mesh = Mesh(spec or make_job(), 1)
    mesh.until(4)
    return mesh


def lost(mesh: Mesh, index: int, reason: str = "connection reset") -> None:
    mesh.drop(index)
    mesh.away.add(NODES[index])
    mesh.supervisor.member_lost(NODES[index], reason, mesh.now)
    mesh.take()


def test_what_becomes_of_the_roles_of_a_lost_node_is_told_in_one_sentence_when_it_is_committed() -> None:
    mesh = quiet()
    lost(mesh, 1)
    assert not mesh.warnings()
    assert not mesh.told
    assert mesh.supervisor.nodes == [NODES[0], NODES[2], NODES[3]]
    mesh.commit()
    mesh.take()
    assert mesh.warnings() == [
        "node b is lost (connection reset): shard 0 has no backup now; shard 1 goes on at c; worker 1's batches go to the others"
    ]
    assert [(held.gone, held.shards[1].primary.node) for held in mesh.told] == [((1,), NODES[2])]
    assert mesh.record.state == "running"
    assert mesh.run().state == "done"
    check(mesh)


def test_of_a_worker_of_several_nodes_it_is_told_once_who_computes_no_more() -> None:
    plan = msgspec.structs.replace(make_plan(), replicas=(Replica((0, 1)), Replica((2, 3))))
    before = initial(plan, 1)
    after = without(before, plan, make_job(), 3)
    assert after is not None
    batches = "worker 1's batches go to the others; c, of the same worker, computes no more"
    assert told(before, after, plan, make_job(), 3) == f"shard 2 goes on at a; {batches}"
    later = without(after, plan, make_job(), 2)
    assert later is not None
    assert told(after, later, plan, make_job(), 2) == "shard 1 has no backup now"


@pytest.mark.parametrize("until", ["training", "evaluating"])
def test_what_was_trained_again_is_told_though_the_coordinator_dies_before_the_epoch_is_over(until: str) -> None:
    mesh = quiet()
    lost(mesh, 1)
    mesh.again[0] = 3
    mesh.commit()
    mesh.take()
    run = mesh.supervisor._run
    while run.step < 4 or (until == "evaluating" and not run._evaluating):
        mesh.turn()
    mesh.die()
    assert mesh.record.history == ()
    assert mesh.run().state == "done"
    assert mesh.record.history[0]["trained_again"] == 3
    check(mesh)


def test_two_nodes_that_are_lost_at_once_go_in_one_change_where_that_can_be() -> None:
    mesh = quiet()
    lost(mesh, 1)
    lost(mesh, 3)
    assert len(mesh.proposed) == 1, "one change at a time"
    mesh.commit()
    mesh.take()
    assert mesh.entry.gone == (1,)
    mesh.commit()
    mesh.take()
    assert mesh.entry.gone == (1, 3)
    assert len(mesh.warnings()) == 2
    lost(mesh, 0)
    assert mesh.record.state == "recovering", "the parameters of shard 0 are nowhere"
    assert mesh.warnings()[-1] == "node a is lost (connection reset)"
    assert mesh.released[NODES[2]] == 1, "its nodes are given back"


def test_a_node_that_is_back_at_once_has_no_part_any_more_and_is_told_to_end_what_it_has() -> None:
    mesh = quiet()
    lost(mesh, 1)
    before = mesh.released[NODES[1]]
    mesh.away.clear()
    mesh.supervisor.member_joined(NODES[1], "b", mesh.now)
    mesh.take()
    assert mesh.released[NODES[1]] == before + 1
    mesh.commit()
    mesh.take()
    step = mesh.supervisor._run.step
    mesh.supervisor.report(NODES[1], Done(mesh.supervisor._run._orders.oldest), mesh.now)
    mesh.supervisor.node_failed(NODES[1], "the loss became NaN", mesh.now)
    mesh.take()
    assert (mesh.record.state, mesh.supervisor._run.step) == ("running", step)
    assert mesh.run().state == "done"


def test_a_change_that_cannot_be_committed_ends_the_start_with_its_reason() -> None:
    mesh = quiet()
    lost(mesh, 1)
    mesh.supervisor.failover.not_reassigned("the charter would be too large", mesh.now)
    mesh.take()
    assert mesh.record.state == "recovering"
    assert mesh.warnings() == ["node b is lost (connection reset), and the charter would be too large"]


def test_a_coordinator_that_takes_over_takes_no_answer_of_before_for_speed() -> None:
    spec = make_job()
    rows = spec.batch_size * 100_000
    mesh = quiet(msgspec.structs.replace(spec, train=Split(Dataset("toy", rows, ()), 0, rows)))
    mesh.until(30)
    for _ in range(3):
        for node in mesh.living:
            while mesh.down[node.node]:
                node.hear(mesh.down[node.node].popleft())
            while node.queue:
                node.work()
        before = mesh.supervisor._run.left_s
        assert before is not None
        mesh.die()  # none of those answers was heard
        after = mesh.supervisor._run.left_s
        assert after == pytest.approx(before, rel=0.01)


def test_a_node_that_hangs_is_found_once_and_the_others_are_given_time_from_then_on() -> None:
    mesh = quiet()
    due = mesh.supervisor.get_timer()
    assert due is not None
    mesh.supervisor.handle_timer(due)
    mesh.take()
    assert len(mesh.proposed) == 1
    timer = mesh.supervisor.get_timer()
    assert timer is not None
    assert timer > due, "nothing is to be done before it is committed"
    mesh.now = due
    mesh.commit()
    mesh.take()
    (text,) = mesh.warnings()
    assert "its compute process has not moved for" in text


def test_processes_that_are_killed_again_and_again_have_the_run_wait_longer_before_it_moves() -> None:
    mesh = quiet()
    for index, wait in ((1, HEAL_S), (3, 2 * HEAL_S)):
        mesh.drop(index)
        mesh.supervisor.node_failed(NODES[index], "its compute process was killed", mesh.now, Loss.KILLED)
        mesh.take()
        mesh.commit()
        mesh.take()
        assert mesh.supervisor.get_timer() == mesh.now + wait


def test_a_node_that_a_change_under_way_makes_the_last_with_a_shard_cannot_be_lost() -> None:
    mesh = quiet()
    held = mesh.entry.shards[0]
    mesh.supervisor.failover.wish(NODES[0], 0, assignment.encode_configuration(demoted(held, held.in_sync[1])))
    mesh.take()
    assert len(mesh.proposed) == 1
    lost(mesh, 0)
    assert mesh.record.state == "recovering", "its backup may be in sync no more"


# --- a loss amid a checkpoint


def without_copies(patience: int = 2) -> Mesh:
    """A start in which nobody answers for copies."""
    mesh = Mesh(make_job(patience), 1)
    mesh.keep = lambda: None  # type: ignore[method-assign]
    return mesh


def writes_best(mesh: Mesh) -> bool:
    return any(best and manifest.epoch == 2 for _, manifest, best in mesh.supervisor._run.checkpoints.writing)


def test_while_nodes_write_a_best_epoch_that_the_job_may_end_with_none_trains_on() -> None:
    mesh = Mesh(make_job(2), 1)
    while not writes_best(mesh):
        mesh.turn()
    for node in mesh.living:
        while mesh.down[node.node]:
            node.hear(mesh.down[node.node].popleft())
        assert not any(isinstance(command, Train) for command in node.queue)
    assert mesh.run().state == "done"


def test_a_best_epoch_whose_writing_a_loss_breaks_off_is_written_again_by_the_others() -> None:
    mesh = Mesh(make_job(2), 1)
    while not writes_best(mesh):
        mesh.turn()
    lost(mesh, 1)
    mesh.commit()
    mesh.take()
    assert writes_best(mesh)
    assert mesh.run().state == "done"
    assert mesh.record.best is not None
    assert (mesh.record.best.step, mesh.record.best.epoch) == (20, 2)
    check(mesh)


def test_a_copy_that_a_lost_node_was_to_keep_is_asked_of_another() -> None:
    mesh = without_copies(patience=0)
    while not any(keep.node == NODES[1] for keep in mesh.keeps):
        mesh.turn()
    asked = {keep.blobs for keep in mesh.keeps if keep.node == NODES[1]}
    mesh.keeps.clear()
    lost(mesh, 1)
    mesh.commit()
    mesh.take()
    assert asked <= {keep.blobs for keep in mesh.keeps if keep.node != NODES[1]}


def test_a_start_that_cannot_do_without_a_node_after_all_since_it_had_a_part_of_the_best_epoch_orders_nothing() -> None:
    mesh = without_copies()
    run = mesh.supervisor._run
    while not run.checkpoints.copying:
        mesh.turn()
    for node in NODES[:2]:  # whom d's part is to be copied to
        for keep in [keep for keep in mesh.keeps if keep.source == NODES[3] and keep.node == node]:
            mesh.supervisor.kept(node, keep.request, "the disk is full", mesh.now)
        mesh.take()
    assert {keep.node for keep in mesh.keeps if keep.source == NODES[3]} == {NODES[0], NODES[1], NODES[2]}
    lost(mesh, 3)
    mesh.commit()
    mesh.take()
    while not run._evaluating:
        mesh.turn()
    lost(mesh, 2)
    for queue in mesh.down.values():
        queue.clear()
    mesh.commit()
    mesh.take()
    assert mesh.record.state == "recovering"
    assert "the checkpoint of the best epoch is lost" in mesh.warnings()[-1]
    assert not [a for queue in mesh.down.values() for a in queue if isinstance(a, actions.Order)]


def test_a_commit_that_comes_when_the_start_is_over_changes_nothing() -> None:
    mesh = quiet()
    lost(mesh, 1)
    mesh.supervisor.node_failed(NODES[0], "the loss became NaN", mesh.now)
    mesh.take()
    assert mesh.record.state == "failed"
    mesh.commit()
    assert mesh.supervisor.next_action() is None


@pytest.mark.parametrize(
    ("spec", "plan"),
    [
        (make_job(consistency="sync"), make_plan()),
        (make_job(), msgspec.structs.replace(make_plan(), shards=tuple(map(ShardHome, ((0,), (1,), (3,)))))),
        (make_spec(), msgspec.structs.replace(make_plan(), shards=(), replicas=())),
    ],
    ids=["a worker in sync", "one replica", "a model that is cut"],
)
def test_where_it_cannot_be_the_start_is_over_as_it_always_was(spec: JobSpec, plan: Plan) -> None:
    supervisor = Supervisor(make_record(spec, starts=1), spec, dict(NAMES), 0.0)
    supervisor.planned(plan, 0.0)
    supervisor.decided(1, 0.0)
    for node in NODES:
        supervisor.granted(node, 0.0)
    for node in NODES:
        supervisor.prepared(node, 1, 0.0)
    while supervisor.next_action() is not None:
        pass
    supervisor.member_lost(NODES[1], "connection reset", 1.0)
    assert supervisor.record.state == "recovering"
    found = []
    while (action := supervisor.next_action()) is not None:
        found.append(action)
    assert not [a for a in found if isinstance(a, actions.Reassign | actions.TellAssigned)]
    assert {a.node for a in found if isinstance(a, actions.ReleaseNode)} == {NODES[0], NODES[2], NODES[3]}


def test_a_node_that_only_serves_can_be_lost_in_sync_too() -> None:
    mesh = quiet(make_job(consistency="sync"))
    lost(mesh, 3)
    mesh.commit()
    mesh.take()
    assert mesh.warnings() == ["node d is lost (connection reset): shard 2 goes on at a"]
    assert mesh.run().state == "done"
    check(mesh)


def test_who_is_lost_before_the_run_is_planned_around() -> None:
    spec = make_job()
    supervisor = Supervisor(make_record(spec, starts=1), spec, dict(NAMES), 0.0)
    supervisor.planned(make_plan(), 0.0)
    supervisor.decided(1, 0.0)
    for node in NODES:
        supervisor.granted(node, 0.0)
    assert supervisor.record.state == "preparing"
    supervisor.member_lost(NODES[1], "connection reset", 1.0)
    supervisor.member_failed(NODES[1], "no process listens there", 1.0)
    assert supervisor.record.state == "recovering"
    assert actions.Replan() in iter(supervisor.next_action, None)


@pytest.mark.parametrize("end", ["pause", "cancel", "drain"])
def test_a_start_without_a_node_is_paused_cancelled_and_drained_as_any(end: str) -> None:
    mesh = quiet()
    lost(mesh, 1)
    mesh.commit()
    mesh.take()
    if end == "cancel":
        mesh.supervisor.cancel("cancelled", mesh.now)
        mesh.take()
        assert mesh.record.state == "cancelled"
        assert mesh.released[NODES[0]] == 1
        return
    (mesh.supervisor.pause if end == "pause" else lambda now: mesh.supervisor.vacate(NODES[3], now))(mesh.now)
    mesh.take()
    mesh.run()
    assert mesh.record.state == ("paused" if end == "pause" else "recovering")
    newest = mesh.record.newest
    assert newest is not None
    assert newest.step == mesh.trained, "no step is lost"
    assert len(newest.parts) == 4


def test_a_node_that_is_lost_while_a_pause_is_written_only_has_that_written_again() -> None:
    mesh = quiet()
    mesh.supervisor.pause(mesh.now)
    mesh.take()
    while not mesh.supervisor._run.checkpoints.writing:
        mesh.turn()
    lost(mesh, 1)
    assert mesh.run().state == "paused"
    assert mesh.record.newest is not None
    assert sorted(mesh.blobs[p.blob][0] for p in mesh.record.newest.parts)[0] == "parameters"


# --- what primaries wish


def begun() -> tuple[Failover, Ledger]:
    spec = make_job()
    ledger = Ledger(make_record(spec, state="running", plan=make_plan()), dict(NAMES))
    failover = Failover(ledger, spec, lambda index, now: None, lambda text, now: None, lambda now: None)
    failover.begin(make_plan(), 1)
    return failover, ledger


def wanted(ledger: Ledger) -> list[Any]:
    return list(iter(ledger.next_action, None))


def test_a_wish_of_a_primary_is_committed_and_then_told_to_all() -> None:
    failover, ledger = begun()
    held = failover.assignment.shards[0]
    wish = demoted(held, held.in_sync[1])
    failover.wish(NODES[0], 0, assignment.encode_configuration(wish))
    (action,) = wanted(ledger)
    assert action.after.shards[0].learners == wish.learners
    assert action.after != action.before
    failover.reassigned(7, 0.0)
    (told,) = wanted(ledger)
    assert told.nodes == tuple(NODES)
    assert told.assignment.shards[0] == msgspec.structs.replace(wish, generation=7)


def test_a_wish_that_another_change_has_overtaken_is_answered_with_what_holds() -> None:
    failover, ledger = begun()
    held = failover.assignment.shards[0]
    first, second = demoted(held, held.in_sync[1]), removed(held, held.in_sync[1])
    failover.wish(NODES[0], 0, assignment.encode_configuration(first))
    failover.wish(NODES[0], 0, assignment.encode_configuration(second))
    assert len(wanted(ledger)) == 1, "one change at a time"
    failover.reassigned(7, 0.0)
    told = wanted(ledger)
    assert [(type(action), action.nodes) for action in told] == [
        (actions.TellAssigned, tuple(NODES)),
        (actions.TellAssigned, (NODES[0],)),
    ]
    assert told[1].assignment == failover.assignment


@pytest.mark.parametrize("losses", [[2, 3], [2]])
def test_of_losses_in_one_change_none_counts_any_more_once_one_of_them_has_ended_the_start(losses: list[int]) -> None:
    spec, done_without = make_job(), list[int]()
    ledger = Ledger(make_record(spec, state="running", plan=make_plan()), dict(NAMES))

    def goes_on(index: int, now: float) -> None:
        done_without.append(index)
        ledger.move("lose", "the checkpoint of the best epoch is lost", 0)

    failover = Failover(ledger, spec, goes_on, lambda text, now: None, lambda now: None)
    failover.begin(make_plan(), 1)
    held = failover.assignment.shards[0]
    failover.wish(NODES[0], 0, assignment.encode_configuration(demoted(held, held.in_sync[1])))
    assert all(failover.lose(node, "it is lost") for node in map(NODES.__getitem__, losses))
    failover.reassigned(7, 0.0)
    wanted(ledger)
    held = failover.assignment.shards[2]
    failover.wish(NODES[3], 2, assignment.encode_configuration(held.replaced(held.in_sync[:1], ())))
    failover.reassigned(8, 0.0)
    assert done_without == [2]
    assert not [action for action in wanted(ledger) if isinstance(action, actions.Reassign)]


def test_who_takes_over_has_nodes_that_are_gone_end_what_they_may_still_run() -> None:
    spec = make_job()
    ledger = Ledger(make_record(spec, state="running", plan=make_plan()), dict(NAMES))
    failover = Failover(ledger, spec, lambda index, now: None, lambda text, now: None, lambda now: None)
    held = without(initial(make_plan(), 1), make_plan(), spec, 1)
    assert held is not None
    failover.take_over(make_plan(), held)
    assert wanted(ledger) == [
        actions.ReleaseNode(NODES[1]),
        actions.TellAssigned((NODES[0], NODES[2], NODES[3]), held),
    ]


def test_who_asks_what_holds_and_who_is_no_primary_is_told_and_nothing_changes() -> None:
    failover, ledger = begun()
    held = failover.assignment.shards[0]
    data = assignment.encode_configuration(demoted(held, held.in_sync[1]))
    for node, shard, configuration in ((NODES[2], 0, b""), (NODES[1], 0, data), (NODES[0], 9, data)):
        failover.wish(node, shard, configuration)
        (told,) = wanted(ledger)
        assert (told.nodes, told.assignment) == ((node,), initial(make_plan(), 1))
    failover.wish(NodeId("f" * 32), 0, data)
    assert not wanted(ledger), "no node of the start"
    with pytest.raises(CheckpointError, match="cannot be read"):
        failover.wish(NODES[0], 0, b"\xc1")
    assert not wanted(ledger)


def test_a_wish_that_cannot_be_committed_is_dropped_and_a_node_that_is_lost_wishes_nothing() -> None:
    failover, ledger = begun()
    held = failover.assignment.shards[0]
    data = assignment.encode_configuration(demoted(held, held.in_sync[1]))
    failover.wish(NODES[0], 0, data)
    wanted(ledger)
    failover.not_reassigned("the charter would be too large", 0.0)
    assert not failover.changing
    assert ledger.record.state in life.RUNNING
    assert failover.lose(NODES[0], "node a is lost")
    wanted(ledger)
    failover.wish(NODES[0], 0, data)
    assert not wanted(ledger)
