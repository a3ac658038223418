"""What a worker's executor says to shards and hears from them: `ps.Replica`'s messages as commands, their bodies in the arena.

What shards send is received into landing places in the arena, some per shard, which are the daemon's while they are *lent*; push
bodies lie behind them and are sent from there. A worker that is cut over nodes speaks to the shards of its own segment alone.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import count

import numpy as np

from p2pnn.errors import JobFailedError, P2pnnError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.job import assignment
from p2pnn.job.assignment import Assignment
from p2pnn.job.plan import Plan
from p2pnn.ps.layout import LANDINGS, WorkerLayout
from p2pnn.ps.messages import Answer, Refusal, Values, Worker
from p2pnn.ps.outgoing import MarkNote, PullRequest, PushPart
from p2pnn.ps.worker import Replica


class Pushing:
    """Of one replica, or of one node of it."""

    def __init__(self, worker: Worker, replica: Replica, plan: Plan, layout: WorkerLayout, arena: Arena) -> None:
        self._worker, self._replica, self._plan = worker, replica, plan
        self._held = assignment.initial(plan, 0)
        self._landings = {  # by shard; the first is where the next values land
            shard: deque(
                arena.array(offset, (nbytes,), "uint8")
                for offset, nbytes in (layout.landing(shard, turn) for turn in range(LANDINGS))
            )
            for shard in layout.landings
        }
        self._lending = deque(shard for shard in self._landings for _ in range(LANDINGS))
        self._bytes = arena.array(0, (arena.size,), "uint8")
        self._tokens = count(1)
        self._leaving: dict[int, PushPart] = {}

    def assigned(self, packed: bytes) -> Assignment:
        """Who has which role now. What a shard has not acknowledged is pushed again to whoever is its primary: it counts once.
        Raises JobFailedError for what cannot be read, or is of another plan."""
        try:
            found = assignment.decode(packed)
            assignment.check(found, self._plan)
        except P2pnnError as error:
            raise JobFailedError(str(error)) from None
        self._held = found
        now = time.perf_counter()
        for shard in self._landings if found.shards else ():
            generation = found.shards[shard].generation
            if generation > self._replica.generation_of(shard):
                self._replica.restart(generation, now, shard)
        return found

    def left(self, token: int) -> None:
        """A part of a push has left. Raises JobFailedError for one that is not under way."""
        part = self._leaving.pop(token, None)
        if part is None:
            raise JobFailedError(f"the executor was told that message {token} left, which it did not send")
        self._replica.sent(part)

    def answered(self, message: commands.Answered) -> None:
        """A shard's answer is here. Raises JobFailedError for one that no shard gives."""
        landings = self._landings.get(message.shard)
        if landings is None:
            raise JobFailedError(f"shard {message.shard} answered {message.refusal!r}, which it cannot")
        if message.refusal and message.refusal not in Refusal.__members__:
            node = self._plan.nodes[assignment.primary_of(self._held, self._plan, message.shard)].name
            raise JobFailedError(
                f"node {node}, which holds shard {message.shard}, refused a push as {message.refusal!r}, which is not known here:"
                " give all nodes the same version of p2pnn, and resume the job"
            )
        landing = landings[0]
        values = None
        if message.has_values:
            data = landing[: message.nbytes]
            values = Values(message.version, message.clock, data, message.whole, message.number)
        answer = Answer(
            self._worker,
            message.generation,
            message.sequence,
            message.request,
            Refusal[message.refusal] if message.refusal else None,
            message.log_number,
            values,
            message.lately,
        )
        place = self._replica.place(message.shard, answer) if message.landed else None
        if place is not None:
            if place.nbytes != message.nbytes:
                raise JobFailedError(
                    f"shard {message.shard} sent values of {message.nbytes:,} bytes instead of {place.nbytes:,}"
                )
            np.copyto(place, landing[: message.nbytes])
        if message.landed:
            landings.rotate(-1)
            self._lending.append(message.shard)
        self._replica.answered(message.shard, answer, time.perf_counter(), took_values=place is not None)

    def messages(self) -> list[commands.FromExecutor]:
        """All there is to say now."""
        out: list[commands.FromExecutor] = [commands.Lend(shard) for shard in self._lending]
        self._lending.clear()
        while (message := self._replica.next_message(time.perf_counter())) is not None:
            match message:
                case PushPart():
                    out.append(self._part(message))
                case PullRequest(shard, pull):
                    about = pull.request, pull.have, pull.after, pull.generation, pull.returns
                    out.append(commands.FetchValues(shard, *about))
                case MarkNote(mark):
                    out.append(commands.SendMark(mark.sequence))
                    if mark.rests:
                        out.append(commands.SendRest(mark.pushes))
        return out

    def _part(self, message: PushPart) -> commands.PushPart:
        token, push = next(self._tokens), message.push
        self._leaving[token] = message
        return commands.PushPart(
            token,
            message.shard,
            push.sequence,
            push.part,
            message.data.ctypes.data - self._bytes.ctypes.data,
            message.data.nbytes,
            push.based_on,
            push.based_clock,
            push.fetch,
            push.have,
            message.needed,
            push.mark,
            push.generation,
        )
