"""The gates of data parallelism: what a daemon receives into the arenas of its executors, decided before a byte of a body comes.

Like `train.gate`: honest peers keep within the window and the lent places by themselves; the gates keep everyone within them.
A push whose bytes are not received may still concern the shard: one that it has decided (`is_known`) is told to the executor, so
that it is answered again, and one of a wrong size (`is_misfit`), so that it is refused and counted. All of it is O(1), and its
memory is bounded by the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from p2pnn.job.plan import Plan
from p2pnn.ps.layout import LANDINGS, Run, ServerLayout, WorkerLayout

_Key = tuple[int, int]


class PushGate:
    """Of a server: which parts of pushes come in, from a worker or `forwarded` by the shard's primary. What that sent stays in
    its slot; what a worker sent to a node that is no primary yields to it, since other replicas may hold other bytes.

    Of each part that is announced: ask `refusal`; where it is empty, `is_known`. A known one's body is read and dropped, and
    the executor told its header; of any other the body goes to `take`'s place, and then `received` or `broken` is called.
    """

    def __init__(self, plan: Plan, layout: ServerLayout) -> None:
        self._layout = layout
        self._replicas = [replica.nodes for replica in plan.replicas]
        self._decided: dict[_Key, int] = {}  # (shard, worker) → the newest push that is acknowledged
        self._coming: dict[_Key, list[set[int]]] = {}  # by slot: the parts that bytes go into now
        self._here: dict[_Key, list[set[int]]] = {}  # by slot: those that lie there whole
        self._forwarded: dict[_Key, list[set[int]]] = {}  # by slot: of those, what the primary has sent

    def speaker(self, shard: int, worker: int) -> int | None:
        """The plan's node that speaks to a shard for a worker: of its replica, that with the segment whose parameters the shard
        holds; None where there is none."""
        if not 0 <= worker < len(self._replicas) or shard not in self._layout.slots:
            return None
        return self._replicas[worker][self._layout.sharding.segments[shard]]

    def refusal(self, worker: int, node: int | None, shard: int, sequence: int, part: int, nbytes: int) -> str:
        """Why a part of a push from the plan's node `node` may not come in, as one sentence; empty where it may, or is known.

        node: None for a part that the shard's primary forwards.
        """
        what = f"part {part} of push {sequence} of worker {worker} to shard {shard}"
        slots = self._layout.slots.get(shard)
        if slots is None:
            return f"{what} is not for this node"
        speaker = self.speaker(shard, worker)
        if speaker is None or (node is not None and node != speaker):
            return f"{what} came from node {node} of the plan"
        if not 0 <= part < len(slots.parts):
            return f"{what} is none of the {len(slots.parts)} parts"
        if nbytes != slots.parts[part][1]:
            return f"{what} has {nbytes:,} bytes instead of {slots.parts[part][1]:,}"
        decided = self._decided.get((shard, worker), 0)
        if sequence < 1 or sequence > decided + slots.window:
            return f"{what} is outside the window {decided + 1} … {decided + slots.window}"
        if sequence > decided and part in self._parts(self._coming, shard, worker, sequence):
            return f"{what} is coming in already"
        return ""

    def is_misfit(self, worker: int, node: int, shard: int, part: int, nbytes: int) -> bool:
        """Whether what was refused is a worker's own, but of another size than its part: its shard counts it."""
        slots = self._layout.slots.get(shard)
        own = node == self.speaker(shard, worker)
        return own and slots is not None and 0 <= part < len(slots.parts) and nbytes != slots.parts[part][1]

    def is_known(self, shard: int, worker: int, sequence: int, part: int, *, forwarded: bool = False) -> bool:
        """Whether the part is here already, or its push is decided: drop its body, and tell the executor the header."""
        decided = sequence <= self._decided.get((shard, worker), 0)
        return decided or part in self._parts(self._forwarded if forwarded else self._here, shard, worker, sequence)

    def take(self, shard: int, worker: int, sequence: int, part: int) -> Run:
        """Let a part in that was not refused and is not known; its (offset, bytes) in the arena."""
        self._parts(self._coming, shard, worker, sequence).add(part)
        return self._layout.slot(shard, worker, sequence, part)

    def received(self, shard: int, worker: int, sequence: int, part: int, *, forwarded: bool = False) -> None:
        """All its bytes are there: tell the executor."""
        self._parts(self._coming, shard, worker, sequence).discard(part)
        if sequence > self._decided.get((shard, worker), 0):
            for where in (self._here, self._forwarded) if forwarded else (self._here,):
                self._parts(where, shard, worker, sequence).add(part)

    def broken(self, shard: int, worker: int, sequence: int, part: int) -> None:
        """The rest of it will not come; the worker sends it again."""
        self._parts(self._coming, shard, worker, sequence).discard(part)

    def acknowledged(self, shard: int, worker: int, sequence: int) -> None:
        """The shard has decided this worker's pushes up to this number: their slots are free (`SendAnswer.acknowledged`)."""
        decided = self._decided.get((shard, worker), 0)
        for number in range(decided + 1, min(sequence, decided + self._layout.slots[shard].window) + 1):
            for where in (self._here, self._forwarded):
                self._parts(where, shard, worker, number).clear()
        self._decided[shard, worker] = max(decided, sequence)

    def _parts(self, where: dict[_Key, list[set[int]]], shard: int, worker: int, sequence: int) -> set[int]:
        window = self._layout.slots[shard].window
        return where.setdefault((shard, worker), [set() for _ in range(window)])[sequence % window]


class ValuesGate:
    """Of a worker: values come only from a shard's primary, and only into a landing place of it that is lent; its places are
    taken in turn.

    Of values that are announced: ask `refusal`; where it is empty, `take` gives the place, or None: read and drop them, and tell
    the executor the answer without them.
    """

    def __init__(self, plan: Plan, layout: WorkerLayout) -> None:
        self._layout = layout
        self._primaries = [home.nodes[0] for home in plan.shards]
        self._lent: Counter[int] = Counter()
        self._taken: Counter[int] = Counter()

    def assigned(self, primaries: Sequence[int]) -> None:
        """These nodes of the plan are the shards' primaries from now on."""
        self._primaries = list(primaries)

    def lend(self, shard: int) -> None:
        """The place whose turn it is next, of those that are not lent, is the daemon's until values lie in it whole."""
        self._lent[shard] = min(self._lent[shard] + 1, LANDINGS)

    def refusal(self, shard: int, node: int, nbytes: int, whole: bool) -> str:
        """Why values from the plan's node `node` may not come in, as one sentence; empty where they may, if there is room."""
        if not 0 <= shard < len(self._primaries) or shard not in self._layout.values:
            return f"values of shard {shard} came, which there is not"
        if self._primaries[shard] != node:
            return f"values of shard {shard} came from node {node} of the plan instead of {self._primaries[shard]}"
        size = self._layout.values[shard][0 if whole else 1]
        return "" if nbytes == size else f"values of shard {shard} have {nbytes:,} bytes instead of {size:,}"

    def take(self, shard: int, nbytes: int) -> Run | None:
        """(offset, bytes) for values that were not refused, which takes the loan; None where no place is lent."""
        if not self._lent[shard]:
            return None
        self._lent[shard] -= 1
        self._taken[shard] += 1
        return self._layout.landing(shard, self._taken[shard] - 1)[0], nbytes

    def broken(self, shard: int) -> None:
        """The rest of the values will not come: the place is lent as before."""
        self._taken[shard] -= 1
        self.lend(shard)
