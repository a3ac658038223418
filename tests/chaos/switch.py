"""All links between the nodes of a mesh, in one place where they can be cut: a TCP proxy that knows who speaks to whom.

Nodes connect to it instead of to each other (`tests.chaos.node`) and say whom they want; it connects them and carries bytes. Each
direction between two nodes is a `Way` of its own:

    cut       nothing passes; what was sent waits and goes on when the way is open again, as TCP sends again what was lost.
              New connections wait, too, for they need both directions.
    delayed   each piece of bytes comes so much later; nothing is reordered
    slow      at most so many bytes per second pass
    reset     all connections between two nodes end at once, as when a firewall in between has forgotten them

A process that ends is seen by its peers as without a switch: its end of stream or reset is passed on, in its place behind the
bytes before it; nobody listening is passed on as a refusal. What differs from a network: bytes that wait in a cut way were taken
from the sender's kernel, 4 MiB of them, so its buffers fill a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from dataclasses import dataclass, field

PREAMBLE = struct.Struct("!8sHB")
MAGIC = b"p2pnn-sw"
"""Before the port of the node that is wanted, and how many bytes the name of the one who asks has. Strangers come by: whoever
dials a port that was a node's yesterday."""

CONNECTED, REFUSED = b"+", b"-"
PIECE_BYTES = 1 << 18
WAITING_BYTES_MAX = 4 << 20
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


def door(port: int) -> str:
    """The switch's address for the node that listens on this port: each has one of its own, since peers remember addresses."""
    return f"127.1.{port >> 8}.{port & 255}"


def behind(host: str) -> int:
    """The port to which a door leads."""
    high, low = (int(part) for part in host.split(".")[2:])
    return high << 8 | low


@dataclass
class Way:
    """One direction between two nodes. delay_s, bytes_per_s: 0 for none and no limit."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    passed_bytes: int = 0
    held: int = 0
    """Pieces and connections that had to wait because it was cut: 0 says that a cut touched nobody."""
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()

    async def clear(self) -> None:
        """Return when bytes may pass."""
        if not self.open.is_set():
            self.held += 1
            await self.open.wait()


class Switch:
    """`await start()`, then give `port` to the nodes; `names` says which node listens on which port. End it with `close`."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.port = 0
        self.resets = 0
        self.ways: dict[tuple[str, str], Way] = {}
        self._pairs: dict[tuple[str, str], set[_Pair]] = {}
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._listener = socket.create_server(("", 0), backlog=128)  # all of 127.0.0.0/8 is this machine, see `door`
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._own(self._accept(self._listener))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def way(self, source: str, target: str) -> Way:
        return self.ways.setdefault((source, target), Way())

    def cut(self, source: str, target: str) -> None:
        """Nothing passes from source to target any more; the other direction is as it was."""
        self.way(source, target).open.clear()

    def heal(self, source: str, target: str) -> None:
        self.way(source, target).open.set()

    def reset(self, one: str, other: str) -> None:
        """End all connections between two nodes at once; new ones may be made."""
        for key in ((one, other), (other, one)):
            for pair in list(self._pairs.get(key, ())):
                self.resets += 1
                pair.abort()

    def connections(self, one: str, other: str) -> int:
        return sum(len(self._pairs.get(key, ())) for key in ((one, other), (other, one)))

    # --- how

    def _own(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            if not connection.getsockname()[0].startswith("127."):
                connection.close()
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._own(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            try:
                magic, port, length = PREAMBLE.unpack(await _exactly(connection, PREAMBLE.size))
                if magic != MAGIC:
                    return
                source = (await _exactly(connection, length)).decode()
                target = self.names.get(port, str(port))
                there, back = self.way(source, target), self.way(target, source)
                await there.clear()
                await back.clear()
                await asyncio.sleep(there.delay_s + back.delay_s)
                onward = stack.enter_context(socket.socket())
                onward.setblocking(False)
                onward.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    await loop.sock_connect(onward, ("127.0.0.1", port))
                except ConnectionRefusedError:
                    await loop.sock_sendall(connection, REFUSED)
                    return
                await loop.sock_sendall(connection, CONNECTED)
                pair = _Pair(connection, onward)
            except OSError:
                return
            pairs = self._pairs.setdefault((source, target), set())
            pairs.add(pair)
            try:
                await pair.carry(there, back)
            finally:
                pairs.discard(pair)


class _Pair:
    """One connection: the two sockets that it is made of."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._near, self._far = near, far
        self._carrying: asyncio.Future[None] | None = None

    async def carry(self, there: Way, back: Way) -> None:
        """Carry bytes until both directions have ended, or one was reset."""
        both = [_Stream(self._near, self._far, there), _Stream(self._far, self._near, back)]
        tasks = [asyncio.ensure_future(work) for stream in both for work in (stream.read(), stream.write())]
        self._carrying = asyncio.gather(*tasks)
        try:
            await self._carrying
        except OSError:
            self._abort()
        except asyncio.CancelledError:
            self._abort()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        self._abort()
        if self._carrying is not None:
            self._carrying.cancel()

    def _abort(self) -> None:
        for one in (self._near, self._far):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


class _Stream:
    """One direction of a connection: what was read and is not written yet."""

    def __init__(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        self._source, self._target, self._way = source, target, way
        self._waiting: deque[tuple[float, bytes | OSError]] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Take pieces from the source, up to and with its end; an error of the source waits in its place behind them."""
        loop = asyncio.get_running_loop()
        piece: bytes | OSError = b"-"
        while piece and not isinstance(piece, OSError):
            while self._waiting_bytes >= WAITING_BYTES_MAX:
                await self._change()
            try:
                piece = await loop.sock_recv(self._source, PIECE_BYTES)
                self._waiting_bytes += len(piece)
            except OSError as error:
                piece = error
            self._waiting.append((loop.time(), piece))
            self._changed.set()

    async def write(self) -> None:
        """Give them to the target as the way allows. Raises the source's error when its turn comes."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                await self._change()
            came, piece = self._waiting[0]
            if (left := came + self._way.delay_s - loop.time()) > 0:
                await asyncio.sleep(left)
            await self._way.clear()
            if isinstance(piece, OSError):
                raise piece
            if not piece:
                self._target.shutdown(socket.SHUT_WR)
                return
            if self._way.bytes_per_s:
                await asyncio.sleep(len(piece) / self._way.bytes_per_s)
            await loop.sock_sendall(self._target, piece)
            self._way.passed_bytes += len(piece)
            self._waiting.popleft()
            self._waiting_bytes -= len(piece)
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def _exactly(connection: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        piece = await loop.sock_recv(connection, size - len(data))
        if not piece:
            raise ConnectionResetError("it ended before it had said whom it wants")
        data += piece
    return data
