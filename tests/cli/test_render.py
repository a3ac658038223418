"""The lines that a person reads, word for word."""

from p2pnn.cli import render

PLAN = {
    "nodes": [
        {
            "name": "a",
            "layers": "conv1 … pool2",
            "parameters": 4870,
            "memory_bytes": 3250586,
            "sends": [["b", 262144, 262144]],
        },
        {"name": "b", "layers": "fc1", "parameters": 33300, "memory_bytes": 2306867, "sends": [["c", 61440, 0]]},
        {
            "name": "c",
            "layers": "fc2, head",
            "parameters": 2410,
            "memory_bytes": 1048576,
            "sends": [],
            "why": "the rest",
        },
    ],
    "samples_per_s": 38500.0,
    "best_single_samples_per_s": 41000.0,
    "reasons": [
        "one node 41,000 samples/s, this cut 38,500: slower, because the network is small; cut anyway",
        "a → b",
    ],
}


def test_the_plan() -> None:
    assert render.plan_table(PLAN) == [
        "  node  layers         parameters   memory  sends per step",
        "  a     conv1 … pool2       4,870  3.1 MiB  256 KiB to b, and its gradient back",
        "  b     fc1                33,300  2.2 MiB  60 KiB to c",
        "  c     fc2, head           2,410  1.0 MiB",
    ]
    assert render.plan_table(PLAN | {"delays": [2, 1, 0]})[:2] == [
        "  node  layers         parameters   memory  runs behind by  sends per step",
        "  a     conv1 … pool2       4,870  3.1 MiB  2 updates       256 KiB to b, and its gradient back",
    ]
    assert "1.0 MiB" in render.plan_table(PLAN | {"delays": [2, 1, 0]})[3].split("  ")[-1]
    assert render.plan_table(PLAN | {"delays": [0, 0, 0]}) == render.plan_table(PLAN)
    assert render.plan_headline(PLAN).endswith("cut anyway")
    assert render.plan_headline(PLAN, demonstration=True).endswith("cut anyway, to show it")
    assert render.plan_reasons(PLAN) == ["  c: the rest", "  a → b"]
    assert render.plan_headline(PLAN | {"reasons": []}) == "38,500 samples/s over 3 nodes"


def test_a_long_first_line_is_broken_between_words_in_a_terminal() -> None:
    line = "one node 410 samples/s, data parallel 1,150 over 4 nodes: slower; --push-every 4 would win"
    assert render.label_lines("Plan", line, None) == render.label_lines("Plan", line, 200) == [f"Plan         {line}"]
    assert render.label_lines("Plan", line, 60) == [
        "Plan         one node 410 samples/s, data parallel 1,150",
        "             over 4 nodes: slower; --push-every 4 would win",
    ]
    assert render.label_lines("Plan", line, 5)[0] == "Plan         one node 410"


PROGRESS = {
    "kind": "progress",
    "step": 7,
    "steps": 20,
    "epoch": 7,
    "epochs": 20,
    "loss": 0.1414,
    "metrics": {"accuracy": 0.9589},
    "samples_per_s": 38912.4,
    "busy": {"a": 0.71, "b": 0.64},
    "left_s": 4.2,
}


def test_progress() -> None:
    assert render.progress(PROGRESS) == (
        "epoch 7/20  ━━━━━━━━━━╸───────────────────  loss 0.141  accuracy 95.9 %  38,912 samples/s  a 71 % b 64 % busy  0:04 left"
    )


def test_progress_in_a_narrow_terminal_keeps_bar_and_time_left() -> None:
    for width in range(1, 200):
        assert len(render.progress(PROGRESS, width)) < width
    assert "busy" in render.progress(PROGRESS, 120)
    assert render.progress(PROGRESS, 80) == (
        "epoch 7/20  ━━━──────  loss 0.141  accuracy 95.9 %  38,912 samples/s  0:04 left"
    )
    for width in range(40, 200):
        line = render.progress(PROGRESS, width)
        assert "━" in line
        assert line.endswith("  0:04 left")
    assert render.progress(PROGRESS, 60).count("accuracy") == 1
    assert "loss 0.141" in render.progress(PROGRESS, 45)


