"""Ways to move a tensor from process to process, each in two processes of its own; p2pnn's and raw sockets with TLS 1.3, too.

    python -m benchmarks._contestants NAME receive CONGESTION           prints its port, serves until its stdin ends
    python -m benchmarks._contestants NAME send CONGESTION PORT         obeys lines on stdin, answers each by one line

Neither waits for a peer that is gone: the receiver ends (grpc's, which does not see it, with its stdin), the sender says so.

A line to the sender is `one-way SIZE COUNT` or `round-trip SIZE COUNT PAUSE_S`; the answer is the seconds from the first
byte sent to the receiver's word that the last one is in its place, or the seconds of each round trip. All of them have
TCP_NODELAY, all receive into memory that lasts where their interface lets them, and all sockets use the congestion
control that the command line names (grpc's excepted, which cannot be reached): `reno`, as p2pnn chooses on loopback, or
`system`, whatever the machine's default is. Those with TLS find keys and certificates of both sides in the folder that
P2PNN_BENCH_CREDENTIALS names (`make_credentials`); OpenSSL chooses the same cipher for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

ONE_WAY, ROUND_TRIP = 0, 1
WINDOW = 4
"""Bodies that p2pnn has under way at once: a job's frames."""
_ROUND = struct.Struct("<IIII")  # what, size, count, nothing
_LENGTH = struct.Struct("<I")


class Sender(Protocol):
    """An open connection. Both verbs take bytes and counts; see the module's docstring."""

    async def one_way(self, size: int, count: int) -> None: ...
    async def round_trip(self, body: memoryview) -> None: ...


def tune(sock: socket.socket, congestion: str) -> None:
    """TCP_NODELAY, and reno where it was asked for."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if congestion != "system":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


# --- TLS: one authority, a key for each side

CREDENTIALS = "P2PNN_BENCH_CREDENTIALS"
LISTENER, DIALLER = 1, 2
"""Who is which node."""


def make_credentials(folder: Path) -> None:
    """For both sides; a measurement's, which end with it."""
    from p2pnn.identity.authority import Authority
    from p2pnn.identity.keys import NodeKey

    authority = Authority.found(time.time())
    (folder / "authority.der").write_bytes(authority.certificate.der)
    for number in (LISTENER, DIALLER):
        key = NodeKey.generate()
        certificate = authority.issue(key.public, time.time())
        (folder / f"{number}.key").write_bytes(key.pem)
        (folder / f"{number}.pem").write_bytes(certificate.pem)


def secured(sock: socket.socket, number: int) -> ssl.SSLSocket:
    """The socket with TLS 1.3 and both certificates checked, blocking: what the standard library gives."""
    folder = Path(os.environ[CREDENTIALS])
    server = number == LISTENER
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / f"{number}.pem", folder / f"{number}.key")
    context.load_verify_locations(cadata=(folder / "authority.der").read_bytes())
    return context.wrap_socket(sock, server_side=server)


class OpenDoor:
    """Whoever the authority has certified may come in."""

    def admits(self, key: Any) -> None:
        return None

    def name_of(self, key: Any) -> str:
        return ""

    def told_removed(self, words: str) -> None: ...

    def guest(self, stream: Any, host: str) -> None:
        stream.abort()


# --- raw sockets: blocking, nothing but system calls and memory that is used again


