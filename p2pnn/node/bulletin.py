"""What happens to jobs, told to every member, so that a person can follow a job at any peer, whoever coordinates it.

The coordinator publishes; each member keeps a journal of its own, with its own numbers. Progress goes only to members
where somebody follows the job, who say so again every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import msgspec

from p2pnn.job.records import JobRecord
from p2pnn.node.journal import UNWRITTEN, Journals
from p2pnn.node.links import Post
from p2pnn.node.storage import valid_job_id
from p2pnn.types import JobId, NodeId
from p2pnn.wire import messages as wire

log = logging.getLogger("p2pnn.jobs")

FOLLOW_S: Final = 1.0
"""Who follows says so this often, and is believed for three times as long."""

MISSED_S: Final = 1.0
"""The word that a job has ended comes right behind its record; where it has not come by then, this node was away."""

FOLLOWED_MAX: Final = 4096
"""Pairs of job and member that are followed at once; more get no progress."""


class Bulletin:
    """coordinator: who coordinates, as far as this node knows. members: every living one, this node included."""

    def __init__(
        self,
        post: Post,
        journals: Journals,
        coordinator: Callable[[], NodeId | None],
        members: Callable[[], Iterable[NodeId]],
    ) -> None:
        self._post = post
        self._journals = journals
        self._coordinator = coordinator
        self._members = members
        self._followers: dict[tuple[JobId, NodeId], float] = {}

    def publish(self, job: JobId, generation: int, kind: str, fields: dict[str, Any]) -> None:
        """As the coordinator: write the event down here and tell it to whom it concerns."""
        self._journals.of(job).add(kind, fields)
        packed = msgspec.msgpack.encode(fields)
        if len(packed) > wire.RECORD_BYTES_MAX:
            return  # a plan of thousands of ops: the members have it in the record
        message = wire.Happened(job, generation, kind, packed)
        for node in self._members():
            if node != self._post.node and (kind not in UNWRITTEN or self._is_followed(job, node)):
                self._post.send(node, message)

    def receive(self, node: NodeId, message: wire.Happened | wire.Follow) -> None:
        """The coordinator tells of an event, or a member wants to hear all of a job's."""
        job = JobId(message.job)
        if isinstance(message, wire.Follow):
            now = self._now()
            if len(self._followers) >= FOLLOWED_MAX:
                self._followers = {pair: until for pair, until in self._followers.items() if until > now}
            if len(self._followers) < FOLLOWED_MAX:
                self._followers[job, node] = now + 3 * FOLLOW_S
        elif node == self._coordinator() and node != self._post.node and valid_job_id(job):
            try:
                fields = msgspec.msgpack.decode(message.fields, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                log.warning("event refused job=%s node=%s reason=%s", job, node[:8], error)
            else:
                self._journals.of(job).add(message.kind, fields)

    def learnt(self, record: JobRecord) -> None:
        """A record came. Who follows a job whose end this node has missed learns of it from the record."""
        if record.is_over:
            asyncio.get_running_loop().call_later(MISSED_S, self._end, record)

    def knows_all_of(self, record: JobRecord) -> bool:
        """Whether the journal here can be followed: it has the beginning of the job, and its end where it has ended."""
        journal = self._journals.of(record.job)
        return journal.begins_with_the_job and (not record.is_over or journal.ended)

    async def follow(self, job: JobId, after: int) -> AsyncIterator[dict[str, Any]]:
        """Events above this number of the journal here, as they come."""
        telling = asyncio.ensure_future(self._tell_of_following(job))
        try:
            async for event in self._journals.of(job).follow(after):
                yield event
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling

    # --- how

    async def _tell_of_following(self, job: JobId) -> None:
        while True:
            coordinator = self._coordinator()
            if coordinator is not None and coordinator != self._post.node:
                self._post.send(coordinator, wire.Follow(job))
            await asyncio.sleep(FOLLOW_S)

    def _end(self, record: JobRecord) -> None:
        journal = self._journals.of(record.job)
        if journal.begins_with_the_job and not journal.ended:
            journal.add("state", {"state": record.state, "reason": record.reason})

    def _is_followed(self, job: JobId, node: NodeId) -> bool:
        return self._followers.get((job, node), 0.0) > self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
