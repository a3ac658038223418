"""A job's record in the hands of its supervisor: every change of it, and what must be done because of it."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from p2pnn.job import life
from p2pnn.job.actions import Action, Publish, Remember
from p2pnn.job.records import JobRecord
from p2pnn.types import NodeId


class Ledger:
    """record: as it is now; remembered: as the members were last told. members: name by id of the living, kept up to date by the
    owner. Take `next_action` until None."""

    def __init__(self, record: JobRecord, members: dict[NodeId, str]) -> None:
        self.record = self.remembered = record
        self.members = members
        self._actions: deque[Action] = deque()

    def move(self, event: str, reason: str, step: int) -> None:
        """Change the state as the table of lives says, remember and tell it. Raises UsageError where it does not."""
        state = life.after(self.record.state, event)
        self.change(state=state, reason=reason, step=max(self.record.step, step))
        self.remember()
        self.tell_state(reason)

    def tell_state(self, reason: str) -> None:
        self.publish("state", state=self.record.state, reason=reason)

    def change(self, **fields: Any) -> None:
        """Change fields, without telling anybody yet."""
        self.record = msgspec.structs.replace(self.record, **fields)

    def remember(self) -> None:
        """Have the record stored and sent, under a higher revision."""
        self.change(revision=self.record.revision + 1)
        self.remembered = self.record
        self.do(Remember(self.record))

    def publish(self, kind: str, **fields: Any) -> None:
        """An event for whoever follows the job."""
        self.do(Publish(kind, fields))

    def do(self, *actions: Action) -> None:
        self._actions.extend(actions)

    def next_action(self) -> Action | None:
        return self._actions.popleft() if self._actions else None

    def name(self, node: NodeId) -> str:
        """A node's name, also when it is gone."""
        shares = self.record.plan.nodes if self.record.plan else ()
        return self.members.get(node) or next((s.name for s in shares if s.node == node), node[:8])
