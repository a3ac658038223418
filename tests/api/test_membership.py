"""The API of who is in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from p2pnn.identity.tokens import VALID_S
from tests.api.http import Api, api
from tests.node.nodes import until

pytestmark = pytest.mark.asyncio


async def post(a: Api, path: str, **body: Any) -> tuple[int, Any]:
    return await a.call("POST", path, json=body)


async def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    async with api(tmp_path, secured=True, advertise=("10.0.0.1:7700",)) as a:
        await until(lambda: a.daemon.charter.coordinates)
        status, made = await post(a, "tokens", valid_s=3600)
        assert status == 200
        assert made["line"] == f"p2pnn join {made['token']} 10.0.0.1:7700"
        assert made["expires_s"] - made["created_s"] == 3600
        _, listed = await a.call("GET", "tokens")
        assert made["id"] in {token["id"] for token in listed["tokens"]}
        secret = made["token"].rpartition(".")[2]
        assert secret not in str(listed)
        assert await post(a, "tokens/revoke", id=made["token"]) == (200, {})
        _, listed = await a.call("GET", "tokens")
        assert [t["revoked"] for t in listed["tokens"] if t["id"] == made["id"]] == [True]
        _, node = await a.call("GET", "node")
        assert node["secured"]["holds_authority"] is True
        assert re.fullmatch(r"[0-9a-f]{64}", node["secured"]["cluster"])


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async with api(tmp_path, secured=True) as a:
        await until(lambda: a.daemon.charter.coordinates)
        token = f"p2pnn1.{'ab' * 32}.01234567.{'cd' * 16}"
        for path, body, why in (
            ("tokens", {"valid_s": VALID_S * 99}, "valid for a minute to 30 days"),
            ("tokens", {"valid_s": True}, "a number of seconds"),
            ("tokens/revoke", {}, "must have 'id'"),
            ("tokens/revoke", {"id": "zzzzzzzz"}, "no token's id"),
            ("members/remove", {"member": "nobody"}, "no member is called"),
            ("members/remove", {"member": "a"}, "the only member"),
            ("members/remove", {"member": 7}, "must have 'member'"),
            ("join", {"token": token, "addresses": []}, "at least one address"),
            ("join", {"token": "x", "addresses": ["h:1"]}, "bad token"),
            ("join", {"token": token, "addresses": ["h:0"]}, "port 0"),
            ("join", {"token": token, "addresses": ["127.0.0.1:1"]}, "refused: nothing listens there"),
        ):
            status, answer = await post(a, path, **body)
            assert status in (400, 403), (path, body)
            assert why in answer["error"], answer


async def test_a_plain_node_has_no_tokens_and_joins_by_address(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        for path in ("tokens", "tokens/revoke", "members/remove"):
            status, answer = await post(a, path, id="01234567", member="a")
            assert status == 400
            assert "this is a plain node" in answer["error"]
