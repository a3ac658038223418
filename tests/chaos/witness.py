"""What must never be seen, looked for all the time while other things happen."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any

from tests.chaos.mesh import Mesh

LOOK_S = 0.05


class Witness:
    """`async with Witness(mesh) as seen:` leaders: term → who has led in it, by his own word. parked: node → what it said.

    back: what went back that never may: a term, or a charter's version, at one node.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.leaders: dict[int, set[str]] = {}
        self.parked: dict[str, str] = {}
        self.disks: dict[str, str] = {}
        self.back: list[str] = []
        self.looks = 0
        self._mesh = mesh
        self._last: dict[str, tuple[int, tuple[int, int]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Witness:
        self._task = asyncio.ensure_future(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def twice_led(self) -> dict[int, set[str]]:
        return {term: names for term, names in self.leaders.items() if len(names) > 1}

    async def _look(self) -> None:
        while True:
            for name, one in (await self._mesh.all("cluster")).items():
                self.note(name, one)
            self.looks += 1
            await asyncio.sleep(LOOK_S)

    def note(self, name: str, one: dict[str, Any]) -> None:
        """Take down what a node says of the cluster."""
        if one["role"] == "leader":
            self.leaders.setdefault(one["term"], set()).add(name)
        if one["parked"]:
            self.parked[name] = one["parked"]
        if one["disk"]:
            self.disks[name] = one["disk"]
        if not one["version"]:
            return
        term, revision = (int(part) for part in one["version"].split("."))
        now = (one["term"], (term, revision))
        before = self._last.get(name, now)
        for what, was, is_ in (("term", before[0], now[0]), ("charter", before[1], now[1])):
            if is_ < was:
                self.back.append(f"the {what} of {name} went back from {was} to {is_}")
        self._last[name] = now
