"""Changes of the table of jobs: decided one after the other, together where they wait, never forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from p2pnn.errors import CharterError
from p2pnn.job import work as table
from p2pnn.job.records import JobRecord
from p2pnn.job.work import Entry
from p2pnn.node import work as module
from p2pnn.node.asking import AskAgain
from p2pnn.node.work import Change, NotDecided, Work
from p2pnn.types import BlobId, JobId
from tests.node.nodes import A, B, FakeCluster

pytestmark = pytest.mark.asyncio


class Bench:
    def __init__(self) -> None:
        self.cluster = FakeCluster(A)
        self.work = Work(self.cluster)
        self.cluster.committed = self.work.committed

        def changed(coordinator: object) -> None:
            if coordinator != A:
                self.work.deposed()

        self.cluster.changed = changed

    def decide(self, job: str, change: Change | None = None) -> asyncio.Future[int]:
        return asyncio.ensure_future(self.work.decide(JobId(job), change or start(job)))

    @property
    def generations(self) -> dict[JobId, int]:
        return table.generations(self.work.entries, A)


def start(job: str) -> Change:
    record = JobRecord(JobId(job), "toy", "train", BlobId("5" * 64), "queued", A, "a", 0)
    return lambda generation: table.entry(record, generation)


def remove(_: int) -> Entry | None:
    return None


async def test_a_change_holds_when_the_cluster_has_decided_it_and_bears_its_generation() -> None:
    bench = Bench()
    bench.cluster.delays = True
    deciding = bench.decide("toy-1")
    await asyncio.sleep(0)
    assert len(bench.cluster.proposed) == 1
    assert bench.work.entries == {}
    assert not deciding.done()
    bench.cluster.commit()
    assert await deciding == 1
    assert bench.generations == {"toy-1": 1}
    removing = bench.decide("toy-1", remove)
    await asyncio.sleep(0)
    bench.cluster.commit()
    assert await removing == 2
    assert bench.work.entries == {}


async def test_what_comes_meanwhile_goes_together_with_the_next_one() -> None:
    bench = Bench()
    bench.cluster.delays = True
    first = bench.decide("toy-1")
    await asyncio.sleep(0)
    others = [bench.decide("toy-2"), bench.decide("toy-3"), bench.decide("toy-1", remove)]
    await asyncio.sleep(0)
    assert len(bench.cluster.proposed) == 1
    bench.cluster.commit()
    assert await first == 1
    assert len(bench.cluster.proposed) == 1, "the next is under way"
    bench.cluster.commit()
    assert await asyncio.gather(*others) == [2, 2, 2]
    assert bench.generations == {"toy-2": 2, "toy-3": 2}


async def test_of_two_changes_of_one_job_that_go_together_the_later_holds() -> None:
    bench = Bench()
    bench.cluster.refuses = 1  # until both wait
    both = [bench.decide("toy-1"), bench.decide("toy-1", remove)]
    assert await asyncio.gather(*both) == [1, 1]
    assert bench.work.entries == {}


async def test_a_refused_proposal_is_made_again_with_the_next_commit_or_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.cluster.refuses = 1
    deciding = bench.decide("toy-1")
    await asyncio.sleep(0)
    assert bench.cluster.proposed == []
    bench.cluster.commit()  # the member is admitted
    assert await deciding == 1
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    bench.cluster.refuses = 3
    async with asyncio.timeout(10):
        assert await bench.decide("toy-2") == 2


async def test_the_end_of_a_change_that_is_under_way_when_this_node_is_deposed_is_not_known() -> None:
    bench = Bench()
    bench.cluster.delays = True
    under_way = bench.decide("toy-1")
    await asyncio.sleep(0)
    waiting = bench.decide("toy-2")
    await asyncio.sleep(0)
    bench.cluster.elect(B)
    with pytest.raises(NotDecided, match="before it was decided"):
        await under_way
    with pytest.raises(NotDecided, match="no more"):
        await waiting
    with pytest.raises(NotDecided, match="does not coordinate"):
        await bench.decide("toy-3")
    assert issubclass(NotDecided, AskAgain), "whoever asked asks the next coordinator"
    bench.cluster.elect(A)
    bench.cluster.delays = False
    async with asyncio.timeout(10):
        await bench.decide("toy-4")
    assert set(bench.generations) == {"toy-4"}


async def test_a_charter_of_another_that_passes_by_a_proposal_ends_it() -> None:
    bench = Bench()
    bench.cluster.delays = True
    deciding = bench.decide("toy-1")
    await asyncio.sleep(0)
    bench.cluster.proposed.clear()
    bench.cluster.charter = _revised(bench.cluster.charter, 7)
    bench.cluster.commit()
    with pytest.raises(NotDecided, match="something else"):
        await deciding
    assert bench.work.entries == {}


async def test_an_older_charter_that_is_said_again_ends_nothing() -> None:
    bench = Bench()
    bench.cluster.delays = True
    deciding = bench.decide("toy-1")
    await asyncio.sleep(0)
    bench.work.committed(bench.cluster.charter)
    await asyncio.sleep(0)
    assert not deciding.done()
    bench.cluster.commit()
    assert await deciding == 1


async def test_where_the_table_is_full_the_newest_has_to_go_and_what_removes_stays() -> None:
    bench = Bench()
    await bench.decide("toy-1")
    bench.cluster.work_bytes_max = len(bench.cluster.charter.work) + 10
    bench.cluster.refuses = 1  # until all wait
    futures = [bench.decide("toy-1", remove), bench.decide("toy-2"), bench.decide("toy-3")]
    await asyncio.sleep(0)
    bench.cluster.commit()
    done = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(found) for found in done] == [int, int, CharterError]
    assert set(bench.generations) == {"toy-2"}
    with pytest.raises(CharterError, match="too large"):
        await bench.decide("toy-4")


async def test_a_change_whose_asker_has_gone_is_not_proposed_any_more() -> None:
    bench = Bench()
    bench.cluster.refuses = 2
    gone, stays = bench.decide("toy-1"), bench.decide("toy-2")
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    bench.cluster.commit()
    assert await stays == 1
    assert set(bench.generations) == {"toy-2"}


async def test_a_table_that_cannot_be_read_leaves_the_one_before(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.decide("toy-1")
    entries = bench.work.entries
    bench.work.committed(_revised(bench.cluster.charter, 9, b"\xc1"))
    assert "table of jobs cannot be read" in caplog.text
    assert bench.work.entries is entries, "others look at the same table"
    assert set(entries) == {"toy-1"}


async def test_nothing_is_changed_while_the_table_cannot_be_read() -> None:
    bench = Bench()
    await bench.decide("toy-1")
    bench.cluster.refuses = 1
    waiting = bench.decide("toy-2")
    await asyncio.sleep(0)
    readable, bench.cluster.charter = bench.cluster.charter, _revised(bench.cluster.charter, 9, b"\xc1")
    bench.cluster.commit()
    for deciding in (waiting, bench.decide("toy-3")):
        with pytest.raises(CharterError, match="table of jobs cannot be read"):
            await deciding
    assert bench.cluster.proposed == []
    bench.cluster.charter = _revised(readable, 10)
    bench.cluster.commit()
    await bench.decide("toy-4")
    assert set(bench.generations) == {"toy-1", "toy-4"}


def _revised(charter: Any, revision: int, work: bytes | None = None) -> Any:
    return msgspec.structs.replace(charter, revision=revision, work=charter.work if work is None else work)
