"""What the planner knows of the world: one record per node, one per directed link.

Only records; `executor.measure` measures a node, `node` measures links. Every figure is of one executor process with the
BLAS threads that it will run with, because that is what a job gets.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnn.types import NodeId

FORMAT: Final = 3


class Profile(msgspec.Struct, frozen=True):
    """How fast one node computes and how much memory a job may take there.

    gemm_gflops, conv_gflops: 10⁹ floating-point operations per second in float32; of a GEMM without arranging its operands
    (see `cost.PACKING`). bytes_per_s limits every other op: read plus written, over arrays that do not stay in a cache.
    overhead_s: what one op costs before it touches a number. memory_bytes_max: free for a job. fingerprint:
    `engine.fingerprint()`; nodes where it is equal compute equal bits. machine: the same text on nodes that share one
    computer's cores and memory, empty where that is not known. node and name are filled in by the node that measured.
    """

    node: NodeId
    name: str
    gemm_gflops: float
    conv_gflops: float
    bytes_per_s: float
    overhead_s: float
    memory_bytes_max: int
    cores: int = 1
    threads: int = 1
    fingerprint: str = ""
    machine: str = ""
    format: int = FORMAT


class Link(msgspec.Struct, frozen=True):
    """One direction between two nodes: bytes per second of a long transfer, and seconds until the first byte arrives."""

    bytes_per_s: float
    latency_s: float


UNMEASURED: Final = Link(bytes_per_s=110e6, latency_s=5e-4)
"""What an unmeasured link is taken for: 1 Gbit/s Ethernet."""


def encode(profile: Profile) -> bytes:
    """The profile as MessagePack, as `ProfileReply` and `python -m p2pnn.executor --profile` carry it."""
    return msgspec.msgpack.encode(profile)


def decode(data: bytes) -> Profile:
    """The inverse of encode. Raises msgspec.DecodeError for anything else."""
    return msgspec.msgpack.decode(data, type=Profile)
