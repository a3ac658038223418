"""Kills amid a data-parallel run whose result says how often each batch was pushed: was any lost, was any doubled?

A *play* is one mesh and one run (`tests.support.counting`: `async`, three workers, two shards with a backup each). Whoever is a
shard's primary, a backup, a worker that holds no shard, or the coordinator is killed with SIGKILL, again and again: amid an epoch
or as one ends, up to three times as long as each shard has another replica in sync; each is started again at once. Then
it waits until the run has moved and is at full strength. When the run is nearly over, or enough were killed, it is left to end.

A play's *promises*: each row of each table holds each epoch's push once, and those of batches that the run says it has trained
again; the run ends by itself; no start ended but by a move, which costs no step, so none was gone on with from a checkpoint that
is older; no fault stands in a log. Where a start did end, steps are redone on older parameters: the counts are right then, but
acknowledged updates were lost, which is told apart.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.cells import _traceback
from tests.chaos.findings import Outcome
from tests.chaos.job import ENDS, Job
from tests.chaos.mesh import Late, Mesh, mesh
from tests.support.counting import arrays_of, broken, counting, counts

ROLES = ("primary", "backup", "worker", "coordinator")
WORKERS, SHARDS = 3, 2
SIZES = (1000, 6000)
"""Rows of the data: epochs end every second or two, or last longer than it takes the run to move."""

TRAIN = 0.9
STEPS_PER_KILL, STEPS_AFTER, KILLS_MAX = 3000, 6000, 20
"""How long a run is: a healthy machine does some hundred steps a second, and a round with its move takes ten."""

PER_ROUND = 3
STEPS_MAX = 1000
"""From when the run is ready until somebody is killed: a second or two."""

ENDING = 0.25
"""Of the kills come as an epoch ends, when it is evaluated and a checkpoint is written; where that is soon."""

SPARING = 0.5
"""Of the runs with more nodes than roles lose no worker: then the counts of both shards are exact (`broken`)."""

LAST = 0.9
"""No more kills when so much of the run is over: it moves no more in its last 10 s, so another one would come too early."""

PATIENCE_S = 60.0
"""For what is no promise in itself: only so that a play ends."""

KEPT = "no push is lost or doubled"
LIVE = "no acknowledged update is given up"
DONE = "the run is done"
CLEAN = "no fault in a log"


@dataclass
class Kill:
    """role: why this node was chosen; also: what else it was. seconds: the longest time without a step from then on."""

    role: str
    victim: str
    also: tuple[str, ...]
    phase: str
    step: int
    seconds: float = 0.0

    def __str__(self) -> str:
        roles = ", ".join((self.role, *self.also))
        return f"node {self.victim} ({roles}) at step {self.step:,}, {self.phase}: {self.seconds:.2f} s without a step"


@dataclass
class Held:
    """Who has which role now, by names. shards: of each the replicas in sync, the primary first."""

    generation: int
    workers: list[str]
    shards: list[list[str]]
    coordinator: str

    def whoever(self, role: str) -> set[str]:
        if role == "primary":
            return {shard[0] for shard in self.shards}
        if role == "backup":
            return {name for shard in self.shards for name in shard[1:]}
        if role == "worker":
            return set(self.workers) - {name for shard in self.shards for name in shard}
        return {self.coordinator}

    def roles(self, name: str) -> list[str]:
        found = [role for role in ROLES if role != "worker" and name in self.whoever(role)]
        return found + ["worker"] * (name in self.workers)

    def can_spare(self, name: str) -> bool:
        """Whether the start can go on without a node."""
        return all(set(shard) - {name} for shard in self.shards) and bool(set(self.workers) - {name})


@dataclass
class Play:
    """One mesh, one run. wanted: how many to kill at most. tell: is given each kill as it is over."""

    seed: int
    wanted: int
    tell: Callable[[Kill], None]
    kills: list[Kill] = field(default_factory=list)
    moves: int = 0
    again: int = 0
    lost: int = 0
    """Workers."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.outcome = Outcome(f"counting {self.seed}", self.seed)
        self.nodes = "abcdef"[: self.dice.choice((5, 6))]
        self.spares = len(self.nodes) > WORKERS + SHARDS and self.dice.random() < SPARING
        self.rows = self.dice.choice(SIZES)
        self.per_epoch = int(self.rows * TRAIN)
        self.epochs = -(-(STEPS_PER_KILL * min(self.wanted, KILLS_MAX) + STEPS_AFTER) // self.per_epoch)
        self._gone: set[tuple[int, str]] = set()

    async def play(self, folder: Path) -> Outcome:
        begin = time.monotonic()
        try:
            await self._play(folder)
        except (AssertionError, OSError, TimeoutError) as error:
            self.outcome.holds("it can be played to its end", False, str(error) or repr(error))
        self.outcome.seconds = time.monotonic() - begin
        return self.outcome

    async def _play(self, folder: Path) -> None:
        of = counting(self.epochs, self.rows, train=TRAIN, workers=WORKERS, shards=SHARDS)
        async with mesh(folder, self.nodes, switched=False) as m, Job(m, *of, stepped=False) as job:
            await job.submit(self.dice.choice(self.nodes))
            await m.until("the job does not train", PATIENCE_S, lambda: job.step() > 0)
            while len(self.kills) < self.wanted and await self._strong(m, job):
                await self._round(m, job)
            await self._or_over(m, job, "it stands still", PATIENCE_S, lambda: False, late=False)
            await self._conclude(m, job, of)

    # --- kills

    async def _strong(self, m: Mesh, job: Job) -> bool:
        """Wait until it has all its workers and replicas, and all members agree. False where it is nearly over."""

        async def strong() -> bool:
            held = await self._held(m, job)
            if held is None or len(held.workers) < WORKERS or any(len(shard) < 2 for shard in held.shards):
                return False
            reached = job.step()
            return await self._or_over(m, job, "no step is done", PATIENCE_S, lambda: job.step() > reached)

        if not await self._or_over(m, job, "the run is not at full strength", PATIENCE_S, strong):
            return False
        await m.agreed(PATIENCE_S)
        return job.step() < LAST * self.epochs * self.per_epoch

    async def _round(self, m: Mesh, job: Job) -> None:
        """Up to PER_ROUND kills of a run at full strength, while there is somebody to spare."""
        for _ in range(min(self.wanted - len(self.kills), self.dice.randint(1, PER_ROUND))):
            ends = self.dice.random() < ENDING and self.per_epoch <= STEPS_MAX
            phase = "as an epoch ends" if ends else "amid an epoch"
            await self._moment(m, job, phase)
            held = await self._held(m, job)
            choice = self._choose(held) if held is not None else None
            if held is None or choice is None:
                return
            await self._kill(m, job, held, *choice, phase)
            if job.state in ENDS:
                return

    async def _moment(self, m: Mesh, job: Job, phase: str) -> None:
        """Wait for the moment at which it happens."""
        if phase == "as an epoch ends":
            ended = len(job.events("epoch"))
            await self._or_over(m, job, "no epoch ends", PATIENCE_S, lambda: len(job.events("epoch")) > ended)
        else:
            target = job.step() + self.dice.randrange(min(self.per_epoch, STEPS_MAX))
            await self._or_over(m, job, f"step {target} is not done", PATIENCE_S, lambda: job.step() >= target)

    def _choose(self, held: Held) -> tuple[str, str] | None:
        """A role and who has it: the role that was hit least often of those that somebody has who can be spared."""
        found = {role: sorted(filter(held.can_spare, held.whoever(role))) for role in ROLES}
        if self.spares:
            found = {role: [name for name in names if name not in held.workers] for role, names in found.items()}
        roles = [role for role in ROLES if found[role]]
        if not roles:
            return None
        hits = {role: sum(kill.role == role for kill in self.kills) for role in roles}
        role = self.dice.choice([role for role in roles if hits[role] == min(hits.values())])
        return role, self.dice.choice(found[role])

    async def _kill(self, m: Mesh, job: Job, held: Held, role: str, victim: str, phase: str) -> None:
        also = tuple(other for other in held.roles(victim) if other != role)
        kill = Kill(role, victim, also, phase, job.step())
        self.kills.append(kill)
        self._gone.add((held.generation, victim))
        self.lost += victim in held.workers
        job.away = {victim}
        at, reached = time.monotonic(), job.step()
        m.kill(victim)
        await self._or_over(m, job, f"{kill}: it stands still", PATIENCE_S, lambda: job.step() > reached)
        await m.start(victim)
        job.away = set()
        await m.agreed(PATIENCE_S)
        told = [at, *(when for when, _ in job.advances(at))]
        kill.seconds = max((later - earlier for earlier, later in pairwise(told)), default=0.0)
        self.tell(kill)

    async def _held(self, m: Mesh, job: Job) -> Held | None:
        """Who has which role, as the coordinator says; None where nobody can tell, or the job does not run."""
        for name, cluster in (await m.all("cluster")).items():
            if cluster["role"] != "leader":
                continue
            found = await m.get(name, f"jobs/{job.job}")
            if not found or found["state"] != "running" or len(found["shards"]) < SHARDS:
                continue
            generation, plan = found["generation"], found["plan"]
            computing = [plan["nodes"][index]["name"] for replica in plan["replicas"] for index in replica["nodes"]]
            return Held(
                generation,
                [node for node in computing if (generation, node) not in self._gone],
                [[shard["primary"], *shard["backups"]] for shard in found["shards"]],
                name,
            )
        return None

    async def _or_over(
        self, m: Mesh, job: Job, what: str, within: float, holds: Callable[[], Any], *, late: bool = True
    ) -> bool:
        """Wait until it holds; False where the job is over before. within: so long without a step, since a busy machine is slow.
        late: whether it is to hold in that time."""
        found: Any = False
        reached = job.step()

        async def either() -> bool:
            nonlocal found
            found = holds()
            if hasattr(found, "__await__"):
                found = await found
            return bool(found) or job.state in ENDS

        try:
            await m.until(f"{what}; the job is {job.state}", within, either)
        except Late:
            if job.step() > reached:
                return await self._or_over(m, job, what, within, holds, late=late)
            if late:
                raise
        return bool(found)

    # --- the end

    async def _conclude(self, m: Mesh, job: Job, of: Any) -> None:
        outcome = self.outcome
        recovered = {event["text"]: event for event in job.events("recovered")}
        outcome.did += [str(kill) for kill in self.kills] + list(recovered)
        self.moves = len(recovered)
        given_up = [
            text
            for text, event in recovered.items()
            if event["redone"] or not event["text"].endswith("; 0 steps redone")
        ]
        outcome.holds(LIVE, not given_up, "; ".join(given_up))
        outcome.holds(DONE, job.state == "done", f"it is {job.state or 'unknown'}: {job.reason}")
        if job.state == "done":
            self._count(m, of, await self._result(m, job), await m.all(f"jobs/{job.job}"))
        faults = [f"{name}: {found}" for name in m.nodes if (found := _traceback(m.log(name)))]
        outcome.holds(CLEAN, not faults, "; ".join(faults))

    async def _result(self, m: Mesh, job: Job) -> Any:
        found = {}

        async def known() -> bool:
            nonlocal found
            found = {
                name: one for name, one in (await m.all(f"jobs/{job.job}/results")).items() if one and one["manifest"]
            }
            return bool(found)

        await m.until("nobody knows the result", PATIENCE_S, known)
        return next(iter(found.values()))["manifest"]

    def _count(self, m: Mesh, of: Any, manifest: Any, records: dict[str, Any]) -> None:
        record = next(one for one in records.values() if one["state"] == "done")
        self.again = int(sum(entry.get("trained_again", 0) for entry in record["history"]))
        try:
            found = counts(of, arrays_of(manifest, [node.folder for node in m.nodes.values()]))
            said = broken(found, self.epochs, self.again, self.lost)
        except AssertionError as error:
            said = [str(error)]
        epochs = [int(entry["epoch"]) for entry in record["history"]]
        if epochs != list(range(1, self.epochs + 1)):
            said.append(f"the history has the epochs {epochs}, of {self.epochs}")
        self.outcome.holds(KEPT, not said, "; ".join(said))


async def play(folder: str, wanted: int, seed: int, say: Callable[[str], None]) -> int:
    """Kill so many, in as many plays as that takes, each with a seed of its own, and tell of each. The exit status."""
    plays: list[Play] = []
    made = 0
    begin = time.monotonic()

    def tell(kill: Kill) -> None:
        nonlocal made
        made += 1
        say(f"kill {made:>3} of {wanted}  seed {plays[-1].seed}  {kill}")

    try:
        while made < wanted:
            plays.append(Play(seed + len(plays), wanted - made, tell))
            await plays[-1].play(Path(tempfile.mkdtemp(dir=folder)))
            for line in lines(plays[-1]):
                say(line)
            if not plays[-1].kills:
                break  # the next ones would go no better
    finally:
        for line in summary(plays, time.monotonic() - begin):
            say(line)
    return 1 if any(one.outcome.broken for one in plays) else 0


def lines(one: Play) -> Iterator[str]:
    """What is printed of a play."""
    held = f"{len(one.kills)} kills, {one.moves} moves, {one.again:,} batches trained again"
    about = f"{len(one.nodes)} nodes, {one.epochs} epochs of {one.per_epoch:,} batches"
    yield f"seed {one.seed}: {about}: {held}, in {one.outcome.seconds:.0f} s: {one.outcome.verdict}"
    for finding in one.outcome.broken:
        yield f"    {finding}"
    if one.outcome.broken:
        yield f"    again: ./run chaos --counting {max(1, len(one.kills))} --seed {one.seed}"


def summary(plays: list[Play], seconds: float) -> Iterator[str]:
    """By role: how often it was chosen, how often hit in all, the longest time without a step; and what was broken."""
    kills = [kill for one in plays for kill in one.kills]
    if kills:
        yield ""
        yield f"{'role':<12} {'chosen':>6} {'hit':>5} {'median s':>9} {'worst s':>8}"
    for role in ROLES:
        hit = [kill.seconds for kill in kills if role in (kill.role, *kill.also)]
        if hit:
            chosen = sum(kill.role == role for kill in kills)
            yield f"{role:<12} {chosen:>6} {len(hit):>5} {median(hit):>9.2f} {max(hit):>8.2f}"
    broken_ = [finding for one in plays for finding in one.outcome.broken]
    again = sum(one.again for one in plays)
    yield ""
    yield (
        f"{len(kills)} kills in {len(plays)} runs, {seconds:.0f} s: {again:,} batches trained again and told,"
        f" {len(broken_)} promises not kept"
    )
    for promise in sorted({finding.promise for finding in broken_}):
        yield f"    not kept {sum(finding.promise == promise for finding in broken_)} times: {promise}"
