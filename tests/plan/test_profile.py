"""Profiles travel as MessagePack."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.plan.profile import decode, encode

from .builder import node


def test_a_profile_survives_its_journey() -> None:
    profile = node("a", 1.5, machine="pc", cores=4)
    assert decode(encode(profile)) == profile


def test_fields_of_a_later_version_are_ignored_and_nonsense_is_refused() -> None:
    later = msgspec.to_builtins(node("a")) | {"gpu": "H200"}
    assert decode(msgspec.msgpack.encode(later)) == node("a")
    with pytest.raises(msgspec.DecodeError):
        decode(b"\x01")
