"""Sticky routing: which replica a session prefers, by consistent hashing. Pure.

The ring is built over replica *names*: a replica that returns with another address keeps its
sessions. A recorded placement always wins over the ring; the ring only decides for new sessions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from uhashring import HashRing

DEFAULT_LOAD_FACTOR = 1.25
"""How far above the average a replica may be loaded before the next one on the ring is taken."""


class Ring:
    """A consistent hash ring with bounded load.

    Args:
        weights: replica name -> relative weight (1 is normal).
        load_factor: see :data:`DEFAULT_LOAD_FACTOR`; at least 1.
    """

    def __init__(
        self, weights: Mapping[str, int], load_factor: float = DEFAULT_LOAD_FACTOR
    ) -> None:
        self._weights = dict(weights)
        self._load_factor = load_factor
        self._ring = HashRing(nodes={name: {"weight": w} for name, w in self._weights.items()})

    @property
    def names(self) -> frozenset[str]:
        """The replicas on the ring."""
        return frozenset(self._weights)

    @property
    def weights(self) -> Mapping[str, int]:
        """The replicas on the ring and their weights."""
        return self._weights

    def preference(self, session_id: str) -> list[str]:
        """Return all replica names in the order in which the session prefers them."""
        if not self._weights:
            return []
        return [
            node["nodename"]
            for node in self._ring.range(session_id, size=len(self._weights), unique=True)
        ]

    def choose(
        self, session_id: str, candidates: Iterable[str], load: Mapping[str, int]
    ) -> str | None:
        """Choose the replica for a new session.

        The first preferred candidate whose load, the new session included, stays within
        ``load_factor`` times its fair share; with every candidate above, the first one.

        Args:
            session_id: the session to place.
            candidates: names of replicas that may take it.
            load: live sessions by replica name (absent means 0).
        """
        allowed = set(candidates) & self._weights.keys()
        if not allowed:
            return None
        total_load = sum(load.get(name, 0) for name in allowed) + 1
        total_weight = sum(self._weights[name] for name in allowed)
        first: str | None = None
        for name in self.preference(session_id):
            if name not in allowed:
                continue
            first = first or name
            share = total_load * self._weights[name] / total_weight
            if load.get(name, 0) + 1 <= math.ceil(self._load_factor * share):
                return name
        return first
