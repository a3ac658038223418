"""What is on the disk, what is only in memory, and the file between them."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.cluster.charter import NOTHING
from p2pnn.cluster.durable import FORMAT, Durable, Stable, decode, encode
from p2pnn.errors import CharterError

from .charters import A, B, charter_of

STATES = [Durable(), Durable(3), Durable(3, A), Durable(3, B, charter_of((A, B), work=b"w"))]


@pytest.mark.parametrize("durable", STATES, ids=str)
def test_a_file_and_back(durable: Durable) -> None:
    assert decode(encode(durable), "charter") == durable


def test_the_version_of_no_charter() -> None:
    assert Durable().version == NOTHING


@pytest.mark.parametrize("at", range(0, 120, 7))
def test_a_changed_byte_is_noticed(at: int) -> None:
    data = bytearray(encode(STATES[3]))
    data[at] ^= 1
    with pytest.raises(CharterError, match="charter"):
        decode(bytes(data), "charter")


@pytest.mark.parametrize("data", [b"", b"\x90", b"\xc0", b"\x91\xa1x", bytes(300_000), encode(STATES[3])[:-1]], ids=len)
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(CharterError, match=r"charter is damaged.*must not vote"):
        decode(data, "charter")


def test_a_newer_file_is_refused_by_name() -> None:
    with pytest.raises(CharterError, match=rf"state/charter has format {FORMAT + 1}, .*use a newer p2pnn"):
        decode(msgspec.msgpack.encode([FORMAT + 1, "all", "new"]), "state/charter")


def test_one_write_at_a_time_and_the_last_state_wins() -> None:
    stable = Stable(Durable())
    assert stable.next_write() is None
    stable.hold(term=1)
    first = stable.next_write()
    assert first == (1, Durable(1))
    stable.hold(term=2)
    stable.hold(vote=A)
    assert stable.next_write() is None
    assert stable.disk.term == 0
    assert stable.wrote(1)
    assert (stable.disk.term, stable.is_synced) == (1, False)
    assert stable.next_write() == (2, Durable(2, A))
    assert not stable.wrote(1), "an old answer is no news"
    assert stable.wrote(2)
    assert stable.is_synced


def test_a_failed_write_takes_memory_back() -> None:
    stable = Stable(Durable(4, B))
    stable.hold(term=5, vote=A)
    assert stable.next_write() == (1, Durable(5, A))
    stable.hold(term=6)
    assert stable.failed(1)
    assert stable.memory == stable.disk == Durable(4, B)
    assert stable.is_idle
    assert not stable.failed(1)
    stable.hold(term=5)
    assert stable.next_write() == (2, Durable(5, B))
