"""The addresses in the line to join with."""

from __future__ import annotations

import sys

import pytest

from p2pnn.errors import UsageError
from p2pnn.node import addresses
from p2pnn.node.addresses import Interface, interfaces, join_addresses
from p2pnn.types import Address

FOUND = [
    Interface("lo", "127.0.0.1", loopback=True),
    Interface("lo", "::1", loopback=True),
    Interface("eth0", "192.168.1.20"),
    Interface("eth0", "fd00::20"),
    Interface("eth0", "fe80::1"),
    Interface("wlan0", "192.168.7.4"),
    Interface("wg0", "10.8.0.2"),
    Interface("eth1", "10.9.0.1", up=False),
    Interface("docker0", "172.17.0.1"),
    Interface("br-3f2a09b1c4de", "172.18.0.1"),
    Interface("br-lan", "192.168.9.1"),
    Interface("veth12", "172.19.0.1"),
    Interface("virbr0", "192.168.122.1"),
    Interface("cni0", "10.244.0.1"),
    Interface("podman1", "10.88.0.1"),
]
ALL = Address("0.0.0.0", 7700)


def hosts(*advertise: str, listen: Address = ALL) -> list[str]:
    return [str(address) for address in join_addresses(listen, advertise, FOUND)]


def test_all_but_loopback_bridges_and_what_is_down() -> None:
    assert hosts() == ["192.168.1.20:7700", "192.168.7.4:7700", "10.8.0.2:7700", "192.168.9.1:7700"]
    assert hosts(listen=Address("::", 7701)) == ["[fd00::20]:7701"]


def test_who_listens_on_one_address_shows_that_one() -> None:
    assert hosts(listen=Address("127.0.0.1", 7711)) == ["127.0.0.1:7711"]


def test_what_is_advertised_takes_their_place_or_is_added() -> None:
    assert hosts("example.org", "203.0.113.1:9000") == ["example.org:7700", "203.0.113.1:9000"]
    assert hosts("+example.org", "+192.168.1.20")[-1] == "example.org:7700"
    assert len(hosts("+example.org", "+192.168.1.20")) == 5
    assert hosts("a.org", "+b.org") == ["a.org:7700", "b.org:7700"]


@pytest.mark.parametrize("text", ["host:0", "", "+", "a:b:c:d:port"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        join_addresses(ALL, [text, "x:0"], FOUND)


def test_without_any_address_it_says_what_to_name() -> None:
    with pytest.raises(UsageError, match=r"no address was found .* --advertise HOST"):
        join_addresses(ALL, [], FOUND[:2])
    assert join_addresses(ALL, ["+a.org"], []) == [Address("a.org", 7700)]


def test_this_machine_has_addresses_and_its_loopback_is_known_as_such() -> None:
    assert any(one.loopback and one.host == "127.0.0.1" for one in interfaces())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="by Linux's ioctl")
def test_without_netlink_the_ipv4_addresses_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    by_netlink = {one for one in interfaces() if ":" not in one.host}

    def refused() -> list[Interface]:
        raise OSError("no netlink")

    monkeypatch.setattr(addresses, "_getifaddrs", refused)
    assert set(interfaces()) == by_netlink
