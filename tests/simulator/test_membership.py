"""Membership under faults, in virtual time: how soon a crash is found, that nobody alive is called dead, and what heals.

*Detection.* SWIM's mean time until some member probes a crashed one is e/(e − 1) probe intervals (Das et al. 2002, section 3.1).
That counts whole intervals of a synchronous protocol; a crash falls anywhere in one, half an interval before its end on average,
and the verdict falls at the end of the last. Then comes the suspicion, which independent accusers shorten to its minimum. So

    E[crash → dead, at whoever says so first] = (½ + e/(e − 1)) · probe interval + suspicion minimum

with the suspicion minimum 4·max(1, log₁₀ n) s of the preset `lan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest

from p2pnn.cluster import PRESETS, MemberFailed, MemberJoined, MemberState, MemberSuspected
from p2pnn.cluster.detector import Detector
from p2pnn.cluster.swim import SILENT, Swim
from p2pnn.types import NodeId
from tests.simulator.__main__ import main, run_member_seeds
from tests.simulator.member_seeds import STRIKES, storm
from tests.simulator.mesh import Mesh, node_id
from tests.simulator.network import Conditions

LAN = PRESETS["lan"]
LOSSY = Conditions(0.0005, 0.0005, loss=0.05, duplication=0.01, reordering=0.01)


def expected_s(count: int) -> float:
    return (0.5 + math.e / (math.e - 1)) * LAN.probe_interval_s + LAN.suspicion_s(count)[0]


def detection_s(seed: int, count: int, crashes: int) -> list[float]:
    """The time from each of some crashes, one after the other in one mesh, to the first node that calls it dead."""
    mesh = Mesh(seed, "lan", silent_s=None)
    nodes = mesh.full(count)
    random, found, crashed = mesh.world.random, [], set[NodeId]()
    for _ in range(crashes):
        mesh.world.run(mesh.world.now + 3 * random.random())
        victim, others = random.choice(mesh.living()), mesh.living()
        others.remove(victim)
        begin = mesh.world.now
        mesh.power_off(victim)
        crashed.add(victim)
        mesh.failed.clear()

        def called_dead(victim: NodeId = victim) -> bool:
            return victim in mesh.failed

        assert mesh.world.run_until(called_dead, 10 * expected_s(count))
        assert crashed >= set(mesh.failed)
        found.append(mesh.world.now - begin)
        if count <= 20:  # bring it back, so that all crashes meet the same number of members
            mesh.boot(victim)
            mesh.joins[victim] = []
            for other in others:
                mesh._connect(victim, other)
            assert mesh.world.run_until(mesh.complete, 60.0)
    assert len(nodes) == count
    return found


@pytest.mark.parametrize(("count", "meshes", "crashes"), [(10, 4, 8), (100, 1, 3)])
def test_a_crash_is_found_in_the_time_that_the_formula_says(count: int, meshes: int, crashes: int) -> None:
    found = [seconds for seed in range(meshes) for seconds in detection_s(seed, count, crashes)]
    assert fmean(found) == pytest.approx(expected_s(count), rel=0.1), found


@pytest.mark.long
@pytest.mark.parametrize(("count", "meshes", "crashes"), [(10, 40, 25), (100, 5, 20), (1000, 1, 5)])
def test_a_crash_is_found_in_the_time_that_the_formula_says_in_many_meshes(
    count: int, meshes: int, crashes: int
) -> None:
    test_a_crash_is_found_in_the_time_that_the_formula_says(count, meshes, crashes)


@pytest.mark.parametrize(("count", "hours"), [(2, 1.0), (3, 1.0), (10, 0.25)])
def test_nobody_alive_is_called_dead_where_messages_are_lost(count: int, hours: float) -> None:
    mesh = Mesh(count, "lan", LOSSY, silent_s=None)
    nodes = mesh.full(count)
    mesh.world.run(hours * 3600)
    mesh.world.require(["loss", "duplication", "reordering"])
    assert [mesh.told(node, MemberFailed) for node in nodes] == [[]] * count
    assert any(mesh.told(node, MemberSuspected) for node in nodes) or count != 3, "nothing was put to the test"


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("preset", ["lan", "loopback"])
def test_nobody_alive_is_called_dead_in_a_day(preset: str, count: int) -> None:
    mesh = Mesh(count, preset, LOSSY, silent_s=None)
    nodes = mesh.full(count)
    for hour in range(1, 25):
        mesh.world.run(hour * 3600)
        assert [mesh.told(node, MemberFailed) for node in nodes] == [[]] * count
        for node in nodes:
            mesh.events[node].clear()


def converge_s(count: int, seed: int) -> float:
    """The time from a node's start until it has all others, and they it, as members."""
    mesh = Mesh(seed, "lan")
    nodes = mesh.full(count)
    begin = mesh.world.now
    new = mesh.add(mesh.world.random.choice([0, count + 1]), 1 + seed % count)
    everybody = set(nodes)

    def met() -> bool:
        return len(mesh.core(new).alive()) == count

    assert mesh.world.run_until(met, 30.0)
    assert mesh.world.run_until(lambda: all(new in mesh.members(node) for node in everybody), 30.0)
    return mesh.world.now - begin


