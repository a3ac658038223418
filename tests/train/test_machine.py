"""Many machines in virtual time: random graphs, assignments, frames, speeds and scripts. None may hang or break a rule."""

from __future__ import annotations

import heapq
import random
from typing import Any

import msgspec
import pytest

from p2pnn.errors import LocalProtocolError
from p2pnn.job import script
from p2pnn.job.segment import delays
from p2pnn.train.machine import Answer, Backward, Finished, Forward, Machine, Retired, Send, Squares, Update
from p2pnn.train.schedule import Mode, Routes
from tests.train.graphs import random_graph

SPLITS = {"validation": 2, "test": 3}


class Mesh:
    """N machines and the links between them, one event queue. What a place holds is the number of its micro-batch."""

    def __init__(
        self, seed: int, machine: type[Machine] = Machine, ops_max: int = 8, in_flight_max: int = 0, step: int = 0
    ) -> None:
        self.dice = dice = random.Random(seed)
        graph = random_graph(dice, ops_max)
        self.nodes = dice.randint(1, 4)
        in_flight = dice.randint(1, in_flight_max) if in_flight_max else 0
        self.frames = in_flight or dice.randint(1, 4)
        self.micro_batches = 1 if in_flight else dice.randint(1, 3)
        self.clip = dice.random() < 0.5 and in_flight < 2
        assignment = [dice.randrange(self.nodes) for _ in graph.ops]
        self.delays = delays(graph, assignment, in_flight, self.nodes) or (0,) * self.nodes
        self.step = step
        self.routes = [Routes(graph, assignment, n, self.nodes) for n in range(self.nodes)]
        self.transfers = self.routes[0].transfers
        self.machines = [
            machine(
                r,
                self.frames,
                self.micro_batches,
                delay=delay,
                step=step,
                split_batches=SPLITS,
                clip=self.clip,
            )
            for r, delay in zip(self.routes, self.delays, strict=True)
        ]
        # What the parameters' buffers hold: a version's number, in a ring of one more than the delay.
        self.versions = [{v % (d + 1): v for v in range(max(0, step - d), step + 1)} for d in self.delays]
        self.queue: list[tuple[float, int, int, Any]] = []
        self.count = 0
        self.busy = [False] * self.nodes
        self.places: list[dict[tuple[str, int, int], int]] = [{} for _ in range(self.nodes)]
        self.ran: list[dict[tuple[str, int], list[int]]] = [{} for _ in range(self.nodes)]
        self.updates = [step] * self.nodes
        self.most_ahead = 0
        self.answers: list[list[int]] = [[] for _ in range(self.nodes)]
        self.finished = [False] * self.nodes
        self.speed = [10 ** dice.uniform(-1, 1) for _ in range(self.nodes)]
        self.delay = [[10 ** dice.uniform(-1, 1) for _ in range(self.nodes)] for _ in range(self.nodes)]
        self.script = [
            script.Train(0, step + 1),
            script.Evaluate(1, "validation"),
            script.Train(2, step + dice.randint(1, 3)),
            dice.choice((script.Checkpoint(3), script.Restore(3, ()))),
            dice.choice(
                (script.Predict(4), script.Sample(4, (1, 2)), script.Evaluate(4, "test"), script.Train(4, step + 2))
            ),
            script.Finish(),
        ]
        if in_flight:
            self.script[3:3] = self.pieces(dice, step + 3)
            self.script = [self.numbered(command, n) for n, command in enumerate(self.script)]

    @staticmethod
    def pieces(dice: random.Random, step: int) -> list[Any]:
        """Train commands one after the other, now and then a cut between them."""
        found: list[Any] = []
        for _ in range(dice.randint(1, 4)):
            step += dice.randint(0, 4)
            found.append(script.Train(0, step))
            if dice.random() < 0.2:
                found.append(dice.choice((script.Checkpoint(0), script.Evaluate(0, "test"))))
        return found

    @staticmethod
    def numbered(command: Any, sequence: int) -> Any:
        return command if isinstance(command, script.Finish) else msgspec.structs.replace(command, sequence=sequence)

    def post(self, now: float, node: int, event: Any) -> None:
        self.count += 1
        heapq.heappush(self.queue, (now, self.count, node, event))

    def run(self) -> None:
        for node in range(self.nodes):
            now = 0.0
            for command in self.script:
                now += self.dice.random() * self.dice.choice((0, 20))
                self.post(now, node, command)
        while self.queue:
            now, _, node, event = heapq.heappop(self.queue)
            self.happen(now, node, event)
            self.turn(now, node)
        assert all(self.finished), f"nodes {self.finished} hang"
        self.check()

    def happen(self, now: float, node: int, event: Any) -> None:
        machine = self.machines[node]
        if not isinstance(event, tuple) or isinstance(event, (Forward, Backward, Squares, Update, Answer, Finished)):
            if isinstance(event, (script.Command)):
                machine.command(event)
                return
            self.complete(now, node, event)
            return
        kind, *values = event
        if kind == "arrived":
            transfer, m = values
            place = self.place(transfer, m)
            source = self.transfers[transfer].source
            assert self.places[source][place] == m, "a tensor changed while it was sent"
            machine.arrived(transfer, m)
            self.places[node][place] = m
            self.post(now + self.dice.random() * self.delay[node][source], source, ("sent", transfer, m))
        else:
            getattr(machine, kind)(*values)

    def complete(self, now: float, node: int, action: Any) -> None:
        """A computation ends now."""
        machine = self.machines[node]
        self.busy[node] = False
        squares = [1.0] * len(self.routes[node].owned[node])
        if isinstance(action, (Forward, Backward)):
            self.read(node, action)
            sends = action.task.backward_sends if isinstance(action, Backward) else action.task.sends
            for transfer in sends:
                self.places[node][self.place(transfer, action.micro_batch)] = action.micro_batch
            runs = self.ran[node].setdefault((type(action).__name__, action.task.position), [])
            assert not runs or runs[-1] < action.micro_batch, "out of order"
            runs.append(action.micro_batch)
        elif isinstance(action, Squares):
            for peer in set(range(self.nodes)) - {node}:
                delay = self.dice.random() * self.delay[node][peer]
                self.post(now + delay, peer, ("peer_squares", node, action.step, squares))
        elif isinstance(action, Update):
            self.check_step(node, action)
            self.versions[node][self.updates[node] % (self.delays[node] + 1)] = self.updates[node]
        elif isinstance(action, Answer):
            self.answers[node].append(action.command.sequence)
        elif isinstance(action, Finished):
            self.finished[node] = True
        machine.done(action, squares)

    def turn(self, now: float, node: int) -> None:
        machine = self.machines[node]
        for out in machine.outgoing():
            if isinstance(out, Retired):
                for peer in set(range(self.nodes)) - {node}:
                    self.post(
                        now + self.dice.random() * self.delay[node][peer], peer, ("peer_retired", node, out.until)
                    )
            else:
                self.leave(now, out)
        if self.busy[node] or self.finished[node]:
            return
        action = machine.next_action()
        if action is not None:
            if isinstance(action, (Forward, Backward)):
                self.read(node, action)
            self.busy[node] = True
            self.post(now + self.dice.random() * self.speed[node], node, action)

    def leave(self, now: float, send: Send) -> None:
        transfer = self.transfers[send.transfer]
        room = self.machines[transfer.target].retired + self.frames
        assert send.micro_batch < room, "sent without credit"
        delay = self.dice.random() * self.delay[transfer.source][transfer.target]
        self.post(now + delay, transfer.target, ("arrived", send.transfer, send.micro_batch))

    def read(self, node: int, action: Forward | Backward) -> None:
        """Everything that a computation reads is there, at its start and at its end: other nodes' tensors, and in training
        the parameters after exactly so many updates."""
        machine, delay = self.machines[node], self.delays[node]
        if machine.stage.mode == "train":
            step, _ = machine.stage.at(action.micro_batch)
            version = max(0, step - delay)
            assert self.versions[node].get(version % (delay + 1)) == version, "another version's parameters"
            assert isinstance(action, Forward) or self.updates[node] == step, "a gradient before its turn"
            self.most_ahead = max(self.most_ahead, step - self.updates[node])
        needs = action.task.backward_needs if isinstance(action, Backward) else action.task.needs
        for transfer in self.transfers:
            if needs >> transfer.index & 1:
                held = self.places[node][self.place(transfer.index, action.micro_batch)]
                assert held == action.micro_batch, "a place was overwritten"

    def place(self, transfer: int, m: int) -> tuple[str, int, int]:
        t = self.transfers[transfer]
        return t.value, t.consumer, m % self.frames

    def check_step(self, node: int, update: Update) -> None:
        """Each task ran this step's last micro-batch, and no backward pass is beyond it."""
        stage = self.machines[node].stage
        last = stage.begin(update.step + 1) - 1
        for task in self.routes[node].modes["train"].tasks:
            assert self.ran[node]["Forward", task.position][-1] >= last
            if task.has_backward:
                assert self.ran[node]["Backward", task.position][-1] == last
        assert update.step == self.updates[node]
        owners = {n for n, names in enumerate(self.routes[node].owned) if names}
        if self.clip and node in owners:
            assert update.squares is not None
            assert update.squares.keys() == owners
        self.updates[node] += 1

    def check(self) -> None:
        """Every micro-batch went through every task of its mode exactly once."""
        step = self.step
        stages: list[Mode] = []
        for command in self.script:
            if isinstance(command, script.Train):
                stages.extend("train" for _ in range(self.micro_batches * max(0, command.until_step - step)))
                step = max(step, command.until_step)
            elif isinstance(command, script.Evaluate):
                stages.extend("evaluate" for _ in range(SPLITS[command.split]))
            elif isinstance(command, script.Predict):
                stages.extend("predict" for _ in range(SPLITS["test"]))
            elif isinstance(command, script.Sample):
                stages.append("predict")
        for node, routes in enumerate(self.routes):
            assert self.answers[node] == list(range(len(self.script) - 1))
            assert self.updates[node] == self.machines[node].step == step
            assert self.machines[node].retired == len(stages)
            wanted: dict[tuple[str, int], list[int]] = {}
            for m, mode in enumerate(stages):
                for task in routes.modes[mode].tasks:
                    wanted.setdefault(("Forward", task.position), []).append(m)
                    if task.has_backward:
                        wanted.setdefault(("Backward", task.position), []).append(m)
            assert self.ran[node] == wanted


