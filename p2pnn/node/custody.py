"""Who holds the authority's key: the voters, because the coordinator, who signs, is one of them, and nobody else for long.

A voter without the key asks all members for it, because a former voter may be the only one that has it. Who is no voter any
more gives it to the voters, and deletes its own once one of them has said that the key is on its disk. So the last copy is
never deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from p2pnn.cluster.charter import Charter
from p2pnn.errors import StorageError
from p2pnn.node.charter import ClusterCharter
from p2pnn.node.credentials import Credentials
from p2pnn.node.links import Post
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.types import NodeId
from p2pnn.wire.messages import AuthorityHeld, AuthorityKey, AuthorityWanted

log = logging.getLogger("p2pnn.identity")


class Custody:
    """Feed it `receive` and `committed`, and call `tend` every second. reached: the members that are connected now."""

    def __init__(
        self,
        post: Post,
        charter: ClusterCharter,
        credentials: Credentials,
        reached: Callable[[], Collection[NodeId]],
        tasks: Tasks,
    ) -> None:
        self._post = post
        self._charter = charter
        self._credentials = credentials
        self._reached = reached
        self._tasks = tasks
        self._held_by: set[NodeId] = set()  # voters that said so, since this node ceased to be one

    def receive(self, node: NodeId, message: AuthorityWanted | AuthorityKey | AuthorityHeld) -> None:
        """Of what nodes say only what the committed charter gives them a right to."""
        charter, ca = self._charter.committed, self._credentials.ca
        if charter is None:
            return
        match message:
            case AuthorityWanted() if ca is not None and node in charter.voters:
                self._post.send(node, AuthorityKey(ca.pem))
            case AuthorityKey(pem) if self._post.node in charter.voters and charter.member(node) is not None:
                if ca is None:
                    self._tasks.spawn(self._hold(node, pem))
                else:
                    self._post.send(node, AuthorityHeld())
            case AuthorityHeld():
                self._held_by.add(node)

    def committed(self, charter: Charter) -> None:
        """Who holds the key may be gone soon, so a new voter asks at once."""
        if self._post.node in charter.voters:
            self._held_by.clear()
            if self._credentials.ca is None:
                self._ask(charter)

    def tend(self) -> None:
        """Raises StorageError where the key cannot be deleted."""
        charter, ca = self._charter.committed, self._credentials.ca
        if charter is None or charter.member(self._post.node) is None:
            return
        if self._post.node in charter.voters:
            if ca is None:
                self._ask(charter)
        elif ca is not None and self._held_by.isdisjoint(charter.voters):
            for voter in charter.voters:
                self._post.send(NodeId(voter), AuthorityKey(ca.pem))
        elif ca is not None:
            self._credentials.drop_ca()
            log.info("this node is no voter any more, and has deleted the authority's key")

    def _ask(self, charter: Charter) -> None:
        for node in set(charter.nodes()).intersection(self._reached()):
            self._post.send(node, AuthorityWanted())

    async def _hold(self, node: NodeId, pem: bytes) -> None:
        try:
            await in_thread(self._credentials.hold_ca, pem)
        except StorageError as error:
            log.error("the authority's key was not kept node=%s reason=%s", node[:8], error)
        else:
            log.info("this voter holds the authority's key from=%s", node[:8])
            self._post.send(node, AuthorityHeld())
