"""Any sequence of calls from several gateways, against a model that is a handful of dicts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gateway.io.registry import MemoryRegistry, MemoryStore, open_registry
from gateway.routing.registry import Registry
from gateway.types import Owner, Placement
from tests.io.registry.conftest import DRIVERS
from tests.support.redis_server import RedisServer

SESSIONS = ["s1", "s2", "s3"]
GATEWAYS = ["g1", "g2"]

sessions = st.sampled_from(SESSIONS)
owners = st.sampled_from([Owner("t1", "u1"), Owner("t1", "u2"), Owner("t2", "u1")])
replicas = st.sampled_from(["a", "b"])
gateways = st.sampled_from([None, *GATEWAYS])
behind = st.sampled_from([0, 0, 0, -1, 1])
"""How far an epoch or incarnation that a caller believes in is from the real one."""


class RegistryMachine(RuleBasedStateMachine):
    """Two gateways, each with a registry of its own, do what they like."""

    def __init__(self, runner: asyncio.Runner, connect: Callable[[], Registry]) -> None:
        super().__init__()
        self.run = runner.run
        self.registries: dict[str | None, Registry] = {name: connect() for name in GATEWAYS}
        for name in GATEWAYS:
            self.run(self.registries[name].open())
            self.run(self.registries[name].heartbeat(name, 3600))
        self.registries[None] = self.registries["g1"]
        self.placements: dict[str, Placement] = {}
        self.holds: dict[str, dict[str, int]] = {}
        self.incarnations: dict[str, int] = {}
        self.floor = 0
        self.highest: dict[str, int] = {}

    def teardown(self) -> None:
        for name in GATEWAYS:
            self.run(self.registries[name].close())

    def holders(self, session: str) -> set[str]:
        placement = self.placements.get(session)
        if placement is None:
            return set()
        now = self.incarnations.get(placement.replica, 0)
        return {name for name, then in self.holds.get(session, {}).items() if then == now}

    def put(self, placement: Placement) -> None:
        self.placements[placement.session_id] = placement
        self.holds[placement.session_id] = {}

    def take_hold(self, session: str, gateway: str | None) -> None:
        if gateway is not None:
            now = self.incarnations.get(self.placements[session].replica, 0)
            self.holds[session][gateway] = now

    def believed_epoch(self, session: str, error: int) -> int:
        placement = self.placements.get(session)
        return (placement.epoch if placement is not None else 1) + error

    @rule(session=sessions, owner=owners, replica=replicas, gateway=gateways)
    def claim(self, session: str, owner: Owner, replica: str, gateway: str | None) -> None:
        if session not in self.placements:
            self.put(Placement(session, owner, replica, self.floor + 1))
        if self.placements[session].owner == owner:
            self.take_hold(session, gateway)
        answer = self.run(self.registries[gateway].claim(session, owner, replica, gateway))
        assert answer == self.placements[session]

    @rule(session=sessions, error=behind, replica=replicas, gateway=gateways)
    def move(self, session: str, error: int, replica: str, gateway: str | None) -> None:
        epoch = self.believed_epoch(session, error)
        placement = self.placements.get(session)
        if placement is not None:
            if placement.epoch == epoch and not self.holders(session) - {gateway}:
                placement = Placement(session, placement.owner, replica, epoch + 1)
                self.put(placement)
            if (placement.epoch, placement.replica) == (epoch + 1, replica):
                self.take_hold(session, gateway)
        answer = self.run(self.registries[gateway].move(session, epoch, replica, gateway))
        assert answer == placement

    @rule(session=sessions, error=st.none() | behind, gateway=gateways)
    def forget(self, session: str, error: int | None, gateway: str | None) -> None:
        epoch = None if error is None else self.believed_epoch(session, error)
        placement = self.placements.get(session)
        gone = (
            placement is not None
            and epoch in (None, placement.epoch)
            and not self.holders(session) - {gateway}
        )
        if gone:
            assert placement is not None
            self.floor = max(self.floor, placement.epoch)
            del self.placements[session]
        assert self.run(self.registries[gateway].forget(session, epoch, gateway)) is gone

    @rule(session=sessions, error=behind, gateway=st.sampled_from(GATEWAYS))
    def hold(self, session: str, error: int, gateway: str) -> None:
        epoch = self.believed_epoch(session, error)
        placement = self.placements.get(session)
        if placement is not None and placement.epoch == epoch:
            self.take_hold(session, gateway)
        assert self.run(self.registries[gateway].hold(session, epoch, gateway)) == placement

    @rule(some=st.lists(sessions), gateway=st.sampled_from(GATEWAYS))
    def release(self, some: list[str], gateway: str) -> None:
        for session in some:
            self.holds.get(session, {}).pop(gateway, None)
        self.run(self.registries[gateway].release(some, gateway))

    @rule(gateway=st.sampled_from(GATEWAYS))
    def restart_gateway(self, gateway: str) -> None:
        for held in self.holds.values():
            held.pop(gateway, None)
        self.run(self.registries[gateway].leave(gateway))
        assert self.run(self.registries[gateway].heartbeat(gateway, 3600)) is False

    @rule(replica=replicas, error=behind)
    def fence(self, replica: str, error: int) -> None:
        now = self.incarnations.get(replica, 0)
        if error == 0:
            self.incarnations[replica] = now + 1
        answer = self.run(self.registries[None].fence_replica(replica, now + error))
        assert answer == self.incarnations.get(replica, 0)

    @rule(session=sessions, owner=owners, replica=replicas, error=behind, gateway=gateways)
    def republish(
        self, session: str, owner: Owner, replica: str, error: int, gateway: str | None
    ) -> None:
        gateway = gateway or "g1"
        # A gateway can only hold what was recorded above every epoch forgotten before.
        epoch = max(self.believed_epoch(session, error), self.floor + 1)
        mine = Placement(session, owner, replica, epoch)
        known = self.placements.get(session)
        if known is None or (known.epoch < epoch and known.owner == owner):
            self.put(mine)
        if self.placements[session] == mine:
            self.take_hold(session, gateway)
        answer = self.run(self.registries[gateway].republish(gateway, [mine]))
        assert answer == {session: self.placements[session]}

    @invariant()
    def agrees(self) -> None:
        for name in GATEWAYS:
            assert self.run(self.registries[name].get_many(SESSIONS)) == self.placements
        registry = self.registries["g2"]
        for session in SESSIONS:
            assert self.run(registry.holders(session)) == self.holders(session)
        placed = self.placements.values()
        for tenant in ("t1", "t2"):
            owned = {item.session_id: item for item in placed if item.owner.tenant == tenant}
            assert self.run(registry.owned_by(tenant, None)) == owned
        counts = {
            name: len([item for item in placed if item.replica == name])
            for name in {item.replica for item in placed}
        }
        assert self.run(registry.counts()) == counts
        for name in ("a", "b"):
            assert len(self.run(registry.placed_on(name))) == counts.get(name, 0)

    @invariant()
    def epochs_only_grow(self) -> None:
        for session, placement in self.placements.items():
            assert placement.epoch >= self.highest.get(session, 0)
            self.highest[session] = placement.epoch


@pytest.fixture(params=DRIVERS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A runner, and a function that makes a new store and returns how to connect to it."""
    numbers = itertools.count()

    def new_store() -> Callable[[], Registry]:
        number = next(numbers)
        if request.param == "memory":
            store = MemoryStore()
            return lambda: MemoryRegistry(store)
        if request.param == "sqlite":
            return lambda: open_registry(str(tmp_path / f"{number}.db"), 30)
        url = f"unix://{server.socket}?settle=0&prefix=model{number}"
        return lambda: open_registry(url, 30)

    with asyncio.Runner() as runner:
        server = RedisServer()
        try:
            if request.param == "redis":
                runner.run(server.start())
            yield runner, new_store
        finally:
            server.close()


def test_any_history(stores: Any) -> None:
    runner, new_store = stores
    run_state_machine_as_test(
        lambda: RegistryMachine(runner, new_store()),
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
