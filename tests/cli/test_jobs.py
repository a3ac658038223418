"""`jobs`: seen from any node, ordered by the beginning of a name, and gathered to wherever one asks."""

import json
from pathlib import Path
from typing import Any

import pytest

from p2pnn.cli import main
from p2pnn.cli.jobs import describe
from p2pnn.config import Places
from tests.cli.fake import FakeDaemon
from tests.cli.made import EVALUATION, JOB, PLAN, SUMMARY, MadeJob, events, state

Capture = pytest.CaptureFixture[str]


def test_ls(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon["GET jobs"] = {"jobs": []}
    assert main(["jobs", "ls"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "no jobs yet" in err
    made = MadeJob(daemon)
    assert main(["jobs", "ls"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["job", "kind", "state"]
    assert row.split() == [JOB, "train", "done", "2/2", "0.5000", "a", "b", "a"]
    measured = SUMMARY | {"job": "e-1", "kind": "evaluate"}
    daemon["GET jobs"] = {"jobs": [SUMMARY, measured, measured | {"job": "e-2", "state": "running"}]}
    assert main(["jobs", "ls"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["job", JOB, "e-2"]
    assert err == "1 more of eval and predict; see them with --all\n"
    assert main(["jobs", "ls", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    daemon["GET jobs"] = {"jobs": [SUMMARY]}
    assert main(["jobs", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": [SUMMARY]}
    assert made.bits


def test_show(daemon: FakeDaemon, capsys: Capture) -> None:
    made = MadeJob(daemon)
    assert main(["jobs", "show", "flow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines}
    assert said["state"] == "done"
    assert said["nodes"] == "a b"
    assert said["progress"] == "epoch 2/2, step 8/8"
    assert said["result"] == "test accuracy 97.5 %   (39 of 40)"
    assert said["bits"] == made.bits
    assert said["plan"] == PLAN["reasons"][0]
    assert main(["jobs", "show", JOB, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["evaluation"] == EVALUATION


def test_a_job_that_waits_and_one_that_failed() -> None:
    waiting = SUMMARY | {"state": "queued", "nodes": [], "epochs": 0, "loss": None}
    assert [line.split()[0] for line in describe(waiting)] == ["job", "state", "nodes", "coordinator"]
    failed = SUMMARY | {"state": "failed", "reason": "node b is gone"}
    failed["checkpoints"] = [{"step": 4, "complete": True, "bytes": 2048}, {"step": 8, "complete": False, "bytes": 0}]
    lines = describe(failed)
    assert "state        failed: node b is gone" in lines
    assert "checkpoint   step 4, 2.0 KiB" in lines
    assert "checkpoint   step 8, 0 B, not complete" in lines


def test_nodes_that_a_job_goes_on_without() -> None:
    dead = {"node": "n", "name": "b", "state": "dead", "since_s": 75.0, "reason": "its port refuses"}
    back = dead | {"name": "c", "state": "alive", "reason": ""}
    unknown = dead | {"name": "d", "state": "unknown", "since_s": None, "reason": ""}
    assert [line for line in describe(SUMMARY | {"gone": [dead, back, unknown]}) if line.startswith("gone")] == [
        "gone         b: dead for 1 min (its port refuses); the job goes on without it",
        "gone         c: it was lost, and is back; it takes part from the next start on",
        "gone         d: unknown; the job goes on without it",
    ]


@pytest.mark.parametrize("verb", ["show", "logs", "cancel", "pause", "resume", "fetch"])
def test_a_name_that_is_none_or_several(daemon: FakeDaemon, capsys: Capture, verb: str) -> None:
    daemon["GET jobs"] = {"jobs": [SUMMARY, SUMMARY | {"job": "flowers-77aa"}]}
    assert main(["jobs", verb, "flowres-3f2a"]) == 2
    err = capsys.readouterr().err
    assert "flowres-3f2a" in err
    assert f"did you mean {JOB}?" in err
    assert main(["jobs", verb, "flowers"]) == 2
    assert f"'flowers' begins several jobs: {JOB}, flowers-77aa" in capsys.readouterr().err
    assert [call for call in daemon.calls if call[0] != "GET"] == []


def test_a_whole_name_that_begins_another(daemon: FakeDaemon, capsys: Capture) -> None:
    MadeJob(daemon)
    daemon["GET jobs"] = {"jobs": [SUMMARY, SUMMARY | {"job": JOB + "b"}]}
    assert main(["jobs", "show", JOB]) == 0
    assert capsys.readouterr().out.startswith(f"job          {JOB}   ")


def test_logs(daemon: FakeDaemon, capsys: Capture) -> None:
    MadeJob(daemon)
    assert main(["jobs", "logs", JOB]) == 0
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "running"
    assert lines[2].startswith("epoch 1/2  ")
    assert lines[-1] == "done"
    assert main(["jobs", "logs", JOB, "--json", "--follow"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == events()


def test_logs_of_a_run_that_diverged_are_json(daemon: FakeDaemon, capsys: Capture) -> None:
    """NaN is no JSON: whoever reads the lines with jq shall not stumble."""
    MadeJob(daemon)
    lost = {"number": 1, "time": 0.0, "kind": "epoch", "epoch": 1, "epochs": 2, "loss": float("nan")}
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter([lost, state(2, "failed", "the loss is NaN")])
    assert main(["jobs", "logs", JOB, "--json"]) == 0

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    first, _ = [json.loads(line, parse_constant=refuse) for line in capsys.readouterr().out.splitlines()]
    assert first["loss"] is None


@pytest.mark.parametrize(("verb", "becomes"), [("cancel", "cancelled"), ("pause", "pausing")])
def test_orders(daemon: FakeDaemon, capsys: Capture, verb: str, becomes: str) -> None:
    MadeJob(daemon)
    daemon[f"POST jobs/{JOB}/{verb}"] = {"state": becomes}
    assert main(["jobs", verb, "flowers-"]) == 0
    assert capsys.readouterr().out == f"{JOB} is {becomes}\n"
    assert main(["jobs", verb, JOB, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"job": JOB, "state": becomes}
    daemon[f"POST jobs/{JOB}/{verb}"] = (409, {"error": f"{JOB} is done", "exit": 2})
    assert main(["jobs", verb, JOB]) == 2
    assert capsys.readouterr().err == f"p2pnn: {JOB} is done\n"


def test_resume(tmp_path: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    made = MadeJob(daemon)
    daemon[f"POST jobs/{JOB}/resume"] = {"job": JOB}
    assert main(["jobs", "resume", JOB, "--detach"]) == 0
    assert capsys.readouterr().out == f"{JOB} goes on\n"
    assert main(["jobs", "resume", JOB, "--out", str(tmp_path / "r")]) == 0
    assert made.bits in capsys.readouterr().out
    assert (tmp_path / "r" / "model.safetensors").exists()
    before = len(daemon.bodies(f"POST jobs/{JOB}/resume"))
    assert main(["jobs", "resume", JOB, "--out", str(tmp_path / "r")]) == 2
    assert len(daemon.bodies(f"POST jobs/{JOB}/resume")) == before


def test_a_paused_job_that_was_resumed_writes_its_results(tmp_path: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    """Asked of the daemon that has led it all along, whose log holds the pause."""
    made = MadeJob(daemon)
    whole = [{**event, "number": number} for number, event in enumerate([*events()[:3], state(0, "paused")], 1)]
    rest = [{**event, "number": number} for number, event in enumerate(events()[3:], 5)]
    daemon[f"GET jobs/{JOB}/events?after=0"] = lambda body: iter(whole + rest)
    daemon[f"GET jobs/{JOB}/events?after=4"] = lambda body: iter(rest)
    daemon[f"POST jobs/{JOB}/resume"] = {"job": JOB, "after": 4}
    assert main(["jobs", "resume", JOB, "--out", str(tmp_path / "r")]) == 0
    out, err = capsys.readouterr()
    assert made.bits in out
    assert "epoch 1/2" not in err
    assert (tmp_path / "r" / "model.safetensors").exists()
    for more in ([], ["--follow"]):
        assert main(["jobs", "logs", JOB, *more]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith("  done")


def test_fetch(tmp_path: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    made = MadeJob(daemon)
    for number in (1, 2):
        assert main(["jobs", "fetch", "flow", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        folder = Places.of().runs / f"flowers-{number}"
        assert found == {"job": JOB, "folder": str(folder), "bits": made.bits, "state": "done", "step": 8}
    assert main(["jobs", "fetch", JOB, "--out", str(tmp_path / "r")]) == 0
    assert f"bits         {made.bits}\n" in capsys.readouterr().out
    last = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"evaluation": [EVALUATION], "job": JOB, "step": 8, "bits": made.bits}


def test_fetch_of_a_job_that_failed_says_what_it_is(tmp_path: Path, daemon: FakeDaemon, capsys: Capture) -> None:
    MadeJob(daemon, step=4, epoch=1, finished=False)
    daemon[f"GET jobs/{JOB}"] = SUMMARY | {"state": "failed", "reason": "node b is gone"}
    assert main(["jobs", "fetch", JOB, "--out", str(tmp_path / "r")]) == 0
    assert "from         the checkpoint of step 4 of 8: the job failed\n" in capsys.readouterr().out
    last = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["job"], last["state"], last["step"]) == (JOB, "failed", 4)
    assert main(["jobs", "fetch", JOB, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["step"]) == ("failed", 4)


def test_a_job_that_trained_nothing_cannot_be_fetched(daemon: FakeDaemon, capsys: Capture) -> None:
    MadeJob(daemon)
    daemon[f"GET jobs/{JOB}/results"] = {"job": JOB, "spec": "", "manifest": None}
    assert main(["jobs", "fetch", JOB]) == 2
    assert "trained nothing" in capsys.readouterr().err
    assert not Places.of().runs.exists()
