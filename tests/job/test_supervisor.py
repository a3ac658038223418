"""The supervisor against simulated nodes that answer in a random order."""

from __future__ import annotations

import random
import re
from collections import defaultdict, deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.errors import UsageError
from p2pnn.job import actions, life, records
from p2pnn.job.checkpoint import RECUT, Part
from p2pnn.job.plan import NodeShare, Plan, cut
from p2pnn.job.records import JobRecord, same_plan
from p2pnn.job.recovery import FREED_S, PARKED_S, Loss
from p2pnn.job.script import (
    Checkpoint,
    Done,
    Evaluate,
    Evaluation,
    Finish,
    Progress,
    Restore,
    Train,
)
from p2pnn.job.spec import Dataset, JobSpec, Split
from p2pnn.job.supervisor import Supervisor
from p2pnn.model.graph import Graph, Initializer, Metric, Parameter, Value
from p2pnn.types import BlobId, JobId, NodeId

NODES = [NodeId(c * 32) for c in "abc"]
NAMES = dict(zip(NODES, "abc", strict=True))


def make_spec(**changes: Any) -> JobSpec:
    graph = Graph(
        inputs=(Value("x", "float32", (-1, 2)),),
        parameters=(Parameter("w", (1, 2), Initializer("constant")),),
        state=(),
        ops=(),
        values=(),
        outputs={},
        losses=("loss",),
        metrics=(Metric("accuracy", "mean", "hits"),),
    )
    data = Dataset("toy", 100, ())
    defaults: dict[str, Any] = {
        "name": "toy",
        "graph": graph,
        "inputs": {"x": "x"},
        "train": Split(data, 0, 80),
        "validation": Split(data, 80, 90),
        "test": Split(data, 90, 100),
        "epochs": 3,
        "batch_size": 8,
        "micro_batches": 2,
    }
    return JobSpec(**(defaults | changes))


def make_plan(nodes: list[NodeId]) -> Plan:
    shares = tuple(NodeShare(n, NAMES[n], "all", 2, 100, 1000, 0.1) for n in nodes)
    return Plan(shares, (), 1, 1.0, 1.0, reasons=("first line",))


def make_record(spec: JobSpec, **changes: Any) -> JobRecord:
    fields: dict[str, Any] = {
        "job": JobId("toy-1"),
        "name": "toy",
        "kind": spec.kind,
        "spec": BlobId("5" * 64),
        "state": "queued",
        "coordinator": NODES[0],
        "coordinator_name": "a",
        "generation": 0,
    }
    return JobRecord(**(fields | changes))


