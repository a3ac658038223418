"""The one conversation with a peer that has no certificate: a joiner's, before it is a member.

The member sends Offer, with the certificate of its cluster's authority. The joiner compares that with its token, and
sees that the member proved, in this very TLS handshake, a key that this authority has certified. Only then it says the
token's secret, in Join. So who pretends to be a member, or sits in between, gets nothing. Joined ends the conversation.

`Guest` is the member's side, over a `SecureStream` that its listener took; `knock` is the joiner's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from p2pnn.errors import NotAllowedError, P2pnnError, RemoteProtocolError, TimedOutError
from p2pnn.identity.authority import Certificate
from p2pnn.identity.keys import PublicKey
from p2pnn.identity.tokens import Token
from p2pnn.transport.secure import SecureStream
from p2pnn.transport.sockets import resolve, why
from p2pnn.types import Address
from p2pnn.wire.codec import decode, encode, printable
from p2pnn.wire.frame import check_header, decode_prefix, encode_frame, padding
from p2pnn.wire.inbound import Inbound
from p2pnn.wire.limits import PREFIX_BYTES, Limits
from p2pnn.wire.messages import Close, CloseReason, Join, Joined, Message, Offer

CONVERSATION_S: Final = 20.0
"""For all of it: a commit takes less than a second, an election in between a few."""

CONNECT_S: Final = 5.0
"""For a name, and for each IP address behind it, TLS included."""

ENDPOINTS_MAX: Final = 4
"""IP addresses of one name that are tried."""

GOODBYE_S: Final = 1.0


class Guest:
    """A peer without a certificate, on the member's side: told of as `asked`, once, with what it said; `answer` ends it.

    ended: called once, when the connection is gone.
    """

    def __init__(
        self,
        stream: SecureStream,
        host: str,
        offer: Offer,
        asked: Callable[[Guest, Join], None],
        ended: Callable[[Guest], None],
    ) -> None:
        self.host = host
        self._stream = stream
        self._asked = asked
        self._ended = ended
        self._inbound = Inbound(Limits(), self._admit)
        self._heard = False
        self._timer = asyncio.get_running_loop().call_later(CONVERSATION_S, stream.abort)
        stream.hand_to(self)
        stream.write(encode_frame(encode(offer)))

    def answer(self, joined: Joined) -> None:
        """Say it and end."""
        self._say_last(joined)

    def abort(self) -> None:
        """End without a word."""
        self._stream.abort()

    # --- stream.User

    def readable(self) -> None:
        while not self._heard:
            count = self._stream.receive([self._inbound.get_buffer()])
            if count is None:
                return
            if count == 0:
                self._stream.close()
                return
            self._inbound.buffer_updated(count)
            try:
                found = self._inbound.next()
            except RemoteProtocolError as error:
                self._say_last(Close(error.reason, str(error)))
                return
            if found is not None and isinstance(found[0], Join):
                self._heard = True
                self._asked(self, found[0])
            elif found is not None:
                self._stream.close()
        if self._stream.receive([memoryview(bytearray(4096))]) == 0:  # whoever leaves early, or talks on
            self._stream.close()

    def drained(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._ended(self)

    # --- how

    def _admit(self, message: Message, total: int | None) -> memoryview | None:
        if total is not None or not isinstance(message, Join | Close):
            raise RemoteProtocolError(
                CloseReason.UNEXPECTED, f"{type(message).__name__} came from a peer that has shown no certificate"
            )
        return None

    def _say_last(self, message: Message) -> None:
        self._heard = True
        if self._stream.is_closing():
            return
        self._stream.write(encode_frame(encode(message)))
        self._stream.write_eof()
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(GOODBYE_S, self._stream.abort)


async def knock(
    address: Address, token: Token, key: PublicKey, name: str, software: str, now: float
) -> tuple[Certificate, Certificate, PublicKey]:
    """Join by the member at this address: this node's certificate, the authority's, that member's key. now: seconds since 1970.

    Raises NotAllowedError ("wrong cluster", "clock", "bad token", …), TimedOutError, or P2pnnError with why there was no
    conversation.
    """
    reader, writer = await _connect(address)
    try:
        async with asyncio.timeout(CONVERSATION_S):
            return await _converse(reader, writer, token, key, name, software, now)
    except TimeoutError:
        raise TimedOutError(f"it gave no answer in {CONVERSATION_S:g} s") from None
    except (OSError, ssl.SSLError, EOFError) as error:
        raise P2pnnError("it ended the connection" if isinstance(error, EOFError) else why(error)) from None
    except RemoteProtocolError as error:
        raise P2pnnError(f"what it said is no conversation of p2pnn: {error}") from None
    finally:
        writer.transport.abort()


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of the host's IP addresses that answers. Raises P2pnnError with the last one's trouble."""
    trouble = "no such host"
    try:
        async with asyncio.timeout(CONNECT_S):
            endpoints = await resolve(address)
    except OSError as error:  # TimeoutError among them
        raise P2pnnError(why(error)) from None
    for endpoint in endpoints[:ENDPOINTS_MAX]:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(
                    endpoint.host, endpoint.port, ssl=_unverified(), server_hostname=""
                )
        except OSError as error:
            trouble = why(error)
    raise P2pnnError(trouble)


async def _converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    token: Token,
    key: PublicKey,
    name: str,
    software: str,
    now: float,
) -> tuple[Certificate, Certificate, PublicKey]:
    offer = await _read(reader)
    if not isinstance(offer, Offer):
        raise P2pnnError(
            f"it offers no cluster to join: {printable(offer.text)}"
            if isinstance(offer, Close)
            else "it offers no cluster to join"
        )
    authority = Certificate(offer.authority)
    if authority.digest != token.cluster:
        raise NotAllowedError("wrong cluster: it belongs to another one than the token; the secret was not sent")
    shown = Certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
    shown.check_issued_by(authority, now)
    writer.write(encode_frame(encode(Join(token.id, token.secret, key.der, name, software))))
    await writer.drain()
    joined = await _read(reader)
    if not isinstance(joined, Joined):
        raise P2pnnError(
            f"it ended the connection: {printable(joined.text)}" if isinstance(joined, Close) else "it gave no answer"
        )
    if joined.error:
        raise NotAllowedError(printable(joined.error))
    certificate = Certificate(joined.certificate)
    certificate.check_issued_by(authority, now)
    if certificate.key != key:
        raise NotAllowedError("the certificate that it gave is another node's")
    return certificate, authority, shown.key


async def _read(reader: asyncio.StreamReader) -> Message:
    """One message without a body. Raises RemoteProtocolError, EOFError."""
    start = await reader.readexactly(PREFIX_BYTES)
    prefix = decode_prefix(memoryview(start))
    if prefix.stream:
        raise RemoteProtocolError(CloseReason.UNEXPECTED, "a body came in a conversation that has none")
    rest = await reader.readexactly(prefix.header_length + padding(prefix.header_length))
    frame = memoryview(start + rest)
    header = frame[PREFIX_BYTES : PREFIX_BYTES + prefix.header_length]
    check_header(frame, 0, header, prefix.checksum)
    return decode(header)


def _unverified() -> ssl.SSLContext:
    """TLS without a word about who that is: the conversation finds out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
