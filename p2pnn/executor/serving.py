"""The executor of a parameter server: some shards of a data-parallel run in one process, from Prepare to Finish.

`ps.Shard` decides; this module brings it what workers sent, whose bytes lie in the arena already, and passes on what it has to
say. It blocks on the socket only when no shard has anything to do.

The server gets the same script as the workers, and keeps no pace with them: a Train is done at once, a Checkpoint when all
workers have marked it, so that all pushes of the steps before it are applied and none of a later one.

A shard that lives on several nodes is a `ps.ReplicatedShard` on each (`executor.replicating`). Its primary alone writes it and
tells of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import threadpoolctl

from p2pnn.data.blobs import BlobStore
from p2pnn.engine.numpy.engine import NumpyEngine
from p2pnn.errors import JobFailedError, PlanError, StartLostError, StorageError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.hearing import Hearing
from p2pnn.executor.pieces import Pieces
from p2pnn.executor.replicating import Replicas, maker
from p2pnn.executor.serving_spans import ServingSpans
from p2pnn.executor.session import manifest_of
from p2pnn.executor.tally import PROGRESS_INTERVAL_S
from p2pnn.job import script
from p2pnn.job.assignment import gone_workers, is_leased
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.model import sums
from p2pnn.ps.allotment import updates
from p2pnn.ps.consistency import settings
from p2pnn.ps.copies import copies_bytes
from p2pnn.ps.granting import Leased
from p2pnn.ps.layout import Bump, server_layout, slot_of, workers_of
from p2pnn.ps.messages import BAD, Answer, Refusal
from p2pnn.ps.replicated import ReplicatedShard
from p2pnn.ps.shard import Shard
from p2pnn.replication.leases import LeaseTable

BAD_IN_A_ROW_MAX: Final = 5
"""Per worker, how many bad pushes to a shard may follow each other, from any worker, before the run is called broken. A worker
that is alone in being bad is set aside after fewer (`ps.guard`)."""


class Server:
    """One job's shards on one node."""

    def __init__(self, channel: Channel, arena: Arena, prepare: commands.Prepare, spec: JobSpec, plan: Plan) -> None:
        self._channel = channel
        self._spec, self._plan = spec, plan
        self._blobs = BlobStore(Path(prepare.blobs))
        self._limit = threadpoolctl.threadpool_limits(spec.threads)
        assert spec.data is not None  # `read` has seen to it
        self._settings = settings(spec.data)
        self._workers = workers_of(plan)
        self._numbers = {worker: number for number, worker in enumerate(self._workers)}
        layout = server_layout(spec, plan, prepare.node_index)
        if layout.arena_bytes > arena.size:
            raise PlanError(f"the arena has {arena.size:,} bytes, but the shards take {layout.arena_bytes:,}")
        self._memory = Bump(arena.view, layout.rest, layout.arena_bytes)
        self._ranges = {number: layout.sharding.shards[number] for number in layout.slots}
        self._saves = Pieces(spec, self._settings, self._ranges)
        self._shards: dict[int, Shard] = {}
        self._spans = ServingSpans(arena.view[prepare.spans :] if prepare.spans >= 0 else None, self._numbers)
        manifest = manifest_of(prepare)
        source = self._saves.source(self._blobs, manifest)
        engine = NumpyEngine()
        done, uneven = (manifest.step, manifest.uneven) if manifest is not None else (0, (0, 0))
        replicated: dict[int, ReplicatedShard] = {}
        leased = is_leased(plan, spec)
        for number, slots in layout.slots.items():
            arrays = self._saves.read(source, number, with_slots=manifest is not None)
            make: Callable[..., Shard] = Shard
            if len(plan.shards[number].nodes) > 1:
                state_bytes = (1 + len(self._saves.slots)) * self._ranges[number].byte_count
                make = maker(prepare, plan, number, slots.nbytes, state_bytes, time.perf_counter())
            self._shards[number] = shard = make(
                self._ranges[number],
                arrays["parameters"],
                spec.optimizer,
                self._settings,
                self._workers,
                slot=partial(slot_of, arena.view, slots),
                buffer=self._memory,
                steps=updates(self._settings, len(self._workers), spec.steps),
                combine=engine.combine,
                did=partial(self._spans.did, number),
                leases=LeaseTable(spec.steps_per_epoch, spec.epochs, done, *uneven) if leased and number == 0 else None,
            )
            if isinstance(shard, ReplicatedShard):
                replicated[number] = shard
            if manifest is not None:
                shard.resume({**shard.arrays, **arrays}, updates(self._settings, len(self._workers), done))
        self._replicas = Replicas(prepare, plan, replicated, layout.slots, arena.view)
        self._hearing = Hearing(self._shards, layout.slots, self._workers)
        self._through = 0  # the newest command of the script of which all is done here
        self.memory_bytes = layout.arena_bytes + self._own_bytes()
        self._check_memory(plan, prepare.node_index)
        self._script: deque[script.Command] = deque()
        self._tokens = count(1)
        self._leaving: dict[int, tuple[int, Answer]] = {}
        self._told_at = self._since = time.perf_counter()
        self._told: tuple[script.ShardReport, ...] = ()
        self._compute_s = 0.0
        self._bad = dict.fromkeys(self._shards, 0)

    def _own_bytes(self) -> int:
        """What lies outside the arena: the optimizer's arrays, what shards sum or decode into, and copies for their replicas."""
        scratch = int(self._settings.push != "float32")
        if self._settings.consistency.in_rounds:
            scratch += sums.most(len(self._workers))
        own = sum(
            4 * self._ranges[number].size * (len(shard.arrays) - 1 + scratch) for number, shard in self._shards.items()
        )
        in_round = len(self._workers) * self._settings.consistency.in_rounds
        for shard in self._shards.values():
            if isinstance(shard, ReplicatedShard):
                state_bytes = sum(array.nbytes for array in shard.arrays.values())
                own += copies_bytes(shard.state.staging.nbytes, state_bytes, in_round)
        return own

    def _check_memory(self, plan: Plan, node_index: int) -> None:
        limits = (self._spec.memory_bytes_max, plan.nodes[node_index].memory_bytes_max)
        for limit, whose in zip(limits, ("the job's limit (--memory) is", "this node has"), strict=True):
            if 0 < limit < self.memory_bytes:
                raise PlanError(
                    f"this node's shards of the parameters take {self.memory_bytes:,} bytes, but {whose} {limit:,}; use more"
                    " shards on more nodes"
                )

    def run(self, early: Sequence[commands.ToExecutor] = ()) -> None:
        """Serve until the script ends. early: messages that came with Prepare."""
        self._channel.send(commands.Prepared(self.memory_bytes))
        for message in early:
            self._take(message)
        with np.errstate(all="ignore"):  # what is no number is refused, not warned of
            while True:
                moved = self._follow_script()
                worked = self._work()
                self._send()
                if self._script and isinstance(self._script[0], script.Finish):
                    self._report()
                    return
                self._receive(wait=not (moved or worked))

    # what comes in

    def _receive(self, *, wait: bool) -> None:
        """Take what has come; where there is nothing to do, wait for it, and report what was not reported in the meantime."""
        now = time.perf_counter()
        patience: float | None = max(0.0, self._told_at + PROGRESS_INTERVAL_S - now)
        if not patience:
            self._report()
            patience = None
        timer = self._replicas.get_timer()
        if timer is not None:
            until = max(0.0, timer - now)
            patience = until if patience is None else min(patience, until)
        for message in self._channel.receive(patience if wait else 0.0):
            self._take(message)
        if timer is not None:
            self._replicas.handle_timer(time.perf_counter())

    def _take(self, message: commands.ToExecutor) -> None:
        now = time.perf_counter()
        match message:
            case (
                commands.PushArrived()
                | commands.Fetched()
                | commands.Marked()
                | commands.Rested()
                | commands.LeasesWished()
            ):
                self._hearing.take(message, now)
            case commands.Assigned(packed):
                self._assigned(packed, now)
            case commands.AnswerLeft():
                number, answer = self._leaving.pop(message.token, (-1, None))
                if answer is not None:
                    self._shards[number].answer_sent(answer, now)
            case commands.Replicated():
                self._replicas.receive(message, now)
            case commands.ReplicaLeft(token):
                self._replicas.left(token)
            case commands.Prepare():
                raise JobFailedError("the executor was told Prepare twice")
            case script.Predict() | script.Sample():
                raise JobFailedError(f"a parameter server was told {type(message).__name__}")
            case script.Train() | script.Evaluate() | script.Checkpoint() | script.Restore() | script.Finish():
                self._script.append(message)
            case _:
                raise JobFailedError(f"a parameter server was told {type(message).__name__}")

    def _assigned(self, packed: bytes, now: float) -> None:
        """Who has which role now: workers that are gone are waited for no more."""
        found = self._replicas.assigned(packed, self._through, now)
        for worker in gone_workers(found.gone, self._plan):
            for shard in self._shards.values():
                shard.leave(self._workers[worker], now)
        self._hearing.again(now)

    # what is done

    def _work(self) -> bool:
        """One decision of each shard that has one to make."""
        start = now = time.perf_counter()
        worked = False
        for shard in self._shards.values():
            self._spans.begins(now)
            worked |= shard.work(start)
            now = time.perf_counter()
        if worked:
            self._compute_s += now - start
        return worked

    def _send(self) -> None:
        out: list[commands.FromExecutor] = []
        for number, shard in self._shards.items():
            while (answer := shard.next_answer(time.perf_counter())) is not None:
                out.append(self._answer(number, shard, answer))
            while (leased := shard.next_leased()) is not None:
                out.append(self._leased(number, leased))
            if shard.is_deserted:
                why = "was set aside by a shard for its bad pushes, so nobody is left to train"
                if shard.state.gone:  # who is lost was not: with all nodes there are others
                    raise StartLostError(f"every worker that is left {why}")
                raise JobFailedError(f"every worker {why}")
        out += self._replicas.say(time.perf_counter())
        if out:
            self._channel.send(*out)

    def _leased(self, number: int, leased: Leased) -> commands.SendLeased:
        about = (leased.number, leased.ranges, leased.trained_below, leased.again, leased.never)
        return commands.SendLeased(number, self._numbers[leased.worker], *about)

    def _answer(self, number: int, shard: Shard, answer: Answer) -> commands.SendAnswer:
        token, values = next(self._tokens), answer.values
        self._look_at(number, answer)
        refusal = answer.refusal.name if answer.refusal is not None else ""
        said = commands.SendAnswer(
            token,
            number,
            self._numbers[answer.worker],
            answer.sequence,
            answer.request,
            refusal,
            answer.log_number,
            shard.acknowledged(answer.worker),
            by=answer.generation,
            lately=answer.lately,
        )
        if values is None:
            shard.answer_sent(answer, time.perf_counter())
            return said
        self._leaving[token] = number, answer
        offset, nbytes = self._memory.run(values.data)
        return msgspec.structs.replace(
            said,
            offset=offset,
            nbytes=nbytes,
            version=values.version,
            clock=values.clock,
            whole=values.whole,
            number=values.number,
        )

    def _look_at(self, number: int, answer: Answer) -> None:
        """Raise JobFailedError where a shard has refused so many pushes in a row for what they hold that nobody can be right."""
        if not answer.sequence:
            return
        if answer.refusal is None:
            self._bad[number] = 0
        elif answer.refusal in BAD:
            self._bad[number] += 1
            if self._bad[number] >= BAD_IN_A_ROW_MAX * len(self._workers):
                raise JobFailedError(
                    f"the last {self._bad[number]} pushes to shard {number} were refused: {answer.refusal.value}; lower the"
                    " learning rate, clip gradients or scale the data"
                )

    def _follow_script(self) -> bool:
        """Carry out the commands whose time has come, in order; True where there was one."""
        moved = False
        while self._script:
            command = self._script[0]
            match command:
                case script.Train():
                    done = script.Done(command.sequence)
                case script.Evaluate() | script.Restore():
                    done = script.Done(command.sequence)
                    self._served(command.sequence)
                case script.Checkpoint():
                    if not all(self._is_at(shard, command.sequence) for shard in self._shards.values()):
                        break
                    self._report()
                    done = self._checkpoint(command.sequence)
                    self._served(command.sequence)
                case _:
                    break
            self._script.popleft()
            self._channel.send(done)
            moved = True
        return moved

    @staticmethod
    def _is_at(shard: Shard, sequence: int) -> bool:
        """Whether all workers have drawn a mark, as far as that is this process's concern: a backup writes nothing."""
        if isinstance(shard, ReplicatedShard):
            return not shard.is_primary or (shard.is_serving and shard.is_marked(sequence))
        return shard.is_marked(sequence)

    def _served(self, sequence: int) -> None:
        self._through = sequence
        for shard in self._shards.values():
            shard.served(sequence, time.perf_counter())

    def _led(self) -> dict[int, Shard]:
        """The shards whose primary this process is, by number."""
        led = self._shards.items()
        return {number: shard for number, shard in led if not isinstance(shard, ReplicatedShard) or shard.is_primary}

    def _checkpoint(self, sequence: int) -> script.Done:
        try:
            part = self._saves.write(self._blobs, {number: shard.arrays for number, shard in self._led().items()})
        except StorageError as error:
            return script.Done(sequence, error=str(error))
        return script.Done(sequence, msgspec.msgpack.encode(part) if part is not None else b"")

    # what is told

    def _report(self) -> None:
        """Say how the shards are, where that has changed."""
        now = time.perf_counter()
        self._told_at = now
        served = tuple(self._shard_report(number) for number in self._led())
        if served == self._told:
            return
        report = script.Progress(0, (0.0, 0), {}, self._compute_s, now - self._since, served=served)
        self._since, self._compute_s, self._told = now, 0.0, served
        self._channel.send(report)

    def _shard_report(self, number: int) -> script.ShardReport:
        found, of = self._shards[number].report(), self._numbers
        return script.ShardReport(
            number,
            found.version,
            dict(found.staleness.counts),
            {of[worker]: taken for worker, taken in found.taken.items() if worker in of},
            tuple(
                sorted(
                    (of[worker], why.name, often)
                    for (worker, why), often in found.refused.items()
                    if worker in of and why is not Refusal.STALE_GENERATION  # it was pushed again to whoever leads now
                )
            ),
            tuple(sorted(of[worker] for worker in found.set_aside if worker in of)),
            found.received_bytes,
            found.sent_bytes,
            found.queued,
            {of[worker]: often for worker, often in found.zeros.items() if worker in of},
            *self._replicas.roles(number),
            self._replicas.copied_bytes.get(number, 0),
        )
