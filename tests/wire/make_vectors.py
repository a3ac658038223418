"""Adds golden vectors to proto/vectors that are not there yet: `python tests/wire/make_vectors.py`.

It never changes or removes an entry. An old entry that our codec no longer reads is a broken promise to old nodes, and
the tests say so. Run it after adding a message or a case below, and commit what it appends.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any, get_type_hints

import msgpack
import msgspec

from p2pnn.wire import messages
from p2pnn.wire.codec import MESSAGES, encode
from p2pnn.wire.frame import FLAG_FOLLOWING, FLAG_MORE, encode_frame
from p2pnn.wire.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX, PIECE_BYTES_MAX
from p2pnn.wire.messages import (
    CloseReason,
    Fact,
    Gossip,
    Hello,
    Life,
    LinkKind,
    Message,
    Ping,
    Pong,
    Probe,
    Reserve,
    Retired,
    Tensor,
    Welcome,
)

VECTORS = Path(__file__).parents[2] / "proto" / "vectors"
NODES = ("0123456789abcdef" * 2, "fedcba9876543210" * 2)
BLOBS = ("00112233" * 8, "ffeeddcc" * 8)

EXAMPLES: dict[str, Any] = {
    "link": LinkKind.DATA, "node": NODES[0], "source": NODES[1], "name": "büro-1", "cluster": "home", "port": 7700,
    "boot": "b7f3", "session": "s-91", "software": "p2pnn 0.1.0", "version": 1, "version_min": 1, "version_max": 3,
    "reason": 12, "text": "Sätze dürfen alles enthalten.", "error": "disk full", "job": "digits-3f2a",
    "behind": "mnist-1.b_2", "blob": BLOBS[0], "spec": BLOBS[1], "blobs": BLOBS, "nodes": NODES,
    "sources": (NODES[1],), "squares": (0.0, 1.5, 3.0e300), "profile": b"\x00\xff", "plan": bytes(range(20)),
    "checkpoint": b"", "commands": b"\x91\xc0", "Happened.kind": "epoch", "peer": NODES[1],
    "CutsHeld.indices": (0, 2), "CutsHeld.steps": (96, 104),
    "fields": b"\x80",
    "report": b"\x80", "record": b"r" * 300, "size": 2**63 - 1, "offset": 2**32,
    "verb": "cancel", "state": "cancelled", "part": b"\x83", "piece": b"\x97\x01",
    "facts": (
        messages.Fact(NODES[0], "a", "", 0, "b0", 1, Life.ALIVE, "", "", "p2pnn 0.1.0", 1, 2, 3, 41, 6000,
                      "home", 4, 11, 3600, 128),
        messages.Fact(NODES[1], "b", "::1", 7701, "b1", 2**48, Life.SUSPECT, NODES[0], "it answers no probe"),
    ),
    "target": NODES[1], "incarnation": 7, "token": "0a1b2c3d", "secret": NODES[0], "key": b"0Y0", "certificate": b"0\x82",
    "authority": b"0\x82\x01", "again": True, "fetch": True, "whole": False, "refusal": "TOO_STALE", "Push.part": 3,
    "Assigned.assignment": b"\x92\x90\x91\x01", "configuration": b"\x94\x09",
    "done": ((3, 7), (9, 10)), "ranges": ((10, 12),), "back": ((7, 9),), "bad": ((10, 11),), "quits": True, "Leased.again": 4,
    "bad_token": True, "Command.state": b"\xdc", "answer": b"\x93\x00", "Append.head": b"\x94\x01",
    "members": (messages.Member(NODES[0], "a", "127.0.0.1", 7700, "b0"), messages.Member(NODES[1], "b", "::1", 1, "")),
}  # fmt: skip
"""A value per field name, or per message and field; numbers that are not here count up from 1000."""


def example(kind: type[Message]) -> Message:
    fields = kind.__struct_fields__
    named = [EXAMPLES.get(f"{kind.__name__}.{name}", EXAMPLES.get(name)) for name in fields]
    return kind(*(1000 + at if value is None else value for at, value in enumerate(named)))


def plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, bytes):
        return {"binary": value.hex()}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, LinkKind | Life) else value


def restored(kind: type[msgspec.Struct], fields: dict[str, Any]) -> msgspec.Struct:
    """The message of these JSON fields."""
    hints = get_type_hints(kind)
    return kind(**{name: _typed(value, hints[name]) for name, value in fields.items()})


def _typed(value: Any, hint: Any) -> Any:
    if isinstance(value, dict):
        if "binary" in value:
            return bytes.fromhex(value["binary"])
        return restored(messages.Fact if "life" in value else messages.Member, value)
    if isinstance(value, list):
        return tuple(_typed(item, None) for item in value)
    return hint(value) if hint in (LinkKind, Life) else value


def frame_cases() -> list[dict[str, Any]]:
    tensor = encode(Tensor("a-1", 1, 2, 0))
    cases = [
        (encode(Ping(7)), 0, 0, 0, b""),
        (encode(Retired("a-1", 1, 0, 8)), 0, 0, 0, b""),
        (tensor, 0, 1, 5, b"hello"),
        (tensor, 0, 2**32 - 1, 0, b""),
        (tensor, FLAG_MORE, 2, 2**20, b"abc"),
        (b"", FLAG_MORE | FLAG_FOLLOWING, 2, 2**20, b"d"),
        (b"", FLAG_FOLLOWING, 2, 8, b"efgh"),
    ]
    return [
        {
            "hex": (encode_frame(header, flags, len(piece), stream, total) + piece).hex(),
            "flags": flags, "stream": stream, "total": total, "header": header.hex(), "piece": piece.hex(),
        }
        for header, flags, stream, total, piece in cases
    ]  # fmt: skip


def message_cases() -> list[dict[str, Any]]:
    shortest = [Reserve("j", 0), Probe(0), Hello(1, 1, LinkKind.CONTROL, NODES[1], "", "", 0, "")]
    return [
        {
            "message": type(message).__name__,
            "fields": {name: plain(getattr(message, name)) for name in message.__struct_fields__},
            "hex": encode(message).hex(),
        }
        for message in (*map(example, MESSAGES), *shortest)
    ]


def evolution_cases() -> list[dict[str, Any]]:
    hello = [1, 1, 2, 0, NODES[0], "a", "home", 7700, "b0"]
    cases: list[tuple[str, Any, Message]] = [
        ("older Hello, without session and software", hello, Hello(1, 2, LinkKind.CONTROL, NODES[0], "a", "home", 7700, "b0")),
        ("older Reserve, without name", [30, "j", 4], Reserve("j", 4)),
        ("older Reserve, without a term", [30, "j", 4, "n"], Reserve("j", 4, "n")),
        ("older Release, without a term", [33, "j", 4], messages.Release("j", 4)),
        ("older Prepare, without a term", [34, "j", 4, BLOBS[0], b"p", b"", [NODES[0]], 0, [NODES[1]]],
         messages.Prepare("j", 4, BLOBS[0], b"p", b"", (NODES[0],), 0, (NODES[1],))),
        ("older Command, without term, oldest and state", [37, "j", 4, b"c"], messages.Command("j", 4, b"c")),
        ("older Ask, without a blob", [47, 1, "j", "cancel"], messages.Ask(1, "j", "cancel")),
        ("older Report, without a term", [38, "j", 4, b"r"], messages.Report("j", 4, b"r")),
        ("newer Retired, with a number and a map more", [40, "j", 4, 1, 9, 77, {"k": [1, 2.5]}], Retired("j", 4, 1, 9)),
        ("newer Ping, with nil and binary more", [4, 5, None, b"\x00"], Ping(5)),
        ("newer Ping, with an extension type more", [4, 6, msgpack.ExtType(5, b"xyz")], Ping(6)),
        ("newer Welcome, with an array more", [2, 1, NODES[0], "a", "b0", "s", "x 9", [[], [[]]]],
         Welcome(1, NODES[0], "a", "b0", "s", "x 9")),
        ("newer Member in a Roster", [10, [[NODES[0], "a", "h", 1, "b", "tls"]]],
         messages.Roster((messages.Member(NODES[0], "a", "h", 1, "b"),))),
        ("newer Fact in Gossip", [15, [[NODES[0], "a", "h", 1, "b", 3, 2, "", "", "", 1, 1, 0, 0, 0, "", 0, 0, 0, 0, 0, [4, 7]]]],
         Gossip((Fact(NODES[0], "a", "h", 1, "b", 3, Life.DEAD),))),
        ("older Fact in Gossip, without a charter",
         [15, [[NODES[0], "a", "", 0, "b", 3, 0, "", "", "p2pnn 0.1.0", 1, 2, 3, 41, 6000]]],
         Gossip((Fact(NODES[0], "a", "", 0, "b", 3, Life.ALIVE, "", "", "p2pnn 0.1.0", 1, 2, 3, 41, 6000),))),
        ("shortest Fact in Gossip", [15, [[NODES[0], "a", "h", 1, "b", 3, 3]]],
         Gossip((Fact(NODES[0], "a", "h", 1, "b", 3, Life.LEFT),))),
        ("older Voted, without a reason", [75, 8, 8], messages.Voted(8, 8)),
        ("older Held, without a cluster", [71, 8, 7, 3], messages.Held(8, 7, 3)),
        ("older Append, without a head", [98, "j", 2, 9, 5, 6, 5, 7, 9, 3, 4, 16],
         messages.Append("j", 2, 9, 5, 6, 5, 7, 9, 3, 4, 16)),
        ("older Pushed, without an answer", [96, "j", 2, 9, 7, 5], messages.Pushed("j", 2, 9, 7, 5)),
        ("older Pushed, without a refusal", [96, "j", 2, 9, 7, 5, b"", "no"], messages.Pushed("j", 2, 9, 7, 5, b"", "no")),
        ("older Push, of no gradient", [95, "j", 2, 9, 7, 5, 8, 16], messages.Push("j", 2, 9, 7, 5, 8, 16)),
        ("older Fetch, without a command", [63, "j", 4, 2, 1, 5], messages.Fetch("j", 4, 2, 1, 5)),
        ("older Fetch, of no worker that rested", [63, "j", 4, 2, 1, 5, 3, 0, 6], messages.Fetch("j", 4, 2, 1, 5, 3, 0, 6)),
        ("newer Mark, with a text more", [64, "j", 4, 2, 1, 5, 6, "x"], messages.Mark("j", 4, 2, 1, 5, 6)),
        ("older Mark, of a shard without replicas", [64, "j", 4, 2, 1, 5], messages.Mark("j", 4, 2, 1, 5)),
        ("newer Beat, with a number more", [101, "j", 2, 9, 4, 6, 5, 8, 7, 3], messages.Beat("j", 2, 9, 4, 6, 5, 8, 7)),
        ("older Beat, without its start", [101, "j", 2, 9, 4, 6, 5, 8], messages.Beat("j", 2, 9, 4, 6, 5, 8)),
        ("older Assigned, without a term", [106, "j", 4, b"a"], messages.Assigned("j", 4, b"a")),
        ("shortest ShardWish", [107, "j", 4, 2], messages.ShardWish("j", 4, 2)),
        ("shortest LeaseWish", [110, "j", 4, 0, 1, 5], messages.LeaseWish("j", 4, 0, 1, 5)),
        ("newer Leased, with a text more", [111, "j", 4, 0, 1, 5, [[3, 9]], 3, 0, 0, "x"],
         messages.Leased("j", 4, 0, 1, 5, ((3, 9),), 3)),
        ("older Leased, with nothing given up", [111, "j", 4, 0, 1, 5, [[3, 9]], 3, 2],
         messages.Leased("j", 4, 0, 1, 5, ((3, 9),), 3, 2)),
        ("older LeaseWish, of which all was taken", [110, "j", 4, 0, 1, 5, [[3, 9]], 7, 8, 9, 9, 4, False],
         messages.LeaseWish("j", 4, 0, 1, 5, ((3, 9),), 7, 8, 9, 9, 4)),
        ("newer Rest, with a text more", [112, "j", 4, 0, 1, 5, "x"], messages.Rest("j", 4, 0, 1, 5)),
        ("shortest Dealt", [115, "j", 4, 2, 7], messages.Dealt("j", 4, 2, 7)),
        ("shortest Decided", [116, "j", 4, 2, 7], messages.Decided("j", 4, 2, 7)),
        ("newer Lead, with a text more", [70, 8, 7, 3, 7, 2, "home", "x"], messages.Lead(8, 7, 3, 7, 2, "home")),
    ]  # fmt: skip
    return [
        {
            "why": why,
            "hex": msgpack.packb(wire, use_bin_type=True).hex(),
            "message": type(message).__name__,
            "fields": {name: plain(getattr(message, name)) for name in message.__struct_fields__},
        }
        for why, wire, message in cases
    ]


def prefix(
    header: bytes = b"", flags: int = 0, piece: int = 0, stream: int = 0, total: int = 0, *, magic: bytes = b"p2nn",
    layout: int = 1, reserved: int = 0, header_length: int | None = None, checksum: int | None = None, pad: bytes = b"\0",
) -> bytes:  # fmt: skip
    """A frame without its piece, with anything in it, written independently of p2pnn.wire.frame."""
    length = len(header) if header_length is None else header_length
    start = struct.pack("<4sBBHIIIQ", magic, layout, flags, reserved, length, piece, stream, total)
    crc = zlib.crc32(start + header) if checksum is None else checksum
    return start + struct.pack("<I", crc) + header + pad * (-len(header) % 8)


def reject_cases() -> list[dict[str, Any]]:
    hello, pack = encode(Hello(1, 1, LinkKind.CONTROL, NODES[0], "a", "c", 1, "b")), msgpack.packb
    tensor, retired = encode(Tensor("j", 1, 2, 0)), encode(Retired("j", 1, 0, 8))
    malformed, large, unexpected = CloseReason.MALFORMED, CloseReason.TOO_LARGE, CloseReason.UNEXPECTED
    opened = prefix(tensor, 1, 2, 9, 8) + b"ab"
    cases: list[tuple[str, str, bytes, CloseReason]] = [
        ("another protocol", "listening", b"GET / HTTP/1.1\r\n", malformed),
        ("one wrong byte", "listening", b"q", malformed),
        ("another layout", "listening", prefix(hello, layout=2), CloseReason.VERSION),
        ("unknown flag", "listening", prefix(hello, 4), malformed),
        ("reserved not zero", "listening", prefix(hello, reserved=1), malformed),
        ("header over its limit", "listening", prefix(header_length=HEADER_BYTES_MAX + 1), large),
        ("header of 4 GiB", "listening", prefix(header_length=2**32 - 1), large),
        ("piece over its limit", "data", prefix(tensor, 0, PIECE_BYTES_MAX + 1, 1, PIECE_BYTES_MAX + 1), large),
        ("body over its limit", "data", prefix(tensor, 1, 1, 1, BODY_BYTES_MAX + 1), large),
        ("body of 2**64-1", "data", prefix(tensor, 1, 1, 1, 2**64 - 1), large),
        ("no header in a first frame", "listening", prefix(b""), malformed),
        ("header in a following frame", "data", prefix(tensor, 2, 1, 1, 1) + b"a", malformed),
        ("piece without a stream", "data", prefix(tensor, 0, 1, 0, 1) + b"a", malformed),
        ("total without a stream", "data", prefix(tensor, 0, 0, 0, 1), malformed),
        ("more on no stream", "data", prefix(retired, 1), malformed),
        ("piece larger than the body", "data", prefix(tensor, 0, 2, 1, 1) + b"ab", malformed),
        ("empty first piece", "data", prefix(tensor, 1, 0, 1, 1), malformed),
        ("empty following piece", "data", opened + prefix(b"", 3, 0, 9, 8), malformed),
        ("more though complete", "data", prefix(tensor, 1, 1, 1, 1) + b"a", malformed),
        ("no more though incomplete", "data", prefix(tensor, 0, 1, 1, 2) + b"a", malformed),
        ("checksum", "listening", prefix(hello, checksum=0), malformed),
        ("padding not zero", "control", prefix(encode(Ping(1)), pad=b"x"), malformed),
        ("stream not open", "data", prefix(b"", 2, 1, 5, 1) + b"a", unexpected),
        ("stream open already", "data", opened + prefix(tensor, 1, 2, 9, 8) + b"ab", unexpected),
        ("another total", "data", opened + prefix(b"", 3, 2, 9, 9) + b"ab", malformed),
        ("piece beyond the body", "data", opened + prefix(b"", 2, 7, 9, 8) + b"abcdefg", malformed),
        ("following ends early", "data", opened + prefix(b"", 2, 2, 9, 8) + b"cd", malformed),
        ("following ends late", "data", opened + prefix(b"", 3, 6, 9, 8) + b"cdefgh", malformed),
        ("65 streams", "data", b"".join(prefix(tensor, 1, 1, n, 2) + b"a" for n in range(1, 66)), unexpected),
        ("empty array", "control", prefix(b"\x90"), malformed),
        ("not an array", "control", prefix(b"\x07"), malformed),
        ("a map", "control", prefix(pack({"a": 1})), malformed),
        ("unknown tag", "control", prefix(pack([99, 1])), malformed),
        ("tag is text", "control", prefix(pack(["Ping", 1])), malformed),
        ("field missing", "control", prefix(pack([40, "j", 1, 0])), malformed),
        ("field of another type", "control", prefix(pack([4, "7"])), malformed),
        ("float for an integer", "control", prefix(pack([4, 7.0])), malformed),
        ("negative number", "control", prefix(pack([4, -1])), malformed),
        ("number over 2**63-1", "control", prefix(pack([4, 2**63])), malformed),
        ("bytes after the message", "control", prefix(pack([4, 7]) + b"\0"), malformed),
        ("truncated MessagePack", "control", prefix(pack([4, 70000])[:-1]), malformed),
        ("reserved MessagePack byte", "control", prefix(b"\x92\x04\xc1"), malformed),
        ("text that is not UTF-8", "control", prefix(b"\x93\x03\x01\xa2\xff\xfe"), malformed),
        ("array of 2**32-1 items", "control", prefix(b"\x92\x0a\xdd\xff\xff\xff\xff"), malformed),
        ("binary of 2**32-1 bytes", "control", prefix(b"\x93\x1a\x01\xc6\xff\xff\xff\xff"), malformed),
        ("2,000 nested arrays to skip", "control", prefix(b"\x93\x04\x01" + b"\x91" * 2000), malformed),
        ("node id too short", "listening", prefix(pack([1, 1, 1, 0, "ab", "a", "c", 1, "b"])), malformed),
        ("blob that is a path", "control", prefix(pack([20, 1, "../" * 21 + "x", 0, 1])), malformed),
        ("blob that may be empty and is a path", "control", prefix(pack([47, 1, "j", "submit", "../x"])), malformed),
        ("state over a record", "control", prefix(pack([37, "j", 4, b"", 1, 1, bytes(61441)])), malformed),
        ("job that is a path", "control", prefix(pack([31, "../../etc", 1, "j", 1])), malformed),
        ("escape in a name", "listening", prefix(pack([1, 1, 1, 0, NODES[0], "\x1b[2J", "c", 1, "b"])), malformed),
        ("port 65536", "listening", prefix(pack([1, 1, 1, 0, NODES[0], "a", "c", 65536, "b"])), malformed),
        ("unknown kind of link", "listening", prefix(pack([1, 1, 1, 2, NODES[0], "a", "c", 1, "b"])), malformed),
        ("versions the wrong way", "listening", prefix(pack([1, 2, 1, 0, NODES[0], "a", "c", 1, "b"])), malformed),
        (
            "newer versions only",
            "listening",
            prefix(pack([1, 2, 9, 0, NODES[0], "a", "c", 1, "b"])),
            CloseReason.VERSION,
        ),
        (
            "data link, no session",
            "listening",
            prefix(pack([1, 1, 1, 1, NODES[0], "a", "c", 1, "b"])),
            CloseReason.NO_SESSION,
        ),
        ("1,025 members", "control", prefix(pack([10, [[]] * 1025])), malformed),
        ("21 facts", "control", prefix(pack([15, [[NODES[0], "a", "h", 1, "b", 3, 0]] * 21])), malformed),
        ("a life that is none", "control", prefix(pack([15, [[NODES[0], "a", "h", 1, "b", 3, 4]]])), malformed),
        ("incarnation over its limit", "control", prefix(pack([17, NODES[0], 2**48 + 1])), malformed),
        (
            "escape in a reason",
            "control",
            prefix(pack([15, [[NODES[0], "a", "h", 1, "b", 3, 1, "", "\x1b[2J"]]])),
            malformed,
        ),
        ("term over 2**31-1", "control", prefix(pack([78, 2**31])), malformed),
        ("revision over 2**32-1", "control", prefix(pack([77, 1, 2**32])), malformed),
        ("charter over its limit", "control", prefix(pack([76, 1, 1, 1, 1, 0, 262145, b""])), malformed),
        ("piece of a charter over a record", "control", prefix(pack([76, 1, 1, 1, 1, 0, 9, bytes(61441)])), malformed),
        ("message before Hello", "listening", prefix(retired), unexpected),
        ("Ping before Hello", "listening", prefix(encode(Ping(1))), unexpected),
        ("Welcome to a listener", "listening", prefix(encode(Welcome(1, NODES[0], "a", "b", "s"))), unexpected),
        ("Hello twice", "control", prefix(hello), unexpected),
        ("Welcome on an open link", "control", prefix(encode(Welcome(1, NODES[0], "a", "b", "s"))), unexpected),
        ("Pong to no Ping", "control", prefix(encode(Pong(1))), unexpected),
        ("body on a control link", "control", prefix(tensor, 0, 1, 1, 1) + b"a", unexpected),
        ("body that may not be", "data", prefix(retired, 0, 1, 1, 1) + b"a", unexpected),
        ("body missing", "data", prefix(tensor), unexpected),
        ("Close with a body", "data", prefix(pack([3, 1, ""]), 0, 1, 1, 1) + b"a", unexpected),
    ]
    return [{"why": w, "phase": phase, "hex": data.hex(), "reason": reason.name} for w, phase, data, reason in cases]


def main() -> None:
    makers = {"frames": frame_cases, "messages": message_cases, "evolution": evolution_cases, "rejects": reject_cases}
    for name, make in makers.items():
        path = VECTORS / f"{name}.json"
        entries = json.loads(path.read_text()) if path.exists() else []
        before = len(entries)
        entries += [entry for entry in make() if entry not in entries]
        lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        print(f"{path.name}: {len(entries) - before} added to {before}")


if __name__ == "__main__":
    main()
