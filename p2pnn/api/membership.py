"""The API of who is in: joining, tokens, removing a member."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from p2pnn.api.request import DAEMON, read_json
from p2pnn.errors import UsageError
from p2pnn.identity.tokens import VALID_S, Token, TokenRecord
from p2pnn.node.addresses import interfaces, join_addresses
from p2pnn.node.daemon import Daemon
from p2pnn.types import Address

if TYPE_CHECKING:  # a plain node loads no cryptography
    from p2pnn.node.identity import Identity


def add_routes(app: web.Application, prefix: str) -> None:
    app.router.add_post(f"{prefix}/join", _join)
    app.router.add_get(f"{prefix}/tokens", _tokens)
    app.router.add_post(f"{prefix}/tokens", _make_token)
    app.router.add_post(f"{prefix}/tokens/revoke", _revoke_token)
    app.router.add_post(f"{prefix}/members/remove", _remove_member)


async def _join(request: web.Request) -> web.Response:
    """{"token", "addresses", "force"} → {"address": by which it worked}."""
    body = await read_json(request)
    texts = body.get("addresses")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("name at least one address of a member, as the line of `p2pnn token create` does")
    token, addresses = Token.parse(_text(body, "token")), [_peer(text) for text in texts]
    address = await _identity(request.app[DAEMON]).join(token, addresses, force=body.get("force") is True)
    return web.json_response({"address": str(address), "cluster": token.cluster})


async def _tokens(request: web.Request) -> web.Response:
    return web.json_response({"tokens": [_shown(record) for record in _identity(request.app[DAEMON]).token_records()]})


async def _make_token(request: web.Request) -> web.Response:
    """{"valid_s"} → the token, once, and the line to join with."""
    daemon = request.app[DAEMON]
    valid_s = (await read_json(request)).get("valid_s", VALID_S)
    if not isinstance(valid_s, int | float) or isinstance(valid_s, bool):
        raise UsageError("valid_s is a number of seconds")
    identity = _identity(daemon)
    join_addresses(daemon.address, daemon.config.advertise, interfaces())  # without any, no token is made
    token, record = await identity.make_token(valid_s)
    line = identity.join_line(token, daemon.config.advertise, daemon.address)
    return web.json_response({"token": str(token), "line": line, **_shown(record)})


async def _revoke_token(request: web.Request) -> web.Response:
    await _identity(request.app[DAEMON]).revoke_token(_text(await read_json(request), "id"))
    return web.json_response({})


async def _remove_member(request: web.Request) -> web.Response:
    await _identity(request.app[DAEMON]).remove(_text(await read_json(request), "member"))
    return web.json_response({})


def _identity(daemon: Daemon) -> Identity:
    if daemon.secured is None:
        raise UsageError(
            "this is a plain node (--plain): it has no keys, and whoever runs on this machine may join it by its address"
        )
    return daemon.secured.identity


def _shown(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "by": record.by,
        "created_s": record.created_s,
        "expires_s": record.expires_s,
        "revoked": record.revoked,
    }


def _peer(text: str) -> Address:
    address = Address.parse(text)
    if not address.port:
        raise UsageError(f"{text!r} names port 0, on which no peer can be reached")
    return address


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the body must have {key!r}, a text")
    return value
