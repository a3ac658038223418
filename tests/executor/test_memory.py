"""Memory limits as Linux and its control groups state them, read from a made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnn.executor.memory import PROCESS_BYTES, SHARE, available_bytes

GIB = 1 << 30


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def expected(free: int) -> int:
    return int(free * SHARE) - PROCESS_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, proc__meminfo=f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    return tmp_path


def test_without_groups_it_is_what_the_system_has(root: Path) -> None:
    assert available_bytes(root) == expected(8 * GIB)


def test_groups_of_version_2_nest_and_give_back_their_cache(root: Path) -> None:
    write(root, proc__self__cgroup="0::/user/app\n")
    group = root / "sys/fs/cgroup/user"
    (group / "app").mkdir(parents=True)
    (group / "app" / "memory.max").write_text("max\n")
    (group / "memory.max").write_text(f"{2 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB}\n")
    assert available_bytes(root) == expected(GIB)
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    assert available_bytes(root) == expected(GIB + GIB // 2)


def test_groups_of_version_1(root: Path) -> None:
    write(root, proc__self__cgroup="5:cpu,cpuacct:/x\n4:memory:/x\n")
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{3 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    assert available_bytes(root) == expected(2 * GIB)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_bytes(root) == expected(8 * GIB)


def test_a_full_group_leaves_nothing_and_an_unknown_system_something(root: Path) -> None:
    write(root, proc__self__cgroup="0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text("1000")
    (root / "sys/fs/cgroup/memory.current").write_text("900")
    assert available_bytes(root) == 0
    assert available_bytes(root / "nowhere") > 0
