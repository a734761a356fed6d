"""Drivers of the :class:`~gateway.routing.registry.Registry` interface.

``MemoryRegistry`` for one process, ``SqliteRegistry`` for the workers of one machine,
``RedisRegistry`` for many machines; :func:`open_registry` picks one by URL.
"""

from gateway.io.registry.memory import MemoryRegistry, MemoryStore
from gateway.io.registry.redis import RedisRegistry
from gateway.io.registry.sqlite import SqliteRegistry
from gateway.io.registry.url import open_registry

__all__ = [
    "MemoryRegistry",
    "MemoryStore",
    "RedisRegistry",
    "SqliteRegistry",
    "open_registry",
]
