"""An executor's life: the first message says what it is to be, then it serves one job.

Whatever goes wrong becomes one sentence in Failed, with the traceback on stderr, and exit status 1; the daemon's end closing
ends it quietly. What another node's process sent and makes no sense (RemoteProtocolError) costs this process alone.
"""

from __future__ import annotations

import contextlib
import sys
import traceback

from p2pnn.errors import JobFailedError, P2pnnError, RemoteProtocolError, StartLostError
from p2pnn.executor import commands
from p2pnn.executor.arena import Arena
from p2pnn.executor.channel import Channel
from p2pnn.executor.following import FollowingSession
from p2pnn.executor.leasing import LeasingSession
from p2pnn.executor.replica import ReplicaSession
from p2pnn.executor.serving import Server
from p2pnn.executor.session import Session, read
from p2pnn.job.assignment import is_leased


def run(channel: Channel, arena: Arena) -> int:
    """Serve one job until Finish (0), a failure (1) or the daemon's end closes (1); returns the exit status."""
    try:
        _serve(channel, arena)
        return 0
    except EOFError:
        return 1
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        with contextlib.suppress(EOFError):
            lost = isinstance(error, RemoteProtocolError | StartLostError)
            channel.send(commands.Failed(sentence(error), lost))
        return 1
    finally:
        channel.leave()


def _serve(channel: Channel, arena: Arena) -> None:
    while not (messages := channel.receive()):
        pass
    prepare, *early = messages
    if not isinstance(prepare, commands.Prepare):
        raise JobFailedError(f"the executor was told {type(prepare).__name__} before Prepare")
    spec, plan = read(prepare)
    if prepare.role == "serve":
        Server(channel, arena, prepare, spec, plan).run(early)
    elif is_leased(plan, spec) and plan.position(prepare.node_index):
        FollowingSession(channel, arena, prepare, spec, plan).run(early)
    elif is_leased(plan, spec):
        LeasingSession(channel, arena, prepare, spec, plan).run(early)
    elif spec.data is not None:
        ReplicaSession(channel, arena, prepare, spec, plan).run(early)
    else:
        Session(channel, arena, prepare, spec, plan).run(early)


def sentence(error: Exception) -> str:
    """What a person is told about an exception."""
    if isinstance(error, P2pnnError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"its memory does not suffice ({error or 'the system gave no more'}); use more nodes or a smaller batch"
    if isinstance(error, OSError):
        return f"the operating system refused: {error}"
    return f"a fault in this program: {type(error).__name__}: {error}"
