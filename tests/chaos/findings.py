"""What a cell has found: each promise that it looked at, kept or not, with its figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Finding:
    """promise: a sentence. figure: what was measured, 0 for none; unit: its unit. said: why it was not kept."""

    promise: str
    kept: bool
    figure: float | None = None
    unit: str = ""
    limit: float | None = None
    said: str = ""

    def __str__(self) -> str:
        figure = (
            ""
            if self.figure is None
            else f" {self.figure:.2f} {self.unit}"
            if self.unit == "s"
            else f" {self.figure:.3g}{' ' * bool(self.unit)}{self.unit}"
        )
        return f"{self.promise}{figure}" if self.kept else f"NOT KEPT: {self.promise}{figure} ({self.said})"


@dataclass
class Outcome:
    """cell, seed: which; flags: what else repeats it. skipped: why it was not tried. void: why it says nothing, such as a fault
    that did not happen."""

    cell: str
    seed: int
    flags: str = ""
    found: list[Finding] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    skipped: str = ""
    void: str = ""
    seconds: float = 0.0

    @property
    def broken(self) -> list[Finding]:
        return [one for one in self.found if not one.kept]

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else "void" if self.void else "NOT KEPT" if self.broken else "kept"

    def timed(self, promise: str, seconds: float, limit: float) -> None:
        """Something took its time, which has a limit, in seconds."""
        self.found.append(Finding(promise, seconds <= limit, seconds, "s", limit, f"promised within {limit:g} s"))

    def counted(self, promise: str, count: float, limit: float, unit: str = "") -> None:
        self.found.append(Finding(promise, count <= limit, count, unit, limit, f"promised at most {limit:g}"))

    def holds(self, promise: str, kept: bool, said: str = "") -> None:
        self.found.append(Finding(promise, kept, said=said))

    def measured(self, what: str, figure: float, unit: str) -> None:
        """A figure that says something only over many plays: it keeps and breaks nothing."""
        self.found.append(Finding(what, True, figure, unit))

    def as_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "seed": self.seed,
            "verdict": self.verdict,
            "why": self.skipped or self.void,
            "seconds": round(self.seconds, 2),
            "did": [text for text in self.did if text],
            "promises": [
                {
                    "promise": one.promise,
                    "kept": one.kept,
                    "figure": one.figure,
                    "unit": one.unit,
                    "limit": one.limit,
                    "said": "" if one.kept else one.said,
                }
                for one in self.found
            ],
        }
