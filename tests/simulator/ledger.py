"""What the charter promises, checked from outside at every step: the ledger sees every charter that any leader writes.

- One leader per term.
- One version is one charter.
- Committed charters form one chain: each descends from every lower one.
- A leader holds (its first charter descends from) every charter committed in earlier terms.
- Of a charter and the one that it was made from, any two majorities of voters have a node in common.
- A node never acts on a lower version than before, nor does its disk hold one, also across restarts; nor does any
  generation in the work go back.

Each broken promise raises AssertionError, which the world turns into a report.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from functools import lru_cache
from typing import Any

import msgspec

from p2pnn.cluster import charter as charters
from p2pnn.cluster.charter import NOTHING, Charter, Version
from p2pnn.cluster.consensus import Consensus
from p2pnn.cluster.durable import Durable
from p2pnn.cluster.election import Role
from p2pnn.types import NodeId
from tests.simulator.host import Host
from tests.simulator.world import World


class Ledger:
    """Of one run. elections, commits: how many there were. committed_at: when the newest was, in true time."""

    def __init__(self) -> None:
        self.elections = 0
        self.commits = 0
        self.committed_at = 0.0
        self._leaders: dict[int, NodeId] = {}
        self._charters: dict[Version, Charter] = {}
        self._parents: dict[Version, Version] = {}
        self._committed: list[Version] = []
        self._is_committed: set[Version] = set()
        self._elected: list[Version] = []
        self._acted: dict[NodeId, Version] = {}
        self._generations: dict[NodeId, dict[str, int]] = {}

    # --- what is seen

    def wrote(self, parent: Charter, charter: Charter) -> None:
        """A leader writes a charter, made from `parent`."""
        known = self._charters.setdefault(charter.version, charter)
        assert known == charter, f"two charters of version {charter.version}: {known} and {charter}"
        if parent.version != charter.version:
            self._parents.setdefault(charter.version, parent.version)
        self._charters.setdefault(parent.version, parent)
        assert parent.majority + charter.majority > len({*parent.voters, *charter.voters}), (
            f"majorities of {parent.version} {parent.voters} and {charter.version} {charter.voters} need not intersect"
        )

    def elected(self, charter: Charter) -> None:
        """A leader's first charter."""
        self.elections += 1
        insort(self._elected, charter.version)
        before = [version for version in self._committed if version.term < charter.term]
        if before:  # they are one chain, as `acts` has checked: who descends from the last descends from all
            self._must_descend(charter.version, before[-1], "a leader misses a committed charter")

    def acts(self, world: World, host: Host, charter: Charter) -> None:
        """A node takes a charter to be committed."""
        version = charter.version
        before = self._acted.get(host.node, NOTHING)
        assert version >= before, f"{host} goes back from {before} to {version}"
        self._acted[host.node] = version
        self._check_generations(host.node, charter)
        if version in self._is_committed:
            assert self._charters[version] == charter
            return
        at = bisect_left(self._committed, version)
        if at > 0:
            self._must_descend(version, self._committed[at - 1], "committed charters part")
        if at < len(self._committed):
            self._must_descend(self._committed[at], version, "committed charters part")
        insort(self._committed, version)
        self._is_committed.add(version)
        for first in self._elected:
            if first.term > version.term:
                self._must_descend(first, version, "a leader misses a committed charter")
        self.commits += 1
        self.committed_at = world.now

    def started(self, host: Host) -> None:
        """A node starts from its disk."""
        durable = host.disk.content
        held = durable.version if isinstance(durable, Durable) else NOTHING
        acted = self._acted.get(host.node, NOTHING)
        assert held >= acted, f"{host} acted on {acted}, and its disk has {held}"

    def check(self, world: World, host: Host) -> None:
        """After every step of a host."""
        core: Any = host.core
        if core.role is Role.LEADER:
            leader = self._leaders.setdefault(core.term, host.node)
            assert leader == host.node, f"two leaders of term {core.term}: {leader} and {host.node}"

    # --- inside

    def _must_descend(self, later: Version, earlier: Version, what: str) -> None:
        version = later
        while version > earlier and version in self._parents:
            version = self._parents[version]
        assert version == earlier, f"{what}: {later} does not descend from {earlier}"

    def _check_generations(self, node: NodeId, charter: Charter) -> None:
        new = generations(charter)
        for job, generation in self._generations.get(node, {}).items():
            assert new.get(job, generation) >= generation, f"{node}: the generation of {job} goes back"
            assert generation <= charter.version.generation
        self._generations[node] = new


_decode = lru_cache(64)(charters.decode)


def watched(core: type[Consensus], ledger: Ledger) -> type[Consensus]:
    """The core, with every charter that it writes told to the ledger. Bytes that all members are sent are decoded once."""

    class Watched(core):  # type: ignore[misc, valid-type]
        _decode = staticmethod(_decode)

        def _install(self, charter: Charter, now: float) -> None:
            is_first = charter.revision == self.charter.revision
            ledger.wrote(self.charter, charter)
            if is_first:
                ledger.elected(charter)
            super()._install(charter, now)

    return Watched


def generations(charter: Charter) -> dict[str, int]:
    """The work as the simulated supervisor writes it: job → generation."""
    return msgspec.msgpack.decode(charter.work, type=dict[str, int]) if charter.work else {}
