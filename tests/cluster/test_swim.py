"""One node's SWIM: what it believes of what it is told, what it passes on, and how it speaks for itself."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnn.cluster.facts import Description
from p2pnn.cluster.presets import PRESETS
from p2pnn.cluster.swim import GONE, PULL_PAUSE_S, SILENT, Swim
from p2pnn.types import Address, NodeId
from p2pnn.wire import messages as wire
from p2pnn.wire.fields import FACTS_MAX, INCARNATION_MAX
from p2pnn.wire.messages import (
    Ack,
    Fact,
    Gossip,
    Life,
    Member,
    Message,
    Probe,
    ProbeRequest,
    Pull,
    Roster,
)
from tests.simulator.mesh import node_id

ME, B, C, D = (node_id(n) for n in (1, 2, 3, 4))
LOOPBACK = PRESETS["loopback"]


def address(node: NodeId) -> Address:
    return Address("10.0.0.1", int(node, 16))


def said(node: NodeId, life: Life = Life.ALIVE, incarnation: int = 1, by: str = "", boot: str = "b") -> Fact:
    where = address(node)
    return Fact(node, f"n{int(node, 16)}", where.host, where.port, boot, incarnation, life, by)


class Bench:
    """Node 1, with links to the others."""

    def __init__(self, *others: NodeId, members_max: int = 100) -> None:
        self.swim = Swim(ME, "n1", "b", LOOPBACK, members_max, 0.0, Random(1))
        for node in others:
            self.link(node)
        self.swim.messages_to_send()

    def link(self, node: NodeId, boot: str = "b", now: float = 0.0) -> None:
        self.swim.link_up(node, f"n{int(node, 16)}", address(node), boot, now)
        self.swim.receive(node, Gossip((msgspec.structs.replace(said(node, boot=boot), host="", port=0),)), now)
        self.swim.watch(node, now)

    def hear(self, fact: Fact, teller: NodeId = B, now: float = 0.0) -> None:
        self.swim.receive(teller, Gossip((fact,)), now)

    def sent(self, kind: type[Message]) -> list[tuple[NodeId, Message]]:
        return [(node, message) for node, message in self.swim.messages_to_send() if isinstance(message, kind)]

    def fact(self, node: NodeId) -> Fact:
        return self.swim.table.known[node].fact

    def run(self, until: float, answering: bool = False) -> None:
        """Let time pass; probes are answered, or not."""
        while (due := self.swim.get_timer()) is not None and due <= until:
            self.swim.handle_timer(due)
            for node, message in self.swim.messages_to_send():
                if answering and isinstance(message, Probe):
                    self.swim.receive(node, Ack(message.sequence), due + 0.001)


def test_a_greeting_tells_of_oneself_and_what_is_said_of_the_other() -> None:
    bench = Bench()
    bench.swim.link_up(B, "n2", address(B), "b", 0.0)
    assert bench.swim.messages_to_send() == [(B, Gossip((bench.swim.me,)))]
    assert bench.swim.me.host == "", "others see this node's address, not it"
    bench.hear(said(C, Life.ALIVE, 4, boot="old"))
    bench.swim.link_up(C, "n3", address(C), "new", 1.0)
    [(_, greeting)] = bench.sent(Gossip)
    assert greeting == Gossip((bench.swim.me, said(C, Life.ALIVE, 4, boot="old"))), "so that it refutes its former self"


def test_a_member_speaks_of_itself_without_an_address() -> None:
    bench = Bench(B)
    assert (bench.fact(B).host, bench.fact(B).port, bench.fact(B).incarnation) == ("10.0.0.1", 2, 1)


@pytest.mark.parametrize("life", [Life.SUSPECT, Life.DEAD, Life.LEFT])
def test_what_is_said_of_oneself_is_refuted_by_the_next_incarnation(life: Life) -> None:
    bench = Bench(B)
    bench.hear(said(ME, life, 6, by=B))
    assert (bench.swim.me.incarnation, bench.swim.me.life) == (7, Life.ALIVE)
    bench.hear(said(ME, life, 6, by=C))
    assert bench.swim.me.incarnation == 7, "it has been refuted already"
    assert bench.swim.health.score == 1
    bench.swim.receive(B, Probe(5), 1.0)
    assert bench.sent(Ack) == [(B, Ack(5, (bench.swim.me,)))], "the refutation goes with the next answer"


def test_a_former_self_is_superseded_and_ones_own_word_is_no_accusation() -> None:
    bench = Bench(B)
    bench.hear(said(ME, Life.ALIVE, 17, boot="former"))
    assert bench.swim.me.incarnation == 18
    bench.hear(bench.swim.me)
    assert bench.swim.me.incarnation == 18
    bench.hear(said(ME, Life.SUSPECT, INCARNATION_MAX))
    assert bench.swim.me.incarnation == INCARNATION_MAX, "no number is too large to be sent"


def test_a_description_is_told_once_it_changes() -> None:
    bench = Bench(B)
    bench.swim.describe(Description("p2pnn 1", (1, 2), 3, 41, 6000), 1.0)
    me = bench.swim.me
    assert (me.software, me.version_max, me.load, me.gflops, me.memory_mib, me.incarnation) == (
        "p2pnn 1", 2, 3, 41, 6000, 2,
    )  # fmt: skip
    bench.swim.describe(Description("p2pnn 1", (1, 2), 3, 41, 6000), 2.0)
    assert bench.swim.me == me


def test_a_broken_link_makes_a_suspect_at_once_and_a_goodbye_does_not() -> None:
    bench = Bench(B, C, D)
    bench.swim.link_down(B, "connection\x1b reset", False, 1.0)
    fact = bench.fact(B)
    assert (fact.life, fact.by, fact.reason) == (Life.SUSPECT, ME, "connection? reset")
    bench.swim.link_down(C, "it is stopping", True, 1.0)
    assert bench.fact(C).life is Life.LEFT
    bench.run(1.5, answering=True)
    assert bench.fact(B).life is Life.SUSPECT


def test_who_answers_no_probe_is_suspected_and_dies_within_the_presets_time() -> None:
    bench = Bench(B)
    bench.run(1.0)
    assert (bench.fact(B).life, bench.fact(B).reason) == (Life.SUSPECT, SILENT)
    begun = bench.swim.table.known[B].since
    assert begun <= 2 * LOOPBACK.probe_interval_s
    bench.run(begun + LOOPBACK.suspicion_s(2)[1] - 0.01)
    assert bench.fact(B).life is Life.SUSPECT
    bench.run(begun + LOOPBACK.suspicion_s(2)[1])
    assert bench.fact(B).life is Life.DEAD


def test_who_answers_stays_alive() -> None:
    bench = Bench(B, C)
    bench.run(20.0, answering=True)
    assert bench.fact(B).life is bench.fact(C).life is Life.ALIVE


def test_a_second_accuser_shortens_the_suspicion_and_is_told_on() -> None:
    bench = Bench(B, C, D)
    bench.hear(said(D, Life.SUSPECT, by=B))
    suspicion = bench.swim.table.known[D].suspicion
    assert suspicion is not None
    before = suspicion.due
    bench.hear(said(D, Life.SUSPECT, by=C), teller=C)
    assert suspicion.due < before
    assert suspicion.accusers == [B, C]
    bench.hear(said(D, Life.SUSPECT, by=C), teller=C)
    bench.swim.suspect(D, SILENT, 1.1)
    assert suspicion.accusers == [B, C, ME]
    bench.hear(said(D, Life.SUSPECT, by=node_id(9)), teller=C)
    assert suspicion.accusers == [B, C, ME], "nobody knows that accuser"


def test_a_refutation_ends_the_suspicion_and_older_words_do_not_bring_it_back() -> None:
    bench = Bench(B, C)
    bench.hear(said(C, Life.SUSPECT, by=B))
    bench.hear(said(C, Life.ALIVE, 2))
    bench.hear(said(C, Life.SUSPECT, 1, by=B))
    assert (bench.fact(C).life, bench.swim.table.suspects) == (Life.ALIVE, {})


def test_the_suspect_hears_of_it_with_the_next_probe() -> None:
    bench = Bench(B, C)
    bench.hear(said(C, Life.SUSPECT, by=B))
    bench.swim.messages_to_send()
    for _ in range(50):
        bench.swim.handle_timer(bench.swim.get_timer() or 0.0)
        for node, message in bench.sent(Probe):
            if node == C:
                assert isinstance(message, Probe)
                assert message.facts[0].life is Life.SUSPECT
                assert message.facts[0].node == C
                return
    raise AssertionError("it was never probed")


def test_news_is_passed_on_and_ends() -> None:
    bench = Bench(B, C)
    bench.run(3.0, answering=True)
    bench.hear(said(D), now=3.0)
    told: list[NodeId] = []
    while (due := bench.swim.get_timer()) is not None and due < 8.0:
        bench.swim.handle_timer(due)
        for node, message in bench.swim.messages_to_send():
            if isinstance(message, Probe):
                bench.swim.receive(node, Ack(message.sequence), due)
            if any(fact.node == D for fact in getattr(message, "facts", ())):
                told.append(node)
    assert set(told) == {B, C}
    assert len(told) == LOOPBACK.retransmits(4)


def test_everything_is_exchanged_now_and_then_and_answered_with_a_pause() -> None:
    bench = Bench(B, C)
    for number in range(10, 10 + FACTS_MAX):
        bench.link(node_id(number))
    bench.hear(said(node_id(99)))
    bench.swim.messages_to_send()
    bench.swim.receive(B, Pull(), 2.0)
    answers = [message for _, message in bench.sent(Gossip)]
    told = [fact for message in answers for fact in message.facts]  # type: ignore[attr-defined]
    assert [len(message.facts) for message in answers] == [FACTS_MAX, 3]  # type: ignore[attr-defined]
    assert told[0] == bench.swim.me
    assert node_id(99) not in {fact.node for fact in told}, "whom nobody has met is nobody's to tell"
    bench.swim.receive(B, Pull(), 2.5)
    assert bench.sent(Gossip) == []
    bench.swim.receive(B, Pull(), 2.0 + PULL_PAUSE_S)
    assert bench.sent(Gossip)
    pulls = 0
    while (due := bench.swim.get_timer()) is not None and due < 45.0:
        bench.swim.handle_timer(due)
        for node, message in bench.swim.messages_to_send():
            pulls += isinstance(message, Pull)
            if isinstance(message, Probe):
                bench.swim.receive(node, Ack(message.sequence), due)
    assert 4 <= pulls <= 5


def test_strangers_and_hearsay_that_cannot_be_true_are_ignored_and_bounded() -> None:
    bench = Bench(B, members_max=3)
    bench.hear(said(C), teller=D)
    for fact in (
        said(C, Life.DEAD),
        said(C, Life.LEFT),
        msgspec.structs.replace(said(C), port=0),
        msgspec.structs.replace(said(C), host=""),
        msgspec.structs.replace(said(C), name=""),
    ):
        bench.hear(fact)
    assert list(bench.swim.table.known) == [B]
    for number in range(3, 99):
        bench.hear(said(node_id(number)))
    assert len(bench.swim.table.known) == 3


def test_a_roster_is_hearsay() -> None:
    bench = Bench(B)
    bench.swim.receive(B, Roster((Member(C, "n3", "10.0.0.1", 3, "b"),)), 1.0)
    assert bench.fact(C).incarnation == 0


def test_two_redials_refused_prove_a_process_gone_where_it_is_the_only_witness() -> None:
    bench = Bench(B, C)
    bench.swim.refused(B, 0.5)
    bench.swim.link_down(B, "connection reset", False, 1.0)
    bench.swim.refused(B, 1.05)
    bench.swim.refused(B, 1.1)
    assert bench.fact(B).life is Life.SUSPECT
    bench.swim.refused(B, 1.16)
    assert (bench.fact(B).life, bench.fact(B).reason) == (Life.DEAD, GONE)


def test_in_a_larger_cluster_a_second_witness_is_needed_of_the_same_incarnation() -> None:
    bench = Bench(B, C, D, node_id(5))
    bench.swim.link_down(B, "connection reset", False, 1.0)
    bench.swim.refused(B, 1.05)
    bench.swim.refused(B, 1.2)
    assert bench.fact(B).life is Life.SUSPECT
    bench.swim.receive(C, wire.Testimony(B, 7), 1.3)
    bench.swim.receive(B, wire.Testimony(B, 1), 1.3)
    assert bench.fact(B).life is Life.SUSPECT
    bench.swim.receive(C, wire.Testimony(B, 1), 1.3)
    assert bench.fact(B).life is Life.DEAD


def test_a_witness_tells_others() -> None:
    bench = Bench(B, C, D, node_id(5))
    bench.swim.link_down(B, "connection reset", False, 1.0)
    bench.swim.messages_to_send()
    bench.swim.refused(B, 1.05)
    bench.swim.refused(B, 1.2)
    sent = bench.sent(wire.Testimony)
    assert {node for node, _ in sent} == {C, D, node_id(5)}
    assert all(message == wire.Testimony(B, 1) for _, message in sent)


def test_a_sign_of_life_voids_the_evidence() -> None:
    bench = Bench(B, C)
    bench.swim.link_down(B, "connection reset", False, 1.0)
    bench.swim.refused(B, 1.05)
    bench.hear(said(B, Life.ALIVE, 2), teller=C)
    bench.swim.refused(B, 1.3)
    assert bench.fact(B).life is Life.ALIVE


def test_who_stood_still_gives_everybody_the_time_back() -> None:
    bench = Bench(B, C)
    bench.run(1.0, answering=True)
    bench.hear(said(C, Life.SUSPECT, by=B), now=1.0)
    due = bench.swim.get_timer()
    assert due is not None
    bench.swim.handle_timer(due + 30.0)
    assert bench.fact(C).life is Life.SUSPECT
    assert bench.swim.health.score == 1
    bench.hear(said(C, Life.ALIVE, 2), now=due + 30.1)
    bench.swim.handle_timer(due + 30.2)
    assert bench.fact(C).life is bench.fact(B).life is Life.ALIVE


@pytest.mark.parametrize("first", ["its timer", "what lay unread"])
def test_a_confirmation_that_comes_late_is_no_sign_of_standing_still(first: str) -> None:
    bench = Bench(B, C, D, node_id(5))
    bench.hear(said(D, Life.SUSPECT, by=B), now=0.05)
    if first == "its timer":
        bench.run(1.6, answering=True)
    bench.hear(said(D, Life.SUSPECT, by=C), teller=C, now=1.7)
    bench.hear(said(D, Life.SUSPECT, by=node_id(5)), teller=C, now=1.7)
    bench.swim.handle_timer(1.71)
    expected = Life.DEAD if first == "its timer" else Life.SUSPECT  # it was called last at 0.05: that is standing still
    assert bench.fact(D).life is expected


def test_a_stale_accusation_is_answered_to_who_brings_it() -> None:
    bench = Bench(B)
    bench.hear(said(ME, Life.SUSPECT, 5))
    bench.swim.messages_to_send()
    bench.hear(said(ME, Life.SUSPECT, 5))
    assert bench.sent(Gossip) == [(B, Gossip((bench.swim.me,)))]


def test_a_request_for_a_probe_and_its_answer_pass_through() -> None:
    bench = Bench(B, C)
    bench.swim.receive(B, ProbeRequest(9, C), 1.0)
    [(target, probe)] = bench.sent(Probe)
    assert target == C
    assert isinstance(probe, Probe)
    bench.swim.receive(C, Ack(probe.sequence), 1.01)
    [(asker, ack)] = bench.sent(Ack)
    assert (asker, ack.sequence) == (B, 9)  # type: ignore[attr-defined]


words = st.builds(
    said,
    st.just(C),
    st.sampled_from(Life),
    st.integers(0, 4),
    st.sampled_from([B, D]),
    st.sampled_from(["b", "b2"]),
)


@given(st.lists(words, max_size=12), st.randoms(use_true_random=False))
def test_two_nodes_that_hear_the_same_in_any_order_hold_the_same_of_a_member(told: list[Fact], random: Random) -> None:
    shuffled = [*told, *told[:3]]
    random.shuffle(shuffled)
    benches = []
    for order in (told, shuffled):
        bench = Bench(B, C, D)
        for fact in order:
            bench.hear(fact)
        benches.append(bench)
    assert benches[0].fact(C) == benches[1].fact(C)


def test_the_forgotten_are_forgotten() -> None:
    bench = Bench(B)
    bench.hear(said(C))
    bench.swim.forget(C)
    assert bench.swim.table.get(C) is None
    assert bench.swim.table.size == 2
