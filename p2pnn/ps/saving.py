"""What a shard is saved as: its arrays, its version, and which pushes are in it, all cut between the same two updates.

Without the last a push whose answer was lost in a crash would be applied again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from p2pnn.errors import CheckpointError
from p2pnn.ps.roster import Member, Roster
from p2pnn.ps.space import Flat


@dataclass(frozen=True, slots=True)
class Saved:
    """arrays: `parameters` and each slot of the optimizer. logged: the workers in their order. left: node → its newest life
    that left."""

    arrays: Mapping[str, Flat]
    version: int
    log_number: int
    logged: tuple[Member, ...]
    left: Mapping[str, int]

    @classmethod
    def of(cls, arrays: Mapping[str, Flat], version: int, roster: Roster) -> Saved:
        return cls(arrays, version, roster.log_number, tuple(replace(m) for m in roster.members), roster.left)

    def members(self) -> list[Member]:
        """Copies: what was saved stays as it is."""
        return [replace(member) for member in self.logged]


def check_fit(saved: Mapping[str, Flat], arrays: Mapping[str, Flat]) -> None:
    """Raise CheckpointError unless it has exactly these arrays, of the same sizes."""
    found = {name: array.shape for name, array in saved.items()}
    wanted = {name: array.shape for name, array in arrays.items()}
    if found != wanted:
        raise CheckpointError(f"a checkpoint of the shard has {found}, but the job needs {wanted}")
