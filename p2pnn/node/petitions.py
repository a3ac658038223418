"""Asking the coordinator to change who is in, and, where this node is the coordinator, doing it.

A petition is asked again by itself, until a deadline, while nobody coordinates, the coordinator changes, or another
change is under way. It may so be decided twice; `cluster.petitions.rule` finds then that it holds already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from p2pnn.cluster import petitions
from p2pnn.cluster.charter import Charter, Version
from p2pnn.cluster.petitions import Admit, Change, Petition, Remove, Renew
from p2pnn.errors import CharterError, NotAllowedError, P2pnnError, ProposalRefused, TimedOutError
from p2pnn.identity import tokens
from p2pnn.identity.authority import Authority
from p2pnn.identity.guesses import Guesses
from p2pnn.identity.keys import PublicKey
from p2pnn.node.charter import ClusterCharter
from p2pnn.node.door import BadToken, too_soon
from p2pnn.node.links import Post
from p2pnn.node.tasks import Tasks
from p2pnn.types import NodeId
from p2pnn.wire.messages import Petition as Asked
from p2pnn.wire.messages import Ruling

DEADLINE_S: Final = 15.0
"""For a petition in all: an election, a handover and two commits take less."""

ANSWER_S: Final = 6.0
AGAIN_S: Final = 0.1
KEY_S: Final = 2.0
"""For the authority's key before a member is removed: who holds it sends it as soon as this node votes."""

UNDER_WAY_MAX: Final = 64
"""Petitions that a coordinator works on; more are told to come again."""


class Again(P2pnnError):
    """Not now, or not here."""