DEALT = PROGRESS | {
    "staleness": {"0": 2, "1": 5, "2": 6, "16": 1},
    "pushed_bytes": 104_448.0,
    "fetched_bytes": 52_224.0,
    "slowest": "b",
    "refused": {},
}


def test_progress_of_a_data_parallel_run() -> None:
    assert render.progress(DEALT).partition("38,912 samples/s  ")[2] == (
        "staleness 1 (max 16–31)  ↑102 KiB ↓51 KiB a step  slowest b  a 71 % b 64 % busy  0:04 left"
    )
    assert render.progress(DEALT, 80) == render.progress(PROGRESS, 80)
    for width in range(1, 220):
        assert len(render.progress(DEALT, width)) < width
    order = ["busy", "a step", "slowest", "staleness", "samples/s", "accuracy"]
    for width in range(220, 40, -1):
        shown = [word in render.progress(DEALT, width) for word in order]
        assert shown == sorted(shown), "what is worth least goes first"


def test_the_roles_of_a_data_parallel_plan() -> None:
    dealt = {
        "nodes": [
            {
                "name": "attic",
                "layers": "worker 0; shard 0",
                "parameters": 26122,
                "memory_bytes": 1258291,
                "sends": [["attic", 52224, 52224], ["cellar", 52264, 52264]],
                "why": "1.12 ms of computing per step",
            },
            {"name": "cellar", "layers": "shard 1", "parameters": 13066, "memory_bytes": 209000, "sends": []},
        ],
        "reasons": ["one node …", "async: …"],
        "replicas": [{"nodes": [0]}],
        "shards": [{"nodes": [0]}, {"nodes": [1]}],
    }
    assert render.plan_table(dealt) == [
        "  node    roles              parameters   memory  per step",
        "  attic   worker 0; shard 0      26,122  1.2 MiB  pushes 102 KiB, fetches 102 KiB",
        "  cellar  shard 1                13,066  204 KiB",
    ]
    assert render.plan_table(dealt, ["attic"])[1].startswith("  attic   gone (was worker 0; shard 0)  ")
    assert render.plan_reasons(dealt) == ["  attic: 1.12 ms of computing per step", "  async: …"]


def test_preparing() -> None:
    nodes = {"b": (60_416, 69_632), "c": (0, 2_048)}
    assert render.preparing(nodes) == "preparing the data on b 59 KiB of 68 KiB, c 0 B of 2.0 KiB"
    assert render.preparing(nodes, 30) == "preparing the data on b 59 K…"


def test_progress_before_anything_was_measured() -> None:
    bare = {"step": 0, "steps": 0, "epoch": 1, "epochs": 2, "loss": None, "metrics": {}, "samples_per_s": 0, "busy": {}}
    assert render.progress(bare) == "epoch 1/2  " + "─" * 30 + "  "


def test_an_epoch() -> None:
    event = {
        "number": 4,
        "time": 1.0,
        "kind": "epoch",
        "epoch": 3,
        "epochs": 20,
        "step": 90,
        "loss": 0.5,
        "accuracy": 0.9,
        "samples_per_s": 1234.5,
        "validation_loss": 0.25,
        "validation_accuracy": 0.95,
        "rmse": 0.123456,
    }
    assert render.epoch(event) == (
        "epoch 3/20  loss 0.5000  accuracy 90.0 %  validation loss 0.2500  validation accuracy 95.0 %"
        "  rmse 0.1235  1,234 samples/s"
    )


def test_an_evaluation() -> None:
    found = {"split": "test", "rows": 360, "loss": 0.08, "metrics": {"accuracy": 352 / 360}}
    assert render.evaluation(found, 11.24) == "test accuracy 97.8 %   (352 of 360)   11.2 s"
    tokens = {**found, "counts": {"accuracy": 720}}
    assert render.evaluation(tokens).startswith("test accuracy 97.8 %   (704 of 720)")
    assert render.evaluation({"split": "test", "rows": 1500, "loss": 0.08}) == "test loss 0.0800   (1,500 rows)"


