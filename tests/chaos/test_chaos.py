"""A few cells of the matrix in full, and that the harness sees what it is there to see. The rest is `./run chaos`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import counting
from tests.chaos.__main__ import lines, main, summary
from tests.chaos.agreement import disagreement
from tests.chaos.cells import EPOCHS, PHASES, ROLES, Cell, Run, matrix, undisturbed
from tests.chaos.faults import FAULTS
from tests.chaos.findings import Outcome
from tests.chaos.mesh import Mesh, mesh
from tests.chaos.witness import Witness
from tests.support.warm import ROOT


@pytest.mark.asyncio
async def test_a_coordinator_is_killed_stopped_and_cut_off(tmp_path: Path) -> None:
    async with mesh(tmp_path, "abc") as m, Witness(m) as seen:
        first = m.who("coordinator")
        m.kill(first)
        second, _ = await m.coordinator(within=30, other_than=first)
        assert second != first
        await m.start(first)
        await m.agreed(within=30)
        m.stop("coordinator")
        third, _ = await m.coordinator(within=30, other_than=second)
        m.go_on(second)
        await m.agreed(within=30)
        m.isolate("coordinator", one_way=True)
        fourth, _ = await m.coordinator(within=30, other_than=third)
        m.heal_all()
        await m.agreed(within=30)
        assert len({first, second}) == len({second, third}) == len({third, fourth}) == 2
        assert seen.looks
        assert not seen.twice_led
        assert not seen.back


@pytest.mark.asyncio
async def test_a_training_goes_on_without_a_holder_of_a_segment(tmp_path: Path) -> None:
    bits = await undisturbed(tmp_path / "one", EPOCHS["ending"])
    cell = Cell("holder", "kill", "preparing")
    run = Run(cell, 0, bits)
    run.epochs = EPOCHS["ending"]
    outcome = await run.play(tmp_path / "five")
    assert not outcome.void
    # Times are promised by ./run chaos, on a machine that does nothing else.
    assert [str(one) for one in outcome.broken if one.limit is None] == []
    assert {"the job is done", "same bits"} <= {one.promise for one in outcome.found}


@pytest.mark.long
@pytest.mark.asyncio
async def test_no_push_is_lost_or_doubled_whoever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "STEPS_PER_KILL", 1000)
    told: list[counting.Kill] = []
    play = counting.Play(3, 3, told.append)
    outcome = await play.play(tmp_path / "m")
    assert [str(one) for one in outcome.broken] == []
    assert {one.promise for one in outcome.found} == {counting.KEPT, counting.LIVE, counting.DONE, counting.CLEAN}
    assert told == play.kills
    assert told, "nobody was killed, so it says nothing"


def test_who_may_be_killed_and_what_is_printed_of_it() -> None:
    held = counting.Held(3, ["a", "b", "c"], [["d", "a"], ["a"]], "e")
    assert {role: sorted(held.whoever(role)) for role in counting.ROLES} == {
        "primary": ["a", "d"],
        "backup": ["a"],
        "worker": ["b", "c"],
        "coordinator": ["e"],
    }
    assert [name for name in "abcde" if held.can_spare(name)] == ["b", "c", "d", "e"], "a alone has a shard"
    assert held.roles("a") == ["primary", "backup", "worker"]
    assert not counting.Held(3, ["a"], [["d", "e"]], "e").can_spare("a"), "nobody would train"
    kept, lost = (counting.Play(seed, 2, print) for seed in (4, 5))
    kept.kills = [counting.Kill("primary", "d", (), "amid an epoch", 1200, 0.25)]
    kept.outcome.holds(counting.KEPT, True)
    lost.kills = [counting.Kill("worker", "c", ("primary",), "as an epoch ends", 80, 0.75)]
    lost.outcome.holds(counting.KEPT, False, "1 pushes are missing in left")
    assert str(lost.kills[0]) == "node c (worker, primary) at step 80, as an epoch ends: 0.75 s without a step"
    assert list(counting.lines(lost))[1:] == [
        "    NOT KEPT: no push is lost or doubled (1 pushes are missing in left)",
        "    again: ./run chaos --counting 1 --seed 5",
    ]
    assert [line.split() for line in counting.summary([kept, lost], 60.0)][2:4] == [
        ["primary", "1", "2", "0.50", "0.75"],
        ["worker", "1", "1", "0.75", "0.75"],
    ]
    assert list(counting.summary([kept, lost], 60.0))[-2:] == [
        "2 kills in 2 runs, 60 s: 0 batches trained again and told, 1 promises not kept",
        "    not kept 1 times: no push is lost or doubled",
    ]


@pytest.mark.parametrize("words", [["--counting", "0"], ["--counting", "3", "--only", "holder/*"]])
def test_kills_that_are_counted_go_with_no_cells(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "--counting " in capsys.readouterr().err


def test_the_matrix_has_every_role_fault_and_phase() -> None:
    cells = matrix()
    assert len(cells) == len(set(map(str, cells)))
    assert {cell.role for cell in cells} == set(ROLES)
    assert {cell.fault for cell in cells} == set(FAULTS)
    assert {cell.phase for cell in cells} == set(PHASES)


def test_a_witness_sees_two_coordinators_in_a_term_and_what_goes_back() -> None:
    seen = Witness(Mesh(Path("nowhere")))
    said = {"role": "leader", "term": 4, "version": "4.2", "parked": "", "disk": ""}
    seen.note("a", said)
    seen.note("b", said | {"role": "follower"})
    seen.note("a", said | {"version": "4.10"})
    assert not seen.twice_led
    assert not seen.back
    seen.note("b", said)
    assert seen.twice_led == {4: {"a", "b"}}
    seen.note("a", said | {"version": "4.9"})
    seen.note("b", said | {"term": 3})
    assert [text.split(" went")[0] for text in seen.back] == ["the charter of a", "the term of b"]


def test_members_agree_only_if_all_say_the_same_of_all() -> None:
    cluster = {
        "coordinator": "1",
        "term": 2,
        "version": "2.1",
        "members": [{"name": "a", "voter": True}, {"name": "b", "voter": False}],
    }
    peers = {"peers": [{"name": "a", "state": "self"}, {"name": "b", "state": "alive"}]}
    both = {"a": cluster, "b": cluster}
    seen = {"a": peers, "b": peers}
    assert disagreement({"a", "b"}, both, seen) == ""
    assert disagreement({"a", "b"}, {"a": cluster}, seen) == "b does not answer"
    assert "2 different" in disagreement({"a", "b"}, both | {"b": cluster | {"term": 3}}, seen)
    assert disagreement({"a", "b"}, both, seen | {"b": {"peers": peers["peers"][1:]}}) == "b does not see a"
    none = cluster | {"coordinator": None}
    assert disagreement({"a", "b"}, {"a": none, "b": none}, seen) == "nobody leads"


def test_what_is_printed_of_a_cell_and_of_all() -> None:
    kept, broken, void = (Outcome("holder/kill/training", seed) for seed in range(3))
    kept.timed("training again", 1.5, 5.0)
    kept.holds("same bits", True)
    broken.timed("training again", 7.25, 5.0)
    void.void = "the job does not train"
    assert [one.verdict for one in (kept, broken, void)] == ["kept", "NOT KEPT", "void"]
    (line,) = lines(kept)
    assert line.endswith("training again 1.50 s, 1 more kept")
    assert list(lines(broken))[1:] == [
        "    NOT KEPT: training again 7.25 s (promised within 5 s)",
        "    again: ./run chaos --only holder/kill/training --seed 1",
    ]
    said = list(summary([kept, broken, void], 60.0))
    assert said[2].split()[:7] == ["kill", "training", "again", "2", "4.38", "7.25", "5"]
    assert said[-1] == "3 cells in 60 s: 1 kept, 1 NOT KEPT, 1 void"
    assert json.loads(json.dumps(broken.as_json()))["promises"][0]["said"] == "promised within 5 s"


def test_names_of_cells_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "holder/kill/*"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"holder/kill/{phase}" for phase in PHASES if phase != "idle"]
    with pytest.raises(SystemExit) as refused:
        main(["--only", "holder/kil"])
    assert refused.value.code == 2
    assert "no cell matches holder/kil; --list names them all" in capsys.readouterr().err


_HARNESS = """
import asyncio, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
from tests.chaos.mesh import mesh
async def main():
    async with mesh(Path(sys.argv[1]), "ab", switched=False) as m:
        m.stop("b")
        print(*(node.process.pid for node in m.nodes.values()), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_harness_not_even_a_stopped_one(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HARNESS, str(tmp_path / "m")], stdout=subprocess.PIPE, cwd=ROOT
    ) as harness:
        assert harness.stdout is not None
        watched: list[int] = []
        try:
            watched += [os.pidfd_open(int(word)) for word in harness.stdout.readline().split()]
            harness.send_signal(number)
            assert len(watched) == 2
            for one in watched:
                assert select.select([one], [], [], 60)[0], "it is still there"
        finally:
            harness.kill()  # where the test itself ended early
            for one in watched:
                os.close(one)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk to fill")
def test_a_disk_is_filled_and_freed(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.chaos import disk
why = disk.missing()
if why:
    raise SystemExit(why)
one = disk.Disk(Path({str(tmp_path)!r}) / "d", 1 << 20)
try:
    one.fill()
except OSError as error:
    print("is empty" in str(error))
(one.folder / "used").touch()
print(one.fill() > 900_000)
try:
    (one.folder / "more").write_bytes(b"x" * 5000)
except OSError as error:
    print(error.errno)
one.free()
print((one.folder / "more").write_bytes(b"x" * 5000))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 1 and "mount" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.split() == ["True", "True", "28", "5000"], done.stderr
    assert not any((tmp_path / "d").iterdir()), "the mount is seen outside of the process"
