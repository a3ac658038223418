"""The command line of an executor, and that it never outlives its daemon."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import msgspec
import pytest

from p2pnn.executor.process import spawn
from p2pnn.plan.profile import Profile


def test_profile_prints_what_was_measured() -> None:
    command = [sys.executable, "-m", "p2pnn.executor", "--profile"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    profile = msgspec.msgpack.decode(done.stdout, type=Profile)
    assert profile.gemm_gflops > 0
    assert profile.fingerprint


def test_descriptors_are_asked_for() -> None:
    done = subprocess.run([sys.executable, "-m", "p2pnn.executor"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--socket, --arena and --lifeline are needed" in done.stderr


def test_it_ends_with_its_lifeline() -> None:
    spawned = spawn(0)
    os.close(spawned.lifeline)
    spawned.lifeline = -1
    assert spawned.process.wait(10) == 1
    spawned.kill()


def test_ctrl_c_is_left_to_the_daemon() -> None:
    spawned = spawn(0)
    status = f"/proc/{spawned.process.pid}/status"
    if not os.path.exists(status):
        pytest.skip("asks Linux what is ignored")
    ignored = 0
    while not ignored >> (signal.SIGINT - 1) & 1:
        assert spawned.process.poll() is None
        with open(status) as file:
            ignored = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
    spawned.kill()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits on a process that is not a child, as Linux can")
def test_it_ends_when_its_parent_is_killed() -> None:
    program = (
        "import time; from p2pnn.executor.process import spawn; s = spawn(0); print(s.process.pid, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        readable, _, _ = select.select([descriptor], [], [], 10)
        os.close(descriptor)
    assert readable
