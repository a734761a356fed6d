"""The registry in this process's memory: for tests and for a gateway of one worker.

It is also the plainest statement of what the other drivers do atomically.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.errors import RegistryUnavailableError
from gateway.io.registry.changes import deliver
from gateway.routing.registry import Change, PlacementChanged, ReplicaChanged
from gateway.types import Owner, Placement


@dataclass(slots=True)
class MemoryStore:
    """What several :class:`MemoryRegistry` objects of one process may share, as gateways would.

    Attributes:
        clock: seconds, from any origin; leases are measured with it.
        placements: records by session id.
        holds: session id -> gateway id -> incarnation of the replica when the hold was taken.
        leases: gateway id -> clock value at which the lease ends.
        floor: the highest epoch ever forgotten.
        marks: replica name -> mark.
        incarnations: replica name -> incarnation, 0 left out.
        watchers: who is told of changes, with the registry that must not hear of its own.
    """

    clock: Callable[[], float] = time.monotonic
    placements: dict[str, Placement] = field(default_factory=dict)
    holds: dict[str, dict[str, int]] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    floor: int = 0
    marks: dict[str, str] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    watchers: list[tuple[MemoryRegistry, Callable[[Change], None]]] = field(default_factory=list)


class MemoryRegistry:
    """The registry in memory; changes reach watchers before the call that makes them returns.

    Args:
        store: shared with other registries of this process; its own if None.
    """

    def __init__(self, store: MemoryStore | None = None) -> None:
        self._store = store if store is not None else MemoryStore()

    def __repr__(self) -> str:
        return f"<MemoryRegistry sessions={len(self._store.placements)}>"

    async def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Stop watching; the records stay in the store."""
        self._store.watchers[:] = [entry for entry in self._store.watchers if entry[0] is not self]

    async def get(self, session_id: str) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.get`."""
        return self._store.placements.get(session_id)

    async def get_many(self, session_ids: Iterable[str]) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.get_many`."""
        known = self._store.placements
        return {session_id: known[session_id] for session_id in session_ids if session_id in known}

    async def claim(
        self,
        session_id: str,
        owner: Owner,
        replica: str,
        gateway_id: str | None = None,
        *,
        unseen: bool = False,  # this store loses nothing while its users live
    ) -> Placement:
        """See :meth:`gateway.routing.registry.Registry.claim`."""
        self._require_lease(gateway_id)
        placement = self._store.placements.get(session_id)
        if placement is None:
            placement = Placement(session_id, owner, replica, self._store.floor + 1)
            self._put(placement)
        if placement.owner == owner:
            self._take_hold(placement, gateway_id)
        return placement

    async def move(
        self, session_id: str, epoch: int, replica: str, gateway_id: str | None = None
    ) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.move`."""
        self._require_lease(gateway_id)
        placement = self._store.placements.get(session_id)
        if placement is None:
            return None
        if placement.epoch == epoch and not self._held_by_others(placement, gateway_id):
            placement = Placement(session_id, placement.owner, replica, epoch + 1)
            self._store.holds.pop(session_id, None)
            self._put(placement)
        if placement.epoch == epoch + 1 and placement.replica == replica:
            self._take_hold(placement, gateway_id)
        return placement

    async def forget(
        self, session_id: str, epoch: int | None = None, gateway_id: str | None = None
    ) -> bool:
        """See :meth:`gateway.routing.registry.Registry.forget`."""
        self._require_lease(gateway_id)
        placement = self._store.placements.get(session_id)
        if placement is None or (epoch is not None and placement.epoch != epoch):
            return False
        if self._held_by_others(placement, gateway_id):
            return False
        del self._store.placements[session_id]
        self._store.holds.pop(session_id, None)
        self._store.floor = max(self._store.floor, placement.epoch)
        self._tell(PlacementChanged(session_id, None))
        return True

    async def owned_by(self, tenant: str, user: str | None) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.owned_by`."""
        return {
            placement.session_id: placement
            for placement in self._store.placements.values()
            if placement.owner.tenant == tenant and user in (None, placement.owner.user)
        }

    async def placed_on(self, replica: str, limit: int = 1000) -> list[Placement]:
        """See :meth:`gateway.routing.registry.Registry.placed_on`."""
        placed = [item for item in self._store.placements.values() if item.replica == replica]
        return placed[:limit]

    async def counts(self) -> dict[str, int]:
        """See :meth:`gateway.routing.registry.Registry.counts`."""
        return dict(Counter(item.replica for item in self._store.placements.values()))

    async def heartbeat(self, gateway_id: str, ttl_seconds: float) -> bool:
        """See :meth:`gateway.routing.registry.Registry.heartbeat`."""
        known = self._alive(gateway_id)
        if not known:
            await self.leave(gateway_id)
        self._store.leases[gateway_id] = self._store.clock() + ttl_seconds
        return known

    async def leave(self, gateway_id: str) -> None:
        """See :meth:`gateway.routing.registry.Registry.leave`."""
        self._store.leases.pop(gateway_id, None)
        for held in self._store.holds.values():
            held.pop(gateway_id, None)

    async def hold(self, session_id: str, epoch: int, gateway_id: str) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.hold`."""
        self._require_lease(gateway_id)
        placement = self._store.placements.get(session_id)
        if placement is not None and placement.epoch == epoch:
            self._take_hold(placement, gateway_id)
        return placement

    async def release(self, session_ids: Iterable[str], gateway_id: str) -> None:
        """See :meth:`gateway.routing.registry.Registry.release`."""
        for session_id in session_ids:
            self._store.holds.get(session_id, {}).pop(gateway_id, None)

    async def holders(self, session_id: str) -> frozenset[str]:
        """See :meth:`gateway.routing.registry.Registry.holders`."""
        placement = self._store.placements.get(session_id)
        return frozenset() if placement is None else self._holders(placement)

    async def republish(
        self, gateway_id: str, placements: Iterable[Placement]
    ) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.republish`."""
        self._require_lease(gateway_id)
        standing = {}
        for mine in placements:
            known = self._store.placements.get(mine.session_id)
            if known is None or (known.epoch < mine.epoch and known.owner == mine.owner):
                self._store.holds.pop(mine.session_id, None)
                self._put(mine)
                known = mine
            if known == mine:
                self._take_hold(known, gateway_id)
            standing[mine.session_id] = known
        return standing

    async def fence_replica(self, replica: str, incarnation: int) -> int:
        """See :meth:`gateway.routing.registry.Registry.fence_replica`."""
        current = self._store.incarnations.get(replica, 0)
        if current != incarnation:
            return current
        self._store.incarnations[replica] = incarnation + 1
        self._tell_replica(replica)
        return incarnation + 1

    async def replica_incarnations(self) -> dict[str, int]:
        """See :meth:`gateway.routing.registry.Registry.replica_incarnations`."""
        return dict(self._store.incarnations)

    async def set_replica_mark(self, replica: str, mark: str | None) -> None:
        """See :meth:`gateway.routing.registry.Registry.set_replica_mark`."""
        if mark is None:
            self._store.marks.pop(replica, None)
        else:
            self._store.marks[replica] = mark
        self._tell_replica(replica)

    async def replica_marks(self) -> dict[str, str]:
        """See :meth:`gateway.routing.registry.Registry.replica_marks`."""
        return dict(self._store.marks)

    async def watch(self, callback: Callable[[Change], None]) -> None:
        """See :meth:`gateway.routing.registry.Registry.watch`."""
        self._store.watchers.append((self, callback))

    def _alive(self, gateway_id: str) -> bool:
        return self._store.leases.get(gateway_id, float("-inf")) > self._store.clock()

    def _require_lease(self, gateway_id: str | None) -> None:
        if gateway_id is not None and not self._alive(gateway_id):
            raise RegistryUnavailableError("registry: this gateway's lease has ended")

    def _holders(self, placement: Placement) -> frozenset[str]:
        incarnation = self._store.incarnations.get(placement.replica, 0)
        held = self._store.holds.get(placement.session_id, {})
        return frozenset(
            gateway_id
            for gateway_id, held_incarnation in held.items()
            if held_incarnation == incarnation and self._alive(gateway_id)
        )

    def _held_by_others(self, placement: Placement, gateway_id: str | None) -> bool:
        return bool(self._holders(placement) - {gateway_id})

    def _take_hold(self, placement: Placement, gateway_id: str | None) -> None:
        if gateway_id is not None:
            incarnation = self._store.incarnations.get(placement.replica, 0)
            self._store.holds.setdefault(placement.session_id, {})[gateway_id] = incarnation

    def _put(self, placement: Placement) -> None:
        self._store.placements[placement.session_id] = placement
        self._tell(PlacementChanged(placement.session_id, placement))

    def _tell_replica(self, replica: str) -> None:
        mark = self._store.marks.get(replica)
        self._tell(ReplicaChanged(replica, mark, self._store.incarnations.get(replica, 0)))

    def _tell(self, change: Change) -> None:
        others = [callback for registry, callback in self._store.watchers if registry is not self]
        deliver([change], others)