def run(seed: int, **options: Any) -> Mesh:
    try:
        mesh = Mesh(seed, **options)
        mesh.run()
        return mesh
    except Exception as error:
        raise AssertionError(f"repeat with: Mesh({seed}, **{options}).run()") from error


def test_thousands_of_random_meshes_none_hangs() -> None:
    for seed in range(1_500):
        run(seed)


def test_with_several_mini_batches_in_flight_none_hangs_and_each_reads_its_own_version() -> None:
    ahead = 0
    for seed in range(800):
        mesh = run(seed, in_flight_max=5, step=seed % 3 * 4)
        assert mesh.most_ahead <= max(mesh.delays)
        ahead += mesh.most_ahead == max(mesh.delays) > 0
    assert ahead > 240  # about a third of all; some half have a delay at all


@pytest.mark.long
def test_more_random_meshes_and_larger_ones() -> None:
    for seed in range(800, 10_000):
        run(seed)
        run(seed, in_flight_max=5, step=seed % 3 * 4)
    for seed in range(10_000, 20_000):
        run(seed, ops_max=20)
        run(seed, ops_max=20, in_flight_max=8, step=seed % 3 * 4)


def test_without_credits_the_simulation_would_notice() -> None:
    class Reckless(Machine):
        def outgoing(self) -> list[Send | Retired]:
            for node in range(4):
                self.peer_retired(node, 10**6)
            return super().outgoing()

    broken = 0
    for seed in range(200):
        try:
            Mesh(seed, Reckless).run()
        except (AssertionError, LocalProtocolError):
            broken += 1
    assert broken > 20