class World:
    """Nodes that carry out the script, each in its order, and a clock that moves with every fact."""

    def __init__(
        self,
        spec: JobSpec,
        seed: int = 0,
        record: JobRecord | None = None,
        nodes: list[NodeId] = NODES,
        planned: bool = True,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.nodes = list(nodes)
        self.queues: dict[Any, deque[Any]] = defaultdict(deque)
        self.orders: list[Any] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.records: list[JobRecord] = []
        self.released: list[NodeId] = []
        self.accuracy: dict[int, float] = {}
        self.failing_checkpoints = 0
        self.keep_error = ""
        self.step = 0
        self.replans = 0
        self.generation = record.generation if record else 0
        self.asked: list[tuple[NodeId, int, int]] = []
        self.made: list[tuple[NodeId, int, int, int]] = []
        self.supervisor = Supervisor(record or make_record(spec), spec, dict(NAMES), 0.0)
        if planned:
            self.supervisor.planned(make_plan(self.nodes), 0.0)
        self.take()

    def take(self) -> None:
        while (action := self.supervisor.next_action()) is not None:
            match action:
                case actions.ReserveNode(node):
                    self.queues[node].append(lambda node=node: self.supervisor.granted(node, self.now))
                case actions.PrepareNode(node, _):
                    self.queues[node].append(lambda node=node: self.supervisor.prepared(node, 100, self.now))
                case actions.Decide():
                    self.generation += 1
                    self.supervisor.decided(self.generation, self.now)
                case actions.Order(commands, _, _):
                    self.orders += commands
                    for command in commands:
                        if not isinstance(command, Finish):
                            for node in self.nodes:
                                self.queues[node].append(lambda node=node, c=command: self.answer(node, c))
                case actions.KeepBlobs(node, request, _, _):
                    self.queues[request].append(
                        lambda n=node, r=request: self.supervisor.kept(n, r, self.keep_error, self.now)
                    )
                case actions.ReleaseNode(node):
                    self.released.append(node)
                case actions.Remember(record):
                    self.records.append(record)
                case actions.Publish(kind, fields):
                    self.events.append((kind, fields))
                case actions.Replan():
                    self.replans += 1
                case actions.AskCuts(node, generation, request):
                    self.asked.append((node, generation, request))
                case actions.MakePart(node, _, request, index, step):
                    self.made.append((node, request, index, step))

    def answer(self, node: NodeId, command: Any) -> None:
        result, error = b"", ""
        match command:
            case Train():
                progress = Progress(command.until_step, (8.0, 16), {"accuracy": (8.0, 16.0)}, 0.1, 0.2)
                self.supervisor.report(node, progress, self.now)
                self.step = command.until_step
            case Evaluate() if node == self.nodes[-1]:
                epoch = self.step // 10
                result = msgspec.msgpack.encode(
                    Evaluation(5.0, 10, {"accuracy": (self.accuracy.get(epoch, epoch), 10.0)})
                )
            case Checkpoint() if self.failing_checkpoints and node == self.nodes[0]:
                self.failing_checkpoints -= 1
                error = "the disk is full"
            case Checkpoint():
                blob = BlobId(f"{self.step:063d}{node[0]}")
                result = msgspec.msgpack.encode(Part(blob, 10, bytes(31) + bytes([self.step])))
        self.supervisor.report(node, Done(command.sequence, result, error), self.now)

    def run(self, until: Any = None) -> None:
        """Deliver facts in a random order until none is left, or `until()` holds."""
        for _ in range(10_000):
            waiting = sorted((q for q in self.queues if self.queues[q]), key=str)
            if not waiting or (until and until()):
                return
            self.now += 0.05
            self.queues[self.random.choice(waiting)].popleft()()
            self.take()
        pytest.fail("the script never ends")

    @property
    def record(self) -> JobRecord:
        return self.supervisor.record


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_run_goes_through_its_script_in_any_order_of_answers(seed: int) -> None:
    world = World(make_spec(monitor="accuracy"), seed)
    world.run()
    assert world.record.state == "done"
    trained = [c.until_step for c in world.orders if isinstance(c, Train)]
    assert trained == sorted(set(trained))
    assert {10, 20, 30} <= set(trained)
    assert [c.split for c in world.orders if isinstance(c, Evaluate)] == ["validation"] * 3 + ["test"]
    assert isinstance(world.orders[-1], Finish)
    assert sorted(world.released) == NODES
    assert [m.step for m in world.record.checkpoints] == [10, 20, 30]
    assert world.record.best is not None
    assert world.record.best.step == 30
    assert world.record.bits
    assert [entry["epoch"] for entry in world.record.history] == [1, 2, 3]
    versions = [r.version for r in world.records]
    assert versions == sorted(set(versions))


def test_the_best_epoch_is_restored_and_evaluated_when_patience_ends_the_run() -> None:
    world = World(make_spec(epochs=9, patience=2, monitor="accuracy"))
    world.accuracy = {1: 5.0, 2: 9.0, 3: 6.0, 4: 7.0}
    world.run()
    assert world.record.state == "done"
    assert world.record.stopped_early
    assert world.record.best is not None
    assert world.record.best.step == 20
    restore = next(c for c in world.orders if isinstance(c, Restore))
    assert set(restore.parts) == {part.blob for part in world.record.best.parts}
    assert world.orders.index(restore) < next(
        i for i, c in enumerate(world.orders) if isinstance(c, Evaluate) and c.split == "test"
    )


def test_a_checkpoint_that_cannot_be_written_is_shown_and_training_goes_on() -> None:
    world = World(make_spec())
    world.failing_checkpoints = 1
    world.run()
    assert world.record.state == "done"
    failed = [f for kind, f in world.events if kind == "checkpoint" and not f["complete"]]
    assert [f["error"] for f in failed] == ["node a: the disk is full"]
    assert [m.step for m in world.record.checkpoints] == [20, 30]


def test_a_run_whose_last_checkpoint_fails_does_not_claim_a_result() -> None:
    world = World(make_spec(epochs=1))
    world.failing_checkpoints = 1
    world.run()
    assert world.record.state == "failed"
    assert "last checkpoint could not be written" in world.record.reason
    assert "node a: the disk is full" in world.record.reason


def lose(world: World, node: NodeId, held: dict[NodeId, list[tuple[int, int]]], reached: int = 0) -> None:
    """A node dies; the others answer what they hold, and write it."""
    world.supervisor.member_lost(node, "connection reset", world.now)
    world.supervisor.member_failed(node, "no process listens there", world.now)
    world.queues.clear()
    world.take()
    for asked, generation, request in world.asked:
        world.supervisor.cuts(asked, generation, request, reached, held.get(asked, []), world.now)
    world.take()
    for holder, request, index, step in world.made:
        part = Part(BlobId(f"{step:063d}{index}"), 10, bytes(32))
        world.supervisor.made(holder, world.asked[-1][1], request, part, world.now)
    world.take()


def go_on(world: World, nodes: list[NodeId]) -> None:
    world.nodes = nodes
    world.supervisor.planned(make_plan(nodes), world.now)
    world.take()
    world.run()


def test_a_run_that_loses_a_node_goes_on_by_itself_from_the_newest_cut_that_is_whole() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1 and world.step >= 14)
    held = {
        NODES[0]: [(0, 12), (0, 14), (2, 12)],  # b's buddy was c, c's was a
        NODES[2]: [(2, 12), (2, 14), (1, 12)],
    }
    lose(world, NODES[1], held, reached=17)
    assert world.record.state == "recovering"
    assert {node for node, _, _ in world.asked} == {NODES[0], NODES[2]}
    assert {(index, step) for _, _, index, step in world.made} == {(0, 12), (1, 12), (2, 12)}
    assert set(world.released) == {NODES[0], NODES[2]}
    newest = world.record.newest
    assert newest is not None
    assert (newest.step, newest.epoch, len(newest.parts)) == (12, 1, 3)
    assert world.replans == 1
    world.orders.clear()
    world.step = 12
    go_on(world, [NODES[0], NODES[2]])
    assert world.record.state == "done"
    assert world.record.generation == 2
    trained = [c.until_step for c in world.orders if isinstance(c, Train)]
    assert trained[0] > 12
    assert trained[-1] == 30
    assert [entry["epoch"] for entry in world.record.history] == [1, 2, 3]
    told = [fields for kind, fields in world.events if kind == "recovered"]
    assert [(f["step"], f["redone"]) for f in told] == [(12, 8)]
    assert re.fullmatch(
        r"node b is lost \(connection reset\): went on from step 12 over a, c after \d+\.\d s; 8 steps redone",
        told[0]["text"],
    )


