"""Messages and MessagePack: golden vectors with `msgpack` as an independent reader, arbitrary messages, and bombs."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnn.errors import LocalProtocolError, RemoteProtocolError
from p2pnn.wire import messages
from p2pnn.wire.codec import MESSAGES, decode, encode
from p2pnn.wire.limits import HEADER_BYTES_MAX
from p2pnn.wire.messages import SENTENCE_CHARS_MAX, BlobRequest, CloseReason, JobFailed, Message, Ping, Prepare, Record

from . import links
from .make_vectors import BLOBS, NODES, VECTORS, plain, restored

GOLDEN: list[dict[str, Any]] = json.loads((VECTORS / "messages.json").read_text())
EVOLUTION: list[dict[str, Any]] = json.loads((VECTORS / "evolution.json").read_text())


def as_arrays(value: Any) -> Any:
    """A message or field as MessagePack has it: structs are arrays."""
    if isinstance(value, msgspec.Struct):
        tag = [value.__struct_config__.tag] if isinstance(value, Message) else []
        return tag + [as_arrays(getattr(value, name)) for name in value.__struct_fields__]
    return [as_arrays(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["message"])
def test_golden_messages_both_ways(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    message = restored(getattr(messages, case["message"]), case["fields"])
    assert isinstance(message, Message)
    assert decode(data) == message
    assert encode(message) == data
    assert msgpack.unpackb(data) == as_arrays(message)
    assert decode(msgpack.packb(as_arrays(message))) == message


def test_every_message_is_golden() -> None:
    assert {case["message"] for case in GOLDEN} == {kind.__name__ for kind in MESSAGES}


@pytest.mark.parametrize("case", EVOLUTION, ids=lambda case: case["why"])
def test_older_and_newer_nodes_are_read(case: dict[str, Any]) -> None:
    message = decode(bytes.fromhex(case["hex"]))
    assert type(message).__name__ == case["message"]
    assert {name: plain(getattr(message, name)) for name in message.__struct_fields__} == case["fields"]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=10)
def test_any_message_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(links.messages(kind))
    header = encode(message)
    assert decode(header) == message
    assert decode(memoryview(header)) == message
    assert msgpack.unpackb(header) == as_arrays(message)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=10)
def test_any_message_survives_a_newer_node_and_no_shorter_one_passes(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(links.messages(kind))
    items = as_arrays(message)
    extra = data.draw(st.lists(st.none() | st.integers(0, 9) | st.lists(st.text(max_size=3), max_size=3), max_size=3))
    assert decode(msgpack.packb(items + extra)) == message
    required = 1 + sum(field.required for field in msgspec.structs.fields(kind))
    assert type(decode(msgpack.packb(items[:required]))) is kind
    with pytest.raises(RemoteProtocolError):
        decode(msgpack.packb(items[: required - 1]))


@given(st.binary(max_size=300))
def test_random_bytes_are_a_message_or_malformed(data: bytes) -> None:
    reason = None
    try:
        assert isinstance(decode(data), Message)
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason in (None, CloseReason.MALFORMED)


BOMBS = {
    "nested arrays": b"\x91" * HEADER_BYTES_MAX,
    "nested arrays after a message": b"\x93\x04\x01" + b"\x91" * (HEADER_BYTES_MAX - 3),
    "nested maps after a message": b"\x93\x04\x01" + b"\x81\xa0" * (HEADER_BYTES_MAX // 2 - 2),
    "array that claims 2**32-1": b"\xdd\xff\xff\xff\xff\x04\x01",
    "skipped array that claims 2**32-1": b"\x93\x04\x01\xdd\xff\xff\xff\xff" + b"\x01" * 60000,
    "skipped map that claims 2**32-1": b"\x93\x04\x01\xdf\xff\xff\xff\xff" + b"\x01" * 60000,
    "floats that claim 7,000": b"\x96\x29\xa1j\x01\x01\x01\xdc\x1b\x58",
    "floats that claim 2**31": b"\x96\x29\xa1j\x01\x01\x01\xdd\x80\x00\x00\x00" + b"\x01" * 60000,
    "binary that claims 4 GiB": b"\x93\x1a\x01\xc6\xff\xff\xff\xff",
    "text that claims 4 GiB": b"\x93\x03\x01\xdb\xff\xff\xff\xff",
    "many empty members": b"\x92\x0a\xdc\x04\x00" + b"\x90" * 60000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_takes_no_memory(bomb: bytes) -> None:
    assert len(bomb) <= HEADER_BYTES_MAX
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == CloseReason.MALFORMED
    assert peak < 4 * HEADER_BYTES_MAX, f"{peak} bytes"


NODE, BLOB = NODES[0], BLOBS[0]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Ping(-1), "Ping cannot be sent"),
        (Ping(2**64), "Ping cannot be sent"),
        (Ping("7"), "Expected `int`"),  # type: ignore[arg-type]
        (BlobRequest(1, "../secret", 0, 1), "BlobRequest cannot be sent"),
        (JobFailed("job", 1, "\ud800"), "JobFailed cannot be sent"),
        (Record("job", 1, 1, bytes(messages.RECORD_BYTES_MAX + 1)), "length <="),
        (Prepare("job", 1, BLOB, bytes(40000), bytes(40000), (NODE,), 0, ()), "over the limit of 65536"),
        (Prepare("job", 1, BLOB, b"", b"", (NODE,) * 1025, 0, ()), "length <= 1024"),
    ],
    ids=str,
)
def test_what_a_peer_would_refuse_is_our_error(message: Message, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        encode(message)


def test_only_messages_of_the_list_are_sent() -> None:
    class Foreign(Message, tag=200):
        pass

    with pytest.raises(LocalProtocolError, match="Foreign is not a message"):
        encode(Foreign())


def test_a_long_sentence_is_cut_and_sent() -> None:
    read = decode(encode(JobFailed("job", 1, "ä" * 10_000)))
    assert isinstance(read, JobFailed)
    assert read.text == "ä" * (SENTENCE_CHARS_MAX - 1) + "…"


def test_bodies_are_told_by_the_class() -> None:
    assert {kind.__name__ for kind in MESSAGES if kind.BODY} == {
        "BlobPiece", "LinkProbe", "Tensor", "Snapshot", "Values", "Push", "Forward", "StatePiece",
    }  # fmt: skip


def test_text_that_is_not_utf_8_is_named_in_words() -> None:
    with pytest.raises(RemoteProtocolError, match=r"is no message: .*UTF-8"):
        decode(b"\x93\x03\x01\xa2\xff\xfe")
