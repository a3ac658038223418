"""A daemon with its API on a unix socket, in the test's loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from p2pnn.api.app import application
from p2pnn.node.daemon import Daemon
from tests.node.nodes import config


@dataclass
class Api:
    """call: (status, JSON) of a request below /api/v1."""

    daemon: Daemon
    session: aiohttp.ClientSession
    stop: asyncio.Event

    async def call(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        async with self.session.request(method, f"http://node/api/v1/{path}", **body) as response:
            return response.status, await response.json()

    async def raw(self, path: str) -> tuple[int, bytes]:
        async with self.session.get(f"http://node/api/v1/{path}") as response:
            return response.status, await response.read()


@contextlib.asynccontextmanager
async def api(folder: Path, **changes: Any) -> AsyncIterator[Api]:
    daemon = Daemon(config(folder, **changes))
    await daemon.start()
    stop = asyncio.Event()
    runner = web.AppRunner(application(daemon, stop), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(daemon.config.socket)).start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(daemon.config.socket))) as session:
            yield Api(daemon, session, stop)
    finally:
        await daemon.close("the test is over")
        await runner.cleanup()
