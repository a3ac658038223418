"""Having something done where the cluster is coordinated: here, or by asking the node that coordinates it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from p2pnn.errors import UsageError
from p2pnn.node.asking import AskAgain, Asking
from p2pnn.node.links import Post
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

ELECTION_S: Final = 10.0
"""For a coordinator to be elected, and to take up what its predecessor led, before a person is told that there is none."""

ANSWER_S: Final = 300.0
"""For the coordinator to plan a job and have it decided: a new node measures itself first, and parameters travel."""

SUCCESSORS_MAX: Final = 5
LOOK_S: Final = 0.05
"""Links, takeovers and a handover that was refused tell nothing here."""


class Once:
    """What is asked for again while it is being done is done once, and all who asked get what comes of it."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], asyncio.Future[str]] = {}

    async def do(self, what: tuple[str, str], do: Callable[[], Awaitable[str]]) -> str:
        """Returns, or raises, what `do` does for the first who asks for this; where that one goes away the next one does it."""
        while (running := self._running.get(what)) is not None:
            await asyncio.wait([running])
            if not running.cancelled():
                return running.result()
        future = self._running[what] = asyncio.get_running_loop().create_future()
        try:
            state = await do()
            future.set_result(state)
            return state
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # retrieved here: nobody else may be waiting
            raise
        finally:
            del self._running[what]


class Elected(Protocol):
    """The charter, as far as this needs it (`node.charter.ClusterCharter`)."""

    @property
    def coordinator(self) -> NodeId | None: ...


class Coordinator:
    """ready: whether this node, where it coordinates, has taken up everything. members: names by id of the living."""

    def __init__(
        self,
        post: Post,
        charter: Elected,
        asking: Asking,
        members: Callable[[], dict[NodeId, str]],
        ready: Callable[[], bool],
    ) -> None:
        self._post = post
        self._charter = charter
        self._asking = asking
        self._members = members
        self._ready = ready
        self._closed = False
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Another node coordinates, or this one has decided something: who waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """The node stops: who waits is told so."""
        self._closed = True
        self.changed()

    async def have_done(self, question: wire.Ask, here: Callable[[], Awaitable[str]]) -> str:
        """Have what a question asks for done, by `here` where this node coordinates; returns the job's state.

        Asks the next coordinator where one is replaced meanwhile: what is asked for twice is done once. Raises UsageError.
        """
        for _ in range(SUCCESSORS_MAX):
            coordinator = await self.elected()
            try:
                if coordinator == self._post.node:
                    return await here()
                name = self._members().get(coordinator, coordinator[:8])
                answer = await self._asking.inquire(coordinator, f"{name}, which coordinates,", question, ANSWER_S)
                assert isinstance(answer, wire.Answered)
                return answer.state
            except AskAgain as error:
                last = error
                log.info("job=%s asked again verb=%s reason=%s", question.job, question.verb, error)
        raise UsageError(f"the coordinator was replaced again and again, last because {last}; look at `p2pnn jobs ls`")

    async def elected(self) -> NodeId:
        """Who coordinates; where it is this node, it has taken up everything. UsageError where none is elected in time."""
        try:
            async with asyncio.timeout(ELECTION_S):
                while True:
                    if self._closed:
                        raise UsageError(f"node {self._post.name} is stopping; ask another node")
                    coordinator = self._charter.coordinator
                    if coordinator is not None and coordinator != self._post.node:
                        if self._post.reachable(coordinator):
                            return coordinator
                    elif coordinator is not None and self._ready():
                        return coordinator
                    await self.next_change()
        except TimeoutError:
            raise UsageError(
                f"no coordinator was elected within {ELECTION_S:.0f} s, and jobs need one: too few voters can be reached from "
                "here; `p2pnn cluster show` says which"
            ) from None

    async def next_change(self) -> None:
        """Wait until another node may coordinate; looks again after a short while in any case."""
        try:
            async with asyncio.timeout(LOOK_S):
                await self._changed.wait()
        except TimeoutError:
            return
