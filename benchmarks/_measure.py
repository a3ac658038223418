"""What all measurements share: contestants that take turns, medians, ratios, and a report for people or programs.

A measurement is a list of `Contest`s. A contest has contestants, each a callable that does one short round and returns its
figure; they take turns, round after round, in an order that rotates, so that a slow minute of the machine slows all of
them. A ratio is the median of the ratios within the rounds, not the ratio of two medians: neighbours in time are what can
be compared.

    options = arguments(__doc__)
    report = Report("transport", quick=options.quick)
    contest = Contest("one way, 64 KiB", "GB/s", ours="p2pnn", higher_is_better=True)
    report.add(contest.run({"p2pnn": ours, "raw sockets": raw}, rounds=15), Target("raw sockets", at_least=0.8))
    return report.end(options)

That is a module's `main`; `conclude(main)` is what the process does.
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
from typing import Any, NoReturn

from benchmarks._worker import Ended
from p2pnn.errors import P2pnnError, UsageError

UNUSABLE, INTERRUPTED = 2, 130
"""Exit statuses: no measurement can be made of what was asked for, or somebody broke it off."""

Round = Callable[[], float]
"""One short round of one contestant; returns its figure in the contest's unit."""


@dataclass(frozen=True)
class Target:
    """What ours / theirs must be or, against nobody, our own figure in the contest's unit; give one of the two bounds."""

    against: str = ""
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, figure: float) -> bool:
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)

    def tell(self, figure: float) -> str:
        """The figure, with as many digits as it takes to lie on its side of the bound."""
        kind, fewest = ("f", 2) if self.against else ("g", 4)
        told = (f"{figure:.{digits}{kind}}" for digits in range(fewest, 17))
        return next((text for text in told if self.is_met(float(text)) == self.is_met(figure)), str(figure))

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

    def figure(self, target: Target) -> float | None:
        """What the target bounds; None where a contestant that it is about did not take part."""
        if not {self.ours, target.against or self.ours} <= self.samples.keys():
            return None
        return self.ratio(target.against) if target.against else self.median(self.ours)

    def judge(self, targets: Sequence[Target], name: str = "") -> list[tuple[Target, float]]:
        """The targets that can be judged, each with its figure. name: only those that stand beside this contestant."""
        found = [(t, self.figure(t)) for t in targets if not name or name == (t.against or self.ours)]
        return [(target, figure) for target, figure in found if figure is not None]


