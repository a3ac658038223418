"""When a process is proved gone, without waiting for a suspicion to end.

Its link was reset, and two redials at least 100 ms apart were refused: the machine answers, and says that nobody listens. One
witness may err (it may be cut off by a firewall that refuses), so in a cluster of four or more two of them must have seen it,
each by itself; a witness tells others by Testimony. In a cluster of two or three there may be only one, so one is enough.
A machine that is off or stopped refuses nothing: there the probes decide.
"""

from __future__ import annotations

from typing import Final

from p2pnn.types import NodeId

REFUSALS_APART_S: Final = 0.1
"""A process that is just being restarted listens again soon; one refusal alone may hit that moment."""

ONE_IS_ENOUGH: Final = 3
"""Members, up to which one witness counts."""


class Proof:
    """What speaks for one member's being gone, since its last sign of life. witnesses: who has seen all of it."""

    __slots__ = ("_first", "_reset", "witnesses")

    def __init__(self) -> None:
        self.witnesses: set[NodeId] = set()
        self._reset = False
        self._first: float | None = None

    def link_reset(self) -> None:
        """This node's own link to it broke, without a goodbye."""
        self._reset = True
        self._first = None

    def refused(self, now: float) -> bool:
        """A redial was refused; whether this node has now seen enough to be a witness."""
        if not self._reset:
            return False
        if self._first is None:
            self._first = now
        return now - self._first >= REFUSALS_APART_S

    def suffices(self, members: int) -> bool:
        """Whether enough have seen it, in a cluster of so many."""
        return len(self.witnesses) >= (1 if members <= ONE_IS_ENOUGH else 2)
