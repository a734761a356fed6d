"""Keeps a worker's lease in the registry, and hears of what others change there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from gateway.core.hub import Hub
from gateway.errors import RegistryUnavailableError, StartupError
from gateway.routing.registry import Change, PlacementChanged

log = logging.getLogger("gateway")

RENEWALS_PER_LEASE = 20
"""A lease is renewed that often before it ends, and a registry that lost it is told as soon."""

_RENEWAL_MAX = 2.0
"""Longest pause in seconds between two renewals: below the time for which drivers settle."""


class Lease:
    """One heartbeat for all the sessions of a worker.

    Args:
        hub: one of the worker's hubs; its placer names the worker in the registry.
        seconds: how long the registry counts the worker as alive after a heartbeat.
        hubs: returns all hubs of the worker, which may become more; None if there is only one.
    """

    def __init__(
        self, hub: Hub, seconds: float, hubs: Callable[[], Iterable[Hub]] | None = None
    ) -> None:
        self._hub = hub
        self._hubs = hubs or (lambda: (hub,))
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None
        self._complained = False

    async def start(self) -> None:
        """Take the lease and begin to renew it.

        Raises:
            StartupError: the registry does not answer.
        """
        try:
            await self._beat()
            incarnations = await self._hub.registry.replica_incarnations()
            for hub in self._hubs():
                hub.placer.incarnations = dict(incarnations)
            await self._hub.registry.watch(self._changed)
        except RegistryUnavailableError as error:
            raise StartupError(f"registry: {error}") from None
        self._task = asyncio.create_task(self._renew(), name="registry lease")

    def _changed(self, change: Change) -> None:
        for hub in list(self._hubs()):
            hub.placer.changed(change)

    def cover(self, hub: Hub) -> None:
        """Let the lease count for a hub that was made after it was taken."""
        hub.placer.horizon.lease_until = self._hub.placer.horizon.lease_until
        hub.placer.incarnations = dict(self._hub.placer.incarnations)

    async def close(self) -> None:
        """Give the lease up; what this worker held may be taken by others."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            gateway_id = self._hub.placer.gateway_id
            assert gateway_id is not None
            try:
                await self._hub.registry.leave(gateway_id)
            except RegistryUnavailableError:
                log.info("lease not given up: the registry is not available")

    async def _beat(self) -> None:
        placer = self._hub.placer
        assert placer.gateway_id is not None
        sent = self._hub.now()
        known = await self._hub.registry.heartbeat(placer.gateway_id, self._seconds)
        # Counted from before it was sent, so that this worker sees the lease end first.
        for hub in self._hubs():
            hub.placer.horizon.lease_until = sent + self._seconds
        if not known:
            await self._republish(placer.gateway_id)

    async def _republish(self, gateway_id: str) -> None:
        """Tell a registry that lost something what this worker holds; give up what it lost."""
        by_hub = [(hub, hub.placer.held) for hub in self._hubs()]
        held = [placement for _, held in by_hub for placement in held]
        stands = await self._hub.registry.republish(gateway_id, held)
        for placement in stands.values():
            self._changed(PlacementChanged(placement.session_id, placement))
        for hub, told in by_hub:
            hub.placer.republished(told)
            await hub.placer.read_marks()

    async def _renew(self) -> None:
        pause = min(_RENEWAL_MAX, self._seconds / RENEWALS_PER_LEASE)
        while True:
            await asyncio.sleep(pause)
            try:
                await self._beat()
            except RegistryUnavailableError as error:
                if not self._complained:
                    self._complained = True
                    log.error(
                        "the registry is not available: placed sessions go on, no new ones",
                        extra={"reason": str(error)},
                    )
            else:
                if self._complained:
                    self._complained = False
                    log.info("the registry is available again")
