"""How fast a learner has gone so far, as its primary sees it."""

from __future__ import annotations

from p2pnn.replication.peers import Peer

from .mesh import B


def test_a_pace_is_of_what_came_lately_and_not_of_a_state() -> None:
    peer = Peer(B, 0.0, 0.0)
    peer.measure(1.0)
    assert peer.pace == 0
    peer.acknowledged(5, 5, 1.0)
    peer.measure(2.0)
    assert peer.pace == 0, "nobody knows how long it has held those"
    peer.acknowledged(25, 25, 2.0)
    peer.measure(4.0)
    assert peer.pace == 5
    peer.acknowledged(500, 500, 4.0)
    peer.has_state()
    peer.acknowledged(510, 510, 4.5)
    peer.measure(5.0)
    assert peer.pace == 7.5
    peer.measure(6.0)
    assert peer.pace == 3.75
