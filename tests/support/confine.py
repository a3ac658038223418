"""`python confine.py UNIT PROGRAM …`: become PROGRAM under what a unit's sandbox forbids to a process itself.

That are the system calls (SystemCallFilter=, MemoryDenyWriteExecute=, RestrictAddressFamilies=), by the same library that
systemd uses, and the rights of root (CapabilityBoundingSet=, NoNewPrivileges=). What systemd does by namespaces (ProtectSystem=,
PrivateUsers= and so on) is not here: it needs a systemd that runs.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
EQUAL, MASKED_EQUAL = 4, 7  # of enum scmp_compare
WRITE, EXECUTE = 2, 4  # PROT_WRITE, PROT_EXEC
PR_CAPBSET_DROP, PR_CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
CAPABILITIES_MAX = 64


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def library() -> ctypes.CDLL | None:
    """libseccomp, None where it is missing."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    found = ctypes.CDLL(name, use_errno=True)
    found.seccomp_init.restype = ctypes.c_void_p
    return found


def settings(unit: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(key + "=")]


@functools.cache
def sets() -> dict[str, list[str]]:
    """systemd's sets of system calls: name → calls, and names of other sets."""
    said = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        if line.startswith("@"):
            found[line] = members = []
        elif re.fullmatch(r" +[@a-z0-9_-]+", line):
            members.append(line.strip())
    return found


def expand(name: str) -> set[str]:
    """The system calls of a set, with those of the sets in it; of a call's name, that call."""
    return {call for word in sets()[name] for call in expand(word)} if name.startswith("@") else {name}


def allowed(unit: Path) -> set[str]:
    """The system calls that SystemCallFilter= leaves; later lines add to the earlier ones or, with `~`, take away."""
    calls: set[str] = set()
    for value in settings(unit, "SystemCallFilter"):
        named = {call for word in value.removeprefix("~").split() for call in expand(word)}
        calls = calls - named if value.startswith("~") else calls | named
    return calls | expand("@default")


def rules(unit: Path) -> dict[str, list[list[Comparison]]]:
    """Call → the conditions under which it is allowed, any one of which is enough; [] for always."""
    found: dict[str, list[list[Comparison]]] = {call: [] for call in allowed(unit)}
    families = [
        int(getattr(socket, name)) for value in settings(unit, "RestrictAddressFamilies") for name in value.split()
    ]
    found["socket"] = [[Comparison(0, EQUAL, family, 0)] for family in families]
    if settings(unit, "MemoryDenyWriteExecute") == ["yes"]:
        both = WRITE | EXECUTE
        found["mmap"] = [[Comparison(2, MASKED_EQUAL, both, part)] for part in (0, WRITE, EXECUTE)]
        found["mprotect"] = [[Comparison(2, MASKED_EQUAL, EXECUTE, 0)]]
        found.pop("pkey_mprotect", None)
        found.pop("shmat", None)
    return found


def filter_calls(seccomp: ctypes.CDLL, unit: Path) -> None:
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(REFUSE | errno.EPERM)))
    for call, conditions in rules(unit).items():
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # another architecture's
            continue
        for condition in conditions or [[]]:
            array = (Comparison * len(condition))(*condition)
            add = seccomp.seccomp_rule_add_exact_array
            if (failed := add(context, ctypes.c_uint32(ALLOW), number, len(condition), array)) < 0:
                raise OSError(-failed, f"seccomp has no rule for {call}")
    if (failed := seccomp.seccomp_load(context)) < 0:  # it also sets no_new_privs
        raise OSError(-failed, "seccomp takes no filter")


def drop_rights() -> None:
    """Root without a right of root: none is left in the bounding set, so the next program has none."""
    prctl = ctypes.CDLL(None).prctl
    for number in range(CAPABILITIES_MAX):
        prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    prctl(PR_CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def main() -> None:
    unit, program, *arguments = sys.argv[1:]
    seccomp = library()
    assert seccomp is not None
    if os.geteuid() == 0:
        drop_rights()
    filter_calls(seccomp, Path(unit))
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
