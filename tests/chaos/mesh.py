"""Real daemons, and what can happen to them: killed, stopped, started again, cut off, their disks full.

    async with mesh(folder, "abcde") as m:
        m.kill("coordinator")
        await m.coordinator(within=3)
        m.cut("a", "b", one_way=True)

Wherever a node is named, its role will do: `coordinator`, `submitter`, `holder` and so on, as `roles` has them. Every process
that is started here ends with the one that started it, however that ends, also while it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.agreement import disagreement
from tests.chaos.cables import Cables
from tests.chaos.disk import Disk
from tests.chaos.switch import Switch
from tests.support import warm

READY_TIMEOUT_S = 30.0
AGREE_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 2.0
CHANGE_TIMEOUT_S = 60.0
PAUSE_S = 0.004
"""Between two looks at something that is waited for, at first."""

PAUSE_SHARE = 0.02
"""Of the time that it has taken: so a time is right to two hundredths, and those who are asked have time for their work."""


class Late(AssertionError):
    """Something did not become so in its time."""


@dataclass
class Node:
    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    address: str
    ident: str
    session: aiohttp.ClientSession
    stopped: bool = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and not self.stopped

    def family(self) -> list[int]:
        """The daemon and its compute process."""
        return [self.process.pid, *children(self.process.pid)]


@dataclass
class Mesh:
    """nodes: those that were started, also when they have ended. roles: role → name of a node. secured: with keys and TLS.

    cables: where the nodes live in network namespaces; they are secured then, since others listen on loopback only.
    """

    folder: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    switch: Switch = field(default_factory=Switch)
    switched: bool = True
    secured: bool = False
    cables: Cables | None = None

    def who(self, name: str) -> str:
        return self.roles.get(name, name)

    def node(self, name: str) -> Node:
        return self.nodes[self.who(name)]

    # --- what can be asked

    async def get(self, name: str, path: str) -> Any:
        """The answer of a node's API; None where it gives none."""
        return await self._ask(name, "GET", path)

    async def post(self, name: str, path: str, body: Any = None) -> Any:
        return await self._ask(name, "POST", path, json={} if body is None else body)

    async def put(self, name: str, path: str, body: bytes) -> Any:
        return await self._ask(name, "PUT", path, data=body)

    async def _ask(self, name: str, method: str, path: str, **body: Any) -> Any:
        node = self.node(name)
        if not node.alive:
            return None
        if method != "GET":
            body["timeout"] = aiohttp.ClientTimeout(CHANGE_TIMEOUT_S)
        try:
            async with node.session.request(method, f"http://p2pnn/api/v1/{path}", **body) as answer:
                found = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        assert answer.status == 200 or method == "GET", f"{method} {path} at {node.name}: {found}"
        return found if answer.status == 200 else None

    async def all(self, path: str, names: Iterable[str] = ()) -> dict[str, Any]:
        """The answers of these nodes, by default of all that live; those that give none are left out."""
        asked = [self.who(name) for name in names] or [name for name, node in self.nodes.items() if node.alive]
        answers = await asyncio.gather(*(self.get(name, path) for name in asked))
        return {name: answer for name, answer in zip(asked, answers, strict=True) if answer is not None}

    async def until(self, what: str, within: float, holds: Callable[[], Any], pause_s: float = 0.0) -> float:
        """Wait until `holds`, a function or one that is awaited, gives something true; how long that took. Raises Late.

        pause_s: between two looks, where what is waited for passes soon.
        """
        begin = time.monotonic()
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return time.monotonic() - begin
            waited = time.monotonic() - begin
            if waited > within:
                raise Late(f"after {within:g} s {what}")
            await asyncio.sleep(pause_s or max(PAUSE_S, PAUSE_SHARE * waited))

    async def coordinator(self, within: float, other_than: str = "", among: Iterable[str] = ()) -> tuple[str, float]:
        """Wait until a majority of the members that are asked names one coordinator that is itself of that opinion.

        Returns its name, and after how many seconds.
        """
        names, found = list(among), ""

        async def elected() -> bool:
            nonlocal found
            seen = await self.all("cluster", names)
            leading = [name for name, one in seen.items() if one["role"] == "leader" and name != other_than]
            for name in leading:
                ident, term = self.nodes[name].ident, seen[name]["term"]
                followers = [one for one in seen.values() if one["coordinator"] == ident and one["term"] == term]
                if 2 * len(followers) > len(seen):
                    found = name
                    return True
            return False

        seconds = await self.until("there is no coordinator", within, elected)
        self.roles["coordinator"] = found
        return found, seconds

    async def agreed(self, within: float, names: Iterable[str] = ()) -> float:
        """Wait until these nodes see each other, hold one charter and follow one coordinator; after how many seconds."""
        wanted = {self.who(name) for name in names} or {name for name, node in self.nodes.items() if node.alive}
        said = ""

        async def whole() -> bool:
            nonlocal said
            seen, peers = await asyncio.gather(self.all("cluster", wanted), self.all("peers", wanted))
            said = disagreement(wanted, seen, peers)
            return not said

        try:
            return await self.until("", within, whole)
        except Late:
            raise Late(f"after {within:g} s the members do not agree: {said}") from None

    # --- what can happen

    def kill(self, *names: str) -> None:
        """SIGKILL, to all at the same moment."""
        for name in names:
            self.node(name).process.kill()
        for name in names:
            self.node(name).process.wait(10)

    def stop(self, name: str) -> None:
        """SIGSTOP to the daemon and to its compute process: as a machine that hangs."""
        node = self.node(name)
        node.stopped = True
        for pid in node.family():
            signal_to(pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        node = self.node(name)
        for pid in node.family():
            signal_to(pid, signal.SIGCONT)
        node.stopped = False

    def cut(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Nothing passes from one to the other any more, nor back unless `one_way`."""
        self._fault(one, other, one_way, self.switch.cut)

    def heal(self, one: str, other: str) -> None:
        self._fault(one, other, False, self.switch.heal)

    def heal_all(self) -> None:
        for one in self.nodes:
            for other in self.nodes:
                self.switch.heal(one, other)
                way = self.switch.way(one, other)
                way.delay_s = way.bytes_per_s = 0.0

    def isolate(self, name: str, *, one_way: bool = False) -> None:
        """Cut a node off from all others; one_way: it hears them, and they do not hear it."""
        for other in self.nodes:
            if other != self.who(name):
                self.cut(name, other, one_way=one_way)

    def partition(self, *sides: Iterable[str]) -> None:
        """Nodes of different sides reach each other no more."""
        named = [[self.who(name) for name in side] for side in sides]
        for at, side in enumerate(named):
            for others in named[at + 1 :]:
                for one in side:
                    for other in others:
                        self.cut(one, other)

    def reset(self, name: str) -> int:
        """End all connections of a node by a reset; how many."""
        before = self.switch.resets
        for other in self.nodes:
            if other != self.who(name):
                self.switch.reset(self.who(name), other)
        return self.switch.resets - before

    def slow(self, name: str, *, delay_s: float, bytes_per_s: float) -> None:
        """Links to and from a node are slow."""
        for other in self.nodes:
            if other != self.who(name):
                for way in (self.switch.way(self.who(name), other), self.switch.way(other, self.who(name))):
                    way.delay_s, way.bytes_per_s = delay_s, bytes_per_s

    def _fault(self, one: str, other: str, one_way: bool, do: Callable[[str, str], None]) -> None:
        assert self.switched, "this mesh has no switch in which a link could be cut"
        do(self.who(one), self.who(other))
        if not one_way:
            do(self.who(other), self.who(one))

    # --- starting

    async def start(self, name: str, *, cold: bool = False) -> Node:
        """Start a node, or start it again with its state folder and its port. cold: as a person would, imports and all."""
        before = self.nodes.get(name)
        token = await self._token() if self.secured and before is None and self.nodes else ""
        ready, announce = os.pipe()
        port = str(self.switch.port if self.switched else 0)
        cable, host = self.cables.lay(name) if self.cables else (0, "127.0.0.1")
        arguments = ["node", "start", *self._words(name, host, before), "--ready-fd", str(announce)]
        command = [sys.executable, "-m", "tests.chaos.node", port, str(cable), name, *arguments]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("P2PNN_")}
        environ |= {"P2PNN_CONFIG": os.devnull, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if token:
            environ["P2PNN_TOKEN"] = token
        try:
            with (self.folder / f"{name}.log").open("ab") as log:
                process = (subprocess.Popen if cold else warm.start)(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(announce, cable) if cable else (announce,),
                    env=environ,
                )
        finally:
            os.close(announce)
        try:
            line = await asyncio.wait_for(_line(ready), READY_TIMEOUT_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if not line:
            raise AssertionError(f"node {name} did not start: {self.log(name)[-600:]}")
        facts = json.loads(line)
        self.switch.names[int(facts["address"].rpartition(":")[2])] = name
        if before is not None:
            await before.session.close()
        session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(facts["socket"]), timeout=aiohttp.ClientTimeout(ANSWER_TIMEOUT_S)
        )
        node = Node(name, self.folder / name, process, facts["address"], "", session)
        self.nodes[name] = node
        node.ident = str((await self.get(name, "node"))["node"])
        return node

    def _words(self, name: str, host: str, before: Node | None) -> list[str]:
        words = ["--preset", "loopback"] if self.secured else ["--plain"]
        words += ["--name", name, "--state-dir", str(self.folder / name), "--socket", str(self.folder / f"{name}.sock")]
        words += ["--listen", before.address if before else f"{host}:0"]
        words += ["--profile-cache", str(self.folder / "profile")]
        for other in self.nodes.values():
            words += ["--join", other.address] if other.name != name else []
        return words

    async def _token(self) -> str:
        """A join token, from the founder."""
        return str((await self.post(next(iter(self.nodes)), "tokens"))["token"])

    def log(self, name: str) -> str:
        return (self.folder / f"{self.who(name)}.log").read_text(errors="replace")

    async def close(self) -> None:
        for node in self.nodes.values():
            if node.process.poll() is None:
                for pid in node.family()[::-1]:
                    signal_to(pid, signal.SIGKILL)
        for node in self.nodes.values():
            node.process.wait(10)
            await node.session.close()
        await self.switch.close()
        if self.cables:
            self.cables.close()
        for disk in self.disks.values():
            disk.close()


@contextlib.asynccontextmanager
async def mesh(
    folder: Path,
    names: str,
    *,
    switched: bool = True,
    secured: bool = False,
    cabled: bool = False,
    disks: dict[str, int] | None = None,
) -> AsyncIterator[Mesh]:
    """Nodes that agree, the first of them founder and coordinator. disks: node → bytes of a disk of its own.

    cabled: in network namespaces, in place of the switch and secured (see `cables.missing`).
    """
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    found = Mesh(
        folder, switched=switched and not cabled, secured=secured or cabled, cables=Cables() if cabled else None
    )
    try:
        with warm.measured(folder / "profile"):
            await found.switch.start()
            for name, size in (disks or {}).items():
                found.disks[name] = Disk(folder / name, size)
            for name in names:
                await found.start(name)
            await found.agreed(AGREE_TIMEOUT_S)
            await found.coordinator(AGREE_TIMEOUT_S)
            yield found
    finally:
        await found.close()
        shutil.rmtree(folder, ignore_errors=True)


def children(pid: int) -> list[int]:
    try:
        return [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def signal_to(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _line(descriptor: int) -> bytes:
    """The first line of a pipe, which is closed then; empty where it ends before."""
    reader = asyncio.StreamReader()
    with os.fdopen(descriptor, "rb", 0) as file:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            return await reader.readline()
        finally:
            transport.close()
