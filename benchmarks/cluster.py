"""Five daemons on this machine, plain and secured: what they cost while nothing happens, and how soon a killed coordinator is
replaced.

    ./run bench cluster [--json] [--quick]

Idle: processor time of each daemon, as the system counts it, and the bytes that its control links send, over half a minute in
which nobody asks for anything. Those bytes are counted before TLS, so what loopback carries is told as well: with TLS's records,
TCP's and IP's headers and acknowledgements, and with whatever else uses loopback meanwhile. Then the coordinator is killed, again
and again, and started again: from the kill until two other nodes name the same new one.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import Contest, Report, Target, arguments, conclude
from tests.integration.mesh import Mesh, mesh, wait_until

NODES = "abcde"
IDLE_S = 30.0
KILLS = 50
BUSY, SPOKEN = Target(at_most=2.0), Target(at_most=3.0)
REPLACED = Target(at_most=3.0)


def main() -> int:
    options = arguments(__doc__)
    report = Report("cluster", quick=options.quick)
    for kind in ("plain", "secured"):
        with tempfile.TemporaryDirectory() as folder, mesh(Path(folder), len(NODES), secured=kind == "secured") as m:
            wait_until(lambda: _coordinator(m, *NODES) is not None, "all nodes name one coordinator")
            _idle(m, report, kind, IDLE_S / (6 if options.quick else 1))
            _kills(m, report, kind, KILLS // (10 if options.quick else 1))
    return report.end(options)


def _idle(m: Mesh, report: Report, kind: str, seconds: float) -> None:
    """Each node is a round, so the median is over the nodes."""
    busy, spoken = Contest(f"{kind}, idle: processor", "% of a core"), Contest(f"{kind}, idle: sent", "kB/s")
    _settle(m)
    before, carried, begin = {name: _spent(m, name) for name in NODES}, _carried(), time.monotonic()
    time.sleep(seconds)
    passed, carried = time.monotonic() - begin, _carried() - carried
    for name in NODES:
        processor_s, sent = (after - then for after, then in zip(_spent(m, name), before[name], strict=True))
        busy.add({"p2pnn": 100 * processor_s / passed})
        spoken.add({"p2pnn": sent / passed / 1000})
    report.add(busy, BUSY)
    report.add(spoken, SPOKEN)
    worst = max(busy.samples["p2pnn"]), max(spoken.samples["p2pnn"])
    report.facts[f"{kind}, idle: loopback carried for each node"] = f"{carried / passed / len(NODES) / 1000:.2f} kB/s"
    report.facts[f"{kind}: the busiest idle node"] = f"{worst[0]:.2f} % of a core, {worst[1]:.2f} kB/s"


def _settle(m: Mesh) -> None:
    """Wait until the news of the start has been told: until nodes send no less in a second than in the one before it."""
    sent, before = _sent(m), math.inf
    while True:
        time.sleep(1.0)
        now = _sent(m)
        if now - sent >= before:
            return
        sent, before = now, now - sent


def _sent(m: Mesh) -> float:
    return sum(_spent(m, name)[1] for name in NODES)


def _kills(m: Mesh, report: Report, kind: str, count: int) -> None:
    contest = Contest(f"{kind}, coordinator killed: until there is another", "s")
    for _ in range(count):
        # A node that came back a moment ago may know nobody but the one that is killed next, and then of nobody else.
        wait_until(lambda: all(m.alive(name) == set(NODES) for name in NODES), "all see all", 60.0)
        wait_until(lambda: _coordinator(m, *NODES) is not None, "all nodes name one coordinator", 60.0)
        victim = _coordinator(m, *NODES)
        assert victim is not None
        others = [name for name in NODES if name != victim]
        m.nodes[victim].kill()
        begin = time.monotonic()
        wait_until(lambda: _coordinator(m, *others) not in (None, victim), "there is another coordinator", 60.0)  # noqa: B023
        contest.add({"p2pnn": time.monotonic() - begin})
        m.start(victim, join=others[0])
    report.add(contest, REPLACED)
    report.facts[f"{kind}: the slowest replacement"] = f"{max(contest.samples['p2pnn']):.2f} s of {count}"


def _coordinator(m: Mesh, *names: str) -> str | None:
    """Whom all of these nodes name; None where they differ, or name one whom they do not see."""
    found: list[dict[str, Any]] = [m[name].get("cluster") for name in names]
    if any(one["coordinator"] != found[0]["coordinator"] or one["parked"] for one in found):
        return None
    called = {member["node"]: member["name"] for member in found[0]["members"]}
    return called.get(found[0]["coordinator"]) if len(called) == len(NODES) else None


def _spent(m: Mesh, name: str) -> tuple[float, float]:
    """Processor seconds of a daemon, and bytes that its links have sent."""
    fields = Path(f"/proc/{m.nodes[name].process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), float(m[name].get("node")["sent_bytes"])


def _carried() -> int:
    """Bytes that loopback has carried, by all programs. Source: proc_net(5), the ninth figure of /proc/net/dev."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.split()[0] == "lo:")


if __name__ == "__main__":
    sys.exit(conclude(main))
