"""How those are slowed who come with wrong tokens.

A token cannot be guessed: it has 128 random bits. What is bounded here is what guessing costs us. Each wrong token
doubles the time for which its address is not heard again, and wrong tokens from all addresses together draw on one
allowance that refills slowly. What comes too soon is refused unread. Addresses are kept in a table of fixed size; of IPv6
the first 64 bits count, because one machine has the rest.

Right tokens cost nothing. The price of the common allowance: while somebody guesses from very many addresses, honest joiners are
refused as well, and are told to try again.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """first_s: not heard after the first wrong token; doubles up to max_s. forget_s: after so long without one an address
    begins anew. burst, per_s: the common allowance of wrong tokens. sources_max: addresses that are kept."""

    first_s: float = 1.0
    max_s: float = 300.0
    forget_s: float = 3600.0
    burst: float = 30.0
    per_s: float = 1.0
    sources_max: int = 1024


DEFAULTS: Final = Limits()


@dataclass(slots=True)
class _Source:
    wrong: int
    last: float
    until: float


class Guesses:
    """now: seconds of a clock that never goes back, in every call."""

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        self._limits = limits
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._allowance = limits.burst
        self._filled_at = float("-inf")

    def __len__(self) -> int:
        return len(self._sources)

    def wait_s(self, host: str, now: float) -> float:
        """How long nothing from this address is looked at; 0 where its next token is."""
        self._fill(now)
        source = self._sources.get(group(host))
        wait = max(0.0, source.until - now) if source is not None else 0.0
        if self._allowance < 1:
            wait = max(wait, (1 - self._allowance) / self._limits.per_s)
        return wait

    def wrong(self, host: str, now: float) -> None:
        """It came with a token that is none."""
        self._fill(now)
        self._allowance = max(0.0, self._allowance - 1)
        key = group(host)
        source = self._sources.pop(key, None)
        if source is None or now - source.last > self._limits.forget_s:
            source = _Source(0, now, now)
        source.wrong += 1
        source.last = now
        source.until = now + min(self._limits.first_s * 2 ** min(source.wrong - 1, 30), self._limits.max_s)
        self._sources[key] = source
        while len(self._sources) > self._limits.sources_max:
            self._sources.popitem(last=False)

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            gained = (now - self._filled_at) * self._limits.per_s
            self._allowance = min(self._limits.burst, self._allowance + gained)
            self._filled_at = now


def group(host: str) -> str:
    """What counts as one address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)
