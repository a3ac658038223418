"""What a data-parallel run says at its end, word for word."""

from __future__ import annotations

from typing import Any

from p2pnn.cli import exchanged

LAST: dict[str, Any] = {
    "kind": "progress",
    "step": 90,
    "steps": 100,
    "staleness": {"2": 300, "0": 10, "1": 90, "32": 1},
    "pushed_bytes": 104_448.0,
    "fetched_bytes": 52_224.0,
    "pushed_bytes_total": 9_437_184,  # it was stopped early: of 90 steps, not of 100
    "fetched_bytes_total": 4_718_592,
    "refused": {"b": {"TOO_STALE": 3, "FROM_THE_FUTURE": 1}, "a": {"NOT_FINITE": 1}},
    "set_aside": ["a"],
    "slowest": "b",
}


def test_the_end_of_a_run() -> None:
    assert list(exchanged.lines(LAST)) == [
        "staleness    updates behind  pushes",
        "                          0      10   2.5 %  ━",
        "                          1      90  22.4 %  ━━━━━━━━━",
        "                          2     300  74.8 %  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━",
        "                      32–63       1   0.2 %  ━",
        "refused      1 push of a: its gradient has NaN or infinite elements",
        "refused      3 pushes of b: it is based on parameters that are too old",
        "refused      1 push of b: FROM_THE_FUTURE",
        "set aside    a, for bad pushes",
        "exchanged    9.0 MiB pushed, 4.5 MiB fetched",
    ]


def test_where_nothing_was_stale_one_line_says_so() -> None:
    last = LAST | {"staleness": {"0": 1234}, "refused": {}, "set_aside": []}
    assert next(exchanged.lines(last)) == "staleness    0 of all 1,234 pushes"
    assert len(list(exchanged.lines(last))) == 2


def test_a_run_without_shards_says_nothing() -> None:
    plain = {"kind": "progress", "step": 1, "steps": 2}
    for last in ({}, plain):
        assert list(exchanged.lines(last)) == []
        assert exchanged.summary(last) == {}


def test_the_same_for_programs() -> None:
    assert exchanged.summary(LAST) == {
        "exchange": {
            "staleness": LAST["staleness"],
            "refused": LAST["refused"],
            "set_aside": ["a"],
            "pushed_bytes": 9_437_184,
            "fetched_bytes": 4_718_592,
        }
    }


def test_epochs_whose_batches_were_not_all_trained_exactly_once() -> None:
    epochs = [
        {"epoch": 1, "step": 9},
        {"epoch": 2, "trained_again": 3.0},
        {"epoch": 3, "trained_again": 1, "never_trained": 1},
    ]
    assert list(exchanged.coverage(epochs)) == [
        "coverage     epoch 2: 3 batches trained again, since their worker was lost",
        "coverage     epoch 3: 1 batch trained again, since their worker was lost",
        "coverage     epoch 3: 1 batch given up, since their gradients were refused twice for what they held",
    ]


def test_what_travels_to_backups_and_who_holds_the_shards() -> None:
    held = {"shard": 0, "primary": "a", "backups": ["b"], "learners": [], "lag": 0}
    last = LAST | {"copied_bytes": 1024.0, "copied_bytes_total": 7168, "shards": [held]}
    assert any(line.endswith("sent to backups") for line in exchanged.lines(last))
    found = exchanged.summary(last)["exchange"]
    assert (found["copied_bytes"], found["shards"]) == (7168, [held])
    assert exchanged.holders(held) == "a, backup b"
    assert exchanged.holders(held | {"backups": [], "learners": ["c"]}) == "a, no backup; c catches up"
