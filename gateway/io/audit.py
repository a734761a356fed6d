"""The audit log: one JSON line for each thing that somebody may be asked about later.

Written for authentications, session create, resume, delete and fork, denied methods and admin
actions. Only the fields of :data:`FIELDS` are written, so prompts, tokens and tool output have no
way in: of any other field a line says that it was ``omitted``, not what it held. Text from clients
is escaped to ASCII and cut in length, so that a line is always one line and harmless on a terminal.

:meth:`AuditLog.record` only appends to a queue; one thread writes. When the disk does not keep up,
records are dropped rather than clients held up: they are counted, and the log itself says how many
are missing. Several worker processes may write to the same file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from gateway.core.stats import Stats
from gateway.errors import EXIT_UNAVAILABLE, StartupError
from gateway.types import Identity

STDOUT: Final = "-"
"""The path that stands for standard output."""

MAX_QUEUED: Final = 10_000
"""Records waiting for the disk: some 10 MB at most; a second or two of a storm of log-ins."""

MAX_VALUE_LENGTH: Final = 256
"""Characters kept of any field; session ids have at most 250."""

_MAX_BATCH: Final = 500  # Records per write: long enough to be cheap, short enough for rotation.
_COMPLAIN_EVERY: Final = 60.0  # Seconds between two complaints in the log about a failing disk.

_log = logging.getLogger(__name__)

FIELDS: Final = {
    "tenant": "who: the tenant",
    "user": "who: the user",
    "role": "who: `user` or `admin`",
    "source": "who: how that was proven, such as the id of a token",
    "peer": "from where: the address of the client",
    "listener": "from where: the listener it came in by",
    "session": "the session concerned",
    "target": "the second session of a fork, or the object of an admin action",
    "replica": "the replica concerned",
    "method": "the JSON-RPC method",
    "outcome": "`ok`, `denied` or `failed`",
    "code": "the error code that the client was sent",
    "reason": "a short text of the gateway's own, never the client's words",
}
"""The fields a record may have, in this order, after ``time`` and ``event``."""

_Entry = tuple[float, str, dict[str, Any]]


class AuditLog:
    """A bounded queue and the thread that writes it to a file or to standard output.

    Invariants: the queue never holds more than ``max_queued`` records; only the writer thread
    touches the file; every record is either written or counted in :attr:`lost`. Made in the process
    that uses it: a thread does not survive a fork.
    """

    def __init__(
        self,
        path: str,
        *,
        max_bytes: int = 100 * 1024 * 1024,
        keep: int = 5,
        max_queued: int = MAX_QUEUED,
        stats: Stats | None = None,
    ) -> None:
        """Open the log and start its writer.

        Args:
            path: file to append to, or :data:`STDOUT`.
            max_bytes: size in bytes at which the file becomes ``path.1``; 0 never rotates.
            keep: number of rotated files; 0 discards a full one.
            max_queued: records that may wait for the disk before new ones are dropped.
            stats: where lost records are counted as well.

        Raises:
            StartupError: the file cannot be opened for appending.
        """
        self._path = None if path == STDOUT else Path(path)
        self._max_bytes = max_bytes
        self._keep = keep
        self._max_queued = max_queued
        self._stats = stats
        self._queue: deque[_Entry] = deque()
        self._wake = threading.Condition()
        self._unreported = 0  # Lost since the log last said so.
        self._lost = 0
        self._reopen = False
        self._closing = False
        self._next_complaint = 0.0
        self._fd = -1
        self._torn = False  # The last write ended in the middle of a line.
        try:
            self._open()
        except OSError as error:
            raise StartupError(
                f"audit log {path}: {error.strerror or error}", EXIT_UNAVAILABLE
            ) from None
        self._writer = threading.Thread(target=self._run, name="audit-log", daemon=True)
        self._writer.start()

    def __repr__(self) -> str:
        where = self._path or "stdout"
        return f"<AuditLog {where} [{len(self._queue)} queued, {self._lost} lost]>"

    @property
    def lost(self) -> int:
        """Records dropped since the start: the queue was full or the write failed."""
        return self._lost

    def record(self, event: str, **fields: Any) -> None:
        """Queue one line; returns at once and never raises.

        Args:
            event: ``authentication``, ``session.create``, ``session.resume``, ``session.delete``,
                ``session.fork``, ``session.send`` (to a shared session), ``denied`` (a method, a
                param, or a session of somebody else), ``host-change`` (a method that changes what
                all sessions of a replica see) or ``admin.<action>``.
            fields: any of :data:`FIELDS`, or ``identity``, an
                :class:`~gateway.types.Identity` that stands for tenant, user, role and source.
                Fields that are None are left out.
        """
        entry: _Entry = (time.time(), event, fields)
        with self._wake:
            if self._closing or len(self._queue) >= self._max_queued:
                self._lose(1)
                return
            self._queue.append(entry)
            if len(self._queue) == 1:
                self._wake.notify()

    def reopen(self) -> None:
        """Close and open the file again, as after a rotation by another program (SIGHUP)."""
        with self._wake:
            self._reopen = True
            self._wake.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued and end; idempotent.

        Args:
            timeout: seconds to wait for a slow disk; what is not written by then is lost.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._writer.join(timeout)

    def _lose(self, count: int) -> None:
        """Count lost records; the caller holds the lock."""
        self._lost += count
        self._unreported += count
        if self._stats is not None:
            self._stats.audit_lost += count

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._queue or self._reopen or self._closing):
                    self._wake.wait()
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_BATCH))]
                reopen, self._reopen = self._reopen, False
                closing = self._closing
                unreported, self._unreported = self._unreported, 0
            if closing and not batch and not unreported:
                break
            lines = [_line(*entry) for entry in batch]
            if unreported:
                # Said after the records that filled the queue: that is where the gap is.
                gap = {"outcome": "failed", "reason": f"{unreported} records lost"}
                lines.append(_line(time.time(), "audit.gap", gap))
            try:
                if reopen:
                    self._close_file()
                self._write("".join(lines).encode("ascii"))
            except OSError as error:
                self._complain(error)
                with self._wake:
                    self._unreported += unreported
                    self._lose(len(batch))
                    if closing:
                        self._lose(len(self._queue))
                        break
        self._close_file()

    def _write(self, data: bytes) -> None:
        """Append whole lines, opening or rotating the file first where that is due."""
        if self._path is not None:
            self._follow(self._path)
            if self._max_bytes and os.fstat(self._fd).st_size >= self._max_bytes:
                self._rotate(self._path)
        if self._torn:
            data = b"\n" + data
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
            self._torn = bool(view)

    def _open(self) -> None:
        if self._path is None:
            self._fd = sys.stdout.fileno()
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)

    def _close_file(self) -> None:
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow(self, path: Path) -> None:
        """Open the file again if ``path`` no longer is the one that is open."""
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            with suppress(FileNotFoundError):
                current = path.stat()
                if (current.st_dev, current.st_ino) == (mine.st_dev, mine.st_ino):
                    return
            if not stat.S_ISREG(mine.st_mode):
                return
            self._close_file()
        self._open()

    def _rotate(self, path: Path) -> None:
        """Shift ``path`` to ``path.1`` and so on, unless another worker has just done so."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            return  # A terminal, a pipe or /dev/null.
        lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._follow(path)
            if os.fstat(self._fd).st_size < self._max_bytes:
                return
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    Path(f"{path}.{number}").replace(f"{path}.{number + 1}")
            if self._keep:
                path.replace(f"{path}.1")
            else:
                path.unlink()
            self._close_file()
            self._open()
        finally:
            os.close(lock)

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + _COMPLAIN_EVERY
            _log.error("audit log %s: %s", self._path or "stdout", error.strerror or error)


def _line(when: float, event: str, fields: dict[str, Any]) -> str:
    """Return one record as a line of ASCII JSON."""
    identity = fields.pop("identity", None)
    if isinstance(identity, Identity):
        fields |= {
            "tenant": identity.tenant,
            "user": identity.user,
            "role": identity.role.value,
            "source": identity.source,
        }
    record: dict[str, object] = {
        "time": datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds"),
        "event": event[:MAX_VALUE_LENGTH],
    }
    for name in FIELDS:
        value = fields.pop(name, None)
        if value is not None:
            record[name] = value if isinstance(value, int) else str(value)[:MAX_VALUE_LENGTH]
    if fields:
        record["omitted"] = sorted(fields)
    # ASCII output escapes every control character but DEL.
    return json.dumps(record, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"
