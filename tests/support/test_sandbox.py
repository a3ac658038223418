"""A network trains on a daemon under the unit's filters: of system calls, of memory, of sockets, and without a right of root."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from p2pnn.executor.process import NICE
from p2pnn.zoo.mlp import build
from tests.integration.mesh import blobs_of, make_job, mesh, wait_until
from tests.support import confine

UNIT = Path(__file__).resolve().parent.parent.parent / "systemd/p2pnn.service"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("systemd-analyze") is None or confine.library() is None,
    reason="systemd-analyze or libseccomp is missing on this machine",
)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_what_the_filter_leaves() -> None:
    calls = confine.allowed(UNIT)
    assert {"memfd_create", "mmap", "socketpair", "sched_setaffinity", "setpriority", "fallocate", "flock"} <= calls
    assert not {"chown", "setuid", "mount", "reboot", "ptrace", "init_module", "bpf"} & calls


def test_a_training_under_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    confined = tmp_path / "python"
    confined.write_text(
        f'#!/bin/sh\nexec {shlex.join([sys.executable, confine.__file__, str(UNIT), sys.executable])} "$@"\n'
    )
    confined.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(confined))  # with which the mesh starts its nodes
    with mesh(tmp_path, 2, cold=True) as m:
        found = status_of(m.nodes["a"].process.pid)
        assert (found["Seccomp"], found["NoNewPrivs"], int(found["CapEff"], 16)) == ("2", "1", 0)
        wait_until(lambda: m["a"].get("node")["profile"] is not None, "it is measured")
        job = m.submit("a", *make_job(build((1, 8, 8), classes=4), blobs_of(rows=1600), epochs=2))
        wait_until(lambda: m["a"].get("node")["executor_pid"] is not None, "it computes")
        executor = m["a"].get("node")["executor_pid"]
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, executor) == NICE, "the compute process steps back")
        assert status_of(executor)["Seccomp"] == "2"
        done = m.await_state("a", job, "done")
        assert done["result"]["evaluation"][0]["metrics"]["accuracy"] > 0.8
        assert len(done["plan"]["nodes"]) == 2
        logs = m.nodes["a"].log + m.nodes["b"].log
    assert "WARNING" not in logs
    assert "not permitted" not in logs
