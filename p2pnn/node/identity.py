"""A secured node's identity: its credentials, the cluster that it is of, who may have a link, and how it joins another cluster.

It founds a cluster at its first start: an authority, a certificate, a charter that names it. Joining, later, is one way
for all: a node that is alone in its cluster, and has no job, takes the certificate of another one, forgets its charter,
and dials. Its links use the new credentials from then on, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnn.cluster.charter import Charter, CharterMember
from p2pnn.cluster.petitions import MakeToken, Remove, RevokeToken
from p2pnn.errors import NotAllowedError, P2pnnError, StorageError, UsageError
from p2pnn.identity import tokens
from p2pnn.identity.authority import Certificate
from p2pnn.identity.keys import NodeKey, PublicKey
from p2pnn.identity.tokens import Token, TokenRecord
from p2pnn.node.addresses import interfaces, join_addresses
from p2pnn.node.charter import ClusterCharter
from p2pnn.node.charter_file import Founding
from p2pnn.node.credentials import Credentials
from p2pnn.node.custody import Custody
from p2pnn.node.door import ClusterDoor
from p2pnn.node.links import Post
from p2pnn.node.members import Members
from p2pnn.node.peers import PeersFile
from p2pnn.node.petitions import Petitions
from p2pnn.node.tasks import Tasks, in_thread
from p2pnn.transport import Transport
from p2pnn.transport.joining import knock
from p2pnn.transport.secure import Security
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import AuthorityHeld, AuthorityKey, AuthorityWanted, Message, Offer, Petition, Ruling

log = logging.getLogger("p2pnn.identity")

CLUSTER_DIGITS: Final = 32
"""Of the cluster's name in tokens, in Hello."""


class NotJoined(NotAllowedError):
    """No address admitted this node. reasons: one for each."""

    def __init__(self, addresses: Sequence[Address], reasons: Sequence[str]) -> None:
        super().__init__("not joined: " + "; ".join(f"{a}: {r}" for a, r in zip(addresses, reasons, strict=True)))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class _Admitted:
    """What a joiner was given. key: of the member at `address`, by which it joined."""

    certificate: Certificate
    authority: Certificate
    key: PublicKey
    address: Address


@dataclass(frozen=True, slots=True)
class Part:
    """What identity needs of the rest of the node."""

    post: Post
    transport: Transport
    members: Members
    charter: ClusterCharter
    busy: Callable[[], str]