def test_an_update_that_does_not_wait_would_be_noticed() -> None:
    class Hasty(Machine):
        def _update(self) -> Any:
            return super()._update() or Update(self.step, {})

    broken = 0
    for seed in range(100):
        try:
            Mesh(seed, Hasty).run()
        except AssertionError:
            broken += 1
    assert broken > 10


def test_a_machine_that_runs_ahead_of_its_delay_would_be_noticed() -> None:
    class Ahead(Machine):
        def __init__(self, *values: Any, delay: int, **options: Any) -> None:
            super().__init__(*values, delay=delay + 1, **options)

    broken = 0
    for seed in range(100):
        try:
            Mesh(seed, Ahead, in_flight_max=5).run()
        except AssertionError:
            broken += 1
    assert broken > 5


def test_train_commands_follow_each_other_without_a_gap() -> None:
    """The next step's forward passes begin before the first command is answered, once the second is there."""
    machine = Machine(Routes(random_graph(random.Random(3), 6), [0] * 6, 0, 1), 3, 1, delay=2)
    machine.command(script.Train(0, 1))
    machine.command(script.Train(1, 3))
    kinds = []
    while (action := machine.next_action()) is not None:
        kinds.append(type(action))
        machine.done(action)
        machine.outgoing()
    assert kinds.index(Answer) > kinds.index(Update)
    assert kinds.count(Answer) == 2
    assert kinds.count(Update) == 3


