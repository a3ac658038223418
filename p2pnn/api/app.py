"""The HTTP API of a daemon, on its unix socket: whoever may open the socket may do everything.

Answers are JSON, errors `{"error": one sentence, "exit": the command line's exit status}`. Bodies are read whole and have
limits; multipart is never parsed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from p2pnn.api import membership, views
from p2pnn.api.request import DAEMON, read_json
from p2pnn.errors import BetweenClusters, NotAllowedError, NotFoundError, P2pnnError, StorageError, UsageError
from p2pnn.node.blobs import writing
from p2pnn.node.daemon import PLAIN_STAYS, Daemon
from p2pnn.node.specs import SPEC_BYTES_MAX
from p2pnn.node.tasks import in_thread
from p2pnn.node.traces import Missing
from p2pnn.types import BlobId

log = logging.getLogger("p2pnn.api")

BODY_BYTES_MAX: Final = SPEC_BYTES_MAX + 4096
"""Of a request that is read whole; blobs are not."""

READ_BYTES: Final = 1 << 20

STATUS: Final[dict[type[P2pnnError], int]] = {
    NotFoundError: 404,
    NotAllowedError: 403,
    StorageError: 507,
    BetweenClusters: 503,
}
"""HTTP status by error; 400 for the others."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
STOP: Final = web.AppKey("stop", asyncio.Event)