def raw_receive(congestion: str, tls: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tune(server, congestion)
        announce(server.getsockname()[1])
        sock, _ = server.accept()
        if tls:
            sock = secured(sock, LISTENER)
        with sock, contextlib.suppress(*GONE):
            raw_serve(sock)


def raw_serve(sock: socket.socket) -> None:
    head, body = memoryview(bytearray(_ROUND.size)), memoryview(bytearray(0))
    while True:
        fill(sock, head)
        what, size, count, _ = _ROUND.unpack(head)
        if size != len(body):
            body = memoryview(bytearray(size))
        for _ in range(count):
            fill(sock, body)
            if what == ROUND_TRIP:
                sock.sendall(body)
        if what == ONE_WAY:
            sock.sendall(b"!")


class RawSender:
    def __init__(self, port: int, congestion: str, tls: bool) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        tune(self._sock, congestion)
        if tls:
            self._sock = secured(self._sock, DIALLER)
        self._answer = memoryview(bytearray(0))

    async def one_way(self, size: int, count: int) -> None:
        body = memoryview(bytearray(size))
        self._sock.sendall(_ROUND.pack(ONE_WAY, size, count, 0))
        for _ in range(count):
            self._sock.sendall(body)
        fill(self._sock, memoryview(bytearray(1)))

    async def round_trip(self, body: memoryview) -> None:
        if len(self._answer) != len(body):
            self._answer = memoryview(bytearray(len(body)))
        self._sock.sendall(_ROUND.pack(ROUND_TRIP, len(body), 1, 0))
        self._sock.sendall(body)
        fill(self._sock, self._answer)


def fill(sock: socket.socket, view: memoryview) -> None:
    """Receive until the view is full. Raises one of GONE."""
    done = 0
    while done < len(view):
        count = sock.recv_into(view[done:])
        if not count:
            raise EOFError("it has closed its socket")
        done += count


# --- asyncio streams, the tensor inside MessagePack: what most would write first


async def streams_receive(congestion: str) -> None:
    import msgpack

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tune(writer.get_extra_info("socket"), congestion)
        with contextlib.suppress(*GONE):
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                message = msgpack.unpackb(await reader.readexactly(length))
                if message["echo"]:
                    await write(writer, message)
                elif message["last"]:
                    writer.write(b"!")
        os._exit(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    import msgpack

    data = msgpack.packb(message)
    writer.write(_LENGTH.pack(len(data)))
    writer.write(data)
    await writer.drain()


class StreamsSender:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, congestion: str) -> StreamsSender:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        tune(writer.get_extra_info("socket"), congestion)
        return cls(reader, writer)

    async def one_way(self, size: int, count: int) -> None:
        body = bytes(size)
        for number in range(count):
            await write(self._writer, {"echo": False, "last": number == count - 1, "tensor": body})
        await self._reader.readexactly(1)

    async def round_trip(self, body: memoryview) -> None:
        import msgpack

        await write(self._writer, {"echo": True, "last": False, "tensor": bytes(body)})
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        msgpack.unpackb(await self._reader.readexactly(length))


# --- grpc.aio, bytes without any serializer


async def grpc_receive(congestion: str) -> None:
    import grpc

    async def take(requests: Any, context: Any) -> bytes:
        async for _ in requests:
            pass
        return b"!"

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server(options=_unlimited())
    table = {
        "take": grpc.stream_unary_rpc_method_handler(take),
        "echo": grpc.unary_unary_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("p2pnn", table),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(port)
    await server.wait_for_termination()


class GrpcSender:
    def __init__(self, port: int) -> None:
        import grpc

        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_unlimited())
        self._take = channel.stream_unary("/p2pnn/take")
        self._echo = channel.unary_unary("/p2pnn/echo")

    async def one_way(self, size: int, count: int) -> None:
        body = bytes(size)
        call = self._take()
        for _ in range(count):
            await call.write(body)
        await call.done_writing()
        await call

    async def round_trip(self, body: memoryview) -> None:
        await self._echo(bytes(body))


async def grpc_obey(port: int) -> None:
    """As `obey`; grpc has an error of its own for a peer that is gone."""
    import grpc

    try:
        await obey(GrpcSender(port))
    except grpc.aio.AioRpcError as error:
        raise ConnectionError(error.details()) from error


def _unlimited() -> list[tuple[str, int]]:
    return [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


# --- p2pnn: its transport as the daemon uses it


class Ours:
    """Events of a transport whose bodies all go to one place; `arrived` is called with each message.

    lost: called with the reason when the peer is gone; it ends the process, since nobody else would wake who waits here.
    """

    def __init__(self, number: int, tls: bool, lost: Callable[[str], NoReturn]) -> None:
        from p2pnn.transport import LocalIdentity, Transport
        from p2pnn.types import NodeId

        node, security = NodeId(f"{number:032x}"), None
        if tls:
            from p2pnn.identity.keys import NodeKey
            from p2pnn.transport.secure import Security

            folder = Path(os.environ[CREDENTIALS])
            chain, key = folder / f"{number}.pem", folder / f"{number}.key"
            security = Security(chain, key, (folder / "authority.der").read_bytes(), OpenDoor())
            node = NodeKey.load(key.read_bytes(), str(key)).public.node
        self.transport = Transport(LocalIdentity(node, f"n{number}", "bench", "boot"), self, security=security)
        self.lost = lost
        self.peer = asyncio.get_running_loop().create_future()
        self.place = memoryview(bytearray(0))
        self.arrived: Callable[[Any], None] = lambda message: None
        self.acknowledged: Callable[[Any], None] = lambda message: None

    def peer_connected(self, node: Any, hello: Any) -> None:
        self.peer.set_result(node)

    def peer_lost(self, node: Any, reason: str, left: bool) -> None:
        self.lost(reason)

    def dial_reached(self, address: Any, node: Any) -> None: ...

    def dial_failed(self, address: Any, reason: str, refused: bool) -> None:
        self.lost(reason)

    def message(self, node: Any, message: Any) -> None:
        self.acknowledged(message)

    def body_for(self, node: Any, message: Any, nbytes: int) -> memoryview:
        if nbytes and len(self.place) != nbytes:
            self.place = memoryview(bytearray(nbytes))
        return self.place[:nbytes]

    def body(self, node: Any, message: Any) -> None:
        self.arrived(message)


async def ours_receive(congestion: str, tls: bool = False) -> None:
    from p2pnn.types import Address
    from p2pnn.wire.messages import Retired, Tensor

    _use(congestion)
    ours = Ours(LISTENER, tls, lambda reason: os._exit(0))
    port = (await ours.transport.start(Address("127.0.0.1", 0))).port
    announce(port)
    node = await ours.peer
    echoes: asyncio.Queue[Any] = asyncio.Queue()

    def arrived(message: Any) -> None:
        if message.transfer == ROUND_TRIP:
            echoes.put_nowait(message)
        elif message.generation:
            ours.transport.send(node, Retired("bench", 0, 0, 0))

    ours.arrived = arrived
    while True:
        message = await echoes.get()
        await ours.transport.send_body(node, Tensor("bench", 0, ROUND_TRIP, message.micro_batch), ours.place, 1)


class OurSender:
    def __init__(self, ours: Ours, node: Any) -> None:
        self._ours, self._node = ours, node

    @classmethod
    async def open(cls, port: int, congestion: str, tls: bool) -> OurSender:
        from p2pnn.types import Address

        _use(congestion)
        ours = Ours(DIALLER, tls, lambda reason: say_gone("p2pnn", reason))
        await ours.transport.start(Address("127.0.0.1", 0))
        ours.transport.dial(Address("127.0.0.1", port))
        return cls(ours, await ours.peer)

    async def one_way(self, size: int, count: int) -> None:
        from p2pnn.wire.messages import Tensor

        body = memoryview(bytearray(size))
        done = asyncio.get_running_loop().create_future()
        self._ours.acknowledged = done.set_result
        start_body, node = self._ours.transport.start_body, self._node

        async def lane(numbers: range) -> None:
            for number in numbers:
                rest = start_body(node, Tensor("bench", 0, ONE_WAY, number), body, 1)
                if rest is not None:
                    await rest

        await asyncio.gather(*(lane(range(first, count, WINDOW)) for first in range(WINDOW)))
        await self._ours.transport.send_body(
            node, Tensor("bench", 1, ONE_WAY, count), body[:0], 1
        )  # behind all the others
        await done

    async def round_trip(self, body: memoryview) -> None:
        from p2pnn.wire.messages import Tensor

        done = asyncio.get_running_loop().create_future()
        self._ours.arrived = done.set_result
        await self._ours.transport.send_body(self._node, Tensor("bench", 0, ROUND_TRIP, 0), body, 1)
        await done


def _use(congestion: str) -> None:
    """p2pnn sets reno on loopback by itself; here the comparison under the machine's default takes that away."""
    if congestion == "system":
        from p2pnn.transport import sockets

        sockets.LOOPBACK_CONGESTION = b""


# --- the processes

GONE = (EOFError, OSError)
"""What reading from or writing to a peer that is gone raises; asyncio.IncompleteReadError is an EOFError."""


def say_gone(name: str, reason: object) -> NoReturn:
    """End a sender at once, whatever waits in it."""
    print(f"{name}: the receiving process is gone ({reason})", file=sys.stderr, flush=True)
    os._exit(1)


def announce(port: int) -> None:
    print(port, flush=True)


async def obey(sender: Sender) -> None:
    """Do what stdin says until it ends. Raises one of GONE."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, size, count, *pause = line.split()
        if what == "one-way":
            began = time.perf_counter()
            await sender.one_way(int(size), int(count))
            answer: Any = time.perf_counter() - began
        else:
            answer = await _round_trips(sender, int(size), int(count), float(pause[0]))
        print(json.dumps(answer), flush=True)


async def _round_trips(sender: Sender, size: int, count: int, pause_s: float) -> list[float]:
    body = memoryview(bytearray(size))
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await sender.round_trip(body)
        taken.append(time.perf_counter() - began)
        if pause_s:
            await asyncio.sleep(pause_s)
    return taken


async def _send(name: str, congestion: str, port: int) -> None:
    try:
        if name in ("raw", "raw-tls"):
            await obey(RawSender(port, congestion, tls=name == "raw-tls"))
        elif name == "grpc":
            await grpc_obey(port)
        elif name == "streams":
            await obey(await StreamsSender.open(port, congestion))
        else:
            await obey(await OurSender.open(port, congestion, tls=name == "p2pnn-tls"))
    except GONE as error:
        say_gone(name, error)


_RECEIVE: dict[str, Callable[[str], Awaitable[None]]] = {
    "p2pnn": ours_receive,
    "p2pnn-tls": partial(ours_receive, tls=True),
    "streams": streams_receive,
    "grpc": grpc_receive,
}


def _end_with_stdin() -> None:
    while sys.stdin.readline():
        pass
    os._exit(0)


async def _receive(name: str, congestion: str) -> None:
    await _RECEIVE[name](congestion)


def main() -> None:
    name, side, congestion, *port = sys.argv[1:]
    if side == "receive":
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        if name in ("raw", "raw-tls"):
            raw_receive(congestion, tls=name == "raw-tls")
            return
    work = _receive(name, congestion) if side == "receive" else _send(name, congestion, int(port[0]))
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if name != "grpc":  # which has a loop of its own beneath
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