def test_without_a_whole_cut_it_goes_on_from_the_newest_checkpoint() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 2)
    lose(world, NODES[1], {NODES[0]: [(0, 24)], NODES[2]: [(2, 24)]})
    assert not world.made
    assert world.record.newest is not None
    assert world.record.newest.step == 20
    world.step = 20
    go_on(world, [NODES[0], NODES[2]])
    assert world.record.state == "done"
    assert [entry["epoch"] for entry in world.record.history] == [1, 2, 3]


def test_a_broken_link_is_waited_for_and_the_node_planned_again_when_it_is_back() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1 and world.step >= 14)
    world.supervisor.member_lost(NODES[1], "its link broke", world.now)
    world.queues.clear()
    world.take()
    for asked, generation, request in list(world.asked):
        world.supervisor.cuts(asked, generation, request, 14, [(NODES.index(asked), 12)], world.now)
    world.take()
    assert not world.made, "part 1 is nowhere yet"
    assert world.replans == 0
    world.supervisor.member_joined(NODES[1], "b", world.now)
    world.take()
    world.supervisor.cuts(*world.asked[-1], 14, [(1, 12)], world.now)
    world.take()
    for holder, request, index, step in world.made:
        world.supervisor.made(
            holder, world.asked[-1][1], request, Part(BlobId(f"{step:063d}{index}"), 10, bytes(32)), world.now
        )
    world.take()
    assert world.replans == 1
    world.step = 12
    go_on(world, NODES)
    assert world.record.state == "done"


