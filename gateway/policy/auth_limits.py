"""Slowing sources that fail to authenticate, in memory that they cannot grow. Pure.

A source may fail ``burst`` times at once; after that, one attempt per ``recovery``. One number per
source is enough: the time at which everything is forgiven, pushed back by ``recovery`` with each
failure (the "generic cell rate algorithm").

The table is bounded and a flood must neither grow it nor push a guesser's own entry out of it, so
an entry that is not yet forgiven is never evicted. Sources that find no room share one overflow
entry: whoever rotates through more sources than the table holds is slowed as if all the surplus
were one. A success forgives nothing, or an attacker with one good token could reset the count
between guesses at another.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

_OVERFLOW = b"*"
"""Key of the shared entry; no real key has one byte."""

_SWEEP = 2
"""Forgiven entries dropped per failure: more than one comes in, so the table shrinks again."""


def source_key(address: str) -> bytes:
    """Return what identifies a source: an IPv4 address, or the /64 of an IPv6 one.

    A /64 is what one customer or one machine gets, so its addresses are one source. An IPv4
    address written as IPv6 is the same source as the IPv4 address. Anything else, such as the peer
    of a Unix socket, is one source.
    """
    try:
        # A zone (fe80::1%eth0) names an interface of this machine, not of the source.
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return b""
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed.packed
    if parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.packed
    return parsed.packed[:8]


class FailureLimiter:
    """Counts failures by source and says how long a source has to wait.

    Args:
        burst: failures that a source may make at once, at least 1.
        recovery: seconds after which one failure is forgiven.
        max_delay: longest wait in seconds.
        capacity: sources that are remembered one by one.
    """

    def __init__(self, burst: int, recovery: float, max_delay: float, capacity: int) -> None:
        self._recovery = recovery
        self._tolerance = (burst - 1) * recovery
        self._horizon = self._tolerance + max_delay
        self._capacity = capacity
        # Time at which a source is forgiven, by key; least recent failure first.
        self._forgiven_at: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of entries held."""
        return len(self._forgiven_at)

    def wait(self, address: str, now: float) -> float:
        """Return the seconds until an attempt from this source may be judged; 0 for at once.

        Ask again after waiting: of many attempts that wait at the same time only the first may go,
        since its failure makes the others wait anew. A token of 256 random bits cannot be guessed
        and need not wait; without that, one guesser behind a shared address would lock out all
        who share it.

        Args:
            address: the peer's IP address.
            now: a clock in seconds, the same in all calls.
        """
        forgiven_at = self._forgiven_at.get(self._key(address), 0.0)
        return max(0.0, forgiven_at - self._tolerance - now)

    def failed(self, address: str, now: float) -> float:
        """Record a failure and return the seconds until the next attempt may be judged."""
        self._sweep(now)
        key = self._key(address)
        forgiven_at = max(self._forgiven_at.get(key, now), now) + self._recovery
        self._forgiven_at[key] = min(forgiven_at, now + self._horizon)
        self._forgiven_at.move_to_end(key)
        return self.wait(address, now)

    def _key(self, address: str) -> bytes:
        """Return the entry that counts for a source: its own, or the shared one when none is free.

        The shared entry comes on top of the capacity.
        """
        key = source_key(address)
        held = len(self._forgiven_at) - (_OVERFLOW in self._forgiven_at)
        return key if key in self._forgiven_at or held < self._capacity else _OVERFLOW

    def _sweep(self, now: float) -> None:
        for _ in range(_SWEEP):
            key = next(iter(self._forgiven_at), None)
            if key is None or self._forgiven_at[key] > now:
                return
            del self._forgiven_at[key]
