"""What the handlers of the API share: the daemon that they speak for, and a body of JSON."""

from __future__ import annotations

import json
from typing import Any, Final

from aiohttp import web

from p2pnn.errors import UsageError
from p2pnn.node.daemon import Daemon

DAEMON: Final = web.AppKey("daemon", Daemon)


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body as an object. Raises UsageError."""
    try:
        found = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("the body must be a JSON object")
    return found
