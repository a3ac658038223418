"""Real daemons that lose the majority of their voters, for a while or for good, and one that returns as another."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli.http import Daemon
from p2pnn.errors import P2pnnError
from tests.integration.mesh import Mesh, mesh, wait_until

SOON_S = 30.0


def cluster(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.get("cluster")
    return found


def leads(m: Mesh, *names: str, voters: int, members: int | None = None) -> bool:
    """Whether all of these name one coordinator, in a cluster of so many voters."""
    found = [cluster(m[name]) for name in names]
    return (
        len({one["coordinator"] for one in found}) == 1
        and not any(one["parked"] for one in found)
        and all(sum(member["voter"] for member in one["members"]) == voters for one in found)
        and all(len(one["members"]) == (members or len(one["members"])) for one in found)
    )


def member(m: Mesh, at: str, node: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in cluster(m[at])["members"] if one["node"] == node)
    return found


def test_the_side_without_a_majority_parks_and_says_why_the_other_goes_on_and_all_heal(tmp_path: Path) -> None:
    with mesh(tmp_path, 5) as m:
        wait_until(lambda: leads(m, *"abcde", voters=5), "five voters have one coordinator", SOON_S)
        for name in "de":
            m.nodes[name].process.send_signal(signal.SIGSTOP)
        ids = {one["name"]: one["node"] for one in cluster(m["a"])["members"]}
        wait_until(lambda: member(m, "a", ids["e"])["state"] == "away", "e is away", SOON_S)
        wait_until(lambda: leads(m, *"abc", voters=5), "three of five go on", SOON_S)
        for name in "abc":
            m.nodes[name].process.send_signal(signal.SIGSTOP)
        for name in "de":
            m.nodes[name].process.send_signal(signal.SIGCONT)
        for name in "de":
            wait_until(lambda name=name: "sees 2 of 5 voters" in cluster(m[name])["parked"], "two of five park", SOON_S)

            def says_all(name: str = name) -> bool:
                said = cluster(m[name])
                return (
                    said["parked"].startswith("this node sees 2 of 5 voters (d and e), and 3 must agree")
                    and "a, b and c" in said["parked"]
                    and m[name].get("peers")["parked"].startswith("this node sees 2 of 5")
                    and {one["state"] for one in said["members"] if one["name"] in "abc"} == {"away"}
                )

            wait_until(says_all, "they say why, and who is away", SOON_S)
        with pytest.raises(P2pnnError, match=r"wait until it is 30 s"):
            m["d"].post("cluster/recover", {"cluster": cluster(m["d"])["cluster"]})
        for name in "abc":
            m.nodes[name].process.send_signal(signal.SIGCONT)
        wait_until(lambda: leads(m, *"abcde", voters=5), "all five have one coordinator again", SOON_S)
        wait_until(lambda: all(one["state"] in ("alive", "self") for one in cluster(m["d"])["members"]), "all are back")


def test_a_node_that_lost_its_folder_returns_as_another_and_the_old_one_stays_away(tmp_path: Path) -> None:
    with mesh(tmp_path, 3) as m:
        wait_until(lambda: leads(m, *"abc", voters=3, members=3), "three voters have one coordinator", SOON_S)
        old = m["c"].get("node")["node"]
        m.nodes["c"].kill()
        shutil.rmtree(m.nodes["c"].folder)
        m.start("c", join="a", more=("--listen", m.nodes["c"].address))
        new = m["c"].get("node")["node"]
        assert new != old
        m.await_peers(*"abc")
        wait_until(lambda: leads(m, *"abc", voters=3, members=4), "it is admitted as another", SOON_S)
        wait_until(lambda: member(m, "a", new)["voter"], "it votes in the old one's place", SOON_S)
        for at in "ab":
            assert (member(m, at, old)["state"], member(m, at, old)["voter"]) == ("away", False)
            assert member(m, at, old)["reason"] in (
                "another node listens at its address",
                "its link was reset and it refuses connections: no process listens there",
            )

            def one_link(at: str = at) -> bool:
                rows = [row for row in m[at].get("peers")["peers"] if row["name"] == "c"]
                return [(row["node"], row["state"]) for row in rows if row["state"] != "unreachable"] == [
                    (new, "alive")
                ]

            wait_until(one_link, "one link, to the living one")
        assert m.nodes["a"].log.count("name taken twice") == 0


@pytest.mark.long
def test_a_cluster_whose_majority_is_lost_for_good_is_begun_anew_and_the_old_ones_are_told_what_to_do(
    tmp_path: Path,
) -> None:
    with mesh(tmp_path, 3) as m:
        wait_until(lambda: leads(m, *"abc", voters=3), "three voters have one coordinator", SOON_S)
        old = cluster(m["c"])["cluster"]
        for name in "ab":
            m.nodes[name].kill()
        wait_until(lambda: bool(cluster(m["c"])["parked"]), "c is parked", SOON_S)

        refusals = set[str]()

        def recovered() -> bool:
            try:
                m["c"].post("cluster/recover", {"cluster": old})
            except P2pnnError as error:
                refusals.add(str(error).partition(":")[2])
                return False
            return True

        wait_until(recovered, "c may begin anew", 2 * SOON_S)
        assert refusals == {" wait until it is 30 s, because voters may still be on their way"}
        wait_until(lambda: leads(m, "c", voters=1, members=1), "c is a cluster of its own", SOON_S)
        new = cluster(m["c"])["cluster"]
        assert new != old
        m.start("a", join="c")
        m.await_peers("a", "c")
        wait_until(lambda: cluster(m["c"])["foreign"] != [], "c says that a belongs elsewhere", SOON_S)
        assert f"node a belongs to cluster {old}, this node to cluster {new}" in cluster(m["c"])["foreign"][0]["reason"]
        wait_until(lambda: "sees 1 of 3 voters" in cluster(m["a"])["parked"], "a is parked in the old one", SOON_S)
        assert [one["name"] for one in cluster(m["c"])["members"]] == ["c"]
        m.nodes["a"].kill(signal.SIGTERM)
        (m.nodes["a"].folder / "charter").unlink()
        m.start("a", join="c")
        wait_until(lambda: leads(m, "a", "c", voters=1, members=2), "a has joined the new one", SOON_S)
        m.nodes["c"].kill(signal.SIGTERM)
        m.start("c", join="a")
        wait_until(lambda: leads(m, "a", "c", voters=1, members=2), "the new one outlives a restart", SOON_S)
