"""The adapter of the charter: founding, the file, and daemons that agree."""

from __future__ import annotations

import asyncio
import errno
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnn.cluster import Description, recovery
from p2pnn.cluster.charter import NOTHING, Charter, CharterMember
from p2pnn.cluster.durable import FORMAT, Durable, decode, encode
from p2pnn.cluster.election import Role
from p2pnn.errors import BetweenClusters, CharterError, NotAllowedError, StorageError
from p2pnn.node import charter_file as module
from p2pnn.node.charter import ClusterCharter
from p2pnn.node.daemon import Daemon
from p2pnn.types import NodeId
from p2pnn.wire.messages import Lead
from tests.node.nodes import DEADLINE_S, A, B, C, config, daemons, post, until

pytestmark = pytest.mark.asyncio

OLD = Charter(1, "old", 4, 9, (B,), (CharterMember(B, "", "b"), CharterMember(A, "", "a")), b"jobs")


class FakeOwner:
    """Who wants to know what was decided."""

    def __init__(self) -> None:
        self.charters: list[Charter] = []
        self.coordinators: list[NodeId | None] = []

    def charter_committed(self, charter: Charter) -> None:
        self.charters.append(charter)

    def coordinator_changed(self, coordinator: NodeId | None) -> None:
        self.coordinators.append(coordinator)


def leader_of(daemon: Daemon) -> NodeId | None:
    return daemon.charter.snapshot().consensus.leader


def members_of(daemon: Daemon) -> set[NodeId]:
    charter = daemon.charter.snapshot().consensus.charter
    return set() if charter is None else set(charter.nodes())


async def test_a_daemon_without_peers_founds_a_cluster_and_leads_it(tmp_path: Path) -> None:
    part = ClusterCharter(post()[0], tmp_path, True, FakeOwner())
    part.start()
    await until(lambda: part.snapshot().consensus.charter is not None)
    found = part.snapshot().consensus
    assert (found.role, found.term, found.leader) == (Role.LEADER, 1, A)
    on_disk = decode((tmp_path / "charter").read_bytes(), "charter")
    assert (on_disk.term, on_disk.vote, on_disk.charter) == (1, A, found.charter)
    await part.close()
    again = ClusterCharter(post()[0], tmp_path, True, FakeOwner())
    again.start()
    await until(lambda: again.snapshot().consensus.charter is not None)
    restarted = again.snapshot().consensus
    assert restarted.term == 2
    assert restarted.charter is not None
    assert found.charter is not None
    assert restarted.charter.cluster == found.charter.cluster
    await again.close()


async def test_a_cluster_of_one_is_given_up_for_another_and_a_larger_one_is_not(tmp_path: Path) -> None:
    one, _ = post()
    founder = ClusterCharter(one, tmp_path, True, FakeOwner())
    founder.start()
    await until(lambda: founder.snapshot().consensus.charter is not None)
    await founder.close()
    joiner = ClusterCharter(one, tmp_path, False, FakeOwner())
    joiner.start()
    assert joiner.snapshot().consensus.version == NOTHING
    await joiner.close()
    founder = ClusterCharter(one, tmp_path, True, FakeOwner())
    founder.start()
    await until(lambda: founder.snapshot().consensus.charter is not None)
    founder.member_alive(B, "b")
    await until(lambda: founder.snapshot().consensus.version == (2, 2))
    await until(lambda: founder.snapshot().consensus.charter is not None)
    await founder.close()
    joiner = ClusterCharter(one, tmp_path, False, FakeOwner())
    joiner.start()
    assert joiner.snapshot().consensus.version == (2, 2)
    await joiner.close()


async def test_one_that_joins_waits_to_be_admitted(tmp_path: Path) -> None:
    one, outside = post(B)
    part = ClusterCharter(one, tmp_path, False, FakeOwner())
    part.start()
    assert part.snapshot().consensus.charter is None
    assert outside.sent == []
    part.receive(A, Lead(3, 3, 1, 3, 1))
    await until(lambda: (tmp_path / "charter").exists())
    await part.close()
    part.receive(A, Lead(4, 3, 1, 3, 1))
    part.member_alive(A, "a")
    part.member_failed(A)