def test_a_link_that_stays_broken_is_not_waited_for_for_long() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1)
    world.supervisor.member_lost(NODES[1], "its link broke", world.now)
    world.queues.clear()
    world.take()
    for asked, generation, request in world.asked:
        world.supervisor.cuts(asked, generation, request, 0, [], world.now)
    world.take()
    assert world.replans == 0
    due = world.supervisor.get_timer()
    assert due is not None
    world.supervisor.handle_timer(due)
    world.take()
    assert world.replans == 1


def test_a_job_without_room_is_parked_until_a_node_comes() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1)
    lose(world, NODES[1], {})
    world.supervisor.unplanned("needs 2.1 GiB more", world.now)
    world.take()
    assert world.record.state == "parked"
    assert world.record.reason == "parked: needs 2.1 GiB more; node b is away"
    world.supervisor.member_joined(NODES[1], "b", world.now)
    world.take()
    assert world.replans == 2
    world.step = 10
    go_on(world, NODES)
    assert world.record.state == "done"


def test_a_parked_job_looks_again_once_its_cuts_have_made_room_and_then_now_and_again() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1)
    lose(world, NODES[1], {})
    for after in (FREED_S, PARKED_S, PARKED_S):
        world.supervisor.unplanned("needs 2.1 GiB more", world.now)
        replans = world.replans
        assert world.supervisor.get_timer() == world.now + after
        world.now += after
        world.supervisor.handle_timer(world.now)
        world.take()
        assert world.replans == replans + 1


def test_starts_that_get_nowhere_end_with_the_reason() -> None:
    world = World(make_spec())
    world.run(lambda: world.record.state == "running")
    for _ in range(3):
        world.supervisor.node_failed(NODES[1], "its link to node c broke: reset", world.now, Loss.UNREACHABLE)
        world.queues.clear()
        world.take()
        for asked, generation, request in world.asked:
            world.supervisor.cuts(asked, generation, request, 0, [], world.now)
        world.take()
        if world.record.state == "failed":
            break
        world.supervisor.planned(make_plan(NODES), world.now)
        world.take()
        world.run(lambda: world.record.state == "running")
    assert world.record.state == "failed"
    assert "3 times without getting further; go on with `p2pnn jobs resume toy-1`" in world.record.reason


