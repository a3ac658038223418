"""Nodes with network namespaces and cables of their own: faults that the kernel's TCP meets itself, without a switch.

A node's namespace has one interface; the cable's other end is a port of a bridge, in a namespace where nobody lives. A pulled
cable is silence: nothing is refused or reset, the kernel sends again ever later, and a dial ends with "no route to host".

A namespace is held by its processes and by the descriptors here, so none of this is left when the harness has ended, in whatever
way, and nothing is ever seen in the namespace of the machine.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache

CLONE_NEWNET = 0x40000000
NODES_MAX = 250
BURST_BYTES_MIN = 128 << 10
QUEUE_MS = 30
"""For how long a packet may wait for a shaped link, before it is dropped."""


@cache
def missing() -> str:
    """Why this process cannot lay cables; empty where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root of a Linux machine may make network namespaces"
    absent = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    if absent:
        return f"the program {' and '.join(absent)} is not installed (packages iproute2, util-linux)"
    try:
        with closing(Cables()) as cables:
            cables.lay("a")
    except OSError as error:
        return f"no network namespaces with a bridge can be made: {error}"
    return ""


class Cables:
    """Raises OSError where one cannot be laid or pulled (see `missing`)."""

    def __init__(self) -> None:
        self._room = _new_namespace()
        self._namespaces: dict[str, int] = {}
        _ip(self._room, "link add bridge type bridge")
        _ip(self._room, "link set bridge up")

    def lay(self, name: str) -> tuple[int, str]:
        """The node's namespace, as a descriptor, and its address there; of one node always the same."""
        namespace = self._namespaces.get(name)
        if namespace is None:
            assert len(self._namespaces) < NODES_MAX, f"there is no address for node {name}: {NODES_MAX} are taken"
            namespace = self._namespaces[name] = _new_namespace()
            port = self._port(name)
            _ip(self._room, f"link add {port} type veth peer name eth0 netns /proc/self/fd/{namespace}", namespace)
            _ip(self._room, f"link set {port} master bridge up")
            _ip(namespace, f"address add {self._host(name)}/24 dev eth0")
            _ip(namespace, "link set eth0 up")
            _ip(namespace, "link set lo up")
        return namespace, self._host(name)

    def pull(self, name: str) -> None:
        """Nothing leaves the node any more, and nothing reaches it."""
        _ip(self._room, f"link set {self._port(name)} down")

    def plug_in(self, name: str) -> None:
        _ip(self._room, f"link set {self._port(name)} up")

    def shape(self, name: str, bits_per_s: int) -> None:
        """What leaves the node, and what comes to it, passes at this rate at most (`tc-tbf(8)`), whatever passed before.

        Needs the program `tc`, of the same package as `ip`.
        """
        burst = max(BURST_BYTES_MIN, bits_per_s // 8 // 500)  # two milliseconds, or what the kernel hands over at once
        shaping = f"root tbf rate {bits_per_s}bit burst {burst} latency {QUEUE_MS}ms"
        for namespace, port in ((self._namespaces[name], "eth0"), (self._room, self._port(name))):
            _ip(namespace, f"qdisc replace dev {port} {shaping}", program="tc")

    def close(self) -> None:
        for namespace in (self._room, *self._namespaces.values()):
            os.close(namespace)

    def _number(self, name: str) -> int:
        return 1 + list(self._namespaces).index(name)

    def _port(self, name: str) -> str:
        return f"port{self._number(name)}"

    def _host(self, name: str) -> str:
        return f"10.77.0.{self._number(name)}"


def enter(namespace: int) -> None:
    """Take this process, which has one thread, into the namespace, and close the descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")
    os.close(namespace)


def _new_namespace() -> int:
    with ThreadPoolExecutor(1) as thread:  # only the thread that asks is moved, and this one ends
        return thread.submit(_unshare).result()


def _unshare() -> int:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _ip(namespace: int, words: str, *descriptors: int, program: str = "ip") -> None:
    """Run `ip`, or `tc`, in a namespace; it inherits the descriptors."""
    command = ["nsenter", f"--net=/proc/self/fd/{namespace}", program, *words.split()]
    done = subprocess.run(command, pass_fds=(namespace, *descriptors), capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{program} {words}: {done.stderr.strip()}")