@pytest.mark.parametrize("data", [b"\xc1", msgspec.msgpack.encode([FORMAT + 1, "new"])], ids=["damaged", "newer"])
async def test_a_daemon_does_not_start_over_a_charter_that_it_cannot_read(tmp_path: Path, data: bytes) -> None:
    settings = config(tmp_path)
    daemon = Daemon(settings)
    path = settings.state_dir / "charter"
    path.write_bytes(data)
    with pytest.raises(CharterError, match=str(path)):
        await daemon.start()
    assert path.read_bytes() == data
    path.unlink()
    again = Daemon(settings)
    await again.start()
    await again.close("over")


async def test_what_a_crash_left_half_written_goes(tmp_path: Path) -> None:
    torn = tmp_path / ".charter.77.abcd"
    torn.write_bytes(b"half")
    part = ClusterCharter(post()[0], tmp_path, True, FakeOwner())
    part.start()
    assert not torn.exists()
    await part.close()


@pytest.mark.parametrize(
    "error",
    [StorageError("the disk is full"), CharterError("the charter would take too many bytes")],
    ids=["disk", "size"],
)
async def test_a_write_that_fails_is_said_and_the_old_file_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    part = ClusterCharter(post()[0], tmp_path, True, FakeOwner())
    fails = True
    real = module.replace_file

    def replace_file(path: Path, data: bytes) -> None:
        if fails and path.exists():
            raise error from OSError(errno.ENOSPC, "full")
        real(path, data)

    monkeypatch.setattr(module, "replace_file", replace_file)
    part.start()
    before = (tmp_path / "charter").read_bytes()
    await until(lambda: part.snapshot().disk)
    assert part.snapshot().disk == str(error)
    assert part.snapshot().consensus.leader is None
    assert f"charter not stored reason={error}" in caplog.text
    assert (tmp_path / "charter").read_bytes() == before
    fails = False
    await until(lambda: part.snapshot().consensus.role is Role.LEADER)
    assert part.snapshot().disk == ""
    await part.close()


