"""When a data-parallel run that could be stronger moves: after a loss that it went on from, and when a member comes.

Nobody comes into a start that runs: its processes, their memory and who talks to whom are fixed. So it is planned anew once
things are quiet, as if it began now, and where that plan is stronger the run moves as it does off a draining node: it stops where
the granted steps end, with a checkpoint there, and goes on by a new plan, which costs no step.
"""

from __future__ import annotations

from typing import Final

from p2pnn.job.assignment import Assignment, gone_workers
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec

HEAL_S: Final = 5.0
"""Nothing has changed for so long: of nodes that come one after the other, or of one that comes and goes, the last counts."""

AGAIN_S: Final = 60.0
"""A run that has lost nodes looks again so often whether it could be stronger: memory may have become free."""

KILLS_COUNTED: Final = 4

LEFT_S: Final = 10.0
"""A run that is over so soon does not move any more."""


class Healing:
    """Pure; `now` in seconds. due: when to compare the run with a new plan; None for not at all."""

    def __init__(self, spec: JobSpec) -> None:
        self._quiet: float | None = None  # when nothing will have changed for long enough
        self._again: float | None = None
        self._kills = 0
        self._told = ""
        self._moves = spec.data is not None and spec.kind == "train"

    @property
    def due(self) -> float | None:
        return self._again if self._quiet is None else self._quiet

    def changed(self, now: float, *, killed: bool = False) -> None:
        """A node was lost, or a member that has no part came. killed: a compute process was; should that be for want of memory,
        it will be again where the run moves back, so that comes later and later."""
        self._kills += killed
        self._told = ""
        wait = HEAL_S * 2 ** min(self._kills - 1, KILLS_COUNTED) if killed else HEAL_S
        if self._moves:
            self._quiet = max(self._quiet or 0.0, now + wait)

    def is_due(self, now: float, left_s: float | None, is_weakened: bool) -> bool:
        """Whether to compare the run with a new plan now. left_s: how long it will last, if that is known. is_weakened: it has
        lost nodes, or replicas of shards."""
        if self.due is None or now < self.due:
            return False
        self._quiet, self._again = None, now + AGAIN_S if is_weakened else None
        return left_s is None or left_s > LEFT_S

    def is_news(self, text: str) -> bool:
        """Whether this was not told since something changed last."""
        told, self._told = self._told, text
        return text not in ("", told)


def stronger(spec: JobSpec, held: Assignment, plan: Plan, new: Plan) -> str:
    """Why the run is to move from what holds to a new plan, as a sentence without its full stop; empty where it is not to: the
    new one has more replicas of the shards, or more workers and is predicted to be faster, or has more of those asked for."""
    workers = len(plan.replicas) - len(gone_workers(held.gone, plan))
    copies = min((len(s.members) for s in held.shards), default=1)
    new_workers, new_copies = len(new.replicas), min((len(home.nodes) for home in new.shards), default=0)
    if not new.replicas or new_copies < copies or not plan.replicas:
        return ""
    now_per_s = plan.samples_per_s * workers / len(plan.replicas)
    gains = []
    is_asked_for = spec.data is not None and spec.data.workers > 0
    if new_workers > workers and (is_asked_for or new.samples_per_s > now_per_s):
        gains.append(f"{new_workers} workers instead of {workers}")
    if new_copies > copies:
        gains.append(f"{new_copies} replicas of each shard instead of {copies}")
    if not gains:
        return ""
    here = {share.node for index, share in enumerate(plan.nodes) if index not in held.gone}
    names = [share.name for share in new.nodes if share.node not in here]
    where = f"onto {', '.join(names)} as well" if names else f"over {', '.join(share.name for share in new.nodes)}"
    return f"the job moves {where}: {' and '.join(gains)}"


def not_rebuilt(held: Assignment, plan: Plan, new: Plan | None, reason: str = "") -> str:
    """Why a run with workers of several nodes that has lost some does not move, as a sentence without its full stop; empty where
    it has lost none. new: the plan that it was compared with, which is not stronger; None where there is none, for `reason`."""
    gone = gone_workers(held.gone, plan)
    each = len(plan.replicas[0].nodes) if plan.replicas else 1
    if not gone or each == 1:
        return ""
    left = len(plan.replicas) - len(gone)
    names = f"worker{'s' * (len(gone) > 1)} {', '.join(map(str, gone))} {'are' if len(gone) > 1 else 'is'} not rebuilt"
    if new is None:
        return f"{names}: {reason}"
    if len(new.replicas) <= left:
        return (
            f"{names}: the nodes that are here suffice for {left} of {len(plan.replicas)} workers of {each} nodes; start another "
            "node, and the job moves by itself"
        )
    return (
        f"{names}: {len(new.replicas)} workers over the nodes that are here are predicted to be no faster than {left}"
    )
