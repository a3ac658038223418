"""TLS 1.3 over one connected socket under the loop, with the same promises as a plain `Stream`.

OpenSSL works in records of 16 KiB: one call of `read` or `write` moves one. `receive` therefore fills a body's place
record by record before it returns, and reads into the link's own buffer one record at a time: a header leaves as a record
of its own, so what follows it is received straight into its place, as without TLS. `write` encrypts from the callers'
memory; a record that the socket does not take stays in OpenSSL, and the same memory is offered again later, so it must
not change until `drained`, as without TLS.

asyncio's own TLS would copy each byte twice more and knows no places.

Ends. A TLS connection ends here as a TCP one does: Close, the last message of a link, lies within TLS, so an end without
it is told as a failure and TLS's own goodbye would add nothing. Sessions are never resumed (no tickets): each connection
proves both keys.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from p2pnn.errors import P2pnnError, StorageError
from p2pnn.identity.keys import PublicKey, key_of
from p2pnn.transport.admission import Refuse
from p2pnn.transport.stream import Stream, User
from p2pnn.types import NodeId
from p2pnn.wire.messages import CloseReason

LINGER_S: Final = 1.0
"""How long a connection whose handshake failed stays open for the peer to read the alert that says why."""


RECORD_BYTES: Final = 16 * 1024
"""What one record of TLS holds."""


class Door(Protocol):
    """Who may come in, as the cluster has decided."""

    def admits(self, key: PublicKey) -> Refuse | None:
        """None, or why a node with this key, which the authority has certified, may have no link."""

    def name_of(self, key: PublicKey) -> str:
        """What it is called, for the log; empty where nobody knows."""

    def told_removed(self, words: str) -> None:
        """A member has closed a link because this node was removed."""

    def guest(self, stream: SecureStream, host: str) -> None:
        """Somebody without a certificate: a joiner, or nobody. The stream is the callee's; it has no user yet."""


class Security:
    """A node's credentials, as TLS uses them. Raises StorageError where the files do not fit together.

    chain: PEM of the node's certificate. key: PEM of its key. authority: the cluster's certificate, DER.
    """

    def __init__(self, chain: Path, key: Path, authority: bytes, door: Door) -> None:
        self.door = door
        self._server = _context(ssl.PROTOCOL_TLS_SERVER)
        self._server.verify_mode = ssl.CERT_OPTIONAL  # joiners have none yet, and are let no further than the door
        self._server.num_tickets = 0
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = False  # a node is its key, wherever it is
        for context in (self._server, self._client):
            try:
                context.load_cert_chain(chain, key)
                context.load_verify_locations(cadata=authority)
            except (OSError, ssl.SSLError) as error:
                raise StorageError(f"the credentials {chain} and {key} cannot be used: {error}") from error

    def stream(
        self, sock: socket.socket, user: User, dialled: bool, secured: Callable[[SecureStream], None]
    ) -> SecureStream:
        """Begin the handshake on a connected socket; `secured` is called when it is done."""
        context = self._client if dialled else self._server
        return SecureStream(sock, user, context, not dialled, secured)

    def check(self, node: NodeId, key: PublicKey | None) -> Refuse | None:
        """Whether the peer that calls itself `node` and has proved `key` may have a link."""
        if key is None or key.node != node:
            return Refuse(CloseReason.NOT_MEMBER, f"it calls itself node {node[:8]}, and its key is another node's")
        return self.door.admits(key)


