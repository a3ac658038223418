"""What all measurements share: contestants that take turns, medians, ratios, and a report for people or programs.

A measurement is a list of `Contest`s. A contest has contestants, each a callable that does one short round and returns its
figure; they take turns, round after round, in an order that rotates, so that a slow minute of the machine slows all of
them. A ratio is the median of the ratios within the rounds, not the ratio of two medians: neighbours in time are what can
be compared.

    report = Report("transport")
    contest = Contest("one way, 64 KiB", "GB/s", ours="p2pnn", higher_is_better=True)
    report.add(contest.run({"p2pnn": ours, "raw sockets": raw}, rounds=15), Target("raw sockets", at_least=0.8))
    report.end(arguments())
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Round = Callable[[], float]
"""One short round of one contestant; returns its figure in the contest's unit."""


@dataclass(frozen=True)
class Target:
    """What ours / theirs must be; give one of the two bounds."""

    against: str
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, ratio: float) -> bool:
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass
class Contest:
    """One thing that several do. ours: whose figure stands above in ratios. samples: per contestant, one figure per round."""

    name: str
    unit: str
    ours: str = "p2pnn"
    higher_is_better: bool = False
    samples: dict[str, list[float]] = field(default_factory=dict)

    def run(self, contestants: Mapping[str, Round], rounds: int, warm_up: int = 1) -> Contest:
        """Let all take turns; the first `warm_up` rounds do not count. Returns self."""
        names = list(contestants)
        for number in range(-warm_up, rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                figure = contestants[name]()
                if number >= 0:
                    self.samples.setdefault(name, []).append(figure)
        return self

    def add(self, figures: Mapping[str, float]) -> None:
        """One round whose figures were taken elsewhere."""
        for name, figure in figures.items():
            self.samples.setdefault(name, []).append(figure)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def best(self, name: str) -> float:
        return (max if self.higher_is_better else min)(self.samples[name])

    def spread(self, name: str) -> float:
        """Half of the distance between the quartiles, as a fraction of the median."""
        values = self.samples[name]
        if len(values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4)
        return (high - low) / 2 / statistics.median(values)

    def ratio(self, against: str, name: str = "") -> float:
        """Ours (or `name`'s) divided by `against`'s figure: the median over the rounds."""
        pairs = zip(self.samples[name or self.ours], self.samples[against], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@dataclass
class Report:
    """All contests of one measurement, with the targets, and facts that are no contest. series: curves, for --json alone."""

    name: str
    contests: list[tuple[Contest, tuple[Target, ...]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    series: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, contest: Contest, *targets: Target, show: bool = True) -> None:
        """Keep a contest that was run; it is shown on stderr at once, since a whole measurement takes minutes."""
        self.contests.append((contest, targets))
        if show:
            print(_table(contest, targets), file=sys.stderr, flush=True)

    def missed(self) -> list[str]:
        """One sentence for each target that was not met."""
        return [
            f"{contest.name}: {contest.ours} / {target.against} is {contest.ratio(target.against):.2f}, not {target}"
            for contest, targets in self.contests
            for target in targets
            if {contest.ours, target.against} <= contest.samples.keys()
            and not target.is_met(contest.ratio(target.against))
        ]

    def as_record(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            "format": 1,
            "measurement": self.name,
            "machine": machine(),
            "contests": [_record(contest, targets) for contest, targets in self.contests],
            "facts": self.facts,
            "absent": self.absent,
            "missed": self.missed(),
            "series": self.series,
        }

    def as_markdown(self) -> list[str]:
        """A table for docs/benchmarks.md, a row per contest: medians; in brackets ours divided by it, and what was wanted."""
        names = list(dict.fromkeys(name for contest, _ in self.contests for name in contest.samples))
        lines = [f"On {describe(machine())}:", "", f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
        for contest, targets in self.contests:
            cells = [_cell(contest, name, targets) for name in names]
            lines.append(f"| {contest.name} [{contest.unit}] | {' | '.join(cells)} |")
        lines += ["", *(f"- {name}: {value}" for name, value in self.facts.items())]
        return [*lines, *(f"- {name} is left out: {reason}" for name, reason in self.absent.items())]

    def end(self, options: argparse.Namespace) -> int:
        """Print the report as the options ask; returns the exit status, 0 also where a target was missed: it is a figure."""
        if options.json:
            print(json.dumps(self.as_record(), indent=1))
            return 0
        if options.markdown:
            print("\n".join(self.as_markdown()))
            return 0
        print(f"{self.name} on {describe(machine())}\n")
        for contest, targets in self.contests:
            print(_table(contest, targets))
        for name, value in self.facts.items():
            print(f"{name}: {value}")
        for name, reason in self.absent.items():
            print(f"{name} is left out: {reason}")
        for sentence in self.missed():
            print(f"missed: {sentence}")
        return 0


def arguments(description: str, argv: Sequence[str] | None = None, extend: Callable[..., Any] | None = None) -> Any:
    """The options that all measurements have: --json, --quick. extend: gets the parser and may add more."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--markdown", action="store_true", help="print a table as docs/benchmarks.md has them")
    parser.add_argument("--quick", action="store_true", help="few short rounds: whether it works, not what it gives")
    if extend is not None:
        extend(parser)
    return parser.parse_args(argv)


def machine() -> dict[str, Any]:
    """What the figures depend on, as far as the machine tells."""
    import numpy

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "congestion_control": _read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "load": round(os.getloadavg()[0], 2),
    }


def describe(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['system']}, Python {facts['python']}, numpy {facts['numpy']}, "
        f"load {facts['load']}"
    )


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _record(contest: Contest, targets: Sequence[Target]) -> dict[str, Any]:
    return {
        "name": contest.name,
        "unit": contest.unit,
        "ours": contest.ours,
        "higher_is_better": contest.higher_is_better,
        "contestants": {
            name: {
                "median": contest.median(name),
                "best": contest.best(name),
                "spread": contest.spread(name),
                "ratio": contest.ratio(name) if contest.ours in contest.samples else None,
                "samples": values,
            }
            for name, values in contest.samples.items()
        },
        "targets": [
            {
                "against": target.against,
                "wanted": str(target),
                "ratio": contest.ratio(target.against),
                "met": target.is_met(contest.ratio(target.against)),
            }
            for target in targets
            if target.against in contest.samples
        ],
    }


def _cell(contest: Contest, name: str, targets: Sequence[Target]) -> str:
    if name not in contest.samples:
        return ""
    text = f"{contest.median(name):,.4g}" if contest.median(name) < 1e3 else f"{contest.median(name):,.0f}"
    if name == contest.ours or contest.ours not in contest.samples:
        return text
    ratio = contest.ratio(name)
    wanted = "".join(f"; {t}, {'met' if t.is_met(ratio) else 'missed'}" for t in targets if t.against == name)
    return f"{text} ({ratio:.2f}{wanted})"


def _table(contest: Contest, targets: Sequence[Target]) -> str:
    wanted = {target.against: target for target in targets}
    width = max(len(name) for name in contest.samples)
    lines = [f"{contest.name} [{contest.unit}, {'more' if contest.higher_is_better else 'less'} is better]"]
    for name in contest.samples:
        line = f"  {name:<{width}}  {contest.median(name):10.4g} ± {100 * contest.spread(name):3.0f} %"
        if name != contest.ours and contest.ours in contest.samples:
            ratio = contest.ratio(name)
            line += f"   {contest.ours} / it = {ratio:.2f}"
            if name in wanted:
                line += f"  (wanted {wanted[name]}: {'met' if wanted[name].is_met(ratio) else 'MISSED'})"
        lines.append(line)
    return "\n".join(lines) + "\n"
