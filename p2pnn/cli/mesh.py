"""Which mesh a command speaks to: the daemon's, or a local one of its own.

`--local N` never contacts a daemon. Without it the daemon's socket decides: where one answers, it is used; where there is
none and nobody asked for one (by flag, environment or node.toml), training commands start a local mesh. A socket that
exists but may not be opened is an error, never a silent local mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from p2pnn.cli.http import Daemon
    from p2pnn.cli.local import LocalMesh
    from p2pnn.cli.request import Request

SocketFlag = Annotated[
    str | None,
    typer.Option(
        "--socket", metavar="PATH", help="The daemon's socket.  [default: P2PNN_SOCKET, or where `p2pnn paths` says]"
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

LOCAL_NODES: Final = 3


@dataclass(frozen=True, slots=True)
class Mesh:
    """A daemon to speak to; local is the mesh around it if it is ours."""

    daemon: Daemon
    local: LocalMesh | None = None

    @property
    def fallen(self) -> Callable[[], str]:
        """See `follow`: a sentence when a daemon of ours has died."""
        return self.local.fallen if self.local else lambda: ""


def connect(socket: str | None) -> Daemon:
    """The daemon, for verbs that need one. Nothing is sent yet: the first call finds out whether it is there."""
    from p2pnn.cli.http import Daemon
    from p2pnn.config import client_socket

    return Daemon(client_socket(socket).path)


def wants_local(
    local: int | None,
    socket: str | None,
    default: int = LOCAL_NODES,
    nodes: int | list[str] = 0,
    workers: int = 0,
    each: int = 1,
) -> int:
    """How many local nodes to start; 0 where a daemon answers. nodes: the job's, how many or which; workers: each takes
    `each` of them.

    Raises NoDaemonError where one was asked for and does not answer, NotAllowedError where its socket is not ours to open,
    UsageError where both are asked for, or where the local mesh will not have the job's nodes.
    """
    count = _wants_local(local, socket, default)
    if count:
        _check_nodes(nodes, count)
        _check_workers(workers, each, count)
    return count


def wants_for(request: Request, local: int | None, socket: str | None) -> int:
    """The same for a training run. Where hybrid parallelism names no number of nodes, enough for two workers are started."""
    each, workers = request.nodes_per_worker, request.data_parallel.workers
    default = max(LOCAL_NODES, each * (workers or 2)) if request.is_hybrid else LOCAL_NODES
    return wants_local(local, socket, default, nodes=request.mesh.nodes, workers=workers, each=each)


def _wants_local(local: int | None, socket: str | None, default: int) -> int:
    from p2pnn.cli.http import Daemon, nobody_on
    from p2pnn.cli.local import NODES_MAX
    from p2pnn.config import client_socket
    from p2pnn.errors import NoDaemonError, UsageError

    if local is not None:
        if socket is not None:
            raise UsageError("--local starts a mesh of its own and --socket names a daemon: give one of them")
        if not 1 <= local <= NODES_MAX:
            raise UsageError(f"--local {local}: a local mesh has 1 to {NODES_MAX} nodes")
        return local
    choice = client_socket(socket)
    if Daemon(choice.path).answers():
        return 0
    if choice.asked:
        raise NoDaemonError(f"{nobody_on(choice.path)}, or add --local {default} for nodes of this command's own")
    return default


def _check_nodes(nodes: int | list[str], count: int) -> None:
    """The local mesh's nodes are known before it starts, so what it cannot give is refused then."""
    from p2pnn.cli.local import names
    from p2pnn.config import unknown
    from p2pnn.errors import UsageError

    if isinstance(nodes, int):
        if nodes > count:
            raise UsageError(f"--nodes {nodes} is more than the {count} nodes of the local mesh; add --local {nodes}")
        return
    for name in nodes:
        if name not in names(count):
            raise UsageError(unknown(f"the local mesh of {count} has no node", name, names(count)))


def _check_workers(workers: int, each: int, count: int) -> None:
    from p2pnn.errors import UsageError

    if workers > count and each == 1:
        raise UsageError(
            f"--workers {workers} is more than the {count} nodes of the local mesh, and each takes one; add --local {workers}"
        )
    if max(1, workers) * each > count and each > 1:
        them = f"--workers {workers} of {each} nodes each take" if workers > 1 else f"a worker of {each} nodes takes"
        raise UsageError(
            f"{them} more than the {count} node{'s' * (count > 1)} of the local mesh; add --local {max(1, workers) * each}"
        )


@contextmanager
def opened(local: int, socket: str | None) -> Iterator[Mesh]:
    """The mesh: `local` nodes of our own, or with 0 the daemon's."""
    if not local:
        daemon = connect(socket)
        try:
            yield Mesh(daemon)
        finally:
            daemon.close()
        return
    from p2pnn.cli.local import LocalMesh

    with LocalMesh(local) as mesh:
        yield Mesh(mesh.daemon, mesh)
