"""What the daemon is given: every blob that the spec names, and no more than it lacks."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn.cli import prepare, submit
from p2pnn.cli.http import Daemon
from p2pnn.cli.request import Request
from p2pnn.data.blobs import blob_id
from p2pnn.errors import DataError
from tests.cli.fake import FakeDaemon
from tests.cli.made import JOB, flowers, submitted, take
from tests.cli.test_prepare import prepared


def test_all_that_the_spec_names_is_sent(tmp_path: Path, daemon: FakeDaemon) -> None:
    take(daemon)
    found = prepared(tmp_path)
    assert submit.send(Daemon(daemon.path), found) == JOB
    assert submitted(daemon) == found.spec


def test_what_the_daemon_has_is_not_sent_again(tmp_path: Path, daemon: FakeDaemon) -> None:
    take(daemon)
    daemon["POST blobs/missing"] = {"missing": []}
    found = prepared(tmp_path)
    submit.send(Daemon(daemon.path), found)
    put = [path for method, path, _ in daemon.calls if method == "PUT"]
    assert put == [f"/api/v1/blobs/{blob_id(msgspec.msgpack.encode(found.spec))}"]


def test_data_that_was_not_kept_is_read_again(
    tmp_path: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "KEPT_BYTES", 0)
    take(daemon)
    found = prepared(tmp_path)
    assert not found.kept
    lines: list[str] = []
    submit.send(Daemon(daemon.path), found, lines.append)
    assert submitted(daemon) == found.spec
    assert len(lines) == 1
    assert "chunks of flowers" in lines[0]


def test_data_that_changes_while_it_is_sent(
    tmp_path: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "KEPT_BYTES", 0)
    take(daemon)
    image: dict[str, Any] = {"image": np.zeros((50, 3), np.float32), "label": np.zeros(50, np.int64)}
    found = prepare.training(Request(train=msgspec.convert({"batch_size": 8}, type(Request().train))), model=flowers(),
                           arrays=image)  # fmt: skip
    image["image"][3] = 5
    with pytest.raises(DataError, match="changed while it was being sent"):
        submit.send(Daemon(daemon.path), found)
    assert not daemon.bodies("POST jobs")
