"""What a node keeps for the next coordinator."""

from __future__ import annotations

from p2pnn.job.part_log import KEPT_MAX, PartLog, Totals
from p2pnn.job.script import Progress


def numbers(kept: tuple[tuple[int, bytes], ...]) -> list[int]:
    return [number for number, _ in kept]


def test_no_command_is_carried_out_twice_and_a_repetition_changes_nothing() -> None:
    log = PartLog()
    assert log.command(1, b"one", 1, b"s1")
    assert log.command(2, b"two", 1, b"s2")
    before = log.tell(b"r")
    assert not log.command(1, b"other", 2, b"s1")
    assert not log.command(2, b"other", 2, b"s1")
    assert log.tell(b"r") == before
    assert (before.last, before.state, before.commands, before.record) == (2, b"s2", ((1, b"one"), (2, b"two")), b"r")
    assert log.command(5, b"five", 1, b"s5"), "numbers may be left out: Finish has none"


def test_what_all_nodes_have_answered_is_forgotten() -> None:
    log = PartLog()
    for number in range(1, 5):
        log.command(number, b"c", max(1, number - 1), b"s")
        log.answered(number, b"a%d" % number)
    told = log.tell(b"")
    assert numbers(told.commands) == [3, 4]
    assert told.answers == ((3, b"a3"), (4, b"a4"))


def test_an_answer_that_comes_after_its_command_was_forgotten_is_not_kept() -> None:
    log = PartLog()
    log.command(1, b"c", 1, b"s")
    log.command(2, b"c", 2, b"s")
    log.answered(1, b"late")
    log.answered(9, b"never asked")
    assert log.tell(b"").answers == ()


def test_the_log_is_bounded_where_nobody_answers() -> None:
    log = PartLog()
    for number in range(1, 10 * KEPT_MAX):
        log.command(number, b"c", 1, b"s")
        log.answered(number, b"a")
    told = log.tell(b"")
    assert len(told.commands) == KEPT_MAX
    assert len(told.answers) <= KEPT_MAX
    assert told.commands[-1][0] == told.last


def test_totals_add_up_all_that_was_reported_and_tell_what_another_has_not_counted() -> None:
    log, counted = PartLog(), Totals()
    for step in range(1, 4):
        progress = Progress(step, (0.5 * step, 8), {"accuracy": (float(step), 8.0)}, 0.1, 0.2)
        log.progress(progress)
        if step == 1:
            counted.add(progress)
    told = log.tell(b"")
    assert told.step == 3
    assert told.totals.beyond(counted) == ((2.5, 16), {"accuracy": (5.0, 16.0)})
    assert told.totals.beyond(told.totals) == ((0.0, 0), {"accuracy": (0.0, 0.0)})
    assert Totals().beyond(Totals()) == ((0.0, 0), {})


def test_two_logs_share_nothing() -> None:
    first, second = Totals(), Totals()
    first.add(Progress(1, (1.0, 1), {"accuracy": (1.0, 1.0)}, 0.0, 0.0))
    assert second == Totals()
    assert second.metrics == {}
