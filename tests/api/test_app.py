"""Every route, and every way in which a request is refused."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from p2pnn.api import app as module
from p2pnn.data.blobs import blob_id
from p2pnn.errors import NotAllowedError, TimedOutError
from p2pnn.job.trace import NodePart, View
from p2pnn.node.daemon import Daemon
from tests.api.http import Api, api
from tests.node.nodes import toy

pytestmark = pytest.mark.asyncio


async def submit(a: Api, **settings: Any) -> tuple[str, list[str]]:
    """Put a job's blobs and submit it: its id, and the names of its chunks."""
    spec, blobs = toy(**settings)
    data = msgspec.msgpack.encode(spec)
    everything = {**blobs, blob_id(data): data}
    assert await a.call("POST", "blobs/missing", json={"blobs": list(everything)}) == (
        200,
        {"missing": list(everything)},
    )
    for blob, content in everything.items():
        assert await a.call("PUT", f"blobs/{blob}", data=content) == (200, {})
    status, answer = await a.call("POST", "jobs", json={"spec": blob_id(data), "detach": True})
    assert status == 200, answer
    return answer["job"], list(blobs)


async def events(a: Api, job: str, after: int = 0) -> list[dict[str, Any]]:
    status, data = await a.raw(f"jobs/{job}/events?after={after}")
    assert status == 200
    return [json.loads(line) for line in data.splitlines()]


