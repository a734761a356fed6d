"""Choosing a registry driver by URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from gateway.errors import ConfigError
from gateway.io.registry.memory import MemoryRegistry
from gateway.io.registry.redis import RedisRegistry
from gateway.io.registry.redis_url import SCHEMES as REDIS_SCHEMES
from gateway.io.registry.sqlite import SqliteRegistry
from gateway.routing.registry import Registry


def open_registry(url: str, timeout: float = 3.0) -> Registry:
    """Return the driver that a URL names, not yet opened.

    ``memory:``, ``sqlite:///path/to/file`` or just a path, or a Redis URL as described in
    :mod:`gateway.io.registry.redis_url`.

    Args:
        url: which driver, and where.
        timeout: seconds that the store has to answer.

    Raises:
        ConfigError: the URL says nothing usable.
    """
    if url in ("memory:", "memory://"):
        return MemoryRegistry()
    scheme, colon, rest = url.partition(":")
    if scheme == "sqlite" and colon:
        path = unquote(rest.removeprefix("//"))
        if rest.startswith("//") and not path.startswith("/"):
            raise ConfigError("registry: a SQLite file is written sqlite:///path/to/file")
        return SqliteRegistry(_file(path), timeout=timeout)
    if scheme in REDIS_SCHEMES and rest.startswith("//"):
        return RedisRegistry(url, timeout=timeout)
    if scheme in REDIS_SCHEMES or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url):
        raise ConfigError(
            f"registry: cannot use {scheme}: URLs; accepted: memory:, a file, sqlite:///path,"
            " redis://, rediss://, unix://, redis+sentinel://, redis+cluster://"
        )
    return SqliteRegistry(_file(url), timeout=timeout)


def _file(path: str) -> Path:
    if not path.strip("/"):
        raise ConfigError("registry: the SQLite file has no name")
    if "\0" in path:
        raise ConfigError("registry: the SQLite file's name holds a NUL character")
    return Path(path).expanduser()
