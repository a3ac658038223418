"""Scenarios as text: what a person does to a small cluster, and what it does, line by line.

A file of `testdata` is a list of commands. Each is followed by what happened because of it, every line indented. The test
plays the commands and compares; `REWRITE=1 pytest tests/simulator/test_transcripts.py` writes what happens now, to be read before
it is committed. Format and habit are etcd-io/raft's (`testdata/*.txt`).

    cluster N          N nodes a, b, c, …; a founds, the others are up and no members yet; always the first command
    run SECONDS        let time pass
    admit NODE         the leader admits a node
    dismiss NODE       the leader removes a member
    work TEXT          the leader proposes this as the only work
    handover           the leader is asked to hand over
    crash NODE, start NODE, freeze NODE, resume NODE
    partition NODES | NODES, mute NODES, heal
    gossip NODE STANDING          everybody hears this of a node (alive, suspect, dead, proved)
    slow-disk NODE SECONDS, break-disk NODE, mend-disk NODE
    show               each node's role, term and charter
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from p2pnn.cluster.charter import Charter, CharterMember, found
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.cluster.outcomes import Alarm, AlarmOver, Committed, DiskFailed, Gone, LeaderChanged, Persist
from p2pnn.cluster.view import Standing
from p2pnn.errors import CharterError
from p2pnn.types import NodeId
from tests.simulator.host import Host
from tests.simulator.ledger import Ledger, generations, watched
from tests.simulator.world import World

STANDINGS = {"alive": Standing.ALIVE, "suspect": Standing.SUSPECT, "dead": Standing.DEAD, "proved": Standing.PROVED}


def node_of(letter: str) -> NodeId:
    return NodeId(letter * 32)


def written(charter: Charter | None) -> str:
    """`4.1 voters abc learners d work 7`, with what is empty left out."""
    if charter is None:
        return "no charter"
    voters = "".join(sorted(voter[0] for voter in charter.voters))
    learners = "".join(node[0] for node in charter.nodes() if node not in charter.voters)
    work = "".join(f" work {job}" for job in generations(charter))
    return f"{charter.version} voters {voters}" + (f" learners {learners}" if learners else "") + work


class Transcript:
    """Plays commands, one by one; `play` returns the lines that came of one."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._ledger = Ledger()
        self._core = watched(Consensus, self._ledger)
        self._world = World(1, self._start, self._on_event, checks=[self._ledger.check])

    def play(self, command: str) -> list[str]:
        verb, *words = command.split()
        self._lines = []
        getattr(self, f"_do_{verb.replace('-', '_')}")(*words)
        return self._lines

    # --- commands

    def _do_cluster(self, count: str) -> None:
        for letter in "abcdefghi"[: int(count)]:
            host = self._world.add(node_of(letter), up=False)
            if letter == "a":
                host.disk.content = Durable(charter=found("home", CharterMember(host.node, "", "a")))
            self._world.boot(host.node)

    def _do_run(self, seconds: str) -> None:
        self._world.run(self._world.now + float(seconds))

    def _do_admit(self, letter: str) -> None:
        self._at_leader(lambda core, now: core.propose(now, admit=[CharterMember(node_of(letter), "", letter)]))

    def _do_dismiss(self, letter: str) -> None:
        self._at_leader(lambda core, now: core.propose(now, dismiss=[node_of(letter)]))

    def _do_work(self, text: str) -> None:
        def propose(core: Consensus, now: float) -> None:
            assert core.charter is not None
            generation = core.charter.successor().version.generation
            core.propose(now, work=msgspec.msgpack.encode({text: generation}))

        self._at_leader(propose)

    def _do_handover(self) -> None:
        self._at_leader(lambda core, now: core.hand_over(now))

    def _do_crash(self, letter: str) -> None:
        self._world.crash(node_of(letter))

    def _do_start(self, letter: str) -> None:
        self._world.boot(node_of(letter))

    def _do_freeze(self, letter: str) -> None:
        self._world.freeze(node_of(letter))

    def _do_resume(self, letter: str) -> None:
        self._world.resume(node_of(letter))

    def _do_partition(self, *words: str) -> None:
        sides = "".join(words).split("|")
        self._world.network.partition(*[[node_of(letter) for letter in side] for side in sides])

    def _do_mute(self, letters: str) -> None:
        self._world.network.partition_one_way([node_of(letter) for letter in letters])

    def _do_heal(self) -> None:
        self._world.network.heal()

    def _do_gossip(self, letter: str, standing: str) -> None:
        for host in list(self._world.hosts.values()):
            if host.node != node_of(letter):
                self._world.act(host.node, _hear, node_of(letter), STANDINGS[standing])

    def _do_slow_disk(self, letter: str, seconds: str) -> None:
        self._world.hosts[node_of(letter)].disk.delay_s = float(seconds)

    def _do_break_disk(self, letter: str) -> None:
        self._world.hosts[node_of(letter)].disk.failing = True

    def _do_mend_disk(self, letter: str) -> None:
        self._world.hosts[node_of(letter)].disk.failing = False

    def _do_show(self) -> None:
        for node, host in self._world.hosts.items():
            if isinstance(host.core, Consensus):
                state = f"{host.core.role} term {host.core.term} holds {written(host.core.charter)}"
            else:
                state = "down"
            self._lines.append(f"{node[0]} {'frozen ' if host.frozen else ''}{state}")

    # --- how

    def _at_leader(self, do: Callable[[Consensus, float], Any]) -> None:
        leading = [
            (host.core.term, node)
            for node, host in self._world.hosts.items()
            if isinstance(host.core, Consensus) and host.core.role is Role.LEADER and host.alive
        ]
        if not leading:
            self._lines.append("nobody leads")
            return
        _, node = max(leading)
        self._world.act(node, self._guarded, node, do)

    def _guarded(self, core: Consensus, now: float, node: NodeId, do: Callable[[Consensus, float], Any]) -> None:
        try:
            do(core, now)
        except CharterError as error:
            self._lines.append(f"{node[0]} refuses: {error}")

    def _start(self, world: World, host: Host) -> Consensus:
        self._ledger.started(host)
        return self._core(host.node, host.disk.content or Durable(), host.time(world.now), Random(host.node))

    def _on_event(self, world: World, host: Host, event: Any) -> None:
        if isinstance(event, Persist):
            host.disk.write(world, host, event.durable, lambda kept: _wrote(world, host, event.number, kept))
        elif (told := _told(event)) is not None:
            self._lines.append(f"{world.now:.2f} {host.node[0]} {told}")
        if isinstance(event, Committed):
            self._ledger.acts(world, host, event.charter)


def _told(event: Any) -> str | None:
    match event:
        case LeaderChanged(leader, term, reason):
            return f"term {term}: {'nobody' if leader is None else leader[0]} leads, {reason}"
        case Committed(charter):
            return f"acts on {written(charter)}"
        case DiskFailed(reason):
            return f"disk failed: {reason}"
        case Gone(node):
            return f"reassigns what {node[0]} had"
        case Alarm(suspects, members):
            return f"alarm: {suspects} of {members} members are lost at once"
        case AlarmOver():
            return "alarm is over"
    return None


def _wrote(world: World, host: Host, number: int, kept: bool) -> None:
    assert isinstance(host.core, Consensus)
    if kept:
        host.core.persisted(number, host.time(world.now))
    else:
        host.core.persist_failed(number, "no space left", host.time(world.now))


def _hear(core: Consensus, now: float, node: NodeId, standing: Standing) -> None:
    core.observe(node, standing, now)