def application(daemon: Daemon, stop: asyncio.Event) -> web.Application:
    """All routes. stop: set when a person asks the daemon to end."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_errors])
    app[DAEMON] = daemon
    app[STOP] = stop
    prefix = "/api/v1"
    app.router.add_get(f"{prefix}/node", _node)
    app.router.add_post(f"{prefix}/node/stop", _stop)
    app.router.add_post(f"{prefix}/node/drain", _drain)
    daemon.draining.when_drained = stop.set
    app.router.add_get(f"{prefix}/peers", _peers)
    app.router.add_get(f"{prefix}/cluster", _cluster)
    app.router.add_post(f"{prefix}/cluster/recover", _recover)
    membership.add_routes(app, prefix)
    app.router.add_post(f"{prefix}/blobs/missing", _missing)
    app.router.add_put(f"{prefix}/blobs/{{blob}}", _put_blob)
    app.router.add_get(f"{prefix}/blobs/{{blob}}", _get_blob)
    app.router.add_post(f"{prefix}/plan", _plan)
    app.router.add_post(f"{prefix}/jobs", _submit)
    app.router.add_get(f"{prefix}/jobs", _jobs)
    app.router.add_get(f"{prefix}/jobs/{{job}}", _job)
    app.router.add_get(f"{prefix}/jobs/{{job}}/events", _events)
    app.router.add_get(f"{prefix}/jobs/{{job}}/results", _results)
    app.router.add_get(f"{prefix}/jobs/{{job}}/trace", _trace)
    app.router.add_post(f"{prefix}/jobs/{{job}}/{{verb:cancel|pause|resume}}", _change)
    app.router.add_get(f"{prefix}/datasets", _datasets)
    app.router.add_delete(f"{prefix}/datasets/{{dataset}}", _remove_dataset)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except P2pnnError as error:
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 400)
        return _error(status, str(error), error.exit_status)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"the body is larger than the {BODY_BYTES_MAX:,} bytes that one request may have", 2)
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}", 2)
    except ConnectionError:
        if request.transport is not None and not request.transport.is_closing():
            raise
        return web.Response(status=499)  # whoever asked has gone away, as people do who follow a job: nobody reads this
    except Exception as error:
        log.exception("request failed path=%s", request.path)
        return _error(500, f"a fault in the daemon: {error!r}; its log says more", 1)


def _error(status: int, text: str, exit_status: int) -> web.Response:
    return web.json_response({"error": text, "exit": exit_status}, status=status)


async def _node(request: web.Request) -> web.Response:
    return web.json_response(await views.node(request.app[DAEMON]))


async def _stop(request: web.Request) -> web.Response:
    request.app[STOP].set()
    return web.json_response({})


async def _drain(request: web.Request) -> web.StreamResponse:
    """{"force", "leave"} → lines of JSON: what is waited for, then, once this node has drained, `drained`, and, where it was to,
    whether it has `left` its cluster; it stops then, also where who asked has gone away."""
    body, daemon = await read_json(request), request.app[DAEMON]
    leave = body.get("leave") is True
    if leave and daemon.secured is None:
        raise UsageError(PLAIN_STAYS)
    words = daemon.draining.drain(force=body.get("force") is True, leave=leave)
    first = await anext(words, None)  # what cannot be is refused before the answer begins
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    try:
        if first is not None:
            await response.write(json.dumps({"waits_for": first}).encode() + b"\n")
        async for text in words:
            await response.write(json.dumps({"waits_for": text}).encode() + b"\n")
    except P2pnnError as error:
        await response.write(json.dumps({"error": str(error), "exit": error.exit_status}).encode() + b"\n")
        return response
    await response.write(
        json.dumps({"drained": True} | ({"left": daemon.draining.has_left} if leave else {})).encode() + b"\n"
    )
    return response


async def _peers(request: web.Request) -> web.Response:
    daemon = request.app[DAEMON]
    return web.json_response({"peers": views.peers(daemon), "parked": daemon.charter.parked})


async def _cluster(request: web.Request) -> web.Response:
    return web.json_response(views.cluster(request.app[DAEMON]))


async def _recover(request: web.Request) -> web.Response:
    cluster = (await read_json(request)).get("cluster")
    if not isinstance(cluster, str):
        raise UsageError('the body must be {"cluster": "<id of the cluster whose voters are lost>"}')
    charter = await request.app[DAEMON].charter.recover(cluster)
    return web.json_response({"cluster": charter.cluster, "version": str(charter.version)})


async def _missing(request: web.Request) -> web.Response:
    blobs = (await read_json(request)).get("blobs")
    if not isinstance(blobs, list) or not all(isinstance(blob, str) for blob in blobs):
        raise UsageError('the body must be {"blobs": [names]}')
    store = request.app[DAEMON].storage.blobs
    missing = await asyncio.to_thread(lambda: [blob for blob in blobs if not store.has(BlobId(blob))])
    return web.json_response({"missing": missing})


async def _put_blob(request: web.Request) -> web.Response:
    """A blob of any size, written as it comes in: neither memory nor the loop notices how large it is."""
    daemon = request.app[DAEMON]
    blob, size = BlobId(request.match_info["blob"]), request.content_length
    if size is None:
        raise UsageError("a blob must come with its Content-Length")
    digest = hashlib.sha256()
    offset = 0
    async with writing(daemon.storage.blobs, blob, size) as writer:
        async for piece in request.content.iter_chunked(READ_BYTES):
            digest.update(piece)
            await in_thread(writer.write, offset, piece)
            offset += len(piece)
        if (found := digest.hexdigest()) != blob or offset != size:
            raise UsageError(f"what was sent as blob {blob[:12]}… has the hash {found[:12]}…; send it again")
        daemon.blobs.given.add(blob)
        await in_thread(writer.finish)
    return web.json_response({})


async def _get_blob(request: web.Request) -> web.StreamResponse:
    daemon = request.app[DAEMON]
    blob = BlobId(request.match_info["blob"])
    store = daemon.storage.blobs
    try:
        await daemon.blobs.fetch(blob)
    except StorageError as error:
        raise NotFoundError(str(error)) from error
    size = await asyncio.to_thread(store.size, blob)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = size
    await response.prepare(request)
    for offset in range(0, size, READ_BYTES):
        await response.write(await asyncio.to_thread(store.read, blob, offset, min(READ_BYTES, size - offset)))
    return response


async def _plan(request: web.Request) -> web.Response:
    plan = await request.app[DAEMON].jobs.plan(await request.read())
    return web.json_response({"plan": msgspec.to_builtins(plan), "lines": list(plan.reasons)})


async def _submit(request: web.Request) -> web.Response:
    spec = (await read_json(request)).get("spec")
    if not isinstance(spec, str):
        raise UsageError('the body must be {"spec": "<blob>"}')
    return web.json_response({"job": await request.app[DAEMON].jobs.submit(BlobId(spec))})


async def _jobs(request: web.Request) -> web.Response:
    jobs = request.app[DAEMON].jobs
    found = [jobs.get(job) for job in jobs.records]
    return web.json_response({"jobs": [views.summary(r) for r in sorted(found, key=lambda r: r.created_s)]})


async def _job(request: web.Request) -> web.Response:
    daemon = request.app[DAEMON]
    record = daemon.jobs.get(request.match_info["job"])
    entry = daemon.jobs.work.entries.get(record.job)
    return web.json_response(views.details(record, entry, daemon.members.snapshot()))


async def _change(request: web.Request) -> web.Response:
    jobs, job = request.app[DAEMON].jobs, request.match_info["job"]
    if (verb := request.match_info["verb"]) != "resume":
        return web.json_response({"state": await jobs.ask(job, verb)})
    after = jobs.journal(jobs.get(job).job).number  # what has happened until now is past
    return web.json_response({"job": job, "state": await jobs.ask(job, verb), "after": after})


async def _events(request: web.Request) -> web.StreamResponse:
    jobs = request.app[DAEMON].jobs
    text = request.query.get("after", "0")
    after = int(text) if text.isdigit() and len(text) < 16 else 0
    stream = jobs.events(request.match_info["job"], after)  # refuses before the answer begins
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for event in stream:
        await response.write(json.dumps(event).encode() + b"\n")
    return response


async def _results(request: web.Request) -> web.Response:
    return web.json_response(views.results(request.app[DAEMON].jobs.get(request.match_info["job"])))


async def _trace(request: web.Request) -> web.StreamResponse:
    """Lines of JSON: which nodes, then each one's part (`job.trace.NodePart`, its bytes in base64) or why it is missing."""
    daemon = request.app[DAEMON]
    record = daemon.jobs.get(request.match_info["job"])
    if record.plan is None:
        raise NotFoundError(
            f"job {record.job} is {record.state} and no node has begun with it, so there is no trace of it yet"
        )
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    head = {"job": record.job, "generation": record.generation, "nodes": [share.name for share in record.plan.nodes]}
    await response.write(msgspec.json.encode(head) + b"\n")
    async for found in daemon.traces.collect(record):
        line = {"missing": found.name, "reason": found.reason} if isinstance(found, Missing) else {"part": found}
        await response.write(msgspec.json.encode(line) + b"\n")
    return response


async def _datasets(request: web.Request) -> web.Response:
    daemon = request.app[DAEMON]
    return web.json_response({"datasets": await asyncio.to_thread(views.datasets, daemon)})


async def _remove_dataset(request: web.Request) -> web.Response:
    freed = await asyncio.to_thread(views.remove_dataset, request.app[DAEMON], request.match_info["dataset"])
    return web.json_response({"bytes": freed})
