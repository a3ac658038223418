"""From what a service is built: the project's folder, or what pip noted; and never a Python that lies in a home."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import p2pnn
from p2pnn.cli import origin
from p2pnn.errors import UsageError

PROJECT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder in which this program seems to lie; its dist-info."""
    (tmp_path / "p2pnn/systemd").mkdir(parents=True)
    monkeypatch.setattr(p2pnn, "__file__", str(tmp_path / "p2pnn/__init__.py"))
    found = tmp_path / f"p2pnn-{p2pnn.__version__}.dist-info"
    found.mkdir()
    return found


def test_a_project_folder_is_its_own_source() -> None:
    assert origin.source() == str(PROJECT)
    assert origin.units() == PROJECT / "systemd"
    assert {path.name for path in origin.units().iterdir()} == {"p2pnn.service", "p2pnn@.service", "node.toml"}


def test_a_program_from_an_index_is_taken_from_there_in_the_same_version(installed: Path) -> None:
    assert origin.source() == f"p2pnn=={p2pnn.__version__}"
    assert origin.units() == installed.parent / "p2pnn/systemd"


@pytest.mark.parametrize(
    ("noted", "source"),
    [
        ({"url": "https://a.example/p2pnn-1.whl", "archive_info": {}}, "https://a.example/p2pnn-1.whl"),
        (
            {
                "url": "https://a.example/p2pnn",
                "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "main"},
            },
            "git+https://a.example/p2pnn@abc",
        ),
        ({"url": "file:///tmp", "dir_info": {}}, "/tmp"),
    ],
)
def test_what_pip_noted_is_the_source(installed: Path, noted: dict[str, object], source: str) -> None:
    (installed / "direct_url.json").write_text(json.dumps(noted))
    assert origin.source() == source


def test_a_source_that_is_gone(installed: Path) -> None:
    (installed / "direct_url.json").write_text('{"url": "file:///no/such%20folder", "dir_info": {}}')
    with pytest.raises(UsageError, match="installed from /no/such folder, which is gone"):
        origin.source()


def fake(path: Path, version: str, place: str) -> str:
    path.write_text(f'#!/bin/sh\necho \'[{version}, "{place}", "{place}"]\'\n')
    path.chmod(0o755)
    return str(path)


def test_a_python_that_the_service_cannot_see_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fake(tmp_path / "own", "[3, 12]", "/home/ada/.pyenv/bin/python3.12")
    monkeypatch.setattr(sys, "_base_executable", own)
    monkeypatch.setattr(origin, "SYSTEM_PATH", str(tmp_path))
    fake(tmp_path / "python3.14", "[3, 14]", "/home/ada/python")
    fake(tmp_path / "python3.12", "[3, 10]", "/usr")  # older than it says
    (tmp_path / "python3.11").write_text("#!/bin/sh\nexit 1\n")  # without its module venv
    (tmp_path / "python3.11").chmod(0o755)
    with pytest.raises(
        UsageError, match=r"a service needs a Python of 3\.11 or newer, with its modules venv and ensurepip"
    ):
        origin.python()
    good = fake(tmp_path / "python3", "[3, 11]", "/usr/bin/python3.11")
    assert origin.python() == good
    fake(tmp_path / "own", "[3, 13]", "/usr/local/bin/python3.13")
    assert origin.python() == own


def test_a_real_python_is_asked() -> None:
    assert origin._is_usable(sys.executable) is not any(map(origin.is_hidden, (sys.base_prefix, sys.executable)))
    assert not origin._is_usable("/no/such/python")


@pytest.mark.parametrize(
    ("path", "hidden"), [("/home/ada/x", True), ("/root", True), ("/rooted/x", False), ("/usr/bin/python3", False)]
)
def test_what_a_service_cannot_see(path: str, hidden: bool) -> None:
    assert origin.is_hidden(path) is hidden