def machine_of(assignment: list[int], node: int, **options: Any) -> Machine:
    dice = random.Random(3)
    graph = random_graph(dice, 6)
    assert len(assignment) == len(graph.ops)
    return Machine(Routes(graph, assignment, node, 2), 2, 2, split_batches=SPLITS, **options)


def first_assignment() -> list[int]:
    return [i % 2 for i in range(len(random_graph(random.Random(3), 6).ops))]


def test_a_tensor_that_nobody_asked_for_is_refused() -> None:
    machine = machine_of(first_assignment(), 1)
    incoming = next(t for t in machine._routes.transfers if t.target == 1)
    machine.arrived(incoming.index, 0)
    with pytest.raises(LocalProtocolError, match="came unasked"):
        machine.arrived(incoming.index, 0)
    with pytest.raises(LocalProtocolError, match="came unasked"):
        machine.arrived(incoming.index, 2)
    outgoing = next(t for t in machine._routes.transfers if t.source == 1)
    with pytest.raises(LocalProtocolError, match="came unasked"):
        machine.arrived(outgoing.index, 0)


def test_a_split_without_data_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="no data for its split 'holdout'"):
        machine_of(first_assignment(), 0).command(script.Evaluate(0, "holdout"))


def test_squares_of_another_length_are_refused() -> None:
    machine = machine_of(first_assignment(), 0, clip=True)
    with pytest.raises(LocalProtocolError, match="sent 99 squares"):
        machine.peer_squares(1, 0, [1.0] * 99)


def test_a_gated_machine_begins_no_step_before_it_may() -> None:
    machine = Machine(Routes(random_graph(random.Random(3), 6), [0] * 6, 0, 1), 3, 2, step=4, gated=True,
                      split_batches=SPLITS)  # fmt: skip

    def act() -> list[type]:
        kinds = []
        while (action := machine.next_action()) is not None:
            kinds.append(type(action))
            machine.done(action)
        return kinds

    assert act() == []
    assert machine.next_step == -1  # nothing was asked of it
    machine.command(script.Train(0, 6))
    machine.command(script.Evaluate(1, "validation"))
    assert act() == []
    assert machine.next_step == 4
    machine.allow(4)
    assert machine.next_step == -1
    one = act()
    assert one.count(Update) == 1
    assert one[-1] is Update
    assert (machine.step, machine.next_step) == (5, 5)
    machine.allow(5)
    rest = act()
    assert rest.count(Update) == 1
    assert rest.count(Answer) == 2
    assert rest[-1] is Answer
    assert machine.next_step == -1
