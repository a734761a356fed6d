"""The registry's interface: owners and placements of sessions, shared by workers and gateways.

Drivers live in :mod:`gateway.io.registry`. All pass the same contract tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gateway.types import Owner, Placement


class Registry(Protocol):
    """An atomic store of :class:`~gateway.types.Placement` records.

    Every method may raise :class:`~gateway.errors.RegistryUnavailableError`, within a bounded time;
    then nothing is known about whether a change took place, and a caller may repeat it: all changes
    are idempotent or guarded by the epoch.
    """

    async def open(self) -> None:
        """Connect and create what is missing."""

    async def close(self) -> None:
        """Release everything; idempotent."""

    async def get(self, session_id: str) -> Placement | None:
        """Return the record of a session, or None."""

    async def get_many(self, session_ids: Iterable[str]) -> dict[str, Placement]:
        """Return the records that exist among ``session_ids``."""

    async def claim(self, session_id: str, owner: Owner, replica: str) -> Placement:
        """Record a session unless it is recorded already; return what is recorded now.

        A new record has epoch 1. The caller compares ``owner`` and ``replica`` of what it gets with
        what it asked for to learn whether it won.
        """

    async def move(self, session_id: str, epoch: int, replica: str) -> Placement | None:
        """Move a session if its epoch is still ``epoch``: the epoch grows by one.

        Returns the record after the call (moved or not), or None if there is none.
        """

    async def forget(self, session_id: str, epoch: int | None = None) -> bool:
        """Remove a record (only at that epoch, when given); True if it was there."""

    async def owned_by(self, tenant: str, user: str | None) -> dict[str, Placement]:
        """Return all records of a tenant, or of one user of it, by session id."""

    async def placed_on(self, replica: str, limit: int = 1000) -> list[Placement]:
        """Return up to ``limit`` records placed on a replica."""

    async def counts(self) -> dict[str, int]:
        """Return the number of records by replica name."""
