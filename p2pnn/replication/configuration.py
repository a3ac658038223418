"""Who replicates a shard: one primary, the other in-sync replicas, learners; and which configuration may follow which.

The configuration manager is the charter: it holds the newest configuration of each shard, replaces it only by one that was made
from it, and gives each the version of its commit as *generation*. The primary proposes who is demoted, promoted or removed; the
elected coordinator proposes to go on without those that are lost, led by the next in sync (`job.assignment`). `may_follow` is
what both sides check: in whatever state a proposal was made, everybody who is in sync afterwards was so before, or is a learner
that the primary itself found ready. So every member of the last committed in-sync set holds every acknowledged update.

A member is a process: a node with an incarnation. A process that is started again has lost its memory, and is no member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pnn.types import NodeId
from p2pnn.wire.fields import Count, NodeText

MEMBERS_MAX: Final = 16
"""Replicas of one shard. Each update goes to each of them."""


class Member(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One process that holds a replica. incarnation: a random number that it drew when it started."""

    node: NodeText
    incarnation: Count

    @property
    def id(self) -> NodeId:
        return NodeId(self.node)


Members = Annotated[tuple[Member, ...], Meta(max_length=MEMBERS_MAX)]


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """One shard's. in_sync: the first is the primary. copies: how many in-sync replicas are wanted. generation: the version of
    the commit; of a proposal, that of the configuration which it is made from.
    """

    generation: Count
    copies: Annotated[int, Meta(ge=1, le=MEMBERS_MAX)]
    in_sync: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]
    learners: Members = ()

    @property
    def primary(self) -> Member:
        return self.in_sync[0]

    @property
    def members(self) -> tuple[Member, ...]:
        return self.in_sync + self.learners

    def replaced(self, in_sync: Sequence[Member], learners: Sequence[Member]) -> Configuration:
        """A proposal made from this one."""
        return msgspec.structs.replace(self, in_sync=tuple(in_sync), learners=tuple(learners))


def removed(before: Configuration, member: Member) -> Configuration:
    """Without a member that is not the primary."""
    return before.replaced(_without(before.in_sync, member), _without(before.learners, member))


def demoted(before: Configuration, member: Member) -> Configuration:
    """With a backup as a learner."""
    return before.replaced(_without(before.in_sync, member), (*before.learners, member))


def promoted(before: Configuration, member: Member) -> Configuration:
    """With a learner as a backup. Only the primary knows that it is ready."""
    return before.replaced((*before.in_sync, member), _without(before.learners, member))


def may_follow(before: Configuration, after: Configuration) -> bool:
    """Whether the configuration manager may commit `after`, a proposal made from the committed `before`.

    A node has one place in it: its new process waits until the old one is taken out.
    Never two changes whose order matters at once: whoever is promoted was a learner, and then the primary stays, since it alone
    knows that the learner is ready.
    """
    if after.generation != before.generation or len({member.node for member in after.members}) != len(after.members):
        return False
    if len(after.members) > MEMBERS_MAX or after.primary not in before.in_sync:
        return False
    promoted = set(after.in_sync) - set(before.in_sync)
    return not promoted or (promoted <= set(before.learners) and after.primary == before.primary)


def _without(members: Sequence[Member], leaving: Member) -> list[Member]:
    return [member for member in members if member != leaving]
