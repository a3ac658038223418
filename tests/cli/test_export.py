"""`export` writes one file and never over another; `paths` says where everything lies."""

import json
from pathlib import Path

import pytest

from p2pnn.cli import main
from p2pnn.config import Places
from tests.cli.made import saved_run

Capture = pytest.CaptureFixture[str]


def test_export(tmp_path: Path, capsys: Capture) -> None:
    folder = saved_run(Places.of().runs / "flowers-1")
    out = tmp_path / "net.safetensors"
    assert main(["export", "flowers-1", "--out", str(out)]) == 0
    content = (folder / "model.safetensors").read_bytes()
    assert out.read_bytes() == content
    assert capsys.readouterr().out == f"{out}: 4 parameters, {len(content):,} bytes\n"
    assert main(["export", str(folder), "--out", str(tmp_path / "2"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"file": str(tmp_path / "2"), "bytes": len(content), "format": "safetensors"}


def test_what_exists_stays(tmp_path: Path, capsys: Capture) -> None:
    saved_run(Places.of().runs / "flowers-1")
    out = tmp_path / "mine"
    out.write_text("mine")
    assert main(["export", "flowers-1", "--out", str(out)]) == 2
    assert f"{out} exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["flowers-2", "--out", "x"], 2, "did you mean flowers-1?"),
        (["flowers-1", "--out", "gone/x"], 1, "gone/x could not be written: No such file or directory"),
        (["flowers-1", "--out", "x", "--format", "safetensor"], 2, "did you mean safetensors?"),
        (["flowers-1"], 2, "--out"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str], status: int, said: str
) -> None:
    saved_run(Places.of().runs / "flowers-1")
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == status
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_paths(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["paths", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == str(Places.of().runs)
    assert found["state"] == str(Places.of().state)
    assert main(["paths"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert found.pop("config_exists") is False
    assert found["config"] == str(Places.of().config / "node.toml")
    found["config"] += "   (not there)"
    assert [line.split(maxsplit=1) for line in lines] == [list(row) for row in found.items()]
    assert main(["paths", "--json", "--socket", "/run/other.sock"]) == 0
    assert json.loads(capsys.readouterr().out)["socket"] == "/run/other.sock"
    monkeypatch.setenv("P2PNN_SOCKET", "/run/mine.sock")
    assert main(["paths", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["socket"] == "/run/mine.sock"