class SecureStream(Stream):
    """A `Stream` with TLS inside. Until the handshake is done what is written waits.

    peer: the key in the peer's certificate; None before the handshake, and for a peer that showed none.
    """

    def __init__(
        self,
        sock: socket.socket,
        user: User,
        context: ssl.SSLContext,
        server: bool,
        secured: Callable[[SecureStream], None],
    ) -> None:
        super().__init__(sock, user)
        self.peer: PublicKey | None = None
        self._secured = secured
        self._up = False
        self._watching = False  # for room to write
        self._read_wants_room = False
        self._write_wants_bytes = False
        self._again: asyncio.Handle | None = None
        self._tls: ssl.SSLSocket | None = None
        try:
            self._tls = context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)
            # What lies beneath has the same two methods, half a microsecond sooner, and a body of 64 KiB takes ten calls.
            beneath: Any = getattr(self._tls, "_sslobj", None) or self._tls
            self._read, self._write = beneath.read, beneath.write
        except (OSError, ValueError) as error:  # it broke already
            self._break(error if isinstance(error, OSError) else None)
            return
        self._sock = self._tls
        self.resume_reading()
        if not server:
            self._shake_hands()

    # --- receiving

    def receive(self, views: list[memoryview]) -> int | None:
        if not self._up:  # reading would finish the handshake, and nobody would look at the peer's key
            self.dry = True
            return None
        total, read = 0, self._read
        self.dry = False
        into_place = len(views) > 1  # the first view is a body's; the last one is the link's own buffer
        for view in views:
            at, size = 0, len(view)
            while at < size:
                try:
                    count: int = read(size - at, view[at:] if at else view)
                except ssl.SSLWantReadError:
                    self.dry = True
                    return total or None
                except ssl.SSLWantWriteError:
                    self._read_wants_room = self.dry = True
                    self._watch_room()
                    return total or None
                except ssl.SSLEOFError:  # TCP's end; the Close before it, or its absence, says whether it was due
                    count = 0
                except OSError as error:
                    if not total:
                        self._break(error)
                        return None
                    self._loop.call_soon(self._break, error)
                    self.dry = True
                    return total
                if not count:
                    if total:
                        self._read_again()
                        self.dry = True
                    return total
                at += count
                total += count
                if not into_place or view is not views[0]:
                    return total
        return total

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)
            if self._up:
                self._read_again()

    def _read_again(self) -> None:
        """The socket may have nothing more to tell of, and OpenSSL something left."""
        if self._again is None:
            self._again = self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        self._again = None
        if self._closing or not self._reading:
            return
        if not self._up:
            self._shake_hands()
            return
        if self._write_wants_bytes:
            self._write_wants_bytes = False
            self._flush()
        self._user.readable()
        if not self._closing and self._tls is not None and self._tls.pending():
            self._read_again()

    # --- sending

    def write(self, *views: bytes | memoryview) -> bool:
        if self._closing or self._ending:
            return False
        if self._pending or not self._up:
            self._keep(views, 0)
            return False
        if len(views) > 1 and sum(map(len, views)) <= RECORD_BYTES:
            views = (b"".join(views),)  # one record for both costs less than the copy
        write = self._write
        for number, view in enumerate(views):
            at, size = 0, len(view)
            try:
                while at < size:
                    at += write(view[at:] if at else view)
            except OSError as error:
                self._keep(views[number:], at)
                self._wait_or_break(error)
                return False
        return True

    def _keep(self, views: Sequence[bytes | memoryview], at: int) -> None:
        """These wait, the first from `at` on."""
        for view in views:
            if len(view) > at:
                self._pending.append(memoryview(view)[at:])
                self.waiting += len(view) - at
            at = 0

    def _wait_or_break(self, error: OSError) -> None:
        """Why OpenSSL took no more."""
        if isinstance(error, ssl.SSLWantWriteError):
            self._watch_room()
        elif isinstance(error, ssl.SSLWantReadError):
            self._write_wants_bytes = True
        else:
            self._break(error)

    def _flush(self) -> None:
        """Encrypt and write until nothing is left or the socket is full."""
        pending, write = self._pending, self._write
        while pending:
            view = pending[0]
            size, at = len(view), 0
            try:
                while at < size:
                    at += write(view[at:] if at else view)
            except OSError as error:
                self._wait_or_break(error)
            self.waiting -= at
            if at < size:
                if at:
                    pending[0] = view[at:]
                return
            pending.popleft()

    def _watch_room(self) -> None:
        if not self._watching and not self._closing:
            self._watching = True
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        self._watching = False
        self._loop.remove_writer(self._sock)
        if not self._up:
            self._shake_hands()
            return
        if self._read_wants_room:
            self._read_wants_room = False
            self._read_again()
        if not self._pending:
            return
        self._flush()
        if self._pending or self._closing:
            return
        if not self._ending:
            self._user.drained()
        elif self._reading:
            self.write_eof()
        else:
            self._break(None)

    def write_eof(self) -> None:
        self._ending = True
        if not self._pending and not self._closing:
            try:
                socket.socket.shutdown(self._sock, socket.SHUT_WR)  # SSLSocket's own would end TLS for reading as well
            except OSError as error:
                self._break(error)

    # --- the handshake

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
            certificate = self._tls.getpeercert(binary_form=True)
            self.peer = key_of(certificate) if certificate else None
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._watch_room()
            return
        except (OSError, P2pnnError, ValueError) as error:
            self._linger(error)
            return
        self._up = True
        self._secured(self)
        if self._closing:
            return
        had = bool(self._pending)
        self._flush()
        if had and not self._pending and not self._closing:
            self._user.drained()
        self._read_again()

    def _linger(self, error: Exception) -> None:
        """The alert that says what was wrong is on its way; bytes that are left unread would take it back."""
        self._pending.clear()
        self.waiting = 0
        self._ending = True
        self.pause_reading()
        try:
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
        except OSError:
            self._break(error)
            return
        self._loop.add_reader(self._sock, self._discard, error)
        self._reading = True
        self._loop.call_later(LINGER_S, self._break, error)

    def _discard(self, error: Exception) -> None:
        try:
            rest = socket.socket.recv(self._sock, 65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            rest = b""
        if not rest:
            self._break(error)

    # --- ending

    def _break(self, error: Exception | None) -> None:
        if self._closing:
            return
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._sock)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._closing = True
        self.pause_reading()
        self._loop.call_soon(self._lose, error)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    return context
