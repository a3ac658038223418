"""The list of messages, and the page that describes it to strangers, say the same."""

from __future__ import annotations

import re

import msgspec
import pytest

from p2pnn.wire.codec import MESSAGES, encode
from p2pnn.wire.frame import encode_frame
from p2pnn.wire.messages import CloseReason, Fact, Member, Message, Ping, Tensor

from .document import PAGE, sections, table

TYPES = {
    "Version": "version", "LinkKind": "link kind", "Port": "port", "Count": "count", "Length": "length", "Name": "name",
    "Software": "software", "Host": "host", "NodeText": "node", "BlobText": "blob", "JobText": "job",
    "Sentence": "sentence", "Packed": "record", "Nodes": "list of node",
    "Blobs": "list of blob", "SquareSums": "list of float64",
    "Incarnation": "incarnation", "Life": "life", "MaybeNode": "node or empty", "MaybeBlob": "blob or empty", "Clause": "clause",
    "Facts": "list of Fact", "Numbers": "list of count", "LeaseRanges": "list of range",
    "TokenText": "token", "SecretText": "secret", "bool": "truth",
    "Term": "term", "Revision": "revision", "CharterLength": "charter length",
    "Annotated[tuple[Member, ...], Meta(max_length=ROSTER_MEMBERS_MAX)]": "list of Member",
}  # fmt: skip
RANGES = {
    range(1, 10),
    range(10, 20),
    range(20, 25),
    range(25, 30),
    range(30, 60),
    range(60, 70),
    range(70, 90),
    range(90, 95),
    range(95, 120),
}


def tag(kind: type[Message]) -> int:
    number = kind.__struct_config__.tag
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("kind", [*MESSAGES, Member, Fact], ids=lambda kind: kind.__name__)
def test_the_document_has_every_field(kind: type[msgspec.Struct]) -> None:
    is_message = issubclass(kind, Message)
    heading = f"{tag(kind)} {kind.__name__}" if issubclass(kind, Message) else kind.__name__
    rows = table(heading)
    expected = [
        [
            str(at + is_message),
            field.name,
            TYPES[kind.__annotations__[field.name]],
            "" if field.required else {"": '""', b"": '""', (): "[]"}.get(field.default, str(field.default)),
        ]
        for at, field in enumerate(msgspec.structs.fields(kind))
    ]
    assert [row[:4] for row in rows] == expected
    assert all(row[4] for row in rows), "a field without a meaning"
    if issubclass(kind, Message):
        assert sections()[heading].strip().startswith("**Body**") == kind.BODY


def test_the_document_has_no_other_message() -> None:
    documented = [heading for heading in sections() if re.match(r"\d+ \w+$", heading)]
    assert documented == [f"{tag(kind)} {kind.__name__}" for kind in MESSAGES]


def test_the_document_has_every_type() -> None:
    documented = {row[0] for row in table("MessagePack")}
    assert {name.removeprefix("list of ") for name in TYPES.values()} - {"Member", "Fact", "float64"} <= documented


def test_the_document_has_every_close_reason() -> None:
    rows = table("Close reasons")
    assert [(int(row[0]), row[1]) for row in rows] == [(int(reason), reason.name) for reason in CloseReason]
    assert all(row[2] for row in rows)


def test_the_worked_examples_are_true() -> None:
    dumps = [
        bytes.fromhex("".join(line[4:] for line in block.strip("\n").splitlines()))
        for block in re.findall(r"```\n(.*?)```", PAGE, re.S)
    ]
    body = b"hello"
    assert dumps == [
        encode_frame(encode(Ping(7))),
        encode_frame(encode(Tensor("a-1", 1, 2, 0)), 0, len(body), 1, len(body)) + body,
    ]


def test_tags_are_unique_ordered_and_grouped() -> None:
    tags = [tag(kind) for kind in MESSAGES]
    assert tags == sorted(set(tags))
    assert all(any(number in group for group in RANGES) for number in tags)


def test_every_text_and_list_has_a_limit() -> None:
    """A field without one would be bounded by the header only, and its strings could hold anything."""
    kinds: list[type[msgspec.Struct]] = [*MESSAGES, Member, Fact]
    for kind in kinds:
        for name, annotation in kind.__annotations__.items():
            assert annotation in TYPES or name == "BODY", f"{kind.__name__}.{name}: {annotation}"
