"""Free routing: which replica takes the next session. Pure.

Power of two choices: of two replicas drawn at random the less loaded one is taken. That is nearly
as even as asking for the least loaded of all, and gateways that do not know of each other's
decisions do not all pick the same replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BUSY_WEIGHT = 4.0
"""A running turn costs a replica about as much as four sessions that only wait."""

_SLOW_START_FLOOR = 0.1
"""Share of its weight with which a replica begins after it came up."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that may take a session.

    Attributes:
        name: its name.
        busy: turns running on it.
        sessions: sessions live on it.
        latency: seconds that it lately took to answer a probe.
        weight: its share relative to others.
        up_for: seconds since it came up.
        backup: it takes sessions only if no other replica can.
    """

    name: str
    busy: int = 0
    sessions: int = 0
    latency: float = 0.0
    weight: int = 1
    up_for: float = float("inf")
    backup: bool = False

    def score(self, slow_start: float) -> float:
        """Return its load relative to what it should carry; lower is better.

        Args:
            slow_start: seconds over which its share grows to the full weight.
        """
        share = 1.0
        if slow_start > 0:
            share = max(_SLOW_START_FLOOR, min(1.0, self.up_for / slow_start))
        load = 1.0 + self.sessions + _BUSY_WEIGHT * self.busy
        # A replica that answers a ping in 50 ms instead of 1 counts as half as strong again.
        return load * (1.0 + min(self.latency, 1.0) * 10) / (self.weight * share)


def choose(
    candidates: Sequence[Candidate],
    draw: Callable[[int], int],
    slow_start: float = 0.0,
) -> str | None:
    """Choose a replica.

    Args:
        candidates: those that may take the session; backups count only if there is nothing else.
        draw: ``draw(n)`` returns a random index below ``n`` (``random.randrange``).
        slow_start: see :meth:`Candidate.score`.

    Returns:
        The name, or None without candidates.
    """
    pool = [one for one in candidates if not one.backup] or list(candidates)
    if not pool:
        return None
    first = pool[draw(len(pool))]
    if len(pool) == 1:
        return first.name
    rest = [one for one in pool if one is not first]
    second = rest[draw(len(rest))]
    return min(first, second, key=lambda one: one.score(slow_start)).name