@pytest.mark.parametrize("seed", range(3))
def test_a_new_member_is_known_to_all_within_three_seconds(seed: int) -> None:
    assert converge_s(60, seed) < 3.0


@pytest.mark.long
def test_a_new_member_is_known_to_a_thousand_within_three_seconds() -> None:
    assert converge_s(1000, 1) < 3.0


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seconds", [1.0, 3.0, 8.0, 30.0])
def test_who_was_stopped_for_a_while_is_alive_again_by_itself(count: int, seconds: float) -> None:
    mesh = Mesh(count, "loopback")
    nodes = mesh.full(count)
    frozen, begin = nodes[0], mesh.world.now
    mesh.freeze(frozen, seconds)
    mesh.world.run(begin + seconds - 0.01)
    if seconds >= 8.0:
        assert all(mesh.states(node)[frozen] is MemberState.DEAD for node in nodes[1:])
    assert mesh.world.run_until(mesh.complete, 10.0), {node: mesh.states(node) for node in nodes}
    awake = begin + seconds
    mesh.world.run(awake + 20.0)
    assert mesh.complete()
    assert not mesh.told(frozen, MemberFailed, begin), "it stood still itself, and calls nobody dead for that"
    doubts = {event.reason for event in mesh.told(frozen, MemberSuspected, begin)}
    assert doubts <= {SILENT}, "nor does it doubt those whose links broke, since it was silent itself"
    rejoined = [event.member.node for node in nodes[1:] for event in mesh.told(node, MemberJoined, begin)]
    assert set(rejoined) <= {frozen}


def test_a_stopped_node_is_dead_within_eight_seconds_on_a_loopback_mesh() -> None:
    for count in (2, 3, 5, 8):
        mesh = Mesh(count, "loopback")
        nodes = mesh.full(count)
        begin = mesh.world.now
        mesh.freeze(nodes[-1])
        others = nodes[:-1]
        assert mesh.world.run_until(lambda: all(mesh.told(n, MemberFailed, begin) for n in others), 8.0)  # noqa: B023


@pytest.mark.parametrize("seed", range(3))
def test_both_sides_of_a_partition_go_on_and_heal_within_ten_seconds(seed: int) -> None:
    mesh = Mesh(seed, "loopback")
    nodes = mesh.full(5)
    left, right = nodes[:3], nodes[3:]
    mesh.partition(left, right)
    mesh.world.run(mesh.world.now + 20.0)
    mesh.world.require(["partition"])
    assert mesh.complete(left)
    assert mesh.complete(right)
    assert all(mesh.states(node)[other] is MemberState.DEAD for node in left for other in right)
    mesh.world.network.heal()
    assert mesh.world.run_until(mesh.complete, 10.0)


def test_one_direction_cut_for_a_while_heals() -> None:
    mesh = Mesh(4, "loopback")
    nodes = mesh.full(4)
    for other in nodes[1:]:
        mesh.cut(nodes[0], other)
    mesh.world.run(mesh.world.now + 15.0)
    mesh.world.require(["cut"])
    assert mesh.complete(nodes[1:])
    mesh.world.network.heal()
    assert mesh.world.run_until(mesh.complete, 10.0)


def without(self: Any, *arguments: Any) -> None:
    """The rule is switched off."""


KINDS = ("crash", "freeze", "partition", "one-way partition", "broken link", "loss", "duplication", "reordering")


@pytest.mark.parametrize(("seed", "count"), [*((seed, 5) for seed in range(6)), (1018, 2)])
def test_a_storm_of_faults_leaves_a_whole_mesh(seed: int, count: int) -> None:
    """1018: both of two call each other dead over a link that stays open, and each has missed the other's refutation."""
    assert storm(seed, count, KINDS).violation == ""


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_many_storms_leave_a_whole_mesh(count: int) -> None:
    for seed in range(1000, 1200):
        assert storm(seed, count, KINDS).violation == ""


