"""Whether nodes are of one opinion, by what they answer."""

from __future__ import annotations

from typing import Any

VOTERS = {1: 1, 2: 1, 3: 3, 4: 3}
"""Members → voters; five from five members on."""


def disagreement(wanted: set[str], seen: dict[str, Any], peers: dict[str, Any]) -> str:
    """Why these nodes are not of one opinion, empty where they are. seen, peers: their answers to `cluster` and `peers`."""
    for name in sorted(wanted):
        if name not in seen or name not in peers:
            return f"{name} does not answer"
        alive = {peer["name"] for peer in peers[name]["peers"] if peer["state"] in ("self", "alive")}
        if missing := wanted - alive:
            return f"{name} does not see {', '.join(sorted(missing))}"
    opinions = {(one["coordinator"], one["term"], one["version"]) for one in seen.values()}
    if len(opinions) > 1:
        return f"they follow {len(opinions)} different charters or coordinators"
    one = next(iter(seen.values()))
    if not one["coordinator"]:
        return "nobody leads"
    members = {member["name"] for member in one["members"]}
    if wanted - members:
        return f"{', '.join(sorted(wanted - members))} is no member"
    voters = sum(member["voter"] for member in one["members"])
    if voters < VOTERS.get(len(members), 5):
        return f"{voters} of {len(members)} members vote"
    return ""
