"""Messages ⇄ MessagePack: the one place where msgspec meets a peer's bytes.

msgspec decodes into the closed union `AnyMessage` and checks every field's type and limit while it reads, so nothing is
built that is not allowed. Its errors, those of its recursion guard, and those of text that is not UTF-8 become one
RemoteProtocolError here. What we send is decoded once before it leaves: a message that a peer would refuse is our error,
and is raised where it was made (about a microsecond).
"""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec

from p2pnn.errors import LocalProtocolError, RemoteProtocolError
from p2pnn.wire.limits import HEADER_BYTES_MAX
from p2pnn.wire.messages import SENTENCE_CHARS_MAX, AnyMessage, CloseReason, Message

MESSAGES: Final[tuple[type[Message], ...]] = get_args(AnyMessage)
"""Every message class, in the order of their tags."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(AnyMessage)
_SENTENCES: Final[dict[type[Message], tuple[str, ...]]] = {
    message: tuple(field for field in message.__struct_fields__ if field in ("text", "error")) for message in MESSAGES
}


def decode(header: bytes | memoryview) -> Message:
    """The message in a frame's header. Memory taken is of the order of the header's size, whatever it claims.

    Raises RemoteProtocolError (MALFORMED) for anything that is not exactly one message of `AnyMessage`.
    """
    try:
        message: Message = _DECODER.decode(header)
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeError:  # msgspec before 0.23; since then it is one of its own errors
        reason = "a text is not UTF-8"
    except (msgspec.MsgspecError, MemoryError, OverflowError, ValueError) as error:
        reason = str(error)
    else:
        return message
    raise RemoteProtocolError(
        CloseReason.MALFORMED, f"a header of {len(header)} bytes is no message: {reason}"
    ) from None


def encode(message: Message) -> bytes:
    """The header of a message. A `text` or `error` that is too long for the wire is cut.

    Raises LocalProtocolError for a class outside `AnyMessage`, a field over its limit, or a header over HEADER_BYTES_MAX.
    """
    kind = type(message)
    sentences = _SENTENCES.get(kind)
    if sentences is None:
        raise LocalProtocolError(f"{kind.__name__} is not a message of this protocol")
    for field in sentences:
        message = _cut(message, field)
    try:
        header = _ENCODER.encode(message)
        decode(header)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"{kind.__name__} cannot be sent: {error}") from None
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"{kind.__name__} cannot be sent: {error}") from None
    if len(header) > HEADER_BYTES_MAX:
        raise LocalProtocolError(
            f"{kind.__name__} takes {len(header)} bytes, over the limit of {HEADER_BYTES_MAX} for one message; "
            "send its contents as a blob"
        )
    return header


def printable(text: str) -> str:
    """A peer's words as they may reach a terminal or a log."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _cut(message: Message, field: str) -> Message:
    """The message with a sentence that fits: a long complaint cut is worth more than none."""
    text = getattr(message, field)
    if not isinstance(text, str) or len(text) <= SENTENCE_CHARS_MAX:
        return message
    return msgspec.structs.replace(message, **{field: text[: SENTENCE_CHARS_MAX - 1] + "…"})
