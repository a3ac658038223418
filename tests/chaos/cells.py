"""The matrix: a role, a fault, a phase. One cell starts a mesh, has a training in it, lets the fault happen to whoever has the
role, and looks at what was promised. It never makes a promise come true: nobody resumes a job or repairs anything here."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faults import FAULTS, Fault, spare
from tests.chaos.findings import Outcome
from tests.chaos.job import ENDS, Job, training
from tests.chaos.mesh import Late, Mesh, mesh
from tests.chaos.witness import Witness

ROLES = ("coordinator", "voter", "learner", "submitter", "holder", "nobody")
PHASES = ("idle", "preparing", "training", "checkpointing", "ending")

ELECTED_S = 3.0
RESUMED_S = 5.0
COPIES = 2
"""Of a part of a snapshot or checkpoint."""

REDONE_MAX = 8
AGREED_S = 10.0
PAUSE_MAX_S = 1.0
"""Training "does not pause" where no holder is hit: the longest time without a step, with two cores for all nodes."""

EPOCHS = {"idle": 4, "preparing": 12, "training": 30, "checkpointing": 30, "ending": 4}
BEGUN_STEPS = 60
DISK_BYTES = 48 << 20
PATIENCE_S = 60.0
"""For what is no promise, such as the next step of a training on a busy machine: only so that a cell ends."""

AGREED = "members agree"
ELECTED = "new coordinator"
RESUMED = "training again"
REDONE = "steps redone"
PAUSED = "longest pause"
SLOWED = "throughput lost"
"""In the 3 s after the fault, against the up to 3 s before. At most 5 % is promised, which one play alone cannot show."""


@dataclass(frozen=True)
class Cell:
    role: str
    fault: str
    phase: str

    def __str__(self) -> str:
        return f"{self.role}/{self.fault}/{self.phase}"

    @property
    def senseless(self) -> str:
        """Why there is no such cell; empty where there is one."""
        if self.role == "holder" and self.phase == "idle":
            return "nobody holds a segment while there is no job"
        if self.role == "learner" and self.phase == "idle":
            return "without a job a learner is nobody special"
        if self.fault == "power-cut" and self.role != "coordinator":
            return "it happens to all, whatever their role"
        if self.fault == "partition" and self.role in ("learner", "nobody"):
            return "the sides are three and two of five, who all vote"
        return ""

    @property
    def nodes(self) -> str:
        """Of five all vote; of four one does not."""
        return "abcd" if self.role in ("learner", "nobody") else "abcde"


def matrix() -> list[Cell]:
    cells = [Cell(role, fault, phase) for role in ROLES for fault in FAULTS for phase in PHASES]
    return [cell for cell in cells if not cell.senseless]


class Run:
    """One cell, once. bits: the result that the training of this many epochs has where nothing happens. secured: over TLS."""

    def __init__(self, cell: Cell, seed: int, bits: str, *, secured: bool = False) -> None:
        self.cell, self.bits, self.secured = cell, bits, secured
        self.fault: Fault = FAULTS[cell.fault]
        self.outcome = Outcome(str(cell), seed, " --secured" if secured else "")
        self.dice = random.Random(f"{cell}{seed}")
        self.epochs = EPOCHS[cell.phase]
        self.victim = ""
        self.at = 0.0

    async def play(self, folder: Path) -> Outcome:
        begin = time.monotonic()
        self.outcome.skipped = self.fault.needs()
        if not self.outcome.skipped:
            try:
                await self._play(folder)
            except (AssertionError, OSError, TimeoutError) as error:
                if self.at:
                    self.outcome.holds("it can be played to its end", False, str(error) or repr(error))
                else:
                    self.outcome.void = str(error) or repr(error)
        self.outcome.seconds = time.monotonic() - begin
        return self.outcome

    async def _play(self, folder: Path) -> None:
        cell = self.cell
        disks = self._disks()
        async with (
            mesh(folder, cell.nodes, secured=self.secured, cabled=self.fault.cabled, disks=disks) as m,
            Witness(m) as seen,
        ):
            spec, blobs = await self._cast(m)
            async with Job(m, spec, blobs) as job:
                if cell.phase != "idle":
                    await job.submit("submitter")
                    await self._phase(m, job)
                self.victim = m.who(cell.role)
                await self._strike(m, job, seen)
                if cell.phase == "idle":
                    await job.submit(self._living(m))
                await self._conclude(m, job, seen)

    def _disks(self) -> dict[str, int]:
        # Which node gets a role is known only later, so each that may be struck has a disk of its own.
        return dict.fromkeys(self.cell.nodes, DISK_BYTES) if self.cell.fault == "full-disk" else {}

    async def _cast(self, m: Mesh) -> tuple:  # type: ignore[type-arg]
        """Who has which role, as far as that is known before there is a plan; and the training."""
        shown = await m.get("coordinator", "cluster")
        voters = [member["name"] for member in shown["members"] if member["voter"]]
        others = [name for name in m.nodes if name != m.who("coordinator")]
        learners = [name for name in others if name not in voters]
        if self.cell.role == "learner":
            voting = [name for name in others if name in voters]
            m.roles |= {"learner": learners[0], "submitter": voting[0]}
            return training(self.epochs, (learners[0], voting[1]))  # over both, and over one of them where one is lost
        if self.cell.role == "nobody":
            voting = [name for name in others if name in voters]
            m.roles |= {"nobody": learners[0], "submitter": voting[0]}
            return training(self.epochs, (voting[0], voting[1]), 2)
        m.roles["submitter"] = others[0]
        m.roles["voter"] = others[-1]
        return training(self.epochs, tuple(others[1:]), 2)

    async def _phase(self, m: Mesh, job: Job) -> None:
        """Wait for the moment at which it happens."""
        phase = self.cell.phase
        if phase == "preparing":
            await m.until("the job is not prepared", 30, lambda: job.state in ("preparing", "running"), 0.001)
        elif phase == "ending":
            await m.until("the job does not end", 120, lambda: job.state in ("finishing", *ENDS), 0.001)
        else:
            wanted = BEGUN_STEPS + self.dice.randrange(40)
            await m.until("the job does not train", 60, lambda: job.step() >= wanted)
            if phase == "checkpointing":
                job.steps.writing.clear()
                await asyncio.wait_for(job.steps.writing.wait(), 60)
        found = await m.get("submitter", f"jobs/{job.job}")
        if found and found["plan"]:
            self._cast_holders(m, found["nodes"])

    def _cast_holders(self, m: Mesh, plan: list[str]) -> None:
        m.roles["holder"] = plan[0]
        free = [name for name in m.nodes if name not in (*plan, m.who("coordinator"), m.who("submitter"))]
        if free:
            m.roles["voter"] = free[0]

    async def _strike(self, m: Mesh, job: Job, seen: Witness) -> None:
        """Let it happen, look at what is promised meanwhile, and let it be over."""
        fault, victim = self.fault, self.victim
        apart = {victim} if fault.alone < 2 else {victim, spare(m, victim)}
        job.away |= set(m.nodes) if fault.everybody else apart if fault.gone_s is not None or fault.silent else set()
        led = m.who("coordinator")
        self.outcome.did.append(f"{self.cell.fault} of {victim}")
        self.at = time.monotonic()
        self.outcome.did.append(await fault.begin(m, victim))
        looks = [self._look_at_training(m, job)] if self.cell.phase in ("training", "checkpointing") else []
        if led in apart and fault.gone_s is not None and not fault.everybody:
            looks.append(self._look_at_election(m, apart))
        if fault.alone:
            looks.append(self._look_at_parking(m, seen, apart))
        if fault.lasts_s:
            await asyncio.gather(*looks, self._end(m, job))
            return
        if fault.gone_s is not None:
            looks.append(self._timed("the others agree", AGREED_S, m.agreed(3 * AGREED_S)))
        await asyncio.gather(*looks)
        await self._end(m, job)

    async def _end(self, m: Mesh, job: Job) -> None:
        """End the fault in its time, and see that all agree again."""
        fault = self.fault
        await asyncio.sleep(max(0.0, self.at + fault.lasts_s - time.monotonic()))
        self.outcome.did.append(await fault.end(m, self.victim))
        job.away.clear()
        await self._timed(AGREED, AGREED_S, m.agreed(3 * AGREED_S))

    async def _look_at_election(self, m: Mesh, apart: set[str]) -> None:
        if self.fault.lasts_s and self.fault.lasts_s < ELECTED_S:
            return
        left = [name for name in m.nodes if name not in apart]
        try:
            _, _ = await m.coordinator(3 * ELECTED_S, other_than=self.victim, among=left)
        except Late as error:
            self.outcome.holds(ELECTED, False, str(error))
        else:
            self.outcome.timed(ELECTED, time.monotonic() - self.at, ELECTED_S)

    async def _look_at_parking(self, m: Mesh, seen: Witness, apart: set[str]) -> None:
        """The smaller side says that it can decide nothing, and why."""
        try:
            await m.until("", self.fault.lasts_s - 0.5, lambda: apart <= set(seen.parked), 0.05)
        except Late:
            self.outcome.holds("who is cut off says so", False, f"{sorted(apart - set(seen.parked))} says nothing")
        else:
            self.outcome.holds("who is cut off says so", True)

    async def _look_at_training(self, m: Mesh, job: Job) -> None:
        """It goes on: at once where no holder is hit, otherwise from a snapshot, in time and with little to do again."""
        struck = self.at
        share = {one.node for one in job.steps.done}
        apart = {self.victim} if self.fault.alone < 2 else {self.victim, spare(m, self.victim)}
        hit = self.fault.everybody or bool(share & apart)
        reached, starts = job.step(), job.steps.starts
        if not hit:
            await asyncio.sleep(RESUMED_S)
            until = min(time.monotonic(), max((one.at for one in job.steps.done), default=struck))
            if job.state == "running":
                until = time.monotonic()
            self.outcome.timed(PAUSED, job.steps.gap_s(struck, until), PAUSE_MAX_S)
            begun = max(struck - ELECTED_S, min(one.at for one in job.steps.done))
            if until >= struck + ELECTED_S and begun < struck - 0.5:
                before, after = job.steps.rate(begun, struck), job.steps.rate(struck, struck + ELECTED_S)
                self.outcome.measured(SLOWED, 100 * (1 - after / before), "%")
            return
        limit = RESUMED_S + self._known_s()
        if self.fault.alone >= COPIES:  # who is cut off may have all copies of a part: then it is waited for
            limit = max(limit, RESUMED_S + self.fault.lasts_s)

        def further() -> bool:
            return job.step() > reached + 1 or job.state in ENDS

        try:
            await m.until("no step is done any more", limit + 20, further)
        except Late as error:
            self.outcome.holds(RESUMED, False, f"{error}; the job is {job.state}: {job.reason}")
            return
        if job.state in ENDS and job.step() <= reached + 1:
            self.outcome.holds(RESUMED, False, f"it {job.state}: {job.reason}")
            return
        again = [one for one in job.steps.after(struck) if one.start >= starts]
        if not again:  # nothing was lost: it waited, and went on where it stood
            self.outcome.timed(RESUMED, job.steps.gap_s(struck, time.monotonic()), limit)
            return
        self.outcome.timed(RESUMED, min(one.at for one in again) - struck, limit)
        if not self.fault.everybody:
            redone = max(one.step for one in job.steps.done if one.start < starts) + 1 - min(one.step for one in again)
            self.outcome.counted(REDONE, max(0, redone), REDONE_MAX)

    def _known_s(self) -> float:
        """After how many seconds the others can know what has happened."""
        if self.fault.everybody:
            return PATIENCE_S
        if self.fault.gone_s is None:
            return self.fault.lasts_s
        return min(self.fault.gone_s, self.fault.lasts_s) if self.fault.silent else 0.0

    async def _conclude(self, m: Mesh, job: Job, seen: Witness) -> None:
        """The end of the training, and what must never have been seen."""
        await self._await_end(m, job)
        self.outcome.did += [event["text"] for event in job.events("recovered")]
        self.outcome.holds("the job is done", job.state == "done", f"it is {job.state or 'unknown'}: {job.reason}")
        if job.state == "done":
            bits = await self._bits(m, job)
            self.outcome.holds("same bits", set(bits.values()) == {self.bits}, f"{bits}, and undisturbed {self.bits}")
        if self.cell.fault == "full-disk":
            self._look_at_disk(job, seen)
        self.outcome.holds("one coordinator per term", not seen.twice_led, f"{seen.twice_led}")
        self.outcome.holds("nothing goes back", not seen.back, "; ".join(seen.back[:3]))
        broken = [f"{name}: {found}" for name in m.nodes if (found := _traceback(m.log(name)))]
        self.outcome.holds("no fault in a log", not broken, "; ".join(broken))
        if self.cell.fault in ("cut", "mute", "deaf", "partition") and not any(w.held for w in m.switch.ways.values()):
            self.outcome.void = "nothing was on its way where it was cut"

    async def _await_end(self, m: Mesh, job: Job) -> None:
        """Until the training is over, or has stood still for long; how fast it goes is no promise."""
        before = -2
        while before != job.step() and job.state not in ENDS:
            before = job.step()
            with contextlib.suppress(Late):
                await m.until("", PATIENCE_S, lambda: job.state in ENDS)

    async def _bits(self, m: Mesh, job: Job) -> dict[str, str]:
        """Of all nodes, once all of them know of the end; of those that do after 10 s."""
        found: dict[str, str] = {}

        async def whole() -> bool:
            nonlocal found
            found = await job.bits()
            return len(found) == len(m.nodes)

        with contextlib.suppress(Late):
            await m.until("", AGREED_S, whole, 0.05)
        self.outcome.holds(
            "all know the result", len(found) == len(m.nodes), f"{sorted(set(m.nodes) - set(found))} do not"
        )
        return found

    def _look_at_disk(self, job: Job, seen: Witness) -> None:
        if self.cell.phase not in ("training", "checkpointing") or self.cell.role not in ("holder", "learner"):
            return
        said = [event["error"] for event in job.events("checkpoint", self.at) if not event["complete"]]
        self.outcome.holds(
            "the full disk is shown", bool(said) or self.victim in seen.disks, "no event and no node says so"
        )

    async def _timed(self, promise: str, limit: float, work) -> None:  # type: ignore[no-untyped-def]
        try:
            self.outcome.timed(promise, await work, limit)
        except Late as error:
            self.outcome.holds(promise, False, str(error))

    def _living(self, m: Mesh) -> str:
        return next(name for name, node in m.nodes.items() if node.alive)


async def undisturbed(folder: Path, epochs: int) -> str:
    """The fingerprint of a training's result where nothing happens, on one node."""
    async with mesh(folder, "a", switched=False) as m:
        spec, blobs = training(epochs)
        async with Job(m, spec, blobs) as job:
            await job.submit("a")
            await job.ends(10 * PATIENCE_S)
            return (await job.bits())["a"]


def _traceback(log: str) -> str:
    """How the first one in a log ends: where it was raised, and what; empty where there is none."""
    _, found, rest = log.partition("Traceback (most recent call last)")
    raised = ""
    for line in rest.splitlines()[1:]:
        if not line.startswith(" "):
            return f"{raised}: {line}"
        if line.lstrip().startswith("File "):
            raised = line.strip()
    return raised or found
