"""Answers: values as late as possible, nothing overwritten while it is sent, one per worker and kind."""

from __future__ import annotations

import numpy as np

from p2pnn.ps.answers import Answers, Due
from p2pnn.ps.messages import Refusal
from p2pnn.ps.versions import Versions
from tests.ps.network import workers_named

A, B = workers_named(2)


def made(pull: str = "float32", buffers: int = 2) -> tuple[Answers, Versions]:
    versions = Versions(np.arange(600, dtype=np.float32), buffers)
    return Answers(versions, pull, lambda: 7), versions


def test_values_pin_their_version_until_sent() -> None:
    answers, versions = made()
    answers.add(Due(A, 1))
    answer = answers.next(3)
    assert answer is not None
    assert answer.values is not None
    assert (answer.generation, answer.sequence, answer.values.version, answer.values.clock) == (3, 1, 0, 7)
    assert np.array_equal(answer.values.data.view(np.float32), versions.newest)
    target = versions.next()
    assert target is not None
    versions.publish(target)
    assert versions.next() is None
    answers.sent(answer)
    assert versions.next() is not None
    assert answers.next(3) is None


def test_a_compressed_stream_waits_for_the_one_before_and_starts_anew_where_one_was_lost() -> None:
    answers, _ = made("int8")
    answers.add(Due(A, request=1))
    first = answers.next(0)
    assert first is not None
    assert first.values is not None
    assert (first.values.whole, first.values.number, first.values.data.nbytes) == (True, 1, 2400)
    answers.add(Due(A, 1, have=1))
    answers.add(Due(B, 1, fetch=False))
    other = answers.next(0)  # not A's: its buffer is being sent
    assert other is not None
    assert other.worker == B
    assert other.values is None
    assert answers.next(0) is None
    answers.sent(first)
    second = answers.next(0)
    assert second is not None
    assert second.values is not None
    assert (second.values.whole, second.values.number, second.values.data.nbytes) == (False, 2, 612)
    answers.sent(second)
    answers.add(Due(A, 2, have=1))  # it was pushed before the second arrived
    third = answers.next(0)
    assert third is not None
    assert third.values is not None
    assert (third.values.whole, third.values.number) == (False, 3)
    answers.sent(third)
    for due in (Due(A, request=2, have=2), Due(A, 3, have=2), Due(A, 4)):  # two that did not arrive; none is here
        answers.add(due)
        found = answers.next(0)
        assert found is not None
        assert found.values is not None
        assert found.values.whole
        answers.sent(found)
    assert answers.sent_bytes == 2400 + 612 + 612 + 3 * 2400


def test_the_values_that_leave_are_the_newest_and_none_queue_behind_them() -> None:
    answers, versions = made()
    answers.add(Due(A, 1))
    first = answers.next(0)
    assert first is not None
    answers.add(Due(A, 2))
    assert answers.next(0) is None
    versions.publish(versions.next() or 0)
    answers.add(Due(A, 3))
    answers.sent(first)
    second = answers.next(0)
    assert second is not None
    assert second.values is not None
    assert (second.sequence, second.values.version) == (3, 1)
    assert answers.next(0) is None


def test_a_later_answer_takes_the_place_and_the_values_of_an_earlier() -> None:
    answers, _ = made()
    answers.add(Due(A, 1, log_number=4, have=5))
    answers.add(Due(A, 1, refusal=Refusal.GAP, log_number=4, fetch=False))
    answers.add(Due(A, request=2))
    found = []
    while (one := answers.next(0)) is not None:
        found.append(one)
        answers.sent(one)
    assert [(f.sequence, f.request, f.refusal) for f in found] == [(1, 0, Refusal.GAP), (0, 2, None)]
    assert all(f.values is not None for f in found)
    answers.add(Due(A, 3))
    answers.drop(A)
    assert answers.next(0) is None


def test_who_comes_takes_the_buffers_of_who_has_left() -> None:
    made_of: list[int] = []
    versions = Versions(np.arange(600, dtype=np.float32), 2)

    def buffer(nbytes: int) -> np.ndarray:
        made_of.append(nbytes)
        return np.zeros(nbytes, np.uint8)

    answers = Answers(versions, "int8", lambda: 0, buffer)
    answers.add(Due(A, request=1))
    first = answers.next(0)
    assert first is not None
    answers.sent(first)
    answers.drop(A)
    answers.add(Due(B, request=1, have=1))
    second = answers.next(0)
    assert second is not None
    assert second.values is not None
    assert (second.values.whole, second.values.number) == (True, 1)
    assert made_of == [2400, 612]
