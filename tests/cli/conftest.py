from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnn.config import client_socket
from tests.cli.fake import FakeDaemon, fake_daemon


@pytest.fixture
def daemon(own_home: Path) -> Iterator[FakeDaemon]:
    """A scripted daemon where the command line looks for one."""
    with fake_daemon(client_socket().path) as server:
        yield server
