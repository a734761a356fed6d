"""The registry's interface: owners and placements of sessions, shared by workers and gateways.

Drivers live in :mod:`gateway.io.registry`. All pass the same contract tests.

How many gateways agree on one place for a session
--------------------------------------------------
A *gateway* here is one worker process, under a random id of its own making.

*Record.* Each session has one :class:`~gateway.types.Placement`. Its epoch grows by one at every
move, and a record made anew after :meth:`Registry.forget` starts above every epoch that was ever
forgotten, so an epoch read long ago never matches a later life of the same id.

*Lease.* A gateway proves that it is alive by one heartbeat for all its sessions. It counts its
lease from the moment it *sent* the last heartbeat that succeeded, the registry from the moment it
received it, so the gateway is always the first to see it end. A gateway without a lease is refused
whatever it would have to be alive for, and a new lease does not bring back the holds of an old one.

*Hold.* Before a gateway sends what makes a session live (create, resume), it takes a hold on the
record, in the same atomic step as the claim or the move, or by :meth:`Registry.hold`. It lets go
(:meth:`Registry.release`) after its last client of the session is gone and nothing of it lingers.
A hold counts while the gateway's lease runs and the replica's incarnation is what it was.

*Move.* Guarded twice: the epoch must be the one the caller saw, and no other gateway's hold may
count. So a session that is live through any living gateway stays where it is; create, resume,
delete and drain on different gateways meet in one record and have one winner. To drain a session
that several gateways hold, each releases it once it sees it idle, and the last one's move succeeds;
the others hear of it by :meth:`Registry.watch`. The same guard keeps a record from being forgotten
under those who use it.

*Death of a replica.* :meth:`Registry.fence_replica` starts a new incarnation of the replica, which
voids all holds on it. Whoever finds a replica dead, or restarted, does this once (the call is a
compare-and-set) and may then move its sessions; others hear of it and take theirs elsewhere too.

*A registry that lost something.* :meth:`Registry.heartbeat` answers False when the store does not
know the gateway or is not the server it spoke to before (restarted, replaced by its replica). The
gateway then calls :meth:`Registry.republish` with all it holds; where two disagree, the later epoch
wins, else who came first, and the loser closes its copy. Until holders have had time for that, a
driver whose store can lose data refuses to record sessions it has never seen, unless the caller
vouches that nobody can hold them (``unseen``: it made the id, or asked every replica).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from gateway.types import Owner, Placement


@dataclass(frozen=True, slots=True)
class PlacementChanged:
    """Another process changed a session's record.

    Attributes:
        session_id: the session.
        placement: its record now (not necessarily as that change left it), or None.
    """

    session_id: str
    placement: Placement | None


@dataclass(frozen=True, slots=True)
class ReplicaChanged:
    """Another process marked or fenced a replica.

    Attributes:
        replica: the replica's name.
        mark: its mark now, or None.
        incarnation: its incarnation now.
    """

    replica: str
    mark: str | None
    incarnation: int


@dataclass(frozen=True, slots=True)
class ChangesLost:
    """Changes went by unseen: whatever was read from the registry has to be read again."""


Change = PlacementChanged | ReplicaChanged | ChangesLost


class Registry(Protocol):
    """An atomic store of :class:`~gateway.types.Placement` records.

    Every method but ``open`` and ``close`` may raise
    :class:`~gateway.errors.RegistryUnavailableError`, within a bounded time; then nothing is known
    about whether a change took place, and a caller may repeat it: all changes are idempotent or
    guarded by the epoch. Methods that take a ``gateway_id`` also raise it, having changed nothing,
    while that gateway has no lease: the remedy is a heartbeat.
    """

    async def open(self) -> None:
        """Connect and create what is missing.

        Raises:
            StartupError: the store cannot be reached or is not one of this version.
        """

    async def close(self) -> None:
        """Release everything; idempotent."""

    async def get(self, session_id: str) -> Placement | None:
        """Return the record of a session, or None."""

    async def get_many(self, session_ids: Iterable[str]) -> dict[str, Placement]:
        """Return the records that exist among ``session_ids``."""

    async def claim(
        self,
        session_id: str,
        owner: Owner,
        replica: str,
        gateway_id: str | None = None,
        *,
        unseen: bool = False,
    ) -> Placement:
        """Record a session unless it is recorded already; return what is recorded now.

        A new record has epoch 1, or one above the highest epoch ever forgotten. The caller compares
        ``owner`` and ``replica`` of what it gets with what it asked for to learn whether it won.

        Args:
            session_id: the session.
            owner: who it belongs to.
            replica: where it shall live.
            gateway_id: takes a hold on the record, new or not, if ``owner`` is its owner.
            unseen: the caller knows that no gateway can hold the session.
        """

    async def move(
        self, session_id: str, epoch: int, replica: str, gateway_id: str | None = None
    ) -> Placement | None:
        """Move a session if its epoch is still ``epoch``: the epoch grows by one.

        Nothing moves while a gateway other than ``gateway_id`` holds the session. With a
        ``gateway_id`` a move ends all holds but its own, which it takes; this and the answer are
        the same when the move asked for has been made before.

        Returns:
            The record after the call (moved or not), or None if there is none.
        """

    async def forget(
        self, session_id: str, epoch: int | None = None, gateway_id: str | None = None
    ) -> bool:
        """Remove a record (only at that epoch, when given); True if it was there and is gone.

        Nothing is removed while a gateway other than ``gateway_id`` holds the session.
        """

    async def owned_by(self, tenant: str, user: str | None) -> dict[str, Placement]:
        """Return all records of a tenant, or of one user of it, by session id."""

    async def placed_on(self, replica: str, limit: int = 1000) -> list[Placement]:
        """Return up to ``limit`` records placed on a replica."""

    async def counts(self) -> dict[str, int]:
        """Return the number of records by replica name."""

    async def heartbeat(self, gateway_id: str, ttl_seconds: float) -> bool:
        """Renew a gateway's lease for ``ttl_seconds`` from now.

        Returns:
            False if the registry may have lost what this gateway recorded (its first heartbeat
            included): the gateway republishes what it holds.
        """

    async def leave(self, gateway_id: str) -> None:
        """End a gateway's lease and with it all its holds."""

    async def hold(self, session_id: str, epoch: int, gateway_id: str) -> Placement | None:
        """Take a hold on a record that is still at ``epoch``; return the record now, or None."""

    async def release(self, session_ids: Iterable[str], gateway_id: str) -> None:
        """End a gateway's holds on these sessions."""

    async def holders(self, session_id: str) -> frozenset[str]:
        """Return the gateways whose holds on a session count."""

    async def republish(
        self, gateway_id: str, placements: Iterable[Placement]
    ) -> dict[str, Placement]:
        """Tell a registry that lost something what this gateway holds; return what stands now.

        A placement is recorded, under its own epoch, where the registry has none or one of a lower
        epoch, and held where the record then agrees with it. Where it does not agree, another
        gateway holds the session and this one must close its copy. Records never change owner.
        """

    async def fence_replica(self, replica: str, incarnation: int) -> int:
        """Start a new incarnation of a replica if it is still at ``incarnation``.

        All holds on sessions of the old incarnation are void.

        Returns:
            The incarnation after the call; a replica never fenced is at 0.
        """

    async def replica_incarnations(self) -> dict[str, int]:
        """Return the incarnations above 0 by replica name."""

    async def set_replica_mark(self, replica: str, mark: str | None) -> None:
        """Set or clear a replica's mark (``draining``), for all gateways to see."""

    async def replica_marks(self) -> dict[str, str]:
        """Return the marks by replica name."""

    async def watch(self, callback: Callable[[Change], None]) -> None:
        """Call ``callback`` for every change that other processes make from now until ``close``.

        Changes arrive within a fraction of a second, in the order they were made, several of one
        session perhaps as one; none while the registry is unavailable, then all that were missed,
        or :class:`ChangesLost`.
        """
