"""`python -m p2pnn.executor`: the compute process of one job on one node, or with `--profile` a measurement of this machine.

    --socket FD --arena FD --lifeline FD     descriptors that the daemon hands down
    --profile                                measure, print one MessagePack profile on stdout, exit

It ends when its lifeline does (the daemon is gone), and on Linux also by a signal at its parent's death.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading

from p2pnn.executor.process import NICE

PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="p2pnn.executor")
    parser.add_argument("--socket", type=int)
    parser.add_argument("--arena", type=int)
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        return profile()
    if arguments.socket is None or arguments.arena is None or arguments.lifeline is None:
        parser.error("--socket, --arena and --lifeline are needed; the daemon gives them")
    step_behind()
    die_with_parent(arguments.lifeline)
    from p2pnn.executor.arena import Arena
    from p2pnn.executor.channel import Channel
    from p2pnn.executor.loop import run

    return run(Channel(socket.socket(fileno=arguments.socket)), Arena.inherit(arguments.arena))


def profile() -> int:
    """Measure this machine and print the profile."""
    import msgspec

    from p2pnn.executor import measure

    sys.stdout.buffer.write(msgspec.msgpack.encode(measure.measure()))
    return 0


def step_behind() -> None:
    """Compute behind the person at the machine, and be the first to go when memory runs out."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def die_with_parent(lifeline: int) -> None:
    """Watch the lifeline in a thread, which only blocks; Ctrl-C in the daemon's terminal is the daemon's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
