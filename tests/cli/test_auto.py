"""`--parallel auto`: which way a job goes, in which words, and what its job file says afterwards."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest

from p2pnn.cli import auto
from p2pnn.cli.http import Daemon
from p2pnn.cli.jobfile import resolve, to_toml
from p2pnn.cli.submit import Prepared
from p2pnn.errors import NoDaemonError, P2pnnError
from p2pnn.job.spec import JobSpec
from tests.cli.fake import FakeDaemon
from tests.cli.made import flowers


def settled(daemon: FakeDaemon, predicted: Any = None, **flags: Any) -> auto.Settled:
    if predicted is not None:
        ways = [{"way": way, "nodes": nodes, "samples_per_s": rate} for way, nodes, rate in predicted]
        daemon["POST plan"] = {"plan": {"predicted": ways}, "lines": []}
    asked = resolve({"model": "mlp", "data": "digits", "parallel": "auto", **flags})
    nodes = tuple(asked.mesh.nodes) if isinstance(asked.mesh.nodes, list) else ()
    spec = JobSpec(
        "flowers", flowers(), {}, parallel="data" if asked.deals_data else "model", data=asked.data_parallel.spec(), nodes=nodes,
        request=to_toml(asked),
    )  # fmt: skip
    return auto.settle(Daemon(daemon.path), Prepared("flowers", spec, {}, lambda put: None), asked)


def mesh_of(found: auto.Settled) -> dict[str, Any]:
    return dict(tomllib.loads(found.prepared.spec.request)["mesh"])


SINGLE, MODEL, DATA = ("single", ["b"], 1000.0), ("model", ["b", "c"], 900.0), ("data", ["a", "b", "c"], 2500.0)


def test_the_fastest_way_is_taken(daemon: FakeDaemon) -> None:
    found = settled(daemon, [SINGLE, MODEL, DATA], consistency="sync")
    spec = found.prepared.spec
    assert found.line == (
        "data parallelism: 2,500 samples/s predicted, against 1,000 on one node and 900 with the model cut over 2"
    )
    assert (spec.parallel, spec.data and spec.data.consistency, spec.node_count) == ("data", "sync", 0)
    assert mesh_of(found)["parallel"] == "data"
    assert tomllib.loads(spec.request)["data_parallel"]["consistency"] == "sync"


def test_a_model_that_is_cut_is_cut_over_as_many_nodes_as_were_compared(daemon: FakeDaemon) -> None:
    found = settled(daemon, [SINGLE, ("model", ["b", "c"], 2900.0), DATA])
    spec = found.prepared.spec
    assert found.line.startswith(
        "model parallelism: 2,900 samples/s predicted, against 1,000 on one node and 2,500 with data"
    )
    assert (spec.parallel, spec.data, spec.node_count) == ("model", None, 2)
    assert (mesh_of(found)["parallel"], mesh_of(found)["nodes"]) == ("model", 2)
    assert "data_parallel" not in tomllib.loads(spec.request)


def test_one_node_is_enough_where_nothing_is_clearly_faster(daemon: FakeDaemon) -> None:
    found = settled(daemon, [SINGLE, MODEL, ("data", ["a", "b", "c"], 1040.0)])
    assert found.line.startswith("one node: 1,000 samples/s predicted, against 900 with the model cut over 2 and 1,040")
    assert (found.prepared.spec.parallel, found.prepared.spec.node_count) == ("model", 1)
    named = settled(daemon, [SINGLE, (*DATA[:2], 10.0)], nodes=["a", "b", "c"])
    assert (named.prepared.spec.nodes, mesh_of(named)["nodes"]) == (("b",), ["b"])


def test_where_data_parallelism_cannot_be_the_model_is_cut_and_the_reason_told(daemon: FakeDaemon) -> None:
    daemon["POST plan"] = (400, {"error": "a worker holds the whole model and needs 9 GiB", "exit": 2})
    found = settled(daemon)
    assert found.line == (
        "model parallelism, because data parallelism cannot be: a worker holds the whole model and needs 9 GiB"
    )
    assert (found.prepared.spec.parallel, found.prepared.spec.data, found.prepared.spec.node_count) == (
        "model",
        None,
        0,
    )


HYBRID = ("hybrid", ["a", "b", "c", "d"], 4000.0)


def test_workers_may_be_cut_as_well(daemon: FakeDaemon) -> None:
    found = settled(daemon, [SINGLE, MODEL, DATA, HYBRID], workers=2)
    spec = found.prepared.spec
    assert found.line.startswith("hybrid parallelism: 4,000 samples/s predicted, against 1,000 on one node and ")
    assert found.line.endswith("2,500 with data parallelism over 3")
    assert (spec.parallel, spec.data and (spec.data.workers, spec.data.segments)) == ("hybrid", (2, 0))
    again = tomllib.loads(spec.request)
    assert (again["mesh"]["parallel"], again["data_parallel"]["workers"]) == ("hybrid", 2)


def no_room_for_all(body: bytes) -> Any:
    spec = msgspec.msgpack.decode(body, type=JobSpec)
    if spec.parallel == "data":
        return 400, {"error": "a worker holds the whole model and needs 9 GiB", "exit": 2}
    return {"plan": {"predicted": [{"way": w, "nodes": n, "samples_per_s": r} for w, n, r in (MODEL, HYBRID)]}}


def test_where_no_node_has_room_for_the_whole_model_workers_are_cut(daemon: FakeDaemon) -> None:
    daemon["POST plan"] = no_room_for_all
    found = settled(daemon)
    assert found.line == "hybrid parallelism: 4,000 samples/s predicted, against 900 with the model cut over 2"
    assert found.prepared.spec.parallel == "hybrid"
    assert mesh_of(found)["parallel"] == "hybrid"


@pytest.mark.parametrize(
    ("flags", "tied"), [({"pins": {"fc*": "a"}}, "pins say"), ({"schedule": "async:2"}, "a schedule says")]
)
def test_who_says_where_layers_go_means_the_model(daemon: FakeDaemon, flags: dict[str, Any], tied: str) -> None:
    found = settled(daemon, **flags)
    assert found.line == f"model parallelism, because {tied} where layers go"
    assert found.prepared.spec.parallel == "model"
    assert daemon.bodies("POST plan") == []


def test_a_person_who_said_which_is_not_asked_again(daemon: FakeDaemon) -> None:
    for parallel in ("model", "data"):
        found = settled(daemon, parallel=parallel)
        assert (found.line, found.predicted) == ("", ())
        assert found.prepared.spec.parallel == parallel
    assert daemon.bodies("POST plan") == []


def test_a_daemon_that_is_gone_is_no_reason_for_a_way(daemon: FakeDaemon) -> None:
    daemon["POST plan"] = lambda body: None
    with pytest.raises(NoDaemonError):
        settled(daemon)


def test_a_daemon_that_compares_nothing(daemon: FakeDaemon) -> None:
    with pytest.raises(P2pnnError, match="say --parallel model or data"):
        settled(daemon, [])


def test_the_mesh_is_asked_about_data_parallelism_with_the_settings_given(daemon: FakeDaemon) -> None:
    settled(daemon, [SINGLE, DATA], workers=2)
    asked = msgspec.msgpack.decode(daemon.bodies("POST plan")[0], type=JobSpec)
    assert (asked.parallel, asked.data and asked.data.workers) == ("data", 2)