class Petitions:
    """ca: the authority with its key, where this node holds it. `committed`, `deposed`: to be called as the charter tells."""

    def __init__(self, post: Post, charter: ClusterCharter, ca: Callable[[], Authority | None], tasks: Tasks) -> None:
        self._post = post
        self._charter = charter
        self._ca = ca
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._guesses = Guesses()
        self._requests = 0
        self._answers: dict[int, tuple[NodeId, asyncio.Future[Ruling]]] = {}
        self._under_way = 0
        self._commits: list[tuple[Version, asyncio.Future[bool]]] = []

    async def ask(self, petition: Petition) -> bytes:
        """What the coordinator answers, once it holds. Raises BadToken, NotAllowedError (its refusal), TimedOutError."""
        data = petitions.encode(petition)
        deadline = self._loop.time() + DEADLINE_S
        trouble = "nobody coordinates the cluster: too few of its voters can be reached"
        while self._loop.time() < deadline:
            ruling = await self._ask_once(data)
            if ruling is not None and not ruling.error:
                return ruling.record
            if ruling is not None and not ruling.again:
                raise (BadToken if ruling.bad_token else NotAllowedError)(ruling.error)
            trouble = ruling.error if ruling is not None else trouble
            await asyncio.sleep(AGAIN_S)
        raise TimedOutError(f"the cluster decided nothing in {DEADLINE_S:g} s: {trouble}")

    def asked(self, node: NodeId, message: Asked) -> None:
        """A member's petition."""
        if self._under_way >= UNDER_WAY_MAX:
            self._post.send(
                node, Ruling(message.request, error="the coordinator has too many petitions at once", again=True)
            )
            return
        self._under_way += 1
        self._tasks.spawn(self._answer(node, message))

    def answered(self, node: NodeId, message: Ruling) -> None:
        asked, future = self._answers.get(message.request, (None, None))
        if future is not None and asked == node and not future.done():
            future.set_result(message)

    def committed(self, charter: Charter) -> None:
        for version, future in self._commits:
            if not future.done() and charter.version >= version:
                future.set_result(charter.version == version)
        self._commits = [one for one in self._commits if not one[1].done()]

    def deposed(self) -> None:
        for _, future in self._commits:
            if not future.done():
                future.set_result(False)
        self._commits.clear()

    # --- asking

    async def _ask_once(self, data: bytes) -> Ruling | None:
        coordinator = self._charter.coordinator
        if coordinator is None or (coordinator != self._post.node and not self._post.reachable(coordinator)):
            return None
        if coordinator == self._post.node:
            return await self._rule(self._post.node, data, 0)
        self._requests += 1
        request = self._requests
        future: asyncio.Future[Ruling] = self._loop.create_future()
        self._answers[request] = (coordinator, future)
        try:
            self._post.send(coordinator, Asked(request, data))
            async with asyncio.timeout(ANSWER_S):
                return await future
        except TimeoutError:
            return Ruling(request, error=f"coordinator {self._post.name_of(coordinator)} does not answer", again=True)
        finally:
            del self._answers[request]

    # --- ruling

    async def _answer(self, node: NodeId, message: Asked) -> None:
        try:
            self._post.send(node, await self._rule(node, message.record, message.request))
        finally:
            self._under_way -= 1

    async def _rule(self, source: NodeId, data: bytes, request: int) -> Ruling:
        try:
            return Ruling(request, await self._decide(source, petitions.decode(data)))
        except Again as error:
            return Ruling(request, error=str(error), again=True)
        except P2pnnError as error:
            return Ruling(request, error=str(error), bad_token=isinstance(error, BadToken))

    async def _decide(self, source: NodeId, petition: Petition) -> bytes:
        """Raises Again, or P2pnnError: why not."""
        if not self._charter.coordinates:
            raise Again(f"node {self._post.name} does not coordinate the cluster (any more, or yet)")
        key = PublicKey(petition.key) if isinstance(petition, Admit | Renew) else None
        if isinstance(petition, Admit):
            self._check_patience(petition)
        if key is not None and self._ca() is None:
            raise Again("the coordinator has not been given the authority's key yet")
        deadline = self._loop.time() + ANSWER_S - 1
        if isinstance(petition, Remove):
            await self._wait_for_key()
        while self._loop.time() < deadline:
            if isinstance(petition, Admit):
                self._judge(petition)
            change = self._change(source, petition, key)
            if change.holds or await self._propose(change):
                return self._certificate(key) if change.certify and key is not None else b""
            await asyncio.sleep(AGAIN_S)
        raise Again("other changes of the charter are under way")

    async def _wait_for_key(self) -> None:
        """Who is to be removed may be the only one that holds the authority's key. Not for ever: it may not want to give it."""
        until = self._loop.time() + KEY_S
        while self._ca() is None and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(AGAIN_S)

    def _check_patience(self, petition: Admit) -> None:
        """Raises NotAllowedError for who has guessed too often."""
        wait_s = self._guesses.wait_s(petition.host, self._loop.time())
        if wait_s:
            raise NotAllowedError(too_soon(wait_s))

    def _judge(self, petition: Admit) -> None:
        """Raises BadToken for one that admits nobody by the charter of this moment."""
        charter = self._charter.committed
        known = charter.tokens if charter is not None else ()
        trouble = tokens.judge(known, petition.token, petition.secret, time.time())
        if trouble:
            self._guesses.wrong(petition.host, self._loop.time())
            raise BadToken(trouble)

    def _change(self, source: NodeId, petition: Petition, key: PublicKey | None) -> Change:
        charter = self._charter.committed
        if charter is None or not self._charter.coordinates:
            raise Again(f"node {self._post.name} does not coordinate the cluster any more")
        if charter.member(source) is None:
            raise NotAllowedError("only members may ask for that")
        fingerprint = key.fingerprint if key is not None else ""
        return petitions.rule(charter, self._post.node, source, petition, fingerprint, time.time())

    async def _propose(self, change: Change) -> bool:
        """Whether it holds. False: something else was decided, or is under way."""
        try:
            version = self._charter.propose_members(change)
        except ProposalRefused:
            return False
        except CharterError as error:
            raise NotAllowedError(str(error)) from None
        if version is None:
            raise Again(f"node {self._post.name} coordinates, and hands over first")
        future: asyncio.Future[bool] = self._loop.create_future()
        self._commits.append((version, future))
        try:
            async with asyncio.timeout(ANSWER_S - 1):
                return await future
        except TimeoutError:
            raise Again("too few voters can be reached to decide it") from None

    def _certificate(self, key: PublicKey) -> bytes:
        ca = self._ca()
        if ca is None:
            raise Again("this node is no voter any more")
        return ca.issue(key, time.time()).der
