"""What shards have told, as a person sees it."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pnn.job.plan import NodeShare, Plan, Replica, ShardHome
from p2pnn.job.progress import ProgressMeter
from p2pnn.job.script import Progress, ShardReport
from p2pnn.job.served import Served
from tests.job.test_progress import spec
from tests.job.test_supervisor import NAMES, NODES


def make_plan(workers: int = 2, homes: tuple[int, ...] = (2, 0)) -> Plan:
    """Workers a, b, …; each shard on the node of `homes`."""
    shares = tuple(NodeShare(n, NAMES[n], "all", 2, 100, 1000, 0.1) for n in NODES)
    replicas = tuple(Replica((number,)) for number in range(workers))
    return Plan(shares, (), 1, 1.0, 1.0, replicas=replicas, shards=tuple(ShardHome((home,)) for home in homes))


def report(shard: int, **changes: Any) -> ShardReport:
    fields: dict[str, Any] = {
        "shard": shard,
        "version": 4,
        "staleness": {},
        "taken": {},
        "refused": (),
        "set_aside": (),
        "received_bytes": 0,
        "sent_bytes": 0,
        "queued": 0,
    }
    return ShardReport(**(fields | changes))


def test_shards_add_up_and_the_newest_report_of_each_counts() -> None:
    served = Served(make_plan())
    served.begins(10)
    assert served.fields(10, {}, {}) == {}
    served.add([report(0, staleness={0: 9}, received_bytes=9)], 10)
    served.add(
        [report(0, staleness={10: 1, 0: 3}, received_bytes=100, refused=((1, "LATE", 2),), taken={0: 5, 1: 2})], 12
    )
    more = ((1, "LATE", 1), (1, "SHAPE", 1), (9, "GAP", 1))
    served.add(
        [
            report(
                1,
                staleness={0: 1, 2: 1},
                received_bytes=60,
                sent_bytes=80,
                refused=more,
                set_aside=(1,),
                taken={0: 4, 1: 3, 9: 1},
            )
        ],
        13,
    )
    assert served.believed("c", [report(2, received_bytes=1 << 40)]) == ()  # there is no such shard
    found = served.fields(14, {"a": 14, "b": 14}, {"a": 0.5, "b": 0.9})
    assert found == {
        "staleness": {"0": 4, "2": 1, "10": 1},
        "pushed_bytes": 40.0,
        "fetched_bytes": 20.0,
        "pushed_bytes_total": 160,
        "fetched_bytes_total": 80,
        "refused": {"b": {"LATE": 3, "SHAPE": 1}, "worker 9": {"GAP": 1}},
        "set_aside": ["b"],
        "pushes": {"a": 5, "b": 3, "worker 9": 1},
        "slowest": "b",
    }
    assert list(found["staleness"]) == ["0", "2", "10"]


def test_of_replicated_shards_it_is_told_who_holds_them_and_what_travels_to_backups() -> None:
    served = Served(make_plan())
    served.begins(0)
    served.add([report(0, received_bytes=100, sent_bytes=50, copied_bytes=90, in_sync=(2, 0), lag=3)], 1)
    served.add([report(1, received_bytes=10, copied_bytes=10, in_sync=(0,), learners=(1,))], 1)
    found = served.fields(10, {}, {})
    assert (found["pushed_bytes"], found["fetched_bytes"], found["copied_bytes"]) == (11.0, 5.0, 10.0)
    assert found["shards"] == [
        {"shard": 0, "primary": "c", "backups": ["a"], "learners": [], "lag": 3},
        {"shard": 1, "primary": "a", "backups": [], "learners": ["b"], "lag": 0},
    ]
    # Another primary counts from its own start: what the one before has told is not forgotten.
    served.add([report(0, received_bytes=40, sent_bytes=20, copied_bytes=0, in_sync=(0,))], 2)
    found = served.fields(10, {}, {})
    assert (found["pushed_bytes"], found["fetched_bytes"], found["copied_bytes"]) == (15.0, 7.0, 10.0)
    assert found["shards"][0]["primary"] == "a"


def test_what_a_node_tells_of_a_shard_that_it_does_not_hold_is_believed_by_nobody() -> None:
    meter = ProgressMeter(spec(), 0, 0.0)
    meter.start(0.0, list("abc"), make_plan())  # shard 0 is c's, shard 1 is a's
    odd = tuple(report(number, set_aside=(0,), received_bytes=9) for number in (-1, 0, 1, *range(1000, 1050)))
    meter.add("b", Progress(0, (0.0, 0), {}, 0.0, 0.1, served=odd), 1.0)
    assert meter.take_warnings() == []
    assert not meter._served._reports
    assert not meter._learning._shards
    meter.add("c", Progress(0, (0.0, 0), {}, 0.0, 0.1, served=odd), 2.0)
    assert meter.take_warnings() == [
        "worker a is set aside, and the run goes on without it: its pushes were refused",
    ]
    assert set(meter._served._reports) == set(meter._learning._shards) == {0}


def test_the_slowest_is_furthest_behind_and_alone_nobody_is() -> None:
    served = Served(make_plan())
    served.add([report(0)], 0)
    assert served.fields(5, {"a": 4, "b": 6}, {"a": 0.1, "b": 0.9})["slowest"] == "a"
    alone = Served(make_plan(workers=1))
    alone.add([report(0)], 0)
    assert alone.fields(5, {"a": 5}, {})["slowest"] == ""


def test_workers_of_several_nodes_are_as_far_as_the_last_of_them_and_as_busy_as_the_busiest() -> None:
    plan = make_plan(homes=(2,))
    nodes = (*plan.nodes, msgspec.structs.replace(plan.nodes[0], name="d"))
    plan = msgspec.structs.replace(plan, nodes=nodes, replicas=(Replica((0, 1)), Replica((2, 3))))
    served = Served(plan)
    assert served.workers == ("a+b", "c+d")
    assert served.computing == {"a", "b", "c", "d"}
    served.add([report(0, refused=((1, "LATE", 2),), set_aside=(0,))], 0)
    found = served.fields(5, {"a": 6, "b": 4, "c": 5, "d": 5}, {})
    assert (found["slowest"], found["set_aside"], found["refused"]) == ("a+b", ["a+b"], {"c+d": {"LATE": 2}})
    busy = {"a": 0.1, "b": 0.5, "c": 0.1, "d": 0.9}
    assert served.fields(5, dict.fromkeys("abcd", 5), busy)["slowest"] == "c+d"


def test_a_coordinator_that_took_over_counts_bytes_from_what_it_heard_first() -> None:
    served = Served(make_plan())
    served.add([report(0, received_bytes=1000)], 20)
    assert served.fields(20, {}, {})["pushed_bytes"] == 0.0
    served.add([report(1, received_bytes=500)], 20)
    served.add([report(0, received_bytes=1040)], 24)
    found = served.fields(24, {}, {})
    assert (found["pushed_bytes"], found["pushed_bytes_total"]) == (10.0, 1540)


def test_only_nodes_that_compute_count_for_the_step_and_takeovers_keep_it_so() -> None:
    meter = ProgressMeter(spec(), 0, 0.0)
    meter.start(0.0, ["a", "b", "c"], make_plan())
    assert meter.interval.steps == 4
    assert meter.add("c", Progress(0, (0.0, 0), {}, 0.1, 0.2, served=(report(0, sent_bytes=30),)), 0.1) is None
    meter.add("b", Progress(3, (0.0, 0), {}, 0.1, 0.2), 0.1)
    event = meter.add("a", Progress(3, (4.0, 8), {}, 0.2, 0.2, served=(report(1),)), 0.5)
    assert event is not None
    assert (event["step"], event["loss"], event["fetched_bytes"]) == (3, 0.5, 10.0)
    assert event["busy"] == {"a": 1.0, "b": 0.5, "c": 0.5}
    # What a server's node tells besides does not say that it were idle.
    meter.add("a", Progress(3, (0.0, 0), {}, 0.0, 0.0, served=(report(1),)), 0.6)
    event = meter.add("b", Progress(4, (1.0, 8), {}, 0.1, 0.2), 1.0)
    assert event is not None
    assert event["busy"]["a"] == 1.0
    for node in "ab":
        meter.add(node, Progress(spec().steps, (1.0, 8), {}, 0.1, 0.2), 2.0)
    event = meter.add("c", Progress(0, (0.0, 0), {}, 0.1, 0.2, served=(report(0, staleness={0: 7}),)), 2.01)
    assert event is not None, "of a run that is through everything is told"
    assert (event["staleness"], event["loss"]) == ({"0": 7}, 0.125)
    counted, epoch = meter.tell(["a", "b", "c"])
    again = ProgressMeter(spec(), 0, 2.0)
    again.take_over(dict(zip("abc", counted, strict=True)), epoch, 3, 2.0, make_plan())
    again.add("c", Progress(0, (0.0, 0), {}, 0.0, 0.0), 2.0)
    again.add("b", Progress(5, (0.0, 0), {}, 0.1, 0.2), 2.1)
    event = again.add("a", Progress(4, (4.0, 8), {}, 0.1, 0.2), 2.5)
    assert event is not None
    assert event["step"] == 4


def test_a_worker_is_gone_with_any_of_its_nodes_and_nobody_waits_for_the_others_of_it() -> None:
    plan = make_plan(homes=(2,))
    nodes = (*plan.nodes, msgspec.structs.replace(plan.nodes[0], name="d"))
    plan = msgspec.structs.replace(plan, nodes=nodes, replicas=(Replica((0, 1)), Replica((2, 3))))
    meter = ProgressMeter(spec(), 0, 0.0)
    meter.start(0.0, list("abcd"), plan)
    for name in "abcd":
        meter.add(name, Progress(1, (1.0, 1), {}, 0.1, 0.2), 0.1)
    meter.without("c")
    meter.add("a", Progress(3, (1.0, 1), {}, 0.1, 0.2), 1.0)
    meter.add("d", Progress(1, (0.0, 0), {}, 0.0, 0.0, served=(report(0),)), 1.1)
    event = meter.add("b", Progress(3, (1.0, 1), {}, 0.1, 0.2), 2.0)
    assert event is not None
    assert event["step"] == 3, "though d was at 1, and tells of its shards on"
    assert sorted(event["busy"]) == ["a", "b"]
