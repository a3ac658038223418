"""How much memory a job may take here: what the system and the control groups around this process leave, less a margin.

Linux says in /proc/meminfo what could be had without swapping. A container or a service may have less: control groups
nest, so every group from ours up to the root is asked (version 2: memory.max and memory.current; version 1:
memory.limit_in_bytes and memory.usage_in_bytes). File cache counts as used there, but is given back on demand. Other
systems are asked by sysconf.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SHARE: Final = 0.8
"""A person's other programs keep the rest."""

PROCESS_BYTES: Final = 80 << 20
"""What an executor takes before its first tensor: Python, numpy and BLAS."""

UNLIMITED: Final = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes for a job's tensors, at least 0. root: where proc and sys lie, for tests."""
    free = min(_system(root), _groups(root))
    return max(0, int(free * SHARE) - PROCESS_BYTES)


def _system(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    try:  # half of what is there where nobody says what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 1 << 30


def _groups(root: Path) -> int:
    """The least room of all groups around this process; UNLIMITED where there is no limit."""
    room = UNLIMITED
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        parts = [p for p in path.split("/") if p and p != ".."]
        # In a container the path is often the host's, and the container's own group is mounted at the top.
        for depth in range(len(parts), -1, -1):
            room = min(room, _room(base.joinpath(*parts[:depth]), *names))
    return room


def _room(group: Path, limit_name: str, usage_name: str) -> int:
    limit, usage = _text(group / limit_name).strip(), _text(group / usage_name).strip()
    if not limit.isdigit() or int(limit) >= UNLIMITED:
        return UNLIMITED
    cache = 0
    for line in _text(group / "memory.stat").splitlines():
        name, _, amount = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and amount.isdigit():
            cache = max(cache, int(amount))
    return max(0, int(limit) - max(0, (int(usage) if usage.isdigit() else 0) - cache))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