def test_a_job_whose_data_is_on_a_node_that_is_away_waits_for_it() -> None:
    world = World(make_spec())

    def lacks() -> None:
        """It is prepared, which fails for want of a blob."""
        world.run(lambda: world.record.state == "preparing")
        world.supervisor.node_failed(NODES[1], "blob 5f… is on no node", world.now, Loss.UNREACHABLE)
        world.queues.clear()
        world.take()

    for _ in range(2):
        lacks()
        assert world.record.state == "recovering"
        world.supervisor.planned(make_plan(NODES), world.now)
        world.take()
    for _ in range(2):  # it may take a while
        lacks()
        assert (world.record.state, world.record.reason) == ("parked", "parked: node b: blob 5f… is on no node")
        assert world.supervisor.get_timer() == world.now + PARKED_S
        world.supervisor.member_joined(NODES[0], "a", world.now)
        world.supervisor.planned(make_plan(NODES), world.now)
        world.take()
    world.run()
    assert world.record.state == "done"


def test_a_process_that_is_killed_again_and_again_ends_the_job() -> None:
    world = World(make_spec())
    for _ in range(3):
        world.run(lambda: world.record.state == "running")
        lost = world.record.generation
        world.supervisor.node_failed(NODES[1], "its compute process was killed", world.now, Loss.KILLED)
        world.queues.clear()
        world.take()
        for asked, generation, request in world.asked:
            held = [(index, 3 * lost) for index in range(3)]  # each got further
            world.supervisor.cuts(asked, generation, request, 0, held, world.now)
        world.take()
        for holder, request, index, step in world.made:
            world.supervisor.made(
                holder, world.asked[-1][1], request, Part(BlobId(f"{step:063d}{index}"), 10, bytes(32)), world.now
            )
        world.take()
        if world.record.state == "recovering":
            world.supervisor.planned(make_plan(NODES), world.now)
            world.take()
    assert world.record.reason == (
        "node b: its compute process was killed; it was that for the 3. time, so the job is not started again"
    )


def test_what_no_other_start_would_change_fails_at_once() -> None:
    world = World(make_spec())
    world.run(lambda: world.record.state == "running")
    world.supervisor.node_failed(NODES[1], "the loss became NaN", world.now)
    assert world.record.reason == "node b: the loss became NaN"


def test_a_loss_while_it_pauses_leaves_it_paused_where_it_would_have_gone_on() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1 and world.step >= 14)
    world.supervisor.pause(world.now)
    world.take()
    lose(world, NODES[1], {NODES[0]: [(0, 12), (1, 12), (2, 12)]})
    assert world.record.state == "paused"
    assert world.record.reason == "paused at step 12"
    assert world.replans == 0


def test_answers_about_an_earlier_loss_are_none_to_this_one() -> None:
    """Both losses ask from the first step on; what a member held then is gone, or of another run."""
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1 and world.step >= 14)
    lose(world, NODES[1], {NODES[0]: [(0, 12), (1, 12), (2, 12)]})
    earlier = [*world.asked], [*world.made]
    world.step = 12
    world.supervisor.planned(make_plan([NODES[0], NODES[2]]), world.now)
    world.take()
    world.run(lambda: world.record.state == "running")
    world.asked.clear()
    world.made.clear()
    world.supervisor.node_failed(NODES[2], "its link broke", world.now, Loss.UNREACHABLE)
    world.take()
    assert not {request for _, _, request in world.asked} & {request for _, _, request in earlier[0]}
    for node, generation, request in earlier[0]:
        world.supervisor.cuts(node, generation, request, 99, [(0, 99), (1, 99)], world.now)
    for node, _, request in world.asked:
        world.supervisor.cuts(node, earlier[0][0][1], request, 99, [(0, 99), (1, 99)], world.now)
    for node, generation, request in world.asked:
        world.supervisor.cuts(node, generation, request, 15, [(0, 15), (1, 15)], world.now)
    world.take()
    assert {step for _, _, _, step in world.made} == {15}
    for node, request, _, _ in earlier[1]:
        world.supervisor.made(node, earlier[0][0][1], request, Part(BlobId("0" * 64), 10, bytes(32)), world.now)
    world.take()
    assert world.record.newest is not None
    assert world.record.newest.step == 12, "nothing of this cut is written yet"


