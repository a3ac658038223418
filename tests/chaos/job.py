"""A training that is watched: its events as a node that lives tells them, and its steps as they are done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import aiohttp
import msgspec

from p2pnn.data.blobs import blob_id
from p2pnn.job.spec import JobSpec, Optimizer
from p2pnn.types import BlobId
from p2pnn.zoo.mlp import build
from tests.chaos.mesh import Mesh
from tests.chaos.steps import Steps
from tests.integration.mesh import blobs_of, make_job

ENDS = frozenset({"done", "failed", "cancelled", "paused"})
ROWS = 1797
"""As many as the digits have; 1 × 8 × 8 as they are."""


def training(
    epochs: int, nodes: tuple[str, ...] = (), count: int = 0, seed: int = 3
) -> tuple[JobSpec, dict[BlobId, bytes]]:
    """The perceptron of the zoo on 1,797 rows of 8 × 8, in `sync` mode, a checkpoint per epoch of 44 steps."""
    return make_job(
        build((1, 8, 8), classes=10),
        blobs_of(classes=10, rows=ROWS),
        optimizer=Optimizer("momentum", rate=0.02, clip_norm=1.0),
        epochs=epochs,
        batch_size=32,
        nodes=nodes,
        node_count=count,
        seed=seed,
    )


class Job:
    """`async with Job(mesh, spec, blobs) as job: await job.submit("b")`. told: (when, event), in the order of coming; what a node
    tells again that is asked after another one comes twice.

    stepped: whether steps are seen as they are done, which takes a job without parameter servers; else as they are told.
    """

    def __init__(self, mesh: Mesh, spec: JobSpec, blobs: dict[BlobId, bytes], *, stepped: bool = True) -> None:
        self.spec = spec
        self.stepped = stepped
        self.job = ""
        self.told: list[tuple[float, dict[str, Any]]] = []
        self.states: list[tuple[float, str]] = []
        self._told_step = -1
        self._advances: list[tuple[float, int]] = []
        self.away: set[str] = set()
        """Nodes that are not asked: something happens to them."""
        self._mesh, self._blobs = mesh, blobs
        self._stack = contextlib.AsyncExitStack()
        self._follower: asyncio.Task[None] | None = None
        self.steps: Steps

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._stack.aclose()

    async def submit(self, at: str) -> None:
        """Put the data and the spec on a node and submit the job there; returns when it has an id."""
        data = msgspec.msgpack.encode(self.spec)
        for blob, content in (self._blobs | {blob_id(data): data}).items():
            await self._mesh.put(at, f"blobs/{blob}", content)
        answer = await self._mesh.post(at, "jobs", {"spec": blob_id(data)})
        assert answer is not None, f"{at} does not answer to a submission"
        self.job = str(answer["job"])
        if self.stepped:
            self.steps = await self._stack.enter_async_context(Steps(self._mesh, self.job, self.spec))
        self._follower = asyncio.ensure_future(self._follow())

    def step(self) -> int:
        """The highest step that a node has done, as it is now; −1 before the first. Where it is only told: that all have done."""
        return self.steps.last if self.stepped else self._told_step

    def advances(self, after: float) -> list[tuple[float, int]]:
        """When it was told that all have done more steps, and how many."""
        return [(when, step) for when, step in self._advances if when > after]

    @property
    def state(self) -> str:
        return self.states[-1][1] if self.states else ""

    def events(self, kind: str, after: float = 0.0) -> list[dict[str, Any]]:
        return [event for when, event in self.told if event["kind"] == kind and when > after]

    @property
    def reason(self) -> str:
        states = self.events("state")
        return str(states[-1]["reason"]) if states else ""

    async def ends(self, within: float) -> float:
        """Wait until it is over, whatever way; after how many seconds."""
        return await self._mesh.until(f"job {self.job} is still {self.state}", within, lambda: self.state in ENDS)

    async def bits(self) -> dict[str, str]:
        """The result's fingerprint by node, of all that know of a result."""
        found = await self._mesh.all(f"jobs/{self.job}")
        return {name: str(one["result"]["bits"]) for name, one in found.items() if one["result"]}

    async def _follow(self) -> None:
        """Follow it at a node that lives and nothing happens to; at another when that one is gone."""
        while self.state not in ENDS:
            for name, node in list(self._mesh.nodes.items()):
                if node.alive and name not in self.away:
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
                        await self._follow_at(name)
                    break
            await asyncio.sleep(0.02)

    async def _follow_at(self, name: str) -> None:
        timeout = aiohttp.ClientTimeout(None, sock_read=None)
        url = f"http://p2pnn/api/v1/jobs/{self.job}/events?after=0"
        async with self._mesh.nodes[name].session.get(url, timeout=timeout) as answer:
            if answer.status != 200:
                return
            async for line in answer.content:
                event = json.loads(line)
                now = time.monotonic()
                self.told.append((now, event))
                if event["kind"] == "progress" and event["step"] > self._told_step:
                    self._told_step = event["step"]
                    self._advances.append((now, event["step"]))
                if event["kind"] == "state":
                    self.states.append((now, event["state"]))
                if name in self.away or not self._mesh.nodes[name].alive:
                    return
