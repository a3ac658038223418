"""What a replica tells its owner. They come in order: a state is taken after all that was applied before it."""

from __future__ import annotations

from typing import NamedTuple

from p2pnn.replication.configuration import Configuration
from p2pnn.replication.staging import Body
from p2pnn.types import NodeId
from p2pnn.wire.replication import Pushed


class Received(NamedTuple):
    """To the primary's owner: this update is whole. Check it, then call accept(worker, sequence) or refuse(…, reason)."""

    worker: int
    sequence: int
    pieces: tuple[Body, ...]


class Apply(NamedTuple):
    """Entry `number` is committed: apply it, after all earlier ones. No pieces: it was refused and changes nothing, or the
    owner wrote it itself. head: what the owner of the primary decided of it."""

    number: int
    worker: int
    sequence: int
    pieces: tuple[Body, ...]
    head: bytes = b""


class Acknowledge(NamedTuple):
    """To the primary's owner: send this to a worker's node, with the shard's answer in it where it has one, once all that
    came before is applied."""

    node: NodeId
    message: Pushed
    number: int


class TakeState(NamedTuple):
    """To the primary's owner: copy the state as it is after entry `number`, and hand it in by state_taken(number, pieces). It
    is held until a learner has it: no more than one at a time."""

    number: int


class LoadState(NamedTuple):
    """Replace the state by this one, which is that after entry `number`."""

    number: int
    pieces: tuple[Body, ...]


class Propose(NamedTuple):
    """To the configuration manager: commit this, if the committed configuration is still the one of its generation."""

    configuration: Configuration
    reason: str


class FetchConfiguration(NamedTuple):
    """Ask for the newest committed configuration, and hand it in by configured()."""


class Serving(NamedTuple):
    """This replica is the primary, the others are in step, and updates get numbers from now on."""

    generation: int


Outcome = Received | Apply | Acknowledge | TakeState | LoadState | Propose | FetchConfiguration | Serving
