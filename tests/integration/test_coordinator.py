"""Killing the coordinator of real daemons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.mesh import Mesh, mesh, wait_until


def agreement(m: Mesh, *names: str) -> dict[str, Any] | None:
    """What all of these nodes say of the cluster; None where they differ, or nobody leads three voters."""
    seen: list[dict[str, Any]] = [m[name].get("cluster") for name in names]
    first = seen[0]
    if any((one["coordinator"], one["term"], one["version"]) != _state(first) for one in seen):
        return None
    voters = sum(member["voter"] for member in first["members"])
    return first if first["coordinator"] and voters == 3 else None


def _state(found: dict[str, Any]) -> tuple[str, int, str]:
    return found["coordinator"], found["term"], found["version"]


def test_a_killed_coordinator_is_replaced_and_follows_when_it_is_back(tmp_path: Path) -> None:
    with mesh(tmp_path, 3) as m:
        wait_until(lambda: agreement(m, "a", "b", "c") is not None, "three voters have one coordinator")
        before = agreement(m, "b", "c")
        assert before is not None
        assert before["coordinator"] == next(one["node"] for one in before["members"] if one["name"] == "a")
        m.nodes["a"].kill()

        def replaced() -> bool:
            found = agreement(m, "b", "c")
            return found is not None and found["coordinator"] != before["coordinator"]

        wait_until(replaced, "there is another coordinator", 10.0)
        after = agreement(m, "b", "c")
        assert after is not None
        assert (after["term"], after["cluster"]) == (before["term"] + 1, before["cluster"])
        m.start("a", join="b")
        wait_until(lambda: agreement(m, "a", "b", "c") is not None, "the old coordinator follows the new one", 15.0)
        assert _state(m["a"].get("cluster")) == _state(m["b"].get("cluster"))
        assert m["a"].get("cluster")["coordinator"] == after["coordinator"]
