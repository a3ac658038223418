"""What the workers and shards of a data-parallel run exchanged: the lines at its end, and the same for programs.

A `progress` event of such a run has `staleness` (updates that a push was behind → pushes, since the start; from 16 on a number
stands for all up to twice it), `pushed_bytes` and `fetched_bytes` (per step, all workers together), `pushed_bytes_total` and
`fetched_bytes_total` (since the run's last start, when its shards began to count), `refused` (worker → why → pushes), `set_aside`
(workers), `slowest` (the worker that the others wait for). Where shards live on several nodes also `copied_bytes` (per step, sent
to backups), `copied_bytes_total` and `shards` (who holds each: `shard`, `primary`, `backups`, `learners`, `lag`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from p2pnn.cli.render import count, label, percent, size, staleness, table
from p2pnn.ps.messages import Refusal

BAR_CELLS: Final = 30


def lines(last: Mapping[str, Any]) -> Iterator[str]:
    """Of a run's last progress event; none of a run without shards."""
    rows = staleness(last).rows()
    pushes = sum(number for _, number in rows)
    if len(rows) == 1:
        yield label("staleness", f"{rows[0][0]} of all {count(pushes)} pushes")
    elif rows:
        most = max(number for _, number in rows)
        shown = [("updates behind", "pushes", "", "")]
        shown += [
            (behind, count(number), percent(number / pushes), "━" * max(1, round(BAR_CELLS * number / most)))
            for behind, number in rows
        ]
        for index, line in enumerate(table(shown, right=(0, 1, 2))):
            yield label("" if index else "staleness", line).rstrip()
    for worker, whys in sorted((last.get("refused") or {}).items()):
        for why, number in whys.items():
            many = f"{count(number)} push{'es' * (number != 1)}"
            yield label("refused", f"{many} of {worker}: {_reason(why)}")
    if last.get("set_aside"):
        yield label("set aside", f"{', '.join(last['set_aside'])}, for bad pushes")
    if last.get("pushed_bytes_total") is not None:
        pushed, fetched = last["pushed_bytes_total"], last["fetched_bytes_total"]
        copied = f", {size(last['copied_bytes_total'])} sent to backups" if last.get("copied_bytes_total") else ""
        yield label("exchanged", f"{size(pushed)} pushed, {size(fetched)} fetched{copied}")


COVERAGE: Final = {
    "trained_again": "trained again, since their worker was lost",
    "never_trained": "given up, since their gradients were refused twice for what they held",
}
"""What an epoch's entry says of batches that were not trained exactly once."""


def holders(held: Mapping[str, Any]) -> str:
    """`a, backup b`, `a, no backup; c catches up`: one of `shards`, of a progress event or of a job."""
    backups, learners = ", ".join(held["backups"]), ", ".join(held["learners"])
    said = f"{held['primary']}, {f'backup {backups}' if backups else 'no backup'}"
    return said + (f"; {learners} catches up" if learners else "")


def coverage(epochs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Of epochs whose batches were not all trained exactly once, by their `epoch` events."""
    for epoch in epochs:
        for name, what in COVERAGE.items():
            if often := int(epoch.get(name) or 0):
                batches = f"{count(often)} batch{'es' * (often != 1)}"
                yield label("coverage", f"epoch {int(epoch['epoch'])}: {batches} {what}")


def summary(last: Mapping[str, Any]) -> dict[str, Any]:
    """The same for `--json`; empty of a run without shards."""
    if last.get("pushed_bytes_total") is None:
        return {}
    kept = {name: last.get(name) for name in ("staleness", "refused", "set_aside")}
    if last.get("shards"):
        kept |= {"shards": last["shards"], "copied_bytes": last["copied_bytes_total"]}
    return {
        "exchange": {**kept, "pushed_bytes": last["pushed_bytes_total"], "fetched_bytes": last["fetched_bytes_total"]}
    }


def _reason(name: str) -> str:
    """A refusal in words; that of a newer node as it is."""
    return Refusal[name].value if name in Refusal.__members__ else name
