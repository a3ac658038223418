"""The numbers agree with each other and with the document."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnn.wire import charter, fields, limits
from p2pnn.wire.limits import Limits

from .document import table


def test_the_document_has_every_limit() -> None:
    documented = {row[0]: int(row[1]) for row in table("Limits")}
    own = {
        "RECEIVE_BUFFER_BYTES",
        "DATA_WINDOW_BYTES",
        "READ_AHEAD_BYTES",
        "COALESCE_BYTES_MAX",
    }  # how we receive is not the peer's business
    ours = {
        name: value
        for module in (limits, fields, charter)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int) and not name.startswith("VERSION") and name not in own
    }
    assert documented == ours


def test_the_document_has_every_deadline() -> None:
    documented = {row[0]: float(row[1]) for row in table("Deadlines")}
    assert documented == {name: getattr(Limits(), name) for name in Limits.__dataclass_fields__ if name.endswith("_s")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"ping_interval_s": 5.0},
        {"ping_interval_s": 0.0},
        {"stall_deadline_s": 31.0},
        {"handshake_deadline_s": 0.0},
        {"body_bytes_max": limits.BODY_BYTES_MAX + 1},
        {"piece_bytes": 0},
        {"piece_bytes": limits.PIECE_BYTES_MAX + 1},
        {"queue_messages_max": 0},
        {"queue_bytes_max": limits.HEADER_BYTES_MAX},
    ],
    ids=str,
)
def test_numbers_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
