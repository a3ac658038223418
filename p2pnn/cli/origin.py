"""From what a service can be built: where this program comes from, and a Python that the service will be able to see.

The sandbox of the service hides homes, so a Python or a package that lies in one would not be there for it: the environment
is made by a Python of the system, and gets a copy of the program.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import p2pnn
from p2pnn.cli.installation import Origin
from p2pnn.errors import UsageError

HIDDEN: Final = ("/home", "/root", "/run/user")
"""What ProtectHome= hides from a service (systemd.exec(5))."""

OLDEST: Final = (3, 11)
SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
NAMES: Final = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
ASK_TIMEOUT_S: Final = 20.0

_QUESTION: Final = (
    "import json, os, sys, venv, ensurepip; "
    "print(json.dumps([list(sys.version_info[:2]), os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)]))"
)


def find() -> Origin:
    """Raises UsageError where the program's source or every usable Python is missing."""
    return Origin(source(), units(), python())


def units() -> Path:
    """The folder of the unit files: in an installed program beside its modules, in the project's folder at the top."""
    package = _package()
    return package / "systemd" if (package / "systemd").is_dir() else package.parent / "systemd"


def source() -> str:
    """What pip is to install: the project's folder where this program runs from one, else what it was itself installed from.

    Raises UsageError where that is a file or folder that is gone.
    """
    above = _package().parent
    if _is_project(above):
        return str(above)
    try:  # what pip noted of it (PEP 610); there is none where it came from an index
        noted = json.loads((above / f"p2pnn-{p2pnn.__version__}.dist-info/direct_url.json").read_text("utf-8"))
    except OSError:
        return f"p2pnn=={p2pnn.__version__}"
    url = str(noted["url"])
    if version := noted.get("vcs_info"):
        return f"{version['vcs']}+{url}@{version['commit_id']}"
    if not url.startswith("file:"):
        return url
    path = unquote(urlsplit(url).path)
    if not os.path.exists(path):
        raise UsageError(
            f"this program was installed from {path}, which is gone; bring it back, or install p2pnn again"
        )
    return path


def python() -> str:
    """An interpreter for the environment: this program's own if the service could see it, else one of the system.

    Raises UsageError where there is none.
    """
    own = getattr(sys, "_base_executable", sys.executable)
    for name in (own, *(shutil.which(name, path=SYSTEM_PATH) for name in NAMES)):
        if name and _is_usable(name):
            return str(name)
    raise UsageError(
        f"a service needs a Python of {OLDEST[0]}.{OLDEST[1]} or newer, with its modules venv and ensurepip, that does not lie in"
        " a home; install it with the system's packages (on Debian and Ubuntu: apt install python3 python3-venv)"
    )


def _package() -> Path:
    assert p2pnn.__file__ is not None
    return Path(p2pnn.__file__).resolve().parent


def _is_project(folder: Path) -> bool:
    try:
        found = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found.get("project", {}).get("name") == "p2pnn")


def _is_usable(name: str) -> bool:
    try:
        asked = subprocess.run(
            [name, "-I", "-c", _QUESTION], capture_output=True, stdin=subprocess.DEVNULL, timeout=ASK_TIMEOUT_S
        )
        version, *places = json.loads(asked.stdout) if asked.returncode == 0 else [[0, 0]]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
    return tuple(version) >= OLDEST and not any(is_hidden(place) for place in (*places, name))


def is_hidden(path: str) -> bool:
    """Whether a service cannot see it."""
    return any(path == hidden or path.startswith(hidden + "/") for hidden in HIDDEN)
