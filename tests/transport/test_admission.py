"""Decisions about a Hello, as one table."""

from __future__ import annotations

import msgspec
import pytest

from p2pnn.transport import LocalIdentity
from p2pnn.transport.admission import Accept, Introduce, Linked, Ours, Refuse, admit
from p2pnn.types import NodeId
from p2pnn.wire.messages import CloseReason, Hello, LinkKind

LARGE = "f" * 32
SMALL = "0" * 32
LOCAL = LocalIdentity(NodeId("8" * 32), "me", "mesh", "boot")
CONTROL = Hello(1, 1, LinkKind.CONTROL, LARGE, "peer", "mesh", 7700, "b1")
DATA = Hello(1, 1, LinkKind.DATA, LARGE, "peer", "mesh", 7700, "b1", "s1")
OPEN = Linked("b1", "s1", has_data=False)

CASES: list[tuple[str, Hello, dict[str, object], Linked | None, Ours, object]] = [
    ("a stranger", CONTROL, {}, None, Ours.NONE, Accept),
    ("while we connect", CONTROL, {}, None, Ours.CONNECTING, Accept),
    ("both said Hello, ours stays", CONTROL, {}, None, Ours.GREETING, CloseReason.REPLACED),
    ("both said Hello, theirs stays", CONTROL, {"node": SMALL}, None, Ours.GREETING, Accept),
    ("linked already", CONTROL, {}, OPEN, Ours.NONE, Introduce),
    ("restarted", CONTROL, {"boot": "b2"}, OPEN, Ours.NONE, Accept),
    ("another cluster", CONTROL, {"cluster": "mesh2"}, None, Ours.NONE, CloseReason.WRONG_CLUSTER),
    (
        "another cluster, and itself",
        CONTROL,
        {"cluster": "x", "node": LOCAL.node},
        None,
        Ours.NONE,
        CloseReason.WRONG_CLUSTER,
    ),
    ("itself", CONTROL, {"node": LOCAL.node, "boot": "boot"}, None, Ours.NONE, CloseReason.SELF),
    ("a copy of itself", CONTROL, {"node": LOCAL.node}, None, Ours.NONE, CloseReason.SELF),
    ("data", DATA, {}, OPEN, Ours.NONE, Accept),
    ("data without control", DATA, {}, None, Ours.NONE, CloseReason.NO_SESSION),
    ("data with a guess", DATA, {"session": "s2"}, OPEN, Ours.NONE, CloseReason.NO_SESSION),
    ("data of another boot", DATA, {"boot": "b2"}, OPEN, Ours.NONE, CloseReason.NO_SESSION),
    ("a second data link", DATA, {}, Linked("b1", "s1", has_data=True), Ours.NONE, CloseReason.TOO_MANY),
    ("data, ours stays", DATA, {}, OPEN, Ours.GREETING, CloseReason.REPLACED),
    ("data, theirs stays", DATA, {"node": SMALL}, OPEN, Ours.GREETING, Accept),
    ("data while we connect", DATA, {}, OPEN, Ours.CONNECTING, Accept),
]


@pytest.mark.parametrize(
    ("hello", "changes", "linked", "ours", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_admission(
    hello: Hello, changes: dict[str, object], linked: Linked | None, ours: Ours, expected: object
) -> None:
    answer = admit(LOCAL, msgspec.structs.replace(hello, **changes), linked, ours, full=False)
    if isinstance(expected, CloseReason):
        assert isinstance(answer, Refuse)
        assert answer.reason is expected
        assert answer.text
    else:
        assert type(answer) is expected
    if isinstance(answer, Accept):
        assert answer.restarted == (linked is not None and hello.link is LinkKind.CONTROL)


def test_a_full_node_admits_nobody() -> None:
    answer = admit(LOCAL, CONTROL, None, Ours.NONE, full=True)
    assert isinstance(answer, Refuse)
    assert answer.reason is CloseReason.TOO_MANY


def test_of_two_that_said_hello_exactly_one_link_stays() -> None:
    for here, there in ((SMALL, LARGE), (LARGE, SMALL)):
        answers = []
        for local, remote in ((here, there), (there, here)):
            me = LocalIdentity(NodeId(local), "me", "mesh", "boot")
            answers.append(admit(me, msgspec.structs.replace(CONTROL, node=remote), None, Ours.GREETING, full=False))
        assert sorted(type(answer).__name__ for answer in answers) == ["Accept", "Refuse"]