def test_no_seed_of_the_command_leaves_a_broken_mesh() -> None:
    results = run_member_seeds(range(1, 25))
    assert [result.violation for result in results if result.violation] == []
    assert set(STRIKES) <= {name for result in results for name in result.fired}, "every fault fired somewhere"
    assert {result.nodes for result in results} == {2, 3, 4, 5, 9}
    for told in ("suspicions", "deaths", "joins"):
        assert sum(getattr(result, told) for result in results) > len(results), told


def test_the_command_tells_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--membership", "--seeds", "2", "--seed", "1", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    for word in ("seeds", "fired", "suspicions", "deaths", "joins", "whole", "violations  0"):
        assert word in told
    for more in (["--without", "rule 4"], ["--shards"]):
        with pytest.raises(SystemExit):
            main(["--membership", *more])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("owner", "name", "instead", "why"),
    [
        (Swim, "_hear_of_me", without, "not whole within 20 s of the last fault"),
        (Mesh, "complete", lambda mesh: True, "called dead in the calm"),
    ],
    ids=["without-refutation", "calm-too-early"],
)
def test_what_the_command_promises_breaks_where_it_is_broken_and_one_command_repeats_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: type[Any],
    name: str,
    instead: Callable[..., object],
    why: str,
) -> None:
    monkeypatch.setattr(owner, name, instead)
    assert main(["--membership", "--seeds", "8", "--processes", "1"]) == 1
    told = capsys.readouterr().out
    first = next(line for line in told.splitlines() if why in line)
    seed = first.split(":")[0].removeprefix("violation in seed ")
    assert main(["--membership", "--seed", seed, "--processes", "1"]) == 1
    again = capsys.readouterr().out
    assert f"violation in seed {seed}: {why}" in again
    assert again.endswith(f"repeat: ./run sim --membership --seed {seed}\n")


@pytest.mark.long
def test_many_seeds() -> None:
    assert main(["--membership", "--seeds", "10000"]) == 0


# --- ablations: without each of these, something above must fail


def without_helpers(self: Detector, pending: Any) -> None:
    pending.asked = True


def suspicions_of_a_cut_pair() -> int:
    """Two of five cannot speak with each other, and their link stays open; how often is somebody suspected in a minute?"""
    mesh = Mesh(3, "lan", silent_s=None)
    nodes = mesh.full(5)
    mesh.cut(nodes[0], nodes[1])
    mesh.cut(nodes[1], nodes[0])
    mesh.world.run(mesh.world.now + 60.0)
    mesh.world.require(["cut"])
    return sum(len(mesh.told(node, MemberSuspected)) for node in nodes)


def member_that_came_while_two_were_cut_off() -> bool:
    """A node joins while two members hear of nothing; whether they know it some time after."""
    mesh = Mesh(1, "loopback", silent_s=None)
    nodes = mesh.full(5)
    mesh.partition(nodes[:3], nodes[3:])
    new = mesh.add(9, 1)  # it is on no side, so it reaches neither, until the network knows better
    mesh.partition([*nodes[:3], new], nodes[3:])
    mesh.world.run(mesh.world.now + 2.0)  # news is told for a second or so; nobody is dead yet
    assert new in mesh.members(nodes[0])
    mesh._dialling[new].clear()  # and it dials nobody itself
    mesh.world.network.heal()
    return mesh.world.run_until(lambda: all(new in mesh.states(node) for node in nodes[3:]), 15.0)


def deaths_under_loss() -> int:
    """At a loss that makes many a probe fail, how many are called dead in ten minutes?"""
    mesh = Mesh(7, "lan", Conditions(loss=0.2), silent_s=None)
    nodes = mesh.full(3)
    mesh.world.run(600.0)
    mesh.world.require(["loss"])
    return sum(len(mesh.told(node, MemberFailed)) for node in nodes)


@pytest.mark.parametrize(
    ("owner", "name", "instead", "measure", "bad"),
    [
        (Detector, "_ask_helpers", without_helpers, suspicions_of_a_cut_pair, lambda found: found > 0),
        (Swim, "push_pull", without, member_that_came_while_two_were_cut_off, lambda found: not found),
        (Swim, "_hear_of_me", without, deaths_under_loss, lambda found: found > 0),
    ],
    ids=["helpers", "push-pull", "refutation"],
)
def test_without_this_rule_something_breaks_and_with_it_nothing_does(
    monkeypatch: pytest.MonkeyPatch,
    owner: type[Any],
    name: str,
    instead: Callable[..., None],
    measure: Callable[[], Any],
    bad: Callable[[Any], bool],
) -> None:
    assert not bad(measure())
    monkeypatch.setattr(owner, name, instead)
    assert bad(measure())


def test_the_node_ids_of_the_mesh_are_ordered_like_their_numbers() -> None:
    assert node_id(2) < node_id(10) < node_id(1000)