def taken_up(world: World) -> World:
    """Another coordinator, which knows the last record, recovers the job."""
    left = world.records[-1]
    after = World(world.supervisor.spec, record=left, planned=False)
    after.supervisor.recover("node a is lost", None, after.now)
    after.take()
    for asked, generation, request in after.asked:
        after.supervisor.cuts(asked, generation, request, 0, [], after.now)
    after.take()
    return after


def test_a_job_that_moves_off_a_draining_node_still_moves_under_the_next_coordinator() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1 and world.step >= 14)
    world.supervisor.vacate(NODES[1], world.now)
    world.take()
    assert world.record.state == "pausing"
    after = taken_up(world)
    assert (after.record.state, after.replans) == ("recovering", 1)
    assert not after.record.vacating


def test_a_pause_that_is_wanted_while_it_recovers_is_so_under_the_next_coordinator() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1)
    world.supervisor.member_lost(NODES[1], "its link broke", world.now)
    world.supervisor.pause(world.now)
    world.queues.clear()
    world.take()
    assert world.record.state == "recovering"
    after = taken_up(world)
    assert (after.record.state, after.replans) == ("paused", 0)
    resumed = records.resumed(after.record, NODES[0], "a")
    assert not resumed.pausing


def test_a_pause_that_is_wanted_while_it_is_planned_anew_ends_it_at_once() -> None:
    world = World(make_spec())
    world.run(lambda: len(world.record.checkpoints) == 1)
    lose(world, NODES[1], {})
    assert (world.record.state, world.replans) == ("recovering", 1)
    world.supervisor.pause(world.now)
    assert (world.record.state, world.record.reason) == ("paused", "paused at step 10")


def test_a_move_whose_checkpoint_fails_is_over() -> None:
    world = World(make_spec(epochs=4, validation=None))
    world.run(lambda: world.record.state == "running" and world.step >= 4)
    world.failing_checkpoints = 1
    world.supervisor.vacate(NODES[1], world.now)
    world.take()
    world.run(lambda: world.record.state == "running")
    assert not world.record.vacating


def test_a_resume_goes_on_from_the_newest_checkpoint() -> None:
    spec = make_spec()
    world = World(spec)
    world.run(lambda: len(world.record.checkpoints) == 2)
    world.supervisor.fail("node a was stopped", world.now)
    again = msgspec.structs.replace(world.record, state="queued", generation=2, reason="")
    second = World(spec, 1, again, [NODES[0], NODES[2]])
    second.step = 20
    second.run()
    assert second.record.state == "done"
    assert [c.until_step for c in second.orders if isinstance(c, Train)][-1] == 30
    assert all(c.until_step > 20 for c in second.orders if isinstance(c, Train))
    assert [entry["epoch"] for entry in second.record.history] == [1, 2, 3]


def test_a_resume_over_another_cut_warns_once_where_bits_depend_on_the_cut() -> None:
    spec = make_spec(schedule="async:2", micro_batches=1)

    def plan(assignment: tuple[int, ...]) -> Plan:
        return msgspec.structs.replace(make_plan(NODES[:2]), assignment=assignment, delays=(1, 0))

    def start(record: JobRecord | None, assignment: tuple[int, ...]) -> World:
        world = World(spec, 1, record, NODES[:2], planned=False)
        world.supervisor.planned(plan(assignment), 0.0)
        world.take()
        return world

    world = start(None, (0, 0, 1))
    world.run(lambda: len(world.record.checkpoints) == 1)
    world.supervisor.member_failed(NODES[1], "connection reset", world.now)
    world.take()
    again = msgspec.structs.replace(world.record, state="queued", generation=2)
    assert again.newest is not None
    assert same_plan(again.plan, again.checkpoints, spec, set(NODES)) == plan((0, 0, 1))
    assert same_plan(again.plan, again.checkpoints, spec, {NODES[0], NODES[2]}) is None
    warning = (
        f"the run goes on from step {again.newest.step} over another cut, with other delays: its bits will differ from those "
        "of a run without a break"
    )
    for assignment, warnings, recut in (((0, 0, 1), [], False), ((0, 1, 1), [warning], True)):
        second = start(again, assignment)
        second.step = again.newest.step
        second.run(lambda second=second: len(second.record.checkpoints) > 1)  # type: ignore[misc]
        assert [fields["text"] for kind, fields in second.events if kind == "warning"] == warnings
        newest = second.record.checkpoints[-1]
        assert newest.cut == RECUT * recut + cut(spec, plan(assignment))
        assert same_plan(plan(assignment), (newest,), spec, set(NODES)) == plan(assignment)
    third = start(second.record, (0, 1, 1))  # on its new cut again: nothing to warn of, but it stays a run with two
    third.step = second.record.checkpoints[-1].step
    third.run(lambda: third.record.state == "done")
    assert not [kind for kind, _ in third.events if kind == "warning"]
    assert third.record.checkpoints[-1].cut.startswith(RECUT)