async def test_daemons_agree_on_members_and_voters_and_survive_their_coordinator(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b", "c") as (a, b, c):
        everybody = {a.node, b.node, c.node}
        await until(lambda: all(members_of(one) == everybody for one in (a, b, c)))
        await until(lambda: all(leader_of(one) == a.node for one in (a, b, c)))

        def voters(one: Daemon) -> int:
            charter = one.charter.snapshot().consensus.charter
            return 0 if charter is None else len(charter.voters)

        await until(lambda: voters(b) == voters(c) == 3)
        await a.close("node a was stopped")
        await until(lambda: leader_of(b) == leader_of(c) and leader_of(b) in (b.node, c.node))
        assert members_of(b) == everybody, "who is away is a member all the same"


async def test_a_node_that_misses_its_coordinator_says_so_and_what_it_can_do(tmp_path: Path) -> None:
    async with daemons(tmp_path, "a", "b") as (a, b):
        await until(lambda: members_of(b) == {a.node, b.node})
        assert not b.charter.parked
        await a.close("node a was stopped")
        await until(lambda: b.charter.parked)
        assert "this node sees 0 of 1 voter" in b.charter.parked
        assert b.charter.snapshot().presence.absence(a.node).reason == "it was stopped"
        with pytest.raises(NotAllowedError, match="voters may still be on their way"):
            await b.charter.recover(b.charter.description()[0])


async def test_who_asks_while_there_is_no_charter_is_told_so(tmp_path: Path) -> None:
    part = ClusterCharter(post()[0], tmp_path, True, FakeOwner())
    part.start()
    await part.stand_still()
    with pytest.raises(BetweenClusters, match="is on its way to another cluster"):
        part.snapshot()
    part.start()
    assert part.snapshot().alive
    await part.close()


async def test_a_cluster_is_begun_anew_with_the_old_work_and_never_given_up_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = without_its_voters(tmp_path, monkeypatch)
    with pytest.raises(NotAllowedError, match="old, and other was asked for"):
        await part.recover("other")
    part.member_alive(C, "c", "old")
    part.member_described(C, Description(cluster="old", charter=(5, 1)), 10.0)
    with pytest.raises(NotAllowedError, match=r"knows charter 5\.1, newer than 4\.9"):
        await part.recover("old")
    part.member_described(C, Description(cluster="old", charter=(4, 9)), 10.0)
    charter = await part.recover("old")
    assert (list(charter.nodes()), charter.work) == ([A], b"jobs")
    await until(lambda: part.snapshot().consensus.role is Role.LEADER)
    assert part.parked == ""
    assert part.snapshot().presence.foreign[C].theirs == "old"
    await until(lambda: members_of_part(part))
    assert members_of_part(part) == {A}, "one of the old cluster is not admitted"
    kept = decode((tmp_path / "charter.old").read_bytes(), "charter.old")
    assert kept == Durable(5, B, OLD)
    await part.close()
    again = ClusterCharter(post()[0], tmp_path, False, FakeOwner())
    again.start()
    assert again.description()[0] == charter.cluster, "though it is told to join others"
    await again.close()


async def test_nothing_is_shown_while_a_cluster_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = without_its_voters(tmp_path, monkeypatch)
    going, real = threading.Event(), module.CharterFile.begin_anew

    def begin_anew(*args: Any) -> Durable:
        assert going.wait(DEADLINE_S)
        return real(*args)

    monkeypatch.setattr(module.CharterFile, "begin_anew", begin_anew)
    recovering = asyncio.ensure_future(part.recover("old"))
    await until(lambda: not part.description()[0])
    with pytest.raises(BetweenClusters, match="node a is on its way to another cluster"):
        part.snapshot()
    going.set()
    await recovering
    assert part.snapshot().alive == {A: "a"}
    await part.close()


async def test_a_node_that_is_closed_while_its_cluster_is_begun_anew_waits_for_the_disk_and_stays_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = without_its_voters(tmp_path, monkeypatch)
    begun, going, real = threading.Event(), threading.Event(), module.CharterFile.begin_anew

    def begin_anew(*args: Any) -> Durable:
        begun.set()
        assert going.wait(DEADLINE_S)
        return real(*args)

    monkeypatch.setattr(module.CharterFile, "begin_anew", begin_anew)
    recovering = asyncio.ensure_future(part.recover("old"))
    await until(begun.is_set)
    closing = asyncio.ensure_future(part.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done(), "the state folder is not let go while it is written to"
    going.set()
    await closing
    await asyncio.gather(recovering, return_exceptions=True)
    with pytest.raises(BetweenClusters):
        part.snapshot()
    assert part._core is None
    again = ClusterCharter(post()[0], tmp_path, False, FakeOwner())
    again.start()
    assert again.description()[0] != "old"
    await again.close()


async def test_who_asked_for_a_recovery_may_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = without_its_voters(tmp_path, monkeypatch)
    recovering = asyncio.ensure_future(part.recover("old"))
    await until(lambda: part.description()[0] != "old")
    recovering.cancel()
    await asyncio.gather(recovering, return_exceptions=True)
    await until(lambda: members_of_part(part) == {A})
    assert part.description()[0] not in ("", "old")
    await part.close()


def without_its_voters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterCharter:
    """A node, started, that may begin its cluster, OLD, anew at once."""
    monkeypatch.setattr(recovery, "refusal", partial(recovery.refusal, after_s=0.0))
    (folder / "charter").write_bytes(encode(Durable(5, B, OLD)))
    part = ClusterCharter(post()[0], folder, False, FakeOwner())
    part.start()
    return part


def members_of_part(part: ClusterCharter) -> set[NodeId]:
    charter = part.snapshot().consensus.charter
    return set() if charter is None else set(charter.nodes())
