"""The audit log that the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from gateway.config.settings import Settings
from gateway.core.stats import Stats
from gateway.io.audit import STDOUT, AuditLog


class Audit(Protocol):
    """An audit log as the program holds it."""

    def record(self, event: str, **fields: Any) -> None:
        """Write one record; never blocks."""

    def reopen(self) -> None:
        """Open the file again, as after a rotation by another program."""

    def close(self) -> None:
        """Write what is queued and release the file."""


class NoAudit:
    """Keeps nothing: the operator asked for no audit log."""

    def record(self, event: str, **fields: Any) -> None:
        """Drop the record."""

    def reopen(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to release."""


def open_audit(settings: Settings, stats: Stats | None = None) -> Audit:
    """Return the audit log of the settings; each process opens its own.

    Args:
        settings: all settings.
        stats: where lost records are counted.

    Raises:
        StartupError: its file cannot be opened.
    """
    audit = settings.audit
    if not audit.path:
        return NoAudit()
    path = audit.path
    if path != STDOUT:
        path = str(Path(path).expanduser().absolute())
    return AuditLog(path, max_bytes=audit.max_size, keep=audit.keep, stats=stats)
