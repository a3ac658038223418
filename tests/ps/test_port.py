"""One worker's side of one shard: numbers, bodies, retries, and which values are taken."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnn.ps.consistency import Settings
from p2pnn.ps.messages import Answer, Refusal, Values
from p2pnn.ps.outgoing import BACKOFF, RETRIES_BACKOFF_MAX, SOON_S, PullRequest, PushPart
from p2pnn.ps.port import Port
from p2pnn.ps.sharding import cut
from p2pnn.ps.space import Flat, Space
from tests.ps.models import mlp
from tests.ps.network import workers_named

(RANGE,) = cut(Space.of(mlp()), 1).shards
SIZE = RANGE.size
(A,) = workers_named(1)


def port(push: str = "float32", pull: str = "float32") -> Port:
    return Port(A, RANGE, Settings(push=push, pull=pull), 0, retry_s=1.0)


def pushed(made: Port, value: float, fetch: bool = False) -> PushPart:
    made.begin_push(fetch)
    made.accrue(0, np.full(SIZE, value, np.float32))
    for entry in RANGE.parts[0].entries:
        made.ready(entry)
    made.end_step(pushed=True)
    message = made.next_message(0.0)
    assert isinstance(message, PushPart)
    return message


def whole(version: int, value: float, number: int = 0) -> Values:
    return Values(version, version, np.full(SIZE, value, np.float32).view(np.uint8), True, number)


def give(made: Port, answer: Answer) -> bool:
    place = made.place(answer)
    if place is not None:
        assert answer.values is not None
        place[:] = answer.values.data
    made.answered(answer, place is not None, 0.0)
    return place is not None


def sees(message: PushPart) -> Flat:
    return message.data.view(np.float32)


def test_what_is_sent_again_is_what_was_sent_though_the_next_was_accrued() -> None:
    made = port()
    first = pushed(made, 1.0)
    made.sent(first)
    second = pushed(made, 2.0)
    made.sent(second)
    assert not made.has_room
    made.broken()
    again = [made.next_message(0.0), made.next_message(0.0)]
    assert [m.push.sequence for m in again if isinstance(m, PushPart)] == [1, 2]
    assert [float(sees(m)[0]) for m in again if isinstance(m, PushPart)] == [1.0, 2.0]
    assert made.urgency() is None


def test_a_body_is_free_when_it_is_acknowledged_and_has_left() -> None:
    made = port()
    first, second = pushed(made, 1.0), pushed(made, 2.0)
    made.answered(Answer(A, 0, 2), False, 0.0)  # acknowledges both
    assert made.unacknowledged == 0
    assert not made.has_room
    made.sent(first)
    assert made.has_room
    third = pushed(made, 3.0)
    assert np.shares_memory(third.data, first.data)
    assert float(sees(second)[0]) == 2.0
    made.sent(second)


def test_nothing_heard_is_sent_again_later_and_later() -> None:
    made = port()
    made.sent(pushed(made, 1.0))
    now, waits = 0.0, []
    for _ in range(4):
        at = made.get_timer()
        assert at is not None
        waits.append(at - now)
        made.handle_timer(now := at)
        message = made.next_message(now)
        assert isinstance(message, PushPart)
        made.sent(message)
    assert waits == [BACKOFF**n for n in range(4)]
    made.answered(Answer(A, 0, 0, refusal=Refusal.GAP), False, now)
    assert made.get_timer() == now + SOON_S * BACKOFF**4
    made.answered(Answer(A, 0, 1), False, now)
    assert made.get_timer() is None


@pytest.mark.parametrize("how", ["restart", "broken"])
def test_how_long_one_said_nothing_is_no_reason_to_wait_for_the_next(how: str) -> None:
    made = port()
    made.sent(pushed(made, 1.0))
    made.ask()
    made.next_message(0.0)
    for _ in range(8):
        made.handle_timer(1e6)
        while made.urgency() is not None:
            message = made.next_message(0.0)
            if isinstance(message, PushPart):
                made.sent(message)
    assert made.get_timer() == BACKOFF**RETRIES_BACKOFF_MAX
    made.restart(1) if how == "restart" else made.broken()
    made.next_message(0.0)
    made.next_message(0.0)
    assert made.get_timer() == 1.0


def test_a_push_that_is_still_leaving_is_not_sent_again() -> None:
    made = port()
    message = pushed(made, 1.0)
    for late in (1.0, 2.0):
        assert made.get_timer() == late
        made.handle_timer(late)
        assert made.urgency() is None
    made.sent(message)
    made.handle_timer(3.0)
    assert isinstance(made.next_message(3.0), PushPart)


def test_another_generation_is_waited_for_or_is_news_to_the_shard() -> None:
    made = port()
    made.sent(pushed(made, 1.0))
    made.answered(Answer(A, 1, 0, refusal=Refusal.STALE_GENERATION), False, 0.0)
    made.handle_timer(9.0)
    assert made.urgency() is None  # not before it is told of generation 1
    made.restart(1)
    message = made.next_message(9.0)
    assert isinstance(message, PushPart)
    assert (message.push.generation, message.push.sequence) == (1, 1)
    made.sent(message)
    made.answered(Answer(A, 0, 0, refusal=Refusal.STALE_GENERATION), False, 9.0)  # the shard has not heard of it
    made.handle_timer(9.0 + SOON_S * BACKOFF)
    assert made.urgency() is not None


def test_a_worker_that_comes_before_the_shard_has_heard_of_it_asks_again_soon() -> None:
    made = port()
    made.ask()
    made.next_message(0.0)
    for tries in range(3):
        made.answered(Answer(A, 0, request=1, refusal=Refusal.UNKNOWN), False, 1.0)
        assert made.get_timer() == 1.0 + SOON_S * BACKOFF**tries
        made.handle_timer(2.0)
        assert isinstance(made.next_message(1.0), PullRequest)
    assert made.ended is None
    made.answered(Answer(A, 1, request=1, refusal=Refusal.UNKNOWN), False, 1.0)  # a later generation is without it
    assert made.ended is Refusal.UNKNOWN


def test_only_values_that_are_waited_for_are_taken() -> None:
    made = port()
    made.ask()
    pull = made.next_message(0.0)
    assert isinstance(pull, PullRequest)
    assert give(made, Answer(A, 0, request=1, values=whole(3, 3.0)))
    assert not give(made, Answer(A, 0, request=1, values=whole(4, 4.0)))  # a double
    assert (made.version, made.take()[0]) == (3, 3.0)
    made.sent(pushed(made, 1.0, fetch=True))
    assert not give(made, Answer(A, 0, request=1, values=whole(4, 4.0)))  # not of this push
    assert made.wanting
    assert not give(made, Answer(A, 0, 1, values=whole(2, 2.0)))  # older than what is here, which will do
    assert not made.wanting
    made.sent(pushed(made, 1.0, fetch=True))
    assert give(made, Answer(A, 0, 2, values=whole(5, 5.0)))
    assert made.take()[0] == 5.0
    assert not made.wanting


def test_values_that_there_was_no_place_for_are_asked_for_again_at_once() -> None:
    made = port()
    made.sent(pushed(made, 1.0, fetch=True))
    made.answered(Answer(A, 0, 1, values=whole(1, 1.0)), False, 0.0)
    pull = made.next_message(0.0)
    assert isinstance(pull, PullRequest)
    assert give(made, Answer(A, 0, request=pull.pull.request, values=whole(1, 1.0)))


def test_values_of_a_mark_take_the_place_of_those_that_are_on_their_way() -> None:
    made = port(pull="bf16")
    made.ask()
    assert isinstance(made.next_message(0.0), PullRequest)
    made.ask_at(7)
    pull = made.next_message(0.0)
    assert isinstance(pull, PullRequest)
    assert (pull.pull.request, pull.pull.after, pull.pull.have) == (2, 7, 0)
    assert not give(made, Answer(A, 0, request=1, values=whole(1, 1.0, number=1)))
    assert give(made, Answer(A, 0, request=2, values=whole(2, 2.0, number=2)))
    assert not made.wanting
    made.ask()
    pull = made.next_message(0.0)
    assert isinstance(pull, PullRequest)
    assert (pull.pull.after, pull.pull.have) == (0, 2)


def test_values_that_were_torn_are_asked_for_again() -> None:
    made = port()
    made.ask()
    made.next_message(0.0)
    torn = made.place(Answer(A, 0, request=1, values=whole(3, 3.0)))
    assert torn is not None
    assert made.is_receiving
    made.broken()
    again = made.next_message(0.0)
    assert isinstance(again, PullRequest)
    assert again.pull.have == 0
    assert give(made, Answer(A, 0, request=again.pull.request, values=whole(3, 3.0)))


def test_a_difference_that_does_not_follow_is_replaced_by_all() -> None:
    made = port(pull="bf16")
    made.ask()
    made.next_message(0.0)
    assert give(made, Answer(A, 0, request=1, values=whole(1, 1.0, number=1)))
    made.sent(pushed(made, 1.0, fetch=True))
    half = np.zeros(2 * SIZE, np.uint8)
    half.view("<u2")[:] = 0x3F80  # 1.0
    assert not give(made, Answer(A, 0, 1, values=Values(3, 3, half, False, 3)))
    pull = made.next_message(0.0)
    assert isinstance(pull, PullRequest)
    assert pull.pull.have == 0
    assert give(made, Answer(A, 0, request=pull.pull.request, values=whole(4, 4.0, number=4)))
    made.sent(pushed(made, 1.0, fetch=True))
    assert give(made, Answer(A, 0, 2, values=Values(5, 5, half, False, 5)))
    assert made.take()[0] == 5.0


def test_what_is_accrued_over_steps_is_based_on_the_first() -> None:
    made = port()
    made.ask()
    made.next_message(0.0)
    give(made, Answer(A, 0, request=1, values=whole(1, 0.0)))
    made.take()
    made.accrue(0, np.full(SIZE, 1, np.float32))
    made.end_step(pushed=False)
    made.ask()
    pull = made.next_message(0.0)
    assert isinstance(pull, PullRequest)
    give(made, Answer(A, 0, request=pull.pull.request, values=whole(9, 0.0)))
    made.take()
    message = pushed(made, 2.0)
    assert (message.push.based_on, float(sees(message)[0])) == (1, 3.0)
    made.accrue(0, np.full(SIZE, 5, np.float32))
    assert made.accrued[0] == 5.0


def test_what_an_older_generation_answers_is_passed_over() -> None:
    """Another process is the primary now, and may have said more."""
    made = port()
    made.ask()
    request = made.next_message(0.0)
    assert isinstance(request, PullRequest)
    made.sent(pushed(made, 1.0))
    made.restart(2)
    assert not give(made, Answer(A, 1, request=request.pull.request, values=whole(4, 4.0)))
    made.answered(Answer(A, 1, 1), False, 0.0)
    assert (made.version, made.unacknowledged, made.wanting) == (-1, 1, True)
    made.answered(Answer(A, 2, 1), False, 0.0)
    assert give(made, Answer(A, 2, request=request.pull.request, values=whole(3, 3.0)))
    assert (made.version, made.unacknowledged, made.wanting) == (3, 0, False)
