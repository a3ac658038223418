"""Places for connections that have proved nothing, and how much of them the log tells."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnn.transport.limits import Limits
from p2pnn.transport.strangers import WARNINGS_MAX, WARNINGS_WITHIN_S, Strangers
from p2pnn.types import Address
from p2pnn.wire.messages import LinkKind


class Accepted:
    """What is asked of a socket."""

    def __init__(self, host: str) -> None:
        self.host = host

    def getpeername(self) -> tuple[str, int]:
        if not self.host:
            raise OSError("it broke")
        return self.host, 1


def link(host: str, dialled: bool = False, kind: LinkKind | None = None) -> Any:
    return SimpleNamespace(remote=Address(host, 1), dialled=dialled, kind=kind)


def refuses(host: str, *links: Any) -> bool:
    strangers = Strangers(Limits(handshakes_max=4, handshakes_of_host_max=2))
    return strangers.refuses(cast(Any, Accepted(host)), links, 0.0)


def test_one_address_has_its_share_and_all_together_have_theirs() -> None:
    assert not refuses("10.0.0.1", link("10.0.0.1"), link("10.0.0.2"), link("10.0.0.2"))
    assert refuses("10.0.0.1", link("10.0.0.1"), link("10.0.0.1"))
    assert refuses("10.0.0.1", *(link(f"10.0.0.{n}") for n in range(2, 6)))


def test_links_of_nodes_and_our_own_take_no_place() -> None:
    assert not refuses("10.0.0.1", *[link("10.0.0.1", kind=LinkKind.DATA), link("10.0.0.1", dialled=True)] * 9)


def test_the_addresses_of_one_ipv6_network_are_one() -> None:
    assert refuses("2001:db8::3", link("2001:db8::1"), link("2001:db8::2"))
    assert not refuses("2001:db8:0:1::3", link("2001:db8::1"), link("2001:db8::2"))


def test_what_broke_already_is_refused() -> None:
    assert refuses("")


def test_very_many_are_told_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    strangers, crowd = Strangers(Limits(handshakes_of_host_max=1)), [link("10.0.0.1")]
    with caplog.at_level(logging.WARNING, "p2pnn.transport"):
        for number in range(1000):
            assert strangers.refuses(cast(Any, Accepted("10.0.0.1")), crowd, number / 1000)
        assert len(caplog.records) == WARNINGS_MAX
        assert strangers.may_warn(WARNINGS_WITHIN_S)
    assert caplog.messages[-1].startswith(f"{1000 - WARNINGS_MAX} more warnings")