@dataclass
class Report:
    """All contests of one measurement, with the targets, and facts that are no contest.

    versions: of what p2pnn is compared with. figures, series: numbers and curves, for --json alone.
    """

    name: str
    quick: bool = False
    contests: list[tuple[Contest, tuple[Target, ...]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    series: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, contest: Contest, *targets: Target, show: bool = True) -> None:
        """Keep a contest that was run; it is shown on stderr at once, since a whole measurement takes minutes."""
        self.contests.append((contest, targets))
        if show:
            print(_table(contest, targets), file=sys.stderr, flush=True)

    def missed(self) -> list[str]:
        """One sentence for each target that was not met."""
        return [
            f"{contest.name}: {_subject(contest, target)} is {_told(contest, target, figure)}, not {target}"
            for contest, targets in self.contests
            for target, figure in contest.judge(targets)
            if not target.is_met(figure)
        ]

    def as_record(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            "format": 1,
            "measurement": self.name,
            "quick": self.quick,
            "machine": machine(),
            "versions": self.versions,
            "contests": [_record(contest, targets) for contest, targets in self.contests],
            "facts": self.facts,
            "absent": self.absent,
            "missed": self.missed(),
            "figures": self.figures,
            "series": self.series,
        }

    def as_markdown(self) -> list[str]:
        """A table for docs/benchmarks.md, a row per contest: medians; in brackets ours divided by it, and
        what was wanted."""
        names = list(dict.fromkeys(name for contest, _ in self.contests for name in contest.samples))
        lines = [f"On {self.conditions()}:", "", f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
        for contest, targets in self.contests:
            cells = [_cell(contest, name, targets) for name in names]
            lines.append(f"| {contest.name} [{contest.unit}] | {' | '.join(cells)} |")
        lines += ["", *(f"- {name}: {value}" for name, value in self.facts.items())]
        return [*lines, *(f"- {name} is left out: {reason}" for name, reason in self.absent.items())]

    def conditions(self) -> str:
        """What the figures hold for, in words."""
        versions = "".join(f", {name} {version}" for name, version in self.versions.items())
        return describe(machine()) + versions + (", few short rounds (--quick)" if self.quick else "")

    def end(self, options: argparse.Namespace) -> int:
        """Print the report as the options ask; returns the exit status, 0 also where a target was missed: it is a figure.

        Raises UsageError, with the reasons, where nothing was measured.
        """
        if not self.contests:
            reasons = [f"{name}: {reason}" for name, reason in self.absent.items()]
            raise UsageError("nothing could be measured; " + "; ".join(reasons))
        if options.json:
            print(json.dumps(self.as_record(), indent=1))
            return 0
        if options.markdown:
            print("\n".join(self.as_markdown()))
            return 0
        print(f"{self.name} on {self.conditions()}\n")
        for contest, targets in self.contests:
            print(_table(contest, targets))
        for name, value in self.facts.items():
            print(f"{name}: {value}")
        for name, reason in self.absent.items():
            print(f"{name} is left out: {reason}")
        for sentence in self.missed():
            print(f"missed: {sentence}")
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists what there is")


def arguments(description: str, argv: Sequence[str] | None = None, extend: Callable[..., Any] | None = None) -> Any:
    """The options that all measurements have. extend: gets the parser and may add more. Raises UsageError."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--markdown", action="store_true", help="print a table as docs/benchmarks.md has them")
    parser.add_argument("--quick", action="store_true", help="few short rounds: whether it works, not what it gives")
    if extend is not None:
        extend(parser)
    return parser.parse_args(argv)


def conclude(main: Callable[[], int]) -> int:
    """Do a measurement; the exit status. Errors are one sentence, as those of the command line, and so is Ctrl-C."""
    try:
        return main()
    except (P2pnnError, Ended) as error:
        print(f"bench: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return INTERRUPTED


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
                "against": target.against or None,
                "wanted": str(target),
                "ratio" if target.against else "median": figure,
                "met": target.is_met(figure),
            }
            for target, figure in contest.judge(targets)
        ],
    }


def _subject(contest: Contest, target: Target) -> str:
    return f"{contest.ours} / {target.against}" if target.against else contest.ours


def _told(contest: Contest, target: Target, figure: float) -> str:
    return target.tell(figure) + ("" if target.against else f" {contest.unit}")


def _cell(contest: Contest, name: str, targets: Sequence[Target]) -> str:
    if name not in contest.samples:
        return ""
    median, judged = contest.median(name), contest.judge(targets, name)
    text = f"{median:,.4g}" if median < 1e3 else f"{median:,.0f}"
    notes = [f"{target}, {'met' if target.is_met(figure) else 'missed'}" for target, figure in judged]
    if name == contest.ours:
        text = judged[0][0].tell(median) if judged else text
    elif contest.ours in contest.samples:
        notes.insert(0, judged[0][0].tell(judged[0][1]) if judged else f"{contest.ratio(name):.2f}")
    return f"{text} ({'; '.join(notes)})" if notes else text


def _table(contest: Contest, targets: Sequence[Target]) -> str:
    width = max(len(name) for name in contest.samples)
    lines = [f"{contest.name} [{contest.unit}, {'more' if contest.higher_is_better else 'less'} is better]"]
    for name in contest.samples:
        judged = contest.judge(targets, name)
        median = judged[0][0].tell(judged[0][1]) if judged and name == contest.ours else f"{contest.median(name):.4g}"
        line = f"  {name:<{width}}  {median:>10} ± {100 * contest.spread(name):3.0f} %"
        if name != contest.ours and contest.ours in contest.samples:
            ratio = judged[0][0].tell(judged[0][1]) if judged else f"{contest.ratio(name):.2f}"
            line += f"   {contest.ours} / it = {ratio}"
        wanted = [f"wanted {target}: {'met' if target.is_met(figure) else 'MISSED'}" for target, figure in judged]
        lines.append(line + (f"  ({'; '.join(wanted)})" if wanted else ""))
    return "\n".join(lines) + "\n"
