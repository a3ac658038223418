"""A backup, message by message."""

from __future__ import annotations

from p2pnn.replication.log import Sessions
from p2pnn.replication.outcomes import Apply
from p2pnn.wire.fields import Message
from p2pnn.wire.messages import Append, Appended, Beat, Forward, StateHeld, StatePiece, UpdateWanted

from .mesh import SHARD, A, B, C, Configuration, Mesh, pair


def append(
    number: int, generation: int = 1, ordered: int = 1, base: int = 0, committed: int = 0, size: int = 4
) -> Append:
    return Append(*SHARD, generation, base, committed, 0, number, ordered, 9, number, size)


def forward(sequence: int, start: int = 0, size: int = 4, generation: int = 1) -> Forward:
    return Forward(*SHARD, generation, 9, sequence, start, size)


def backup(*more: Message) -> Mesh:
    mesh = Mesh(B)
    mesh.configure(pair())
    feed(mesh, *more)
    return mesh


def feed(mesh: Mesh, *messages: Message) -> None:
    for message in messages:
        body = b"ab" if isinstance(message, Forward) else b""
        mesh[B].receive(A.id, message, mesh.now, body)
        mesh.settle()


def held(mesh: Mesh) -> int:
    return mesh.messages(Appended, B, A.id)[-1].held


def test_an_entry_is_held_when_its_number_and_all_its_bytes_are_here() -> None:
    mesh = backup(forward(1), append(1))
    assert held(mesh) == 0, "half of it"
    feed(mesh, forward(1, 2))
    assert held(mesh) == 1
    feed(mesh, append(2), forward(2, 2), forward(2, 2))
    assert held(mesh) == 1
    feed(mesh, forward(2))
    assert held(mesh) == 2
    assert not any(isinstance(event, Apply) for event in mesh.events[B.id])
    feed(mesh, Beat(*SHARD, 1, 0, 1, 0, 2))
    assert [event.number for event in mesh.events[B.id] if isinstance(event, Apply)] == [1]
    feed(mesh, append(4), Beat(*SHARD, 1, 0, 9, 0, 9))
    assert held(mesh) == 2, "an entry is missing"
    assert mesh[B].committed == 2


def test_missing_bytes_are_asked_for() -> None:
    mesh = backup(append(1))
    assert mesh.messages(UpdateWanted) == [], "they may be on their way"
    mesh.wait(0.4)
    assert [message.number for message in mesh.messages(UpdateWanted)] == [1, 1]
    feed(mesh, forward(1), forward(1, 2))
    mesh.wait(0.4)
    assert len(mesh.messages(UpdateWanted)) == 2
    mesh = Mesh(B)
    mesh.configure(pair(5))
    feed(mesh, append(1, generation=5, ordered=3, base=1))
    assert [message.number for message in mesh.messages(UpdateWanted)] == [1], "nobody is sending an older one"


def test_what_another_generation_ordered_gives_way() -> None:
    mesh = backup(forward(1), forward(1, 2), append(1), forward(2), forward(2, 2), append(2), append(3))
    mesh.configure(Configuration(5, 2, (A, B)))
    feed(mesh, Beat(*SHARD, 5, 2, 0, 0, 2))
    assert mesh[B].log.last == 2, "the primary has no entry 3"
    assert held(mesh) == 0, "only what is committed is sure to be the same"
    feed(mesh, append(1, 5, 1, base=2))
    assert held(mesh) == 1, "it is here already: no bytes travel"
    feed(mesh, append(2, 5, 4, base=2))
    assert held(mesh) == 1
    assert mesh[B].log.last == 2
    feed(mesh, forward(2, generation=5), forward(2, 2, generation=5))
    assert held(mesh) == 2


def test_only_the_primary_is_obeyed() -> None:
    mesh = backup()
    mesh[B].receive(C.id, forward(1), mesh.now, b"ab")
    mesh[B].receive(C.id, append(1), mesh.now)
    mesh.settle()
    assert mesh[B].log.last == 0
    assert mesh.sent == []


def test_a_refused_update_has_a_number_and_no_bytes() -> None:
    mesh = backup(append(1, size=0))
    assert held(mesh) == 1
    feed(mesh, Beat(*SHARD, 1, 0, 1, 1, 1))
    assert mesh.events[B.id][-1] == Apply(1, 9, 1, ())
    assert mesh[B].sessions.last(9) == 1


def test_a_state_that_comes_late_takes_back_nothing_that_is_held() -> None:
    mesh = Mesh(B)
    mesh.configure(Configuration(1, 2, (A,), (B,)))
    for number in range(1, 6):
        feed(mesh, forward(number), forward(number, 2), append(number))
    head = Sessions().encode()
    for start, body in ((0, head), (len(head), b"state")):
        piece = StatePiece(*SHARD, 1, 3, start, len(head), len(head) + 5)
        mesh[B].receive(A.id, piece, mesh.now, body)
        mesh.settle()
        assert mesh.messages(StateHeld)[-1].held_bytes == piece.total_bytes, "or it would come for ever"
    assert held(mesh) == mesh[B].log.last == 5


def test_a_backup_takes_no_state() -> None:
    mesh = backup()
    mesh[B].receive(A.id, StatePiece(*SHARD, 1, 9, 0, 1, 1), mesh.now, b"x")
    mesh.settle()
    assert mesh[B].committed == 0
    assert mesh.messages(StateHeld)[-1].held_bytes == 1, "or it would come for ever"
