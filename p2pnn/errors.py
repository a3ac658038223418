"""Every error that p2pnn raises on purpose, as one small tree.

    P2pnnError                    a sentence for a person; carries the command line's exit status
    ├── UsageError          2     what the person asked for cannot be done; nothing was started
    │   ├── ModelError            the model (or a received graph) is not valid
    │   ├── DataError             a file, column, shape or value of the data
    │   ├── NotFoundError         no such job, blob or data set
    │   ├── PlanError             the model does not fit the nodes, a pin matches nothing, …
    │   └── CheckpointError       a checkpoint that is missing, damaged or newer than this program
    ├── NoDaemonError       3     no daemon answers on the socket
    ├── NotAllowedError     4     the operating system or a peer refused us
    ├── TimedOutError       5     a deadline passed
    ├── JobFailedError      1     a job started and failed; the reason names the node
    ├── ProtocolError             the wire
    │   ├── LocalProtocolError    we erred: a bug or a message over a limit that we tried to send
    │   │   └── QueueFullError        the peer does not read as fast as we send
    │   └── RemoteProtocolError   the peer erred: carries the close reason that it is sent
    ├── CharterError              the cluster's charter: damaged, newer than this program, too large
    │   ├── ProposalRefused           not here or not now: this node does not lead, another change is under way
    │   └── BetweenClusters           for the moments in which this node gives one charter up and takes another
    ├── PeerGone                  a peer that we speak to is not, or no longer, connected
    └── StorageError              a disk that is full, read-only or failing

A message names the thing, the value, the limit, and what to do. Foreign exceptions are mapped once, at the
border where they enter.
"""

from __future__ import annotations


class P2pnnError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one sentence for a person.

    setting: the key of the daemon's setting that is to blame, where a new start with the same value would fail the same way.
    """

    exit_status = 1

    def __init__(self, message: str = "", *, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class UsageError(P2pnnError):
    """What was asked for cannot be done; nothing was started."""

    exit_status = 2


class ModelError(UsageError):
    """A model or a received graph that is not valid."""


class DataError(UsageError):
    """A data file, column, shape or value that cannot be used."""


class PlanError(UsageError):
    """No plan satisfies the request: memory, pins or the number of nodes."""


class NotFoundError(UsageError):
    """No such job, blob or data set."""


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, or written by a newer p2pnn; it is left untouched."""


class NoDaemonError(P2pnnError):
    """No daemon answers on its socket."""

    exit_status = 3


class NotAllowedError(P2pnnError):
    """The operating system or a peer refused."""

    exit_status = 4


class TimedOutError(P2pnnError):
    """A deadline passed; the message names whose and how long it was."""

    exit_status = 5


class JobFailedError(P2pnnError):
    """A job was started and failed; the message names the node and the reason."""


class StartLostError(JobFailedError):
    """A start of a job cannot go on since nodes were lost; another one may."""


class StorageError(P2pnnError):
    """A disk that is full, read-only or failing; what was there before is unchanged."""


class CharterError(P2pnnError):
    """A charter that is damaged, too large, or written by a newer p2pnn; a durable one is left untouched."""


class ProposalRefused(CharterError):
    """The charter does not take this change here or now; the message says who leads or what it waits for."""


class BetweenClusters(CharterError):
    """This node has no charter to show for a moment: it moves to another cluster, begins its own anew, or stops."""


class PeerGone(P2pnnError):
    """The peer is not, or no longer, connected; the message names it and the reason."""


class ProtocolError(P2pnnError):
    """Something about the wire."""


class LocalProtocolError(ProtocolError):
    """We erred: an illegal call, or a message over a limit. A bug on this side."""


class QueueFullError(LocalProtocolError):
    """A link's bounded queue is full because the peer does not read; close the link as OVERFLOW."""


class RemoteProtocolError(ProtocolError):
    """The peer erred. `reason` is the `wire.messages.CloseReason` value that it is sent before the link closes."""

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
