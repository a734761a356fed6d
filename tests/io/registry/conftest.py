"""The drivers under test, each as a store that any number of registries may be opened on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.io.registry import MemoryRegistry, MemoryStore, open_registry
from gateway.routing.registry import Registry
from tests.support.redis_server import RedisServer

DRIVERS = ["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)]


class Store:
    """A place that registries of several processes share.

    Attributes:
        driver: its kind.
    """

    def __init__(self, driver: str, connect: Callable[[], Registry]) -> None:
        self.driver = driver
        self._connect = connect
        self._opened: list[Registry] = []

    async def open(self) -> Registry:
        """Open one more registry on the store, as another process would."""
        registry = self._connect()
        await registry.open()
        self._opened.append(registry)
        return registry

    async def close(self) -> None:
        """Close all registries."""
        for registry in self._opened:
            await registry.close()


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """A Redis that loses everything when it stops."""
    async with RedisServer() as server:
        yield server


@pytest.fixture(params=DRIVERS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Each kind of store in turn, empty."""
    if request.param == "memory":
        memory = MemoryStore()
        store = Store("memory", lambda: MemoryRegistry(memory))
        yield store
        await store.close()
    elif request.param == "sqlite":
        store = Store("sqlite", lambda: open_registry(str(tmp_path / "registry.db"), 10))
        yield store
        await store.close()
    else:
        async with RedisServer() as server:
            store = Store("redis", lambda: open_registry(f"unix://{server.socket}?settle=0", 10))
            yield store
            await store.close()


@pytest.fixture
async def registry(store: Store) -> Registry:
    """A registry on the store."""
    return await store.open()