def test_a_resume_from_the_last_checkpoint_of_all_only_evaluates() -> None:
    spec = make_spec()
    world = World(spec)
    world.run()
    again = msgspec.structs.replace(world.record, state="queued", generation=2, results=())
    second = World(spec, 1, again)
    second.step = 30
    second.run()
    assert second.record.state == "done"
    assert not [c for c in second.orders if isinstance(c, Train)]
    assert second.record.bits == world.record.bits


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), after=st.integers(1, 60))
def test_a_pause_stops_all_nodes_at_one_step_with_a_checkpoint_there(seed: int, after: int) -> None:
    world = World(make_spec(epochs=20), seed)
    count = iter(range(10_000))
    world.run(lambda: world.record.state == "running" and next(count) >= after)
    world.supervisor.pause(world.now)
    world.take()
    world.run()
    assert world.record.state == "paused"
    assert world.record.newest is not None
    assert world.record.newest.step == [c.until_step for c in world.orders if isinstance(c, Train)][-1]
    with pytest.raises(UsageError, match=r"a job that is paused cannot pause; possible is: cancel, resume$"):
        world.supervisor.pause(world.now)


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_what_keeps_nothing_is_not_paused_and_not_gone_on_with(kind: str) -> None:
    world = World(make_spec(kind=kind))
    with pytest.raises(UsageError, match=f"a job of kind {kind} cannot be paused, since it keeps nothing"):
        world.supervisor.pause(world.now)
    world.run(lambda: world.record.state == "running")
    world.supervisor.member_failed(NODES[1], "connection reset", world.now)
    world.take()
    assert not world.asked, "there is nothing to go on from: it is started again"
    assert (world.record.state, world.replans) == ("recovering", 1)


def test_a_pause_whose_checkpoint_fails_lets_the_run_go_on() -> None:
    world = World(make_spec(epochs=4, validation=None))
    world.run(lambda: world.record.state == "running" and world.step >= 4)
    world.failing_checkpoints = 1
    world.supervisor.pause(world.now)
    world.take()
    world.run()
    assert world.record.state == "done"
    assert any("not paused" in f.get("reason", "") for kind, f in world.events if kind == "state")


def test_cancel_ends_at_once_and_ignores_late_answers() -> None:
    world = World(make_spec())
    world.run(lambda: world.record.state == "running" and world.step > 0)
    world.supervisor.cancel("cancelled", world.now)
    world.take()
    assert world.record.state == "cancelled"
    assert sorted(world.released) == NODES
    orders = len(world.orders)
    world.run()
    assert len(world.orders) == orders
    with pytest.raises(UsageError, match=r"cancelled cannot cancel; possible is: resume$"):
        world.supervisor.cancel("cancelled", world.now)


