"""What a secured node begins with, by what it was told and what lies in its folder."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from p2pnn.errors import UsageError
from p2pnn.identity.authority import VALID_S
from p2pnn.node.charter_file import CharterFile
from p2pnn.node.credentials import Credentials
from p2pnn.node.daemon import Daemon
from p2pnn.node.secured import Secured, open_secured
from p2pnn.node.storage import Storage
from p2pnn.types import Address
from tests.node.nodes import config
from tests.node.test_identity import secured

pytestmark = pytest.mark.asyncio
TOKEN = f"p2pnn1.{'ab' * 32}.01234567.{'cd' * 16}"


def opened(folder: Path, **changes: object) -> Secured:
    one = secured(folder, "a", **changes)
    storage = Storage(one.state_dir, plain=False)
    try:
        return open_secured(one, storage, "p2pnn test")
    finally:
        storage.close()


async def test_the_first_start_founds_and_prints_a_token_and_the_next_does_not(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.founds
    assert first.identity.founded_with is not None
    assert len(first.founding.tokens) == 1
    CharterFile(tmp_path / "a").load(first.founding)
    second = opened(tmp_path)
    assert second.identity.founded_with is None
    assert second.identity.credentials.cluster == first.identity.credentials.cluster


async def test_no_token_goes_into_a_journal_or_to_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(tmp_path / "1", ready_fd=7).founding.tokens == ()
    out = os.fstat(1)
    monkeypatch.setenv("JOURNAL_STREAM", f"{out.st_dev}:{out.st_ino}")
    assert opened(tmp_path / "2").founding.tokens == ()
    monkeypatch.setenv("JOURNAL_STREAM", f"{out.st_dev}:{out.st_ino + 1}")  # as in a terminal of a desktop's session
    assert len(opened(tmp_path / "3").founding.tokens) == 1


async def test_a_first_start_without_a_port_leaves_the_token_to_the_next(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(UsageError, match="is in use"):
            await Daemon(secured(tmp_path, "a", listen=listen, ready_fd=None)).start()
    assert opened(tmp_path).identity.founded_with is not None


async def test_with_a_token_it_is_to_arrive(tmp_path: Path) -> None:
    assert opened(tmp_path, token=TOKEN, join=(secured(tmp_path, "x").listen,)).arrival is not None


@pytest.mark.parametrize(("age_s", "arrives"), [(0.0, False), (VALID_S + 60, True)])
async def test_a_token_of_its_own_cluster_is_used_when_its_certificate_has_ended(
    tmp_path: Path, age_s: float, arrives: bool
) -> None:
    storage = Storage(tmp_path / "a", plain=False)
    assert storage.key is not None
    credentials = Credentials(storage.root, storage.key)
    credentials.found(time.time() - age_s)
    storage.close()
    token = TOKEN.replace("ab" * 32, credentials.cluster)
    found = opened(tmp_path, token=token, join=(secured(tmp_path, "x").listen,))
    assert (found.arrival is not None) is arrives


async def test_a_folder_is_for_one_kind_of_node(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(UsageError, match="belongs to a node with a key: leave out --plain"):
        Daemon(config(tmp_path, "a"))
    Storage(tmp_path / "p").close()
    with pytest.raises(UsageError, match="belongs to a plain node, which has no key"):
        Storage(tmp_path / "p", plain=False)