def test_events() -> None:
    assert (
        render.event({"kind": "queued", "behind": "mnist-1", "position": 1, "node": "b"})
        == "queued behind mnist-1 on b"
    )
    assert render.event({"kind": "state", "state": "failed", "reason": "node b is gone"}) == "failed: node b is gone"
    failed = {"kind": "checkpoint", "step": 9, "epoch": 1, "complete": False, "error": "disk full"}
    assert render.event(failed) == "checkpoint of step 9 failed, training goes on: disk full"
    assert render.event({"kind": "from a later version"}) == ""


def test_what_the_parameters_of_a_job_that_is_not_done_are() -> None:
    job = {"state": "failed", "steps": 1404}
    assert render.checkpoint_of(job, 653) == "the checkpoint of step 653 of 1,404: the job failed"
    assert render.checkpoint_of(job | {"state": "paused"}, 1000).endswith("step 1,000 of 1,404: the job is paused")
    assert render.checkpoint_of({"state": "cancelled"}, 1) == "the checkpoint of step 1: the job was cancelled"


def test_sizes_counts_and_clocks() -> None:
    assert [render.size(n) for n in (0, 1023, 1024, 262144, 3250586, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "256 KiB",
        "3.1 MiB",
        "5120 GiB",
    ]
    assert [render.count(n) for n in (0, 12.34, 99, 38912.4)] == ["0", "12.3", "99", "38,912"]
    assert [render.clock(s) for s in (-1, 4, 750, 3909)] == ["0:00", "0:04", "12:30", "1:05:09"]


def test_tables_are_as_wide_as_their_widest() -> None:
    peers = [
        {"name": "a", "address": "127.0.0.1:7700", "state": "self", "reason": "", "rtt_ms": None, "job": None},
        {
            "name": "b",
            "address": "127.0.0.1:40001",
            "state": "unreachable",
            "reason": "refused",
            "rtt_ms": 0.234,
            "job": "d",
            "profile": {"gflops": 41, "memory_bytes": 6 << 30},
        },
    ]
    assert render.peers_table(peers) == [
        "name  address          state                 round trip  job  machine",
        "a     127.0.0.1:7700   self",
        "b     127.0.0.1:40001  unreachable: refused     0.23 ms  d    41 GFLOP/s, 6.0 GiB free",
    ]
    assert render.table([]) == []


def test_the_state_of_a_peer_in_words() -> None:
    said = {"state": "suspect", "since_s": 3.2, "by": ["a", "c"], "reason": "it answers no probe"}
    assert render.peer_state(said) == "suspect since 3 s, by a and c: it answers no probe"
    assert render.peer_state({"state": "dead", "reason": "connection reset", "by": ["a"]}) == "dead: connection reset"
    assert render.peer_state({"state": "left", "reason": ""}) == "left"


def test_ages_and_losses_that_ran_away() -> None:
    assert [render.age(s) for s in (-3, 59.9, 60, 7300, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert [render.loss(v) for v in (0.5, 1.6e30)] == ["0.5000", "1.6e+30"]
    job = {"job": "d-1", "kind": "train", "state": "done", "created_s": 100.0}
    assert render.jobs_table([job], 400.0)[1].split() == ["d-1", "train", "done", "5", "min"]


def test_data_that_lie_here_in_part() -> None:
    row = {"name": "d", "id": "ab12", "rows": 5, "bytes": 1024, "total_bytes": 4096, "columns": ["x", "y"]}
    _, part, whole = render.datasets_table(
        [row | {"jobs": ["a", "b", "c"], "active": 1}, row | {"bytes": 4096, "jobs": ["a"], "active": 0}]
    )
    assert part.split()[:2] == ["d", "ab12"]
    assert "1.0 KiB of 4.0 KiB" in part
    assert part.endswith("x y      3 (1 not ended)")
    assert " of " not in whole
