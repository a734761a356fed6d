"""The composition root: builds the parts from settings and runs them until told to stop."""

from __future__ import annotations

import asyncio

import uvloop

from gateway.config.settings import Settings
from gateway.io.allocator import keep_freed_memory

__all__ = ["run"]


def run(settings: Settings) -> int:
    """Serve until a signal says otherwise; return the exit status.

    Raises:
        StartupError: something needed is missing or in use.
    """
    from gateway.app.gateway import Gateway  # noqa: PLC0415 - heavy, and only serve needs it

    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Gateway(settings).serve())
