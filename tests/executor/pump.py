"""A data-parallel run on real executor processes, with a pump in place of daemons: it moves bytes between arenas, through the
gates that daemons ask, and messages between workers and servers.

All nodes have one blob store. Node n of the plan is worker n's, or the workers' nodes come one after the other where replicas are
cut; servers are behind the workers, or `together` with them.
"""

from __future__ import annotations

import random
import select
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from p2pnn.data.blobs import BlobStore
from p2pnn.executor import channel, commands
from p2pnn.executor.process import Spawned
from p2pnn.job import assignment, script
from p2pnn.job.checkpoint import Manifest, Part
from p2pnn.job.plan import Plan, Replica, ShardHome
from p2pnn.job.segment import transfers
from p2pnn.job.spec import DataParallel, JobSpec
from p2pnn.ps.gate import PushGate, ValuesGate
from p2pnn.ps.layout import ServerLayout, WorkerLayout, server_layout, worker_layout
from p2pnn.train.frames import layout
from p2pnn.train.gate import Gate
from p2pnn.wire.codec import decode
from p2pnn.wire.messages import Forward
from tests.executor.mesh import DEADLINE_S, spawn_warm
from tests.train.graphs import plan_for

GENERATION = 7
"""Of the start."""

Key = tuple[str, int]
"""(role, node of the plan)."""


def data_plan(
    spec: JobSpec,
    workers: int,
    shards: int,
    *,
    servers: int = 0,
    frames: int = 2,
    together: bool = False,
    copies: int = 1,
) -> Plan:
    """servers: nodes that the shards are dealt to; 0 for one each. copies: nodes that hold each shard."""
    servers = servers or max(shards, copies)
    first = 0 if together else workers
    nodes = max(workers, first + servers)
    plan = plan_for([0] * len(spec.graph.ops), nodes, frames)
    return msgspec.structs.replace(
        plan,
        replicas=tuple(Replica((worker,)) for worker in range(workers)),
        shards=tuple(
            ShardHome(tuple(first + (shard + copy) % servers for copy in range(copies))) for shard in range(shards)
        ),
    )


def hybrid_plan(
    spec: JobSpec,
    assignment: Sequence[int],
    workers: int,
    shards: int,
    *,
    frames: int = 2,
    together: bool = False,
    copies: int = 1,
) -> Plan:
    """Each of the workers has as many nodes as the assignment names."""
    nodes = max(assignment) + 1
    plan = data_plan(spec, workers * nodes, shards, frames=frames, together=together, copies=copies)
    replicas = tuple(Replica(tuple(range(w * nodes, (w + 1) * nodes))) for w in range(workers))
    return msgspec.structs.replace(plan, assignment=tuple(assignment), replicas=replicas)


def hybrid(spec: JobSpec, consistency: str = "sync", **settings: Any) -> JobSpec:
    """The same job, with replicas that are cut over nodes."""
    return msgspec.structs.replace(spec, parallel="hybrid", data=DataParallel(consistency, segments=0, **settings))


def parallel(spec: JobSpec, consistency: str = "sync", **settings: Any) -> JobSpec:
    """The same job, data-parallel."""
    return msgspec.structs.replace(spec, parallel="data", data=DataParallel(consistency, **settings))


