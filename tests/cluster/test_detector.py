"""The failure detector alone: turns, answers, helpers, Nacks, and what they say of the node's own health."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from p2pnn.cluster.detector import RELAYS_MAX, Detector
from p2pnn.cluster.health import Health
from p2pnn.cluster.presets import PRESETS
from p2pnn.cluster.table import Table
from p2pnn.types import Address, NodeId
from p2pnn.wire.messages import Ack, Fact, Life, Message, Nack, Probe, ProbeRequest
from tests.simulator.mesh import node_id

LAN = PRESETS["lan"]


class Bench:
    """A detector with `count` members, all linked."""

    def __init__(self, count: int) -> None:
        self.table, self.health = Table(), Health()
        self.detector = Detector(self.table, LAN, self.health, Random(1))
        for number in range(1, count + 1):
            fact = Fact(node_id(number), f"n{number}", "h", number, "b", 1, Life.ALIVE)
            known = self.table.add(fact, Address("h", number), 0.0)
            known.boot = "b"
            self.table.link(known, known.address)
            self.detector.watch(node_id(number), 0.0)

    def sent(self) -> list[tuple[NodeId, Message]]:
        out, self.detector.outbox = self.detector.outbox, []
        return out

    def begin(self) -> tuple[NodeId, int, float]:
        """Start the next probe: its target, number and time."""
        due = self.detector.get_timer()
        assert due is not None
        self.detector.handle_timer(due)
        [(target, probe)] = [(n, m) for n, m in self.sent() if isinstance(m, Probe)]
        return target, probe.sequence, due

    def step(self) -> tuple[float, NodeId | None]:
        due = self.detector.get_timer()
        assert due is not None
        return due, self.detector.handle_timer(due)


def test_every_member_has_its_turn_in_each_round() -> None:
    bench = Bench(5)
    orders = []
    for _ in range(3):
        order = []
        for _ in range(5):
            target, sequence, now = bench.begin()
            bench.detector.receive(target, Ack(sequence), now + 0.1)
            order.append(target)
            bench.detector._pending = None
        assert sorted(order) == [node_id(n) for n in range(1, 6)]
        orders.append(tuple(order))
    assert len(set(orders)) > 1, "the order changes"


def test_an_answer_in_time_ends_the_matter() -> None:
    bench = Bench(4)
    bench.health.worsen(2)
    target, sequence, now = bench.begin()
    bench.detector.receive(target, Ack(sequence), now + 1.4)  # the timeout is stretched threefold
    due, failed = bench.step()
    assert (due, failed) == (now + 3.0, None)
    assert bench.health.score == 1


def test_who_does_not_answer_is_probed_by_helpers_and_asked_again() -> None:
    bench = Bench(6)
    target, sequence, now = bench.begin()
    due, failed = bench.step()
    assert (due, failed) == (now + LAN.probe_timeout_s, None)
    sent = bench.sent()
    helpers = [node for node, message in sent if message == ProbeRequest(sequence, target)]
    assert len(set(helpers)) == LAN.helpers
    assert target not in helpers
    assert [node for node, message in sent if message == Probe(sequence)] == [target]
    for helper in helpers:
        bench.detector.receive(helper, Nack(sequence), due + 0.1)
    due, failed = bench.step()
    assert (due, failed) == (now + LAN.probe_interval_s, target)
    assert bench.health.score == 0, "helpers that say Nack speak for this node's health"


def test_an_answer_through_a_helper_is_one() -> None:
    bench = Bench(3)
    target, sequence, _ = bench.begin()
    due, _ = bench.step()
    helper = next(node for node, message in bench.sent() if isinstance(message, ProbeRequest))
    bench.detector.receive(helper, Ack(sequence), due + 0.1)
    assert bench.step()[1] is None
    assert target != helper


@pytest.mark.parametrize(
    ("members", "heard", "score"),
    [(6, 3, 0), (6, 1, 2), (6, 0, 3), (2, 1, 0), (2, 0, 1), (1, 0, 1)],
    ids=str,
)
def test_silent_helpers_and_late_answers_are_signs_of_its_own_health(members: int, heard: int, score: int) -> None:
    bench = Bench(members)
    _, sequence, _ = bench.begin()
    due, _ = bench.step()
    helpers = [node for node, message in bench.sent() if isinstance(message, ProbeRequest)]
    for helper in helpers[:heard]:
        bench.detector.receive(helper, Nack(sequence), due + 0.1)
    bench.step()
    assert bench.health.score == score


def test_a_late_answer_is_no_failure_but_a_sign() -> None:
    bench = Bench(1)
    target, sequence, _ = bench.begin()
    due, _ = bench.step()
    bench.detector.receive(target, Ack(sequence), due + 0.2)
    assert bench.step()[1] is None
    assert bench.health.score == 1


@pytest.mark.parametrize("impostor", [node_id(9), node_id(2)])
def test_an_answer_of_another_or_with_another_number_is_none(impostor: NodeId) -> None:
    bench = Bench(1)
    target, sequence, now = bench.begin()
    bench.detector.receive(impostor, Ack(sequence), now)
    bench.detector.receive(target, Ack(sequence + 1), now)
    bench.detector.receive(impostor, Nack(sequence), now)
    bench.step()
    assert bench.step()[1] == target


def test_a_member_without_a_link_is_probed_through_helpers_at_once() -> None:
    bench = Bench(3)
    bench.table.unlink(bench.table.known[node_id(2)])
    asked = []
    for _ in range(3):
        bench.detector._pending = None
        bench.step()
        asked += [message for _, message in bench.sent() if isinstance(message, ProbeRequest)]
    assert {message.target for message in asked} == {node_id(2)}
    assert len(asked) == 2


def test_a_helper_probes_and_tells_and_says_nack_in_time() -> None:
    bench = Bench(2)
    one, two = node_id(1), node_id(2)
    bench.detector._next_at = None  # no probes of its own
    bench.detector.receive(one, ProbeRequest(77, two), 10.0)
    [(target, probe)] = bench.sent()
    assert target == two
    assert isinstance(probe, Probe)
    due, _ = bench.step()
    assert due == 10.0 + 0.8 * LAN.probe_timeout_s
    assert bench.sent() == [(one, Nack(77))]
    bench.detector.receive(two, Ack(probe.sequence), 10.5)
    assert bench.sent() == [(one, Ack(77))], "late, and still worth telling"
    assert bench.detector.get_timer() is None


def test_a_helper_without_a_link_says_so_at_once_and_takes_only_so_many() -> None:
    bench = Bench(2)
    bench.detector.receive(node_id(1), ProbeRequest(5, node_id(9)), 0.0)
    assert bench.sent() == [(node_id(1), Nack(5))]
    for sequence in range(RELAYS_MAX + 50):
        bench.detector.receive(node_id(1), ProbeRequest(sequence, node_id(2)), 0.0)
    assert len(bench.sent()) == RELAYS_MAX


def test_who_stood_still_gives_the_time_back() -> None:
    bench = Bench(1)
    target, sequence, now = bench.begin()
    bench.detector.postpone(20.0, now + 20.0)
    assert bench.detector.handle_timer(now + 20.0) is None
    bench.detector.receive(target, Ack(sequence), now + 20.1)
    assert bench.step() == (now + 21.0, None)


def test_the_dead_are_not_probed() -> None:
    bench = Bench(1)
    known = bench.table.known[node_id(1)]
    bench.table.change(known, msgspec.structs.replace(known.fact, life=Life.DEAD), 0.0)
    bench.step()
    assert bench.sent() == []
    assert bench.detector.get_timer() is None
    bench.table.change(known, msgspec.structs.replace(known.fact, life=Life.ALIVE, incarnation=2), 5.0)
    bench.detector.watch(node_id(1), 5.0)
    assert bench.begin()[0] == node_id(1)
