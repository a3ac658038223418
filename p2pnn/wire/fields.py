"""What a message is made of: the types of its fields, and their limits.

A limit is checked when a message is decoded, before anything is built from it, and when it is encoded. `proto/README.md`
lists types and limits for strangers.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from p2pnn.wire.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX

VERSION_MIN: Final = 1
VERSION_MAX: Final = 1

# --- limits of fields, checked when a message is decoded and when it is encoded

INTEGER_MAX: Final = 2**63 - 1  # counts and numbers fit a signed 64-bit integer of any language
NAME_CHARS_MAX: Final = 64  # nodes, clusters, boots and sessions: a person reads them in one column
SOFTWARE_CHARS_MAX: Final = 128
HOST_CHARS_MAX: Final = 253  # the longest DNS name
JOB_CHARS_MAX: Final = 128
SENTENCE_CHARS_MAX: Final = 4096  # a longer one of ours is cut when it is encoded
RECORD_BYTES_MAX: Final = 60 * 1024  # records of higher layers; the rest of the header is for the other fields
ROSTER_MEMBERS_MAX: Final = 1024  # with names and hosts of usual length the header's limit comes first, near 700
INCARNATION_MAX: Final = 2**48  # more refutations than a life has; nobody can be told a number that cannot be raised
CLAUSE_CHARS_MAX: Final = 128  # a reason that travels with a fact, and is shown in one line
FACTS_MAX: Final = 20  # with every text at its longest; `FACT_BYTES_MAX` each
FACT_BYTES_MAX: Final = 3072  # 701 characters of up to 4 bytes, two ids and thirteen numbers are 2,989
NODES_MAX: Final = 1024
BLOBS_MAX: Final = 990  # 66 bytes each
SQUARES_MAX: Final = 7000  # 9 bytes each
LEASES_MAX: Final = 16  # a worker asks for a range when the last is near its end, so it has two at once

assert RECORD_BYTES_MAX < HEADER_BYTES_MAX
assert BLOBS_MAX * 66 < HEADER_BYTES_MAX
assert SQUARES_MAX * 9 < HEADER_BYTES_MAX
assert FACTS_MAX * FACT_BYTES_MAX < HEADER_BYTES_MAX

Version = Annotated[int, Meta(ge=1, le=65535)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Incarnation = Annotated[int, Meta(ge=0, le=INCARNATION_MAX)]
Length = Annotated[int, Meta(ge=0, le=BODY_BYTES_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]  # it reaches terminals
Software = Annotated[str, Meta(max_length=SOFTWARE_CHARS_MAX, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
Clause = Annotated[str, Meta(max_length=CLAUSE_CHARS_MAX, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
Host = Annotated[str, Meta(max_length=HOST_CHARS_MAX, pattern=r"\A[^\x00-\x20\x7f-\x9f]*\Z")]
NodeText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
MaybeNode = Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
BlobText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # it becomes a file's name
JobText = Annotated[str, Meta(max_length=JOB_CHARS_MAX, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]  # a folder's name
MaybeBlob = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Sentence = Annotated[str, Meta(max_length=SENTENCE_CHARS_MAX)]
Packed = Annotated[bytes, Meta(max_length=RECORD_BYTES_MAX)]
Nodes = Annotated[tuple[NodeText, ...], Meta(max_length=NODES_MAX)]
Blobs = Annotated[tuple[BlobText, ...], Meta(max_length=BLOBS_MAX)]
SquareSums = Annotated[tuple[float, ...], Meta(max_length=SQUARES_MAX)]
LeaseRanges = Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=LEASES_MAX)]  # [first, behind the last)


class Message(msgspec.Struct, array_like=True):
    """Base of all messages."""

    BODY: ClassVar[bool] = False