def test_a_node_lost_before_the_start_is_planned_around() -> None:
    world = World(make_spec())
    world.supervisor.member_failed(NODES[2], "connection reset", world.now)
    world.take()
    assert world.replans == 1
    world.nodes = NODES[:2]
    world.supervisor.planned(make_plan(world.nodes), world.now)
    world.take()
    world.run()
    assert world.record.state == "done"


def test_a_node_lost_while_the_plan_was_made_is_planned_around() -> None:
    world = World(make_spec(), planned=False)
    world.supervisor.member_failed(NODES[2], "connection reset", world.now)
    world.supervisor.planned(make_plan(NODES), world.now)
    world.take()
    assert world.replans == 1
    assert not any(world.queues.values()), "nobody was asked for its place"
    assert ("warning", {"text": "node c is gone before the job started; planning without it"}) in world.events
    world.nodes = NODES[:2]
    world.supervisor.planned(make_plan(world.nodes), world.now)
    world.take()
    world.run()
    assert world.record.state == "done"


def test_a_new_plan_is_a_new_generation_and_takes_its_places_anew() -> None:
    world = World(make_spec())
    world.run(lambda: world.now > 0.04)  # node a has granted its place
    world.supervisor.member_failed(NODES[2], "connection reset", world.now)
    world.take()
    assert set(world.released) >= {NODES[0]}
    world.supervisor.planned(make_plan(NODES[:2]), world.now)
    world.take()
    assert world.record.generation == 2
    assert world.records[-1].generation == 2


def test_a_node_that_does_not_move_any_more_is_lost() -> None:
    world = World(make_spec(epochs=20))
    world.run(lambda: world.record.state == "running" and world.step > 20)
    due = world.supervisor.get_timer()
    assert due is not None
    world.supervisor.handle_timer(due - 1.0)
    assert world.record.state == "running"
    while world.record.state == "running":
        due = world.supervisor.get_timer()
        assert due is not None
        world.supervisor.handle_timer(due)
    assert re.fullmatch(r"node [abc]: its compute process has not moved for \d+ s", world.record.reason)
    assert world.record.state == "recovering"


def test_a_node_that_is_never_prepared_fails_the_job_unless_it_tells_of_its_fetching() -> None:
    world = World(make_spec())
    for node in NODES:
        world.supervisor.granted(node, 1.0)
    for node in NODES[:2]:
        world.supervisor.prepared(node, 1, 2.0)
    world.supervisor.preparing(NODES[2], 1, 2, 500.0)
    world.supervisor.handle_timer(1000.0)
    assert world.record.state == "preparing"
    due = world.supervisor.get_timer()
    assert due is not None
    world.supervisor.handle_timer(20_000.0)
    assert world.record.reason == "node c: its preparing has not moved for 19500 s"


def test_a_failing_buddy_is_replaced_and_with_nobody_left_one_copy_has_to_do() -> None:
    world = World(make_spec(epochs=1))
    world.keep_error = "the disk is full"
    world.run()
    assert world.record.state == "done"
    warnings = [f["text"] for kind, f in world.events if kind == "warning"]
    assert len(warnings) == 3, "one per part"
    assert all("the checkpoint of step 10 has only one copy, on node" in text for text in warnings)
    assert all("the disk is full" in text for text in warnings)


def test_evaluate_and_predict_are_one_command_each() -> None:
    world = World(make_spec(kind="evaluate", train=None, validation=None))
    world.run()
    assert world.record.state == "done"
    assert [type(c).__name__ for c in world.orders] == ["Evaluate", "Finish"]
    assert world.record.results[0].loss == 0.5
    predicting = World(make_spec(kind="predict", train=None, validation=None))
    predicting.run()
    assert [type(c).__name__ for c in predicting.orders] == ["Predict", "Finish"]


def test_every_state_ends_somewhere() -> None:
    for state, changes in life.TABLE.items():
        assert set(changes.values()) <= set(life.TABLE)
        assert state == "done" or changes