class Identity:
    """Make it before the transport, `attach` it to the rest, then call what the charter and the links tell.

    Raises StorageError for credentials that cannot be used.
    """

    def __init__(self, name: str, software: str, key: NodeKey, credentials: Credentials, peers: PeersFile) -> None:
        self.name = name
        self.credentials = credentials
        self.removed = ""  # where a member has told this node that it was removed: its words
        self.founded_with: Token | None = None
        self._software = software
        self._key = key
        self._tasks = Tasks()
        self._peers = peers
        self._joining = asyncio.Lock()
        self._closed = self._founding_again = False
        self._leaving: asyncio.Future[None] | None = None
        self._vouching = frozenset(peers.nodes())  # before this node has a charter; nobody once it has had one
        self._door = ClusterDoor(
            lambda: self.charter,
            lambda node: node in self._vouching,
            self._offer,
            lambda petition: self.petitions.ask(petition),
            self._tasks,
            self.told_removed,
        )
        self._part: Part | None = None
        self._petitions: Petitions | None = None
        self._custody: Custody | None = None

    def found(self, announces: bool) -> Founding:
        """What this node's own cluster begins with; makes its authority if there is none. announces: with a token to join by."""
        if self.credentials.certificate is None:
            self.credentials.found(time.time())
        records: tuple[TokenRecord, ...] = ()
        if announces and self.credentials.ca is not None:
            self.founded_with, record = tokens.create(
                self.credentials.cluster, self.name, time.time(), tokens.VALID_S, os.urandom
            )
            records = (record,)
        public = self._key.public
        return Founding(CharterMember(public.node, public.fingerprint, self.name), records)

    def security(self) -> Security:
        """For the transport. Raises StorageError."""
        held = self.credentials
        assert held.authority is not None, "founded or joined before"
        return Security(held.chain_file, held.key_file, held.authority.der, self._door)

    @property
    def cluster(self) -> str:
        """The cluster's name in Hello."""
        return self.credentials.cluster[:CLUSTER_DIGITS]

    def attach(
        self,
        post: Post,
        transport: Transport,
        members: Members,
        charter: ClusterCharter,
        busy: Callable[[], str],
    ) -> None:
        """The rest of the node, and a job that keeps this node in its cluster, as a clause; empty for none."""
        self._part = Part(post, transport, members, charter, busy)
        self._petitions = Petitions(post, charter, lambda: self.credentials.ca, self._tasks)
        self._custody = Custody(post, charter, self.credentials, self.reached, self._tasks)

    @property
    def part(self) -> Part:
        assert self._part is not None, "used before it was attached"
        return self._part

    @property
    def petitions(self) -> Petitions:
        assert self._petitions is not None, "used before it was attached"
        return self._petitions

    @property
    def custody(self) -> Custody:
        assert self._custody is not None, "used before it was attached"
        return self._custody

    @property
    def charter(self) -> Charter | None:
        """What holds, as far as this node knows; just after a start, what it held before."""
        return self.part.charter.committed or self.part.charter.held

    def reached(self) -> dict[NodeId, Address]:
        """Where the members are that are connected now."""
        return {link.node: link.address for link in self.part.transport.snapshot()}

    async def close(self) -> None:
        self._closed = True
        self._door.dismiss()
        await self._tasks.close()

    # --- what the rest of the node tells

    def receive(self, node: NodeId, message: Message) -> None:
        match message:
            case Petition():
                self.petitions.asked(node, message)
            case Ruling():
                self.petitions.answered(node, message)
            case AuthorityWanted() | AuthorityKey() | AuthorityHeld():
                self.custody.receive(node, message)

    def charter_committed(self, charter: Charter) -> None:
        """All links of those that it does not name end, whenever they were opened."""
        self.petitions.committed(charter)
        self.custody.committed(charter)
        self._vouching = frozenset()
        for node in self.reached().keys() - set(charter.nodes()):
            log.warning("link ended node=%s reason=the charter does not name it any more", node[:8])
            self.part.transport.expel(node, f"node {node[:8]} was removed from the cluster")
        me = self.part.post.node
        if charter.member(me) is not None:
            self.removed = ""
        if charter.nodes() == [me] and self.credentials.ca is None and not self._founding_again:
            self._founding_again = True
            self._tasks.spawn(self._found_again())

    def told_removed(self, words: str) -> None:
        """A member has refused this node, because it was removed."""
        if self._leaving is not None:
            if not self._leaving.done():
                self._leaving.set_result(None)
        elif not self.removed:
            log.error("this node is no member any more: %s; join again with a new token (p2pnn join)", words)
        self.removed = words

    def coordinator_changed(self, coordinator: NodeId | None) -> None:
        if coordinator != self.part.post.node:
            self.petitions.deposed()

    # --- what a person asks for

    async def make_token(self, valid_s: float) -> tuple[Token, TokenRecord]:
        """A new token. Raises UsageError for a time that is not sensible, and as `Petitions.ask`."""
        token, record = tokens.create(self.credentials.cluster, self.name, time.time(), valid_s, os.urandom)
        await self.petitions.ask(MakeToken(record))
        return token, record

    def token_records(self) -> tuple[TokenRecord, ...]:
        """Those that have not expired, as the charter that this node knows has them."""
        charter = self.charter
        return tokens.living(charter.tokens, time.time()) if charter is not None else ()

    async def revoke_token(self, id: str) -> None:
        """id: a token's, or the token itself. Raises as `Petitions.ask`."""
        found = Token.parse(id).id if "." in id else id
        if not (len(found) == 8 and all(c in "0123456789abcdef" for c in found)):
            raise UsageError(
                f"{found!r} is no token's id, which has 8 hexadecimal digits; `p2pnn token list` shows them"
            )
        await self.petitions.ask(RevokeToken(found))

    async def remove(self, member: str) -> None:
        """Have a member removed, by its name or id. Raises as `Petitions.ask`."""
        await self.petitions.ask(Remove(member))

    async def leave(self) -> None:
        """Have this node itself removed; harmless where it is no member of others. Raises as `Petitions.ask`."""
        charter, me = self.charter, self.part.post.node
        if charter is None or charter.nodes() == [me] or self.removed:
            return
        removed = self._leaving = asyncio.get_running_loop().create_future()
        asking = asyncio.ensure_future(self.petitions.ask(Remove(me)))
        try:
            # Its links end with the decision, so that its answer may be the word by which a member closes one.
            await asyncio.wait([asking, removed], return_when=asyncio.FIRST_COMPLETED)
            if not removed.done():
                asking.result()
            log.info("left cluster=%s", self.credentials.cluster[:8])
        finally:
            self._leaving = None
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def join_line(self, token: Token, advertise: Sequence[str], listen: Address) -> str:
        """What to type on a machine that is to join. listen: where this node listens. Raises UsageError for no address."""
        hosts = join_addresses(listen, advertise, interfaces())
        return " ".join(["p2pnn", "join", str(token), *map(str, hosts)])

    def cannot_leave(self, force: bool = False) -> str:
        """Why this node cannot give its cluster up, as a clause; empty where it can. force: though it has other members."""
        charter, node = self.charter, self.part.post.node
        if charter is not None and set(charter.nodes()) - {node} and not self.removed and not force:
            others = len(set(charter.nodes()) - {node})
            with_others = f"{others} other member{'s' if others > 1 else ''}"
            return (
                f"it belongs to a cluster with {with_others}; remove it there first (p2pnn cluster remove {self.name})"
            )
        return self.part.busy()

    def has_joined(self, token: Token) -> bool:
        """Whether this node is of the token's cluster, as far as it knows, and its certificate is still of use."""
        return self._is_member_of(token) and not self.credentials.has_ended(time.time())

    async def join(self, token: Token, addresses: Sequence[Address], force: bool = False) -> Address:
        """Join the token's cluster by the first of these addresses where that works, and return it. force: see `cannot_leave`.

        Raises NotAllowedError: this node cannot leave its cluster, or none of the addresses admitted it; the message has each
        one's reason.
        """
        if self._joining.locked():
            raise NotAllowedError("this node is joining a cluster at this moment")
        async with self._joining:
            self._check_may_join(token, force)
            found = await self._knock(token, addresses)
            self._check_may_join(token, force)
            if self._is_member_of(token) and not force:
                await self._tasks.finish(self._return(found))
            else:
                await self._tasks.finish(self._move(found))
        log.info("joined cluster=%s by=%s", token.cluster[:8], found.address)
        return found.address

    async def take(self, certificate: Certificate) -> None:
        """The next certificate of the same cluster: links opened from now on use it. Raises StorageError, NotAllowedError."""
        authority = self.credentials.authority
        assert authority is not None
        certificate.check_issued_by(authority, time.time())
        if certificate.key != self._key.public:
            raise NotAllowedError("the certificate that the coordinator gave is another node's")
        await in_thread(self.credentials.take, certificate, authority)
        self.part.transport.adopt(self.security(), self.cluster, moves=False)

    # --- how

    def _offer(self) -> Offer | None:
        authority = self.credentials.authority
        if authority is None or self._joining.locked() or self._closed:
            return None
        return Offer(authority.der, self._software)

    def _is_member_of(self, token: Token) -> bool:
        """Whether this node is of the token's cluster, as far as it knows."""
        charter = self.charter
        named = charter is not None and charter.member(self.part.post.node) is not None
        return named and token.cluster == self.credentials.cluster and not self.removed

    def _check_may_join(self, token: Token, force: bool) -> None:
        """Raises NotAllowedError: why not."""
        if self.has_joined(token) and not force:
            raise NotAllowedError(
                "this node is a member of the token's cluster already; use the token on another machine"
            )
        same = token.cluster == self.credentials.cluster
        if not self._is_member_of(token) and (why := self.cannot_leave(force or same)):
            raise NotAllowedError(f"this node cannot join another cluster: {why}")

    async def _knock(self, token: Token, addresses: Sequence[Address]) -> _Admitted:
        reasons = []
        for address in addresses:
            try:
                found = await knock(address, token, self._key.public, self.name, self._software, time.time())
            except P2pnnError as error:
                log.warning("not joined address=%s reason=%s", address, error)
                reasons.append(str(error))
            else:
                return _Admitted(*found, address)
        raise NotJoined(addresses, reasons)

    async def _return(self, found: _Admitted) -> None:
        """A member whose certificate had ended has a new one; the charter, with its votes, stays."""
        await in_thread(self.credentials.take, found.certificate, found.authority)
        self.part.transport.adopt(self.security(), self.cluster, moves=False)
        self.part.members.join([found.address])

    async def _move(self, found: _Admitted) -> None:
        """Out of the old cluster, into the new one. The order: whatever breaks off in between, the node can join again, and with
        the new credentials there is an address to dial. Links of the old cluster end before a charter is heard of again.
        """
        part, voucher = self.part, found.key.node
        await part.charter.stand_still()
        try:
            async with self._peers.lock:
                await self._peers.replace({voucher: found.address})
            await part.charter.forget()
            await in_thread(self.credentials.take, found.certificate, found.authority)
            self._vouching = frozenset([voucher])
            self.removed = ""
            self._door.dismiss()
            part.transport.adopt(self.security(), self.cluster, moves=True)
        finally:
            part.charter.start()
        part.members.join([found.address])

    async def _found_again(self) -> None:
        """Alone after a recovery, the authority's key lost with the former voters: a new one, since all others join anew."""
        try:
            await in_thread(self.credentials.found, time.time())
        except StorageError as error:
            log.error("no new authority reason=%s; nobody can join", error)
            return
        finally:
            self._founding_again = False
        self.part.transport.adopt(self.security(), self.cluster, moves=True)
        log.warning(
            "the cluster has a new authority cluster=%s; tokens made before are void", self.credentials.cluster[:8]
        )
