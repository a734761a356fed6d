"""Waiting for conditions that announce themselves to nobody."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

TIMEOUT = 15.0
"""Seconds after which a wait has failed; far above what a loaded machine needs."""


async def eventually(condition: Callable[[], Any | Awaitable[Any]], within: float = TIMEOUT) -> Any:
    """Poll a (possibly asynchronous) condition until it is true; return its value.

    Raises:
        AssertionError: it did not become true in ``within`` seconds.
    """
    deadline = asyncio.get_running_loop().time() + within
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not true within {within} s: {inspect.getsource(condition)}")
        await asyncio.sleep(0.01)