class Pump:
    """One start of a job. Use as a context manager. dice: shuffles what waits to be delivered; None for in order.

    slow: workers whose messages wait longer than others'. served: the newest report of each shard.
    """

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        blobs: BlobStore,
        *,
        checkpoint: Manifest | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self.spec, self.plan, self.blobs, self.dice = spec, plan, blobs, dice
        self.computing = [node for replica in plan.replicas for node in replica.nodes]
        self.primaries = [home.nodes[0] for home in plan.shards]
        self.servers = sorted({node for home in plan.shards for node in home.nodes})
        self.assignment = assignment.initial(plan, GENERATION)
        self.proposed = 0
        self.transfers = transfers(spec.graph, plan.assignment)
        self.tensors = {
            node: layout(spec.graph, plan.replica(plan.worker_of(node)), plan.position(node), spec.rows_per_micro_batch)
            for node in self.computing
        }
        self.gates = {
            node: Gate(spec.graph, plan.replica(plan.worker_of(node)), plan.position(node), self.tensors[node])
            for node in self.computing
        }
        self.landing: dict[int, WorkerLayout] = {
            node: worker_layout(spec, plan, node, self.tensors[node].arena_bytes) for node in self.computing
        }
        self.slots: dict[int, ServerLayout] = {node: server_layout(spec, plan, node) for node in self.servers}
        self.values_gates = {node: ValuesGate(plan, layout) for node, layout in self.landing.items()}
        self.push_gates = {node: PushGate(plan, layout) for node, layout in self.slots.items()}
        sizes: dict[Key, int] = {("compute", n): layout.stop for n, layout in self.landing.items()}
        sizes |= {("serve", n): layout.arena_bytes for n, layout in self.slots.items()}
        self.spawned: dict[Key, Spawned] = {key: spawn_warm(size, spec.threads) for key, size in sizes.items()}
        self.codecs = {key: channel.Codec[commands.FromExecutor](commands.FromExecutor) for key in self.spawned}
        self.done: dict[Key, dict[int, script.Done]] = {key: {} for key in self.spawned}
        self.progress: dict[Key, list[script.Progress]] = {key: [] for key in self.spawned}
        self.prepared: dict[Key, int] = {}
        self.failed: dict[Key, str] = {}
        self.lost: dict[Key, bool] = {}  # of those that failed: whether only what they held is lost
        self.served: dict[int, script.ShardReport] = {}
        self.answers: Counter[str] = Counter()  # refusals as workers got them; "" for none
        self.hanging: set[int] = set()  # nodes whose servers hear nothing of other servers, nor are heard by them
        self.dropped = 0  # values for which no place was lent
        self.spoil: Callable[[int, commands.PushPart, memoryview], None] | None = None
        self.finishing = False
        self.wishes = 0
        self.sequence = 0
        self._began = False
        self._gone: set[Key] = set()
        self._waiting: list[tuple[Key, Any]] = []  # messages that were received and not acted upon
        spec_path = blobs.path(blobs.put(msgspec.msgpack.encode(spec)))
        for role, node in self.spawned:
            prepare = commands.Prepare(
                str(spec_path),
                msgspec.msgpack.encode(plan),
                node,
                str(blobs.root),
                checkpoint=msgspec.msgpack.encode(checkpoint) if checkpoint else b"",
                role=role,
                landings=self.landing[node].start if role == "compute" else -1,
                job="j",
                generation=GENERATION,
            )
            self.tell((role, node), prepare)

    def __enter__(self) -> Pump:
        return self

    def __exit__(self, *_: object) -> None:
        for spawned in self.spawned.values():
            spawned.kill()

    # the coordinator's side

    def prepare(self) -> None:
        self.route(lambda: len(self.prepared) == len(self.spawned))
        self._begin()

    def _begin(self) -> None:
        """Where shards have replicas: all may be there now."""
        if self.assignment.shards and not self._began:
            self._began = True
            for key in self.spawned:
                if key[0] == "serve":
                    self.tell(key, commands.Assigned(assignment.encode(self.assignment)))

    def kill(self, node: int) -> None:
        """A node's server dies; its shards' backups take over."""
        self.spawned.pop(("serve", node)).kill()
        self._waiting = [(key, message) for key, message in self._waiting if key != ("serve", node)]
        after = assignment.without(self.assignment, self.plan, self.spec, node)
        assert after is not None
        self.assign(after)

    def assign(self, after: assignment.Assignment) -> None:
        """It is committed: all are told."""
        self.assignment = assignment.committed(self.assignment, after, self.assignment.version[0] + 1)
        self.primaries = [assignment.primary_of(self.assignment, self.plan, n) for n in range(len(self.plan.shards))]
        for gate in self.values_gates.values():
            gate.assigned(self.primaries)
        for key in self.spawned:
            self.tell(key, commands.Assigned(assignment.encode(self.assignment)))

    def command(self, make: Callable[[int], Any]) -> int:
        """Give every executor the command `make(sequence)`; returns the sequence number."""
        if self.assignment.shards and not self._began:
            self.prepare()
        self.sequence += 1
        message = make(self.sequence)
        for key in self.spawned:
            self.tell(key, message)
        return self.sequence

    def results(self, sequence: int) -> dict[Key, script.Done]:
        self.route(lambda: all(sequence in self.done[key] for key in self.spawned))
        return {key: self.done[key][sequence] for key in self.spawned}

    def train(self, *until_steps: int) -> None:
        """Train up to the last of these steps, by one command for each, all sent at once."""

        def upto(step: int) -> Callable[[int], script.Train]:
            return lambda number: script.Train(number, step)

        numbers = [self.command(upto(step)) for step in until_steps]
        for number in numbers:
            self.results(number)

    def evaluate(self, split: str) -> script.Evaluation:
        """The sum of all workers' shares."""
        answers = self.results(self.command(lambda number: script.Evaluate(number, split)))
        found = [
            msgspec.msgpack.decode(done.result, type=script.Evaluation)
            for (role, _), done in answers.items()
            if role == "compute"
        ]
        assert not any(done.result for (role, _), done in answers.items() if role == "serve")
        names = {name for one in found for name in one.metrics}
        metrics = {
            name: (sum(e.metrics[name][0] for e in found if name in e.metrics),
                   sum(e.metrics[name][1] for e in found if name in e.metrics))
            for name in names
        }  # fmt: skip
        return script.Evaluation(sum(e.loss_sum for e in found), sum(e.rows for e in found), metrics)

    def checkpoint(self) -> tuple[Part, ...]:
        answers = self.results(self.command(script.Checkpoint))
        assert not any(answer.error for answer in answers.values()), answers
        written = [answer.result for answer in answers.values() if answer.result]
        return tuple(msgspec.msgpack.decode(result, type=Part) for result in written)

    def finish(self) -> list[int]:
        """End the script; the exit statuses."""
        self.finishing = True
        for key in self.spawned:
            self.tell(key, script.Finish())
        self.route(lambda: all(spawned.socket.fileno() < 0 for spawned in self.spawned.values()))
        return [spawned.process.wait() for spawned in self.spawned.values()]

    # the daemons' side

    def route(self, until: Callable[[], bool]) -> None:
        """Carry messages until the condition holds. Raises AssertionError for a failure, or when nothing happens."""
        deadline = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline, "the run hangs"
            by_socket = {s.socket: key for key, s in self.spawned.items() if s.socket.fileno() >= 0}
            ready, _, _ = select.select(list(by_socket), [], [], 0 if self._waiting else 0.5)
            for connection in ready:
                key = by_socket[connection]
                data = connection.recv(1 << 16)
                if not data:
                    connection.close()
                self._waiting += [(key, message) for message in self.codecs[key].feed(data)]
            assert self._waiting or self.finishing or not self._gone, f"{self._gone} are gone and said nothing"
            if self._waiting:
                self.receive(*self._waiting.pop(self._next()))
            if self.failed:
                raise AssertionError(str(self.failed))

    def _next(self) -> int:
        """Which message goes on now: messages of one executor stay in their order."""
        if self.dice is None:
            return 0
        key = self.dice.choice(sorted({key for key, _ in self._waiting}))
        return next(n for n, (other, _) in enumerate(self._waiting) if other == key)

    def receive(self, key: Key, message: Any) -> None:
        node = key[1]
        match message:
            case commands.PushPart():
                self.push(node, message)
            case commands.FetchValues(shard, request, have, after, by, returns):
                about = request, have, after, by, returns
                self.tell_server(shard, commands.Fetched(shard, self.plan.worker_of(node), *about))
            case commands.Lend(shard):
                self.values_gates[node].lend(shard)
            case commands.SendMark(sequence):
                for shard in self.landing[node].landings:
                    self.tell_server(shard, commands.Marked(shard, self.plan.worker_of(node), sequence))
            case commands.SendAnswer():
                self.answer(node, message)
            case commands.Send(transfer, micro_batch):
                self.carry(node, transfer, micro_batch)
            case commands.Retired(count):
                self.gates[node].retired(count)
                for sender in self.gates[node].senders:
                    retired = commands.PeerRetired(self.plan.position(node), count)
                    self.tell(("compute", self.company(node)[sender]), retired)
            case commands.Squares(step, squares):
                for peer in self.company(node):
                    if peer != node:
                        self.tell(("compute", peer), commands.PeerSquares(self.plan.position(node), step, squares))
            case commands.Replicate():
                self.replicate(node, message)
            case commands.Recall(_, tokens):
                for token in tokens:
                    self.tell(key, commands.ReplicaLeft(token))
            case commands.Applied(shard, worker, sequence):
                self.push_gates[node].acknowledged(shard, worker, sequence)
            case commands.ProposeConfiguration(shard, packed):
                wish = assignment.decode_configuration(packed) if packed else None
                after = assignment.wished(self.assignment, shard, wish) if wish is not None else None
                self.proposed += after is not None
                if after is not None:
                    self.assign(after)
                else:
                    self.tell(key, commands.Assigned(assignment.encode(self.assignment)))
            case commands.SendRest(pushes):
                for shard in self.landing[node].landings:
                    self.tell_server(shard, commands.Rested(shard, self.plan.worker_of(node), pushes))
            case commands.Dealt():
                for peer in self.company(node)[1:]:
                    self.tell(("compute", peer), message)
            case commands.Decided(steps, back, bad):
                decided = commands.Decided(steps, back, bad, self.plan.position(node))
                self.tell(("compute", self.company(node)[0]), decided)
            case commands.WishLeases(wish):
                self.wishes += 1
                self.tell_server(0, commands.LeasesWished(0, self.plan.worker_of(node), wish))
            case commands.SendLeased(shard, worker, number, ranges, trained_below, again, never):
                speaker = self.push_gates[node].speaker(shard, worker)
                self.tell(("compute", speaker), commands.Leased(number, ranges, trained_below, again, never))
            case commands.Prepared(memory):
                self.prepared[key] = memory
            case script.Progress():
                self.progress[key].append(message)
                self.served.update({report.shard: report for report in message.served})
            case script.Done():
                self.done[key][message.sequence] = message
            case commands.Failed(error, is_lost):
                self.failed[key] = error
                self.lost[key] = is_lost
            case _:
                raise AssertionError(f"{key} sent {message}")

    def company(self, node: int) -> tuple[int, ...]:
        """The nodes of its replica."""
        return self.plan.replicas[self.plan.worker_of(node)].nodes

    def carry(self, node: int, transfer: int, micro_batch: int) -> None:
        """A tensor between two nodes of a replica; its place is spoilt when it has left, if nobody else reads it."""
        way = self.transfers[transfer]
        target = self.company(node)[way.target]
        offset, size = self.tensors[node].place(transfer, micro_batch)
        assert self.gates[target].refusal(transfer, micro_batch, way.source, size) == ""
        to, _ = self.gates[target].take(transfer, micro_batch)
        source = self.spawned["compute", node].arena.view
        self.spawned["compute", target].arena.view[to : to + size] = source[offset : offset + size]
        if way.backward:
            source[offset : offset + size] = b"\xff" * size
        self.tell(("compute", target), commands.Arrived(transfer, micro_batch))
        self.tell(("compute", node), commands.Sent(transfer, micro_batch))

    def push(self, node: int, message: commands.PushPart) -> None:
        """A part of a push from a worker's arena into its slot on the shard's node."""
        worker, home = self.plan.worker_of(node), self.primaries[message.shard]
        if ("serve", home) not in self.spawned:
            self.tell(("compute", node), commands.Left(message.token))
            return
        gate = self.push_gates[home]
        header = (message.shard, worker, message.sequence, message.part)
        assert gate.refusal(worker, node, message.shard, message.sequence, message.part, message.nbytes) == ""
        if not gate.is_known(*header):
            offset, nbytes = gate.take(*header)
            source = self.spawned["compute", node].arena.view[message.offset : message.offset + message.nbytes]
            target = self.spawned["serve", home].arena.view[offset : offset + nbytes]
            target[:] = source
            if self.spoil:
                self.spoil(worker, message, target)
            gate.received(*header)
        arrived = commands.PushArrived(
            *header, message.based_on, message.based_clock, message.fetch, message.have, message.mark, message.by
        )
        self.tell_server(message.shard, arrived)
        self.tell(("compute", node), commands.Left(message.token))

    def answer(self, home: int, message: commands.SendAnswer) -> None:
        """An answer, its values from a server's arena into the worker's landing place, where that is lent."""
        node = self.push_gates[home].speaker(message.shard, message.worker)
        self.push_gates[home].acknowledged(message.shard, message.worker, message.acknowledged)
        place = None
        if message.nbytes:
            gate = self.values_gates[node]
            assert gate.refusal(message.shard, home, message.nbytes, message.whole) == ""
            place = gate.take(message.shard, message.nbytes)
            if place is not None:
                source = self.spawned["serve", home].arena.view[message.offset : message.offset + message.nbytes]
                self.spawned["compute", node].arena.view[place[0] : place[0] + place[1]] = source
            self.dropped += place is None
            self.tell(("serve", home), commands.AnswerLeft(message.token))
        self.answers[message.refusal] += 1
        answered = commands.Answered(
            message.shard, message.sequence, message.request, message.by, message.refusal, message.log_number, message.nbytes > 0,
            message.version, message.clock, message.whole, message.number, place is not None, message.nbytes,
            message.lately,
        )  # fmt: skip
        self.tell(("compute", node), answered)

    def replicate(self, source: int, message: commands.Replicate) -> None:
        """Between two servers: bytes of a push from slot to slot. Where one of them hangs, bytes stay on their way, the rest is
        lost."""
        target, body = message.target, message.body
        if not {source, target}.isdisjoint(self.hanging):
            if message.token and not message.nbytes:
                self.tell(("serve", source), commands.ReplicaLeft(message.token))
            return
        if ("serve", target) in self.spawned:
            found: Any = decode(message.message)
            is_told = True
            if isinstance(found, Forward):
                data = memoryview(body)
                if message.nbytes:
                    data = self.spawned["serve", source].arena.view[message.offset : message.offset + message.nbytes]
                gate, body = self.push_gates[target], b""
                part = [start for start, _ in self.slots[target].slots[found.shard].parts].index(found.start)
                header = (found.shard, found.worker - 1, found.sequence, part)
                is_told = not gate.refusal(header[1], None, found.shard, found.sequence, part, len(data))
                if is_told and not gate.is_known(*header, forwarded=True):
                    offset, nbytes = gate.take(*header)
                    self.spawned["serve", target].arena.view[offset : offset + nbytes] = data
                    gate.received(*header, forwarded=True)
            if is_told:
                self.tell(("serve", target), commands.Replicated(source, message.message, body))
        if message.token:
            self.tell(("serve", source), commands.ReplicaLeft(message.token))

    def tell_server(self, shard: int, message: Any) -> None:
        if ("serve", self.primaries[shard]) in self.spawned:
            self.tell(("serve", self.primaries[shard]), message)

    def tell(self, key: Key, message: Any) -> None:
        """Send to an executor; one that has finished its script, or failed, may be gone while others still speak."""
        try:
            self.spawned[key].socket.sendall(channel.encode(message))
        except OSError:
            self._gone.add(key)


def store(folder: Path) -> BlobStore:
    return BlobStore(folder / "blobs")
