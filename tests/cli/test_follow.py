"""Following a job over breaks, interruptions and ends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from p2pnn.cli import follow as following
from p2pnn.cli import terminal
from p2pnn.cli.http import Daemon
from p2pnn.errors import JobFailedError
from tests.cli.fake import FakeDaemon

EVENTS: list[dict[str, Any]] = [
    {"number": 1, "time": 0.0, "kind": "state", "state": "running", "reason": ""},
    {"number": 2, "time": 1.0, "kind": "epoch", "epoch": 1, "epochs": 1, "loss": 0.5, "accuracy": 0.75},
    {
        "number": 3,
        "time": 2.0,
        "kind": "evaluation",
        "split": "test",
        "rows": 4,
        "loss": 0.5,
        "metrics": {"accuracy": 0.75},
    },
    {"number": 4, "time": 2.0, "kind": "result", "bits": "9f3a-22c1-7d40"},
    {"number": 5, "time": 2.0, "kind": "state", "state": "done", "reason": ""},
]


def serve(daemon: FakeDaemon, events: list[dict[str, Any]], *, breaks_after: int | None = None) -> None:
    """Events after any number; the first stream breaks off after one of them."""

    def answer(after: int) -> Callable[[bytes], Iterator[Any]]:
        left = [event for event in events if event["number"] > after]
        if after == 0 and breaks_after is not None:
            left = [event for event in left if event["number"] <= breaks_after] + [None]  # type: ignore[list-item]
        return lambda body: iter(left)

    for after in range(len(events) + 1):
        daemon[f"GET jobs/j/events?after={after}"] = answer(after)
    states = [event["state"] for event in events if event["kind"] == "state"]
    daemon["GET jobs/j"] = {"state": states[-1]}


def seen(daemon: FakeDaemon, **options: Any) -> tuple[following.Outcome, list[int]]:
    numbers: list[int] = []
    outcome = following.follow(Daemon(daemon.path), "j", lambda event: numbers.append(event["number"]), **options)
    return outcome, numbers


def test_to_the_end(daemon: FakeDaemon) -> None:
    serve(daemon, EVENTS)
    outcome, numbers = seen(daemon)
    assert numbers == [1, 2, 3, 4, 5]
    assert outcome.state == "done"
    assert outcome.evaluations[0]["metrics"] == {"accuracy": 0.75}
    assert outcome.result is not None
    assert outcome.result["bits"] == "9f3a-22c1-7d40"
    outcome.raise_if_failed()


def test_a_stream_that_breaks_is_taken_up_after_the_last_number(daemon: FakeDaemon) -> None:
    serve(daemon, EVENTS, breaks_after=2)
    outcome, numbers = seen(daemon)
    assert numbers == [1, 2, 3, 4, 5]
    assert outcome.state == "done"


def test_a_stream_without_an_end_of_a_job_that_ended(daemon: FakeDaemon) -> None:
    serve(daemon, EVENTS[:2])
    daemon["GET jobs/j"] = {"state": "failed", "reason": "node b is gone"}
    outcome, _ = seen(daemon)
    with pytest.raises(JobFailedError, match="the job j failed: node b is gone"):
        outcome.raise_if_failed()


def again(state: str, number: int) -> dict[str, Any]:
    return {"number": number, "time": 3.0, "kind": "state", "state": state, "reason": ""}


RESUMED = [
    *EVENTS[:2],
    again("paused", 3),
    again("running", 4),
    again("failed", 5),
    again("running", 6),
    again("done", 7),
]


def test_an_end_from_which_the_job_was_resumed_is_no_end(daemon: FakeDaemon) -> None:
    serve(daemon, RESUMED)
    outcome, numbers = seen(daemon)
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert outcome.state == "done"


@pytest.mark.parametrize("broken", [3, 5])
def test_a_stream_that_breaks_at_an_old_end_is_taken_up(daemon: FakeDaemon, broken: int) -> None:
    serve(daemon, RESUMED, breaks_after=broken)
    assert seen(daemon)[1] == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_past_is_not_told_again(daemon: FakeDaemon) -> None:
    serve(daemon, RESUMED)
    outcome, numbers = seen(daemon, after=5)
    assert numbers == [6, 7]
    assert outcome.state == "done"


def test_a_daemon_that_dies_behind_the_end(daemon: FakeDaemon) -> None:
    serve(daemon, EVENTS)
    daemon["GET jobs/j"] = lambda body: None
    assert seen(daemon)[0].state == "done"


def test_a_daemon_that_dies(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "REDIAL_DEADLINE_S", 0.0)
    serve(daemon, EVENTS, breaks_after=2)
    daemon["GET jobs/j/events?after=2"] = lambda body: None
    daemon["GET node"] = lambda body: None
    daemon["GET jobs/j"] = lambda body: None
    with pytest.raises(JobFailedError, match=r"ended while j ran; start one again and `p2pnn jobs resume j`"):
        seen(daemon)


def test_a_daemon_of_ours_that_fell_says_why(daemon: FakeDaemon) -> None:
    daemon["GET jobs/j/events?after=0"] = lambda body: None
    with pytest.raises(JobFailedError, match="node b of the local mesh ended with status -9"):
        seen(daemon, fallen=lambda: "node b of the local mesh ended with status -9: it said nothing")


def interrupt_once(daemon: FakeDaemon) -> Callable[[dict[str, Any]], None]:
    """A show that is interrupted by Ctrl-C at the first event; after a cancel the job ends."""
    serve(daemon, EVENTS[:1])
    cancelled = {"number": 2, "time": 0.0, "kind": "state", "state": "cancelled", "reason": "cancelled"}

    def cancel(body: bytes) -> Any:
        daemon["GET jobs/j/events?after=1"] = lambda body: iter([cancelled])
        daemon["GET jobs/j"] = {"state": "cancelled"}
        return {"state": "cancelled"}

    daemon["POST jobs/j/cancel"] = cancel
    first = iter([True])

    def show(event: dict[str, Any]) -> None:
        if next(first, False):
            raise KeyboardInterrupt

    return show


def test_ctrl_c_without_a_terminal_cancels(daemon: FakeDaemon) -> None:
    outcome = following.follow(Daemon(daemon.path), "j", interrupt_once(daemon))
    assert outcome.state == "cancelled"
    assert len(daemon.bodies("POST jobs/j/cancel")) == 1
    with pytest.raises(KeyboardInterrupt):
        outcome.raise_if_failed()


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        (["d\n"], "detached"),
        (["Detach\n"], "detached"),
        (["c\n"], "cancelled"),
        (["\n", "x\n", "cd\n", "d\n"], "detached"),
        (["\n", "c\n"], "cancelled"),
        ([""], "detached"),  # the end of the input
    ],
)
def test_ctrl_c_asks_in_a_terminal_until_it_is_answered(
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[str],
    state: str,
) -> None:
    typed = iter(answers)
    monkeypatch.setattr(terminal, "can_ask", lambda: True)
    monkeypatch.setattr("sys.stdin", type("Typed", (), {"readline": lambda self: next(typed)})())
    outcome = following.follow(Daemon(daemon.path), "j", interrupt_once(daemon))
    assert outcome.state == state
    assert capsys.readouterr().err.count("detach (the job runs on) or cancel it? [d/c]") == len(answers)
    assert list(typed) == []


def test_ctrl_c_on_a_local_mesh_does_not_ask(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "can_ask", lambda: True)
    outcome = following.follow(Daemon(daemon.path), "j", interrupt_once(daemon), may_detach=False)
    assert outcome.state == "cancelled"


def test_a_second_ctrl_c_cancels_at_the_question(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "can_ask", lambda: True)
    monkeypatch.setattr("sys.stdin", type("Typed", (), {"readline": interrupted})())
    outcome = following.follow(Daemon(daemon.path), "j", interrupt_once(daemon))
    assert outcome.state == "cancelled"


PROGRESS = {"kind": "progress", "step": 1, "steps": 2, "epoch": 1, "epochs": 2, "loss": 0.5, "metrics": {}, "number": 9}


def test_without_a_terminal_there_is_one_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    lines = following.Lines()
    for event in (PROGRESS, *EVENTS):
        lines.show(event)
    captured = capsys.readouterr()
    assert captured.err == "epoch 1/1  loss 0.5000  accuracy 75.0 %\n"
    assert captured.out == ""


WIPE = "\r\x1b[2K"


def screen(error: str) -> list[str]:
    """What a terminal shows in the end."""
    return [line.rpartition(WIPE)[2] for line in error.split("\n")]


def test_in_a_terminal_one_line_is_drawn_again_and_the_epoch_stays(capsys: pytest.CaptureFixture[str]) -> None:
    lines = following.Lines(redraw=True)
    for event in (PROGRESS, EVENTS[0], EVENTS[1], {"kind": "warning", "text": "slow disk"}, PROGRESS, EVENTS[-1]):
        lines.show(event)
    lines.clear()
    error = capsys.readouterr().err
    assert error.count(f"{WIPE}epoch 1/2") == 2
    assert screen(error) == ["warning: slow disk", "epoch 1/1  loss 0.5000  accuracy 75.0 %", ""]


def test_epochs_that_take_their_time_stay(capsys: pytest.CaptureFixture[str]) -> None:
    lines = following.Lines(redraw=True)
    for epoch, time in enumerate((3.0, 6.0, 11.0, 20.0, 33.0), 1):
        lines.show(PROGRESS | {"epoch": epoch, "time": 0.0})
        lines.show({"kind": "epoch", "epoch": epoch, "epochs": 5, "loss": 0.5, "time": time})
    lines.show(EVENTS[-1])
    lines.clear()
    shown = screen(capsys.readouterr().err)
    assert shown == ["epoch 3/5  loss 0.5000", "epoch 5/5  loss 0.5000", ""]


def test_nodes_that_prepare_share_a_line_that_goes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = following.Lines(redraw=True)
    for node in "bc":
        lines.show({"kind": "preparing", "node": node, "fetched_bytes": 1024, "total_bytes": 2048})
    lines.show(EVENTS[0])
    lines.show({"kind": "preparing", "node": "d", "fetched_bytes": 0, "total_bytes": 9})
    lines.clear()
    drawn = capsys.readouterr().err.split(WIPE)
    assert drawn[1:] == [
        "preparing the data on b 1.0 KiB of 2.0 KiB",
        "preparing the data on b 1.0 KiB of 2.0 KiB, c 1.0 KiB of 2.0 KiB",
        "preparing the data on d 0 B of 9 B",
        "",
    ]


def test_after_a_cancel_no_progress_is_drawn(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words begin on a line of their own: the terminal has written ^C behind the drawn one."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    show = interrupt_once(daemon)

    def cancel(body: bytes) -> Any:
        rest = [PROGRESS | {"number": 2}, {"number": 3, "kind": "state", "state": "cancelled", "reason": ""}]
        daemon["GET jobs/j/events?after=1"] = lambda body: iter(rest)
        daemon["GET jobs/j"] = {"state": "cancelled"}
        return {"state": "cancelled"}

    daemon["POST jobs/j/cancel"] = cancel
    seen: list[str] = []

    def record(event: dict[str, Any]) -> None:
        seen.append(event["kind"])
        show(event)

    following.follow(Daemon(daemon.path), "j", record, may_detach=False)
    assert seen == ["state", "state"]
    assert capsys.readouterr().err == "\ncancelling j …\n"
