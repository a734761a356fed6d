"""Handing changes to those who watch a registry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from gateway.routing.registry import Change

logger = logging.getLogger(__name__)


def deliver(changes: Iterable[Change], callbacks: Iterable[Callable[[Change], None]]) -> None:
    """Call every callback for every change; one that fails is logged and keeps none from others."""
    for change in changes:
        for callback in callbacks:
            try:
                callback(change)
            except Exception:
                logger.exception("a registry watcher failed")