async def test_a_job_from_its_blobs_to_its_results(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        spec, _ = toy()
        status, planned = await a.call("POST", "plan", data=msgspec.msgpack.encode(spec))
        assert status == 200
        assert planned["lines"] == planned["plan"]["reasons"]
        job, chunks = await submit(a)
        followed = await events(a, job)
        assert followed[-1]["state"] == "done", followed[-1]
        assert [e["number"] for e in followed] == sorted(e["number"] for e in followed)
        assert await events(a, job, followed[-1]["number"] - 1) == followed[-1:]
        assert (await events(a, job, after=-3))[-1] == followed[-1]
        _, listed = await a.call("GET", "jobs")
        assert [(j["job"], j["state"], j["nodes"]) for j in listed["jobs"]] == [(job, "done", ["a"])]
        _, shown = await a.call("GET", f"jobs/{job}")
        assert shown["epoch"] == shown["epochs"] == len(shown["history"]) == 2
        assert shown["result"]["bits"].count("-") == 2
        assert shown["checkpoints"][-1]["complete"]
        _, results = await a.call("GET", f"jobs/{job}/results")
        part = results["manifest"]["parts"][0]
        status, content = await a.raw(f"blobs/{part['blob']}")
        assert status == 200
        assert blob_id(content) == part["blob"]
        assert len(content) == part["size"]

        _, found = await a.call("GET", "datasets")
        data = found["datasets"][0]
        assert (data["name"], data["rows"], data["jobs"], data["blobs"]) == ("made", 120, [job], len(chunks))
        status, freed = await a.call("DELETE", f"datasets/{data['id']}")
        assert (status, freed) == (200, {"bytes": data["bytes"]})
        assert await a.call("GET", "datasets") == (200, {"datasets": []})
        assert (await a.call("DELETE", f"datasets/{data['id']}"))[0] == 200  # gone already: frees nothing


async def test_node_peers_and_stop(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        _, cluster = await a.call("GET", "cluster")
        _, node = await a.call("GET", "node")
        assert (node["name"], node["cluster"], node["job"], node["queue"]) == ("a", cluster["cluster"], None, [])
        assert "it listens on this machine only" in node["notice"]
        _, found = await a.call("GET", "peers")
        assert [(p["name"], p["state"]) for p in found["peers"]] == [("a", "self")]
        assert await a.call("POST", "node/stop") == (200, {})
        assert a.stop.is_set()


async def test_a_cluster_is_not_shown_while_the_node_moves_to_another(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        await a.daemon.charter.stand_still()
        status, answer = await a.call("GET", "cluster")
        assert (status, answer["exit"]) == (503, 1)
        assert "node a is on its way to another cluster" in answer["error"]
        assert (await a.call("GET", "node"))[0] == (await a.call("GET", "peers"))[0] == 200
        a.daemon.charter.start()
        assert (await a.call("GET", "cluster"))[0] == 200


async def test_cancel_pause_and_resume(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        job, _ = await submit(a, epochs=1000)
        assert (await a.call("DELETE", f"datasets/{(await a.call('GET', 'datasets'))[1]['datasets'][0]['id']}")) == (
            400,
            {"error": f"data set {_dataset(a)} is needed by job {job}; cancel that first", "exit": 2},
        )
        status, answer = await a.call("POST", f"jobs/{job}/cancel")
        assert (status, answer) == (200, {"state": "cancelled"})
        assert (await events(a, job))[-1]["state"] == "cancelled"
        status, answer = await a.call("POST", f"jobs/{job}/cancel")
        assert (status, answer["exit"]) == (400, 2)
        assert "a job that is cancelled cannot cancel" in answer["error"]
        status, answer = await a.call("POST", f"jobs/{job}/pause")
        assert status == 400
        past = (await events(a, job))[-1]["number"]
        status, answer = await a.call("POST", f"jobs/{job}/resume")
        assert (status, answer["job"], answer["after"]) == (200, job, past)
        assert (await a.call("POST", f"jobs/{job}/cancel"))[0] == 200


def _dataset(a: Api) -> str:
    from p2pnn.api.views import datasets

    return str(datasets(a.daemon)[0]["id"])


async def test_what_is_not_there(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        for method, path in (
            ("GET", "jobs/nothing-1"),
            ("GET", "jobs/nothing-1/events"),
            ("GET", "jobs/nothing-1/results"),
            ("POST", "jobs/nothing-1/cancel"),
            ("POST", "jobs/nothing-1/pause"),
            ("POST", "jobs/nothing-1/resume"),
            ("GET", "jobs/..%2f..%2fetc"),
        ):
            status, answer = await a.call(method, path)
            assert (status, answer["exit"]) == (404, 2), path
            assert "no job" in answer["error"]
        status, answer = await a.call("DELETE", "datasets/0123")
        assert (status, answer["exit"]) == (404, 2)
        status, answer = await a.call("GET", f"blobs/{'0' * 64}")
        assert status == 404
        assert "is not here, and no other node can be reached" in answer["error"]
        for method, path, expected in (
            ("GET", "nowhere", 404),
            ("PATCH", "jobs", 405),
            ("POST", "jobs/x/explode", 404),
        ):
            status, answer = await a.call(method, path)
            assert (status, answer["exit"]) == (expected, 2)
            assert path in answer["error"]


async def test_bodies_that_cannot_be_used(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        for path, body, sentence in (
            ("jobs", b"{", "not JSON"),
            ("jobs", b"[" * 100_000, "not JSON"),
            ("jobs", b"[]", "must be a JSON object"),
            ("jobs", b'{"spec": 5}', '"spec"'),
            ("jobs", b'{"spec": "../../etc/passwd"}', "is not a blob's name"),
            ("blobs/missing", b'{"blobs": 5}', '"blobs"'),
            ("blobs/missing", b'{"blobs": [5]}', '"blobs"'),
            ("blobs/missing", b'{"blobs": ["../x"]}', "is not a blob's name"),
            ("plan", b"\xc1", "specification cannot be read"),
            ("plan", b"\x81\xa1x" + b"\x91" * 100_000, "specification cannot be read"),
        ):
            status, answer = await a.call("POST", path, data=body)
            assert (status, answer["exit"]) == (400, 2), (path, body[:20], answer)
            assert sentence in answer["error"]
        spec, _ = toy()
        data = msgspec.msgpack.encode(spec)
        await a.call("PUT", f"blobs/{blob_id(data)}", data=data)
        status, answer = await a.call("POST", "jobs", json={"spec": blob_id(data)})
        assert status == 400
        assert "data chunks of the job are not in this node's store" in answer["error"]
        assert (await a.call("GET", "jobs"))[1] == {"jobs": []}


async def test_blobs_are_checked_and_limited(tmp_path: Path) -> None:
    async with api(tmp_path, quota_bytes=1000) as a:
        status, answer = await a.call("PUT", f"blobs/{'0' * 64}", data=b"abc")
        assert (status, answer["exit"]) == (400, 2)
        assert "has the hash ba7816bf8f01…" in answer["error"]
        big = bytes(module.BODY_BYTES_MAX + 1)
        status, answer = await a.call("POST", "jobs", data=io.BytesIO(big))
        assert (status, answer["exit"]) == (413, 2)
        assert "16,781,312 bytes" in answer["error"]
        first, second = bytes(800), bytes(201)
        assert await a.call("PUT", f"blobs/{blob_id(first)}", data=first) == (200, {})
        assert await a.call("PUT", f"blobs/{blob_id(first)}", data=first) == (200, {})
        status, answer = await a.call("PUT", f"blobs/{blob_id(second)}", data=second)
        assert (status, answer["exit"]) == (507, 1)
        assert "holds 800 of 1,000 bytes" in answer["error"]
        assert list(a.daemon.storage.blobs.list()) == [(blob_id(first), 800)]


async def test_a_blob_of_any_size_streams_in_and_one_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    big = random.Random(0).randbytes(3 * module.BODY_BYTES_MAX)
    async with api(tmp_path) as a:
        assert await a.call("PUT", f"blobs/{blob_id(big)}", data=io.BytesIO(big)) == (200, {})
        assert a.daemon.storage.blobs.read(blob_id(big), 0, len(big)) == big
        status, _ = await a.call("PUT", f"blobs/{blob_id(b'other')}", data=io.BytesIO(big))
        assert status == 400
        assert [blob for blob, _ in a.daemon.storage.blobs.list()] == [blob_id(big)]
        assert not list((a.daemon.storage.blobs.root / "temporary").iterdir())


async def test_errors_have_their_status_and_a_fault_is_no_traceback_for_the_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with api(tmp_path) as a:
        for error, expected in (
            (NotAllowedError("no"), (403, {"error": "no", "exit": 4})),
            (TimedOutError("late"), (400, {"error": "late", "exit": 5})),
        ):

            def refuse(daemon: Daemon, error: Exception = error) -> Any:
                raise error

            monkeypatch.setattr(module.views, "peers", refuse)
            assert await a.call("GET", "peers") == expected

        def fault(daemon: Daemon) -> Any:
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(module.views, "peers", fault)
        status, answer = await a.call("GET", "peers")
        assert (status, answer["exit"]) == (500, 1)
        assert answer["error"] == "a fault in the daemon: ZeroDivisionError('oh'); its log says more"
        assert "ZeroDivisionError" in caplog.text


async def test_who_follows_a_job_sees_its_end_and_may_leave_before(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        job, _ = await submit(a, epochs=1000)
        async with a.session.get(f"http://node/api/v1/jobs/{job}/events") as response:
            first = json.loads(await response.content.readline())
            assert (first["number"], first["kind"], first["state"]) == (1, "state", "queued")
        async with a.session.get(f"http://node/api/v1/jobs/{job}/events?after=nonsense") as response:
            assert response.headers["Content-Type"] == "application/x-ndjson"
            await a.call("POST", f"jobs/{job}/cancel")
            lines = [json.loads(line) async for line in response.content]
        assert lines[-1]["state"] == "cancelled"


async def test_a_trace_is_lines_of_parts_and_a_job_without_nodes_has_none(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        job, _ = await submit(a)
        await events(a, job)
        status, data = await a.raw(f"jobs/{job}/trace")
        assert status == 200
        head, part = [json.loads(line) for line in data.splitlines()]
        assert head == {"job": job, "generation": a.daemon.jobs.get(job).generation, "nodes": ["a"]}
        found = msgspec.convert(part["part"], NodePart)
        assert (found.job, found.name, found.moved) == (job, "a", b"")
        assert View(found).computing
        jobs = a.daemon.jobs
        jobs.records[job] = msgspec.structs.replace(jobs.get(job), plan=None, state="queued")  # type: ignore[index]
        status, answer = await a.call("GET", f"jobs/{job}/trace")
        assert status == 404
        assert "no node has begun with it" in answer["error"]
        status, answer = await a.call("GET", "jobs/nothing-1/trace")
        assert status == 404


@pytest.mark.parametrize("gone", [True, False])
async def test_who_goes_away_amid_an_answer_is_no_fault_of_the_daemon(gone: bool) -> None:
    async def writes(request: web.Request) -> web.StreamResponse:
        raise ConnectionResetError("Cannot write to closing transport")

    request = make_mocked_request("GET", "/api/v1/jobs/made-1/events")
    assert request.transport is not None
    request.transport.is_closing.return_value = gone  # type: ignore[attr-defined]
    if gone:
        assert (await module._errors(request, writes)).status == 499
    else:
        with pytest.raises(ConnectionResetError):
            await module._errors(request, writes)
