"""One heartbeat for all sessions of a worker, and what it hears from the registry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from gateway.core.hub import Limits
from gateway.errors import RegistryUnavailableError, StartupError
from gateway.io.lease import Lease
from gateway.io.registry.memory import MemoryRegistry, MemoryStore
from tests.support.playbook import Stage
from tests.support.wait import eventually

SECONDS = 1.0
"""A lease that is renewed every 50 ms."""


class Flaky(MemoryRegistry):
    """A registry that can be away.

    Attributes:
        away: every call fails.
        beats: heartbeats that succeeded.
    """

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.away = False
        self.beats = 0
        self.stage: Stage | None = None

    async def heartbeat(self, gateway_id: str, ttl_seconds: float) -> bool:
        if self.away:
            raise RegistryUnavailableError("away")
        known = await super().heartbeat(gateway_id, ttl_seconds)
        self.beats += 1
        if self.stage is not None:
            self.stage.time_passes(0.25)  # the way to the registry and back
        return known

    async def leave(self, gateway_id: str) -> None:
        if self.away:
            raise RegistryUnavailableError("away")
        await super().leave(gateway_id)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore) -> Flaky:
    return Flaky(store)


@pytest.fixture
async def stage(registry: Flaky) -> AsyncIterator[Stage]:
    stage = Stage(Limits(), registry=registry, gateway_id="g1", free=True)
    await stage.adds("cli-0", "cli-1")
    yield stage
    await stage.close()


@pytest.fixture
async def lease(stage: Stage) -> AsyncIterator[Lease]:
    lease = Lease(stage.hub, SECONDS)
    yield lease
    await lease.close()


async def test_it_counts_from_before_the_heartbeat_was_sent(
    stage: Stage, registry: Flaky, lease: Lease
) -> None:
    """So this worker sees it end before the registry does."""
    registry.stage = stage
    before = stage.now()
    await lease.start()
    assert stage.hub.placer.horizon.lease_until - before == pytest.approx(SECONDS, abs=0.1)


async def test_it_is_renewed(stage: Stage, registry: Flaky, lease: Lease) -> None:
    await lease.start()
    first = stage.hub.placer.horizon.lease_until
    await eventually(lambda: registry.beats >= 3)
    assert stage.hub.placer.horizon.lease_until > first
    assert stage.hub.placer.has_lease


async def test_without_a_registry_a_worker_does_not_start(registry: Flaky, lease: Lease) -> None:
    registry.away = True
    with pytest.raises(StartupError, match="away"):
        await lease.start()


async def test_it_ends_while_the_registry_is_away_and_heals(
    stage: Stage, registry: Flaky, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await lease.start()
    registry.away = True
    await eventually(lambda: "not available" in caplog.text)
    stage.time_passes(SECONDS)
    assert not stage.hub.placer.has_lease
    await asyncio.sleep(0.15)
    assert caplog.text.count("the registry is not available") == 1
    registry.away = False
    await eventually(lambda: stage.hub.placer.has_lease)
    assert "available again" in caplog.text


async def test_a_registry_that_lost_everything_is_told(
    stage: Stage, registry: Flaky, store: MemoryStore, lease: Lease
) -> None:
    await lease.start()
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    record = store.placements.pop("s")
    store.holds.clear()
    store.leases.clear()
    await eventually(lambda: store.placements.get("s") == record)
    assert await registry.holders("s") == {"g1"}


async def test_what_was_lost_to_others_is_followed(
    stage: Stage, registry: Flaky, store: MemoryStore, lease: Lease
) -> None:
    await lease.start()
    alice = await stage.client("alice")
    home = (await alice.creates("s")).line.replica.name
    await stage.settle()
    other = MemoryRegistry(store)
    await other.heartbeat("g2", 60)
    await other.leave("g1")
    (target,) = {"cli-0", "cli-1"} - {home}
    await other.move("s", 1, target, "g2")
    assert (await stage.anyone_gets("session.resume")).line.replica.name == target


async def test_changes_and_incarnations_reach_every_hub(
    stage: Stage, registry: Flaky, store: MemoryStore
) -> None:
    await registry.fence_replica("cli-0", 0)
    second = Stage(Limits(), registry=registry, gateway_id="g1")
    await second.adds("cli-0")
    lease = Lease(stage.hub, SECONDS, lambda: (stage.hub, second.hub))
    await lease.start()
    hubs = (stage.hub, second.hub)
    assert [hub.placer.incarnations for hub in hubs] == [{"cli-0": 1}] * 2
    await MemoryRegistry(store).set_replica_mark("cli-0", "draining")
    assert all(hub.replicas["cli-0"].health.draining for hub in hubs)
    await lease.close()
    await second.close()


async def test_it_covers_a_hub_that_came_later(stage: Stage, registry: Flaky, lease: Lease) -> None:
    await registry.fence_replica("cli-0", 0)
    await lease.start()
    later = Stage(Limits(), registry=registry, gateway_id="g1")
    lease.cover(later.hub)
    assert later.hub.placer.horizon.lease_until == stage.hub.placer.horizon.lease_until
    assert later.hub.placer.incarnations == {"cli-0": 1}
    await later.close()


async def test_at_the_end_others_may_take_all(stage: Stage, registry: Flaky, lease: Lease) -> None:
    await lease.start()
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    assert await registry.holders("s") == {"g1"}
    await lease.close()
    assert await registry.holders("s") == frozenset()
    await lease.close()


async def test_an_end_without_a_registry_is_an_end(
    registry: Flaky, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await lease.start()
    registry.away = True
    await lease.close()
    assert "lease not given up" in caplog.text
