"""Tokens reach a node by word, file, environment or systemd; truths by words."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from p2pnn.errors import UsageError
from p2pnn.values import join_token, truth, typed_token

TOKEN = f"p2pnn1.{'ab' * 32}.01234567.{'cd' * 16}"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_by_word_by_file_and_by_systemd(tmp_path: Path) -> None:
    write(tmp_path / "p2pnn.join-token", TOKEN + "\n")
    systemd = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert join_token(f" {TOKEN} ", None, {}) == TOKEN
    assert join_token("", tmp_path / "p2pnn.join-token", {}) == TOKEN
    assert join_token("", None, systemd) == TOKEN
    assert join_token("", None, {}) == ""
    assert join_token("", None, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) == ""


def test_what_is_no_token_and_what_cannot_be_read_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "binary", "".join(map(chr, range(256))) * 10)
    with pytest.raises(UsageError, match="bad token"):
        join_token("", tmp_path / "binary", {})
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        join_token("", tmp_path / "missing", {})
    with pytest.raises(UsageError, match="give one of them"):
        join_token(TOKEN, tmp_path / "binary", {})


def test_a_source_without_a_token_is_not_taken_for_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the node would found a cluster of its own, and nobody would notice."""
    empty = write(tmp_path / "p2pnn.join-token", " \n")
    for path, environ in ((empty, {}), (None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})):
        with pytest.raises(UsageError, match=r"there is no token in .*join-token: the file is empty"):
            join_token("", path, environ)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UsageError, match="no token on standard input"):
        typed_token("-")


def test_a_file_that_everybody_may_read_is_no_place_for_a_token(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"everybody on this machine may read .*chmod 600"):
        join_token("", write(tmp_path / "token", TOKEN, 0o644), {})
    assert join_token("", write(tmp_path / "token", TOKEN, 0o640), {}) == TOKEN


def test_a_token_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\nmore\n"))
    assert typed_token("-") == TOKEN
    assert typed_token("file") is None
    assert typed_token(None) is None


@pytest.mark.parametrize(("value", "found"), [(True, True), (False, False), ("yes", True), ("1", True), ("OFF", False)])
def test_truths(value: object, found: bool) -> None:
    assert truth(value, "plain") is found


@pytest.mark.parametrize("value", ["maybe", 2, "", None])
def test_what_is_neither_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"plain = .* is neither true nor false"):
        truth(value, "plain")
