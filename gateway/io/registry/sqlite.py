"""The registry in a SQLite file, shared by all worker processes of one machine: the default.

WAL mode, so that readers never wait for the writer; every change is one ``BEGIN IMMEDIATE``
transaction, so that "look, then write" is atomic across processes. All statements of one registry
run on one thread of its own; the event loop only awaits them.

Leases are measured on the monotonic clock, which all processes of a machine share and which no
clock adjustment moves. It starts again at a reboot, so a lease counts only while what is left of it
does not exceed its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import orjson

from gateway.errors import RegistryUnavailableError, StartupError
from gateway.io.registry.changes import deliver
from gateway.routing.registry import Change, ChangesLost, PlacementChanged, ReplicaChanged
from gateway.types import Owner, Placement

logger = logging.getLogger(__name__)

T = TypeVar("T")

APPLICATION_ID = 0x43504757
"""``CPGW`` in the file's header: tells a registry from any other SQLite file."""

SCHEMA_VERSION = 1

CHANGES_KEPT = 10_000
"""Changes that stay readable for watchers; whoever falls further behind reads everything again."""

WATCH_INTERVAL = 0.1
"""Seconds between looks at the change counter: one pragma when nothing changed."""

_SCHEMA = """
CREATE TABLE placements (
    session_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    user TEXT NOT NULL,
    replica TEXT NOT NULL,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX placements_by_owner ON placements (tenant, user);
CREATE INDEX placements_by_replica ON placements (replica);
CREATE TABLE gateways (
    gateway_id TEXT PRIMARY KEY,
    expires_at REAL NOT NULL,  -- monotonic clock, seconds
    ttl REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE holds (
    session_id TEXT NOT NULL REFERENCES placements ON DELETE CASCADE,
    gateway_id TEXT NOT NULL REFERENCES gateways ON DELETE CASCADE,
    incarnation INTEGER NOT NULL,
    PRIMARY KEY (session_id, gateway_id)
) WITHOUT ROWID;
CREATE INDEX holds_by_gateway ON holds (gateway_id);
CREATE TABLE replicas (
    replica TEXT PRIMARY KEY,
    mark TEXT,
    incarnation INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE floor (
    epoch INTEGER NOT NULL  -- one row: the highest epoch ever forgotten
);
INSERT INTO floor VALUES (0);
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT NOT NULL,  -- the registry object that made the change
    session_id TEXT,
    replica TEXT
);
"""

_SELECT = "SELECT session_id, tenant, user, replica, epoch FROM placements"


class SqliteRegistry:
    """The registry in a SQLite file.

    Args:
        path: the file; made, readable by its owner only, if missing.
        timeout: seconds after which a call fails when the file is locked or the disk hangs.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 3.0) -> None:
        self._path = Path(path)
        self._timeout = timeout
        self._origin = secrets.token_hex(8)
        self._executor: ThreadPoolExecutor | None = None
        # Touched on the executor's thread only, from open() to close().
        self._db: sqlite3.Connection | None = None
        self._file_id = (0, 0)
        self._data_version = -1
        self._position: int | None = 0  # last change seen by the watchers; None: some were lost
        self._callbacks: list[Callable[[Change], None]] = []
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SqliteRegistry {self._path}>"

    async def open(self) -> None:
        """Open the file, creating it and its schema if need be.

        Raises:
            StartupError: the file cannot be used; the message says why.
        """
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="registry")
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._connect)
        except BaseException:
            self._executor.shutdown(wait=False)
            self._executor = None
            raise

    async def close(self) -> None:
        """Stop watching and close the file; idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, self._disconnect)
            executor.shutdown(wait=False)

    async def get(self, session_id: str) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.get`."""
        return await self._run(_select, session_id)

    async def get_many(self, session_ids: Iterable[str]) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.get_many`."""
        return await self._run(_select_many, list(session_ids))

    async def claim(
        self,
        session_id: str,
        owner: Owner,
        replica: str,
        gateway_id: str | None = None,
        *,
        unseen: bool = False,  # a file loses nothing while its users live
    ) -> Placement:
        """See :meth:`gateway.routing.registry.Registry.claim`."""

        def claim(db: sqlite3.Connection) -> Placement:
            with self._writing(db, gateway_id):
                inserted = db.execute(
                    "INSERT INTO placements SELECT ?, ?, ?, ?, epoch + 1 FROM floor WHERE true"
                    " ON CONFLICT DO NOTHING",
                    (session_id, owner.tenant, owner.user, replica),
                )
                if inserted.rowcount:
                    self._log_session(db, session_id)
                placement = _select(db, session_id)
                assert placement is not None
                if placement.owner == owner:
                    _take_hold(db, placement, gateway_id)
            return placement

        return await self._run(claim)

    async def move(
        self, session_id: str, epoch: int, replica: str, gateway_id: str | None = None
    ) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.move`."""

        def move(db: sqlite3.Connection) -> Placement | None:
            with self._writing(db, gateway_id):
                placement = _select(db, session_id)
                if placement is None:
                    return None
                if placement.epoch == epoch and not _held_by_others(db, session_id, gateway_id):
                    placement = Placement(session_id, placement.owner, replica, epoch + 1)
                    self._replace(db, placement)
                if placement.epoch == epoch + 1 and placement.replica == replica:
                    _take_hold(db, placement, gateway_id)
            return placement

        return await self._run(move)

    async def forget(
        self, session_id: str, epoch: int | None = None, gateway_id: str | None = None
    ) -> bool:
        """See :meth:`gateway.routing.registry.Registry.forget`."""

        def forget(db: sqlite3.Connection) -> bool:
            with self._writing(db, gateway_id):
                placement = _select(db, session_id)
                if placement is None or (epoch is not None and placement.epoch != epoch):
                    return False
                if _held_by_others(db, session_id, gateway_id):
                    return False
                db.execute("DELETE FROM placements WHERE session_id = ?", (session_id,))
                db.execute("UPDATE floor SET epoch = max(epoch, ?)", (placement.epoch,))
                self._log_session(db, session_id)
            return True

        return await self._run(forget)

    async def owned_by(self, tenant: str, user: str | None) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.owned_by`."""

        def owned_by(db: sqlite3.Connection) -> dict[str, Placement]:
            if user is None:
                rows = db.execute(_SELECT + " WHERE tenant = ?", (tenant,))
            else:
                rows = db.execute(_SELECT + " WHERE tenant = ? AND user = ?", (tenant, user))
            return {row[0]: _placement(row) for row in rows}

        return await self._run(owned_by)

    async def placed_on(self, replica: str, limit: int = 1000) -> list[Placement]:
        """See :meth:`gateway.routing.registry.Registry.placed_on`."""

        def placed_on(db: sqlite3.Connection) -> list[Placement]:
            rows = db.execute(_SELECT + " WHERE replica = ? LIMIT ?", (replica, limit))
            return [_placement(row) for row in rows]

        return await self._run(placed_on)

    async def counts(self) -> dict[str, int]:
        """See :meth:`gateway.routing.registry.Registry.counts`."""

        def counts(db: sqlite3.Connection) -> dict[str, int]:
            return dict(db.execute("SELECT replica, count(*) FROM placements GROUP BY replica"))

        return await self._run(counts)

    async def heartbeat(self, gateway_id: str, ttl_seconds: float) -> bool:
        """See :meth:`gateway.routing.registry.Registry.heartbeat`.

        A file that was deleted or replaced meanwhile is noticed here, and opened anew.
        """

        def heartbeat(db: sqlite3.Connection) -> bool:
            db = self._reconnect_if_replaced(db)
            now = time.monotonic()
            with self._writing(db, None):
                db.execute(
                    "DELETE FROM gateways WHERE expires_at <= ? OR expires_at - ? > ttl",
                    (now, now),
                )
                known = db.execute(
                    "UPDATE gateways SET expires_at = ?, ttl = ? WHERE gateway_id = ?",
                    (now + ttl_seconds, ttl_seconds, gateway_id),
                ).rowcount
                if not known:
                    db.execute(
                        "INSERT INTO gateways VALUES (?, ?, ?)",
                        (gateway_id, now + ttl_seconds, ttl_seconds),
                    )
                db.execute(
                    "DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?",
                    (CHANGES_KEPT,),
                )
            return bool(known)

        return await self._run(heartbeat)

    async def leave(self, gateway_id: str) -> None:
        """See :meth:`gateway.routing.registry.Registry.leave`."""

        def leave(db: sqlite3.Connection) -> None:
            with self._writing(db, None):
                db.execute("DELETE FROM gateways WHERE gateway_id = ?", (gateway_id,))

        await self._run(leave)

    async def hold(self, session_id: str, epoch: int, gateway_id: str) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.hold`."""

        def hold(db: sqlite3.Connection) -> Placement | None:
            with self._writing(db, gateway_id):
                placement = _select(db, session_id)
                if placement is not None and placement.epoch == epoch:
                    _take_hold(db, placement, gateway_id)
            return placement

        return await self._run(hold)

    async def release(self, session_ids: Iterable[str], gateway_id: str) -> None:
        """See :meth:`gateway.routing.registry.Registry.release`."""
        released = [(session_id, gateway_id) for session_id in session_ids]

        def release(db: sqlite3.Connection) -> None:
            with self._writing(db, None):
                db.executemany(
                    "DELETE FROM holds WHERE session_id = ? AND gateway_id = ?", released
                )

        await self._run(release)

    async def holders(self, session_id: str) -> frozenset[str]:
        """See :meth:`gateway.routing.registry.Registry.holders`."""
        return await self._run(_holders, session_id)

    async def republish(
        self, gateway_id: str, placements: Iterable[Placement]
    ) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.republish`."""
        held = list(placements)

        def republish(db: sqlite3.Connection) -> dict[str, Placement]:
            standing = {}
            with self._writing(db, gateway_id):
                for mine in held:
                    known = _select(db, mine.session_id)
                    if known is None:
                        db.execute(
                            "INSERT INTO placements VALUES (?, ?, ?, ?, ?)",
                            (
                                mine.session_id,
                                mine.owner.tenant,
                                mine.owner.user,
                                mine.replica,
                                mine.epoch,
                            ),
                        )
                        self._log_session(db, mine.session_id)
                        known = mine
                    elif known.epoch < mine.epoch and known.owner == mine.owner:
                        self._replace(db, mine)
                        known = mine
                    if known == mine:
                        _take_hold(db, known, gateway_id)
                    standing[mine.session_id] = known
            return standing

        return await self._run(republish)

    async def fence_replica(self, replica: str, incarnation: int) -> int:
        """See :meth:`gateway.routing.registry.Registry.fence_replica`."""

        def fence(db: sqlite3.Connection) -> int:
            with self._writing(db, None):
                current = _replica(db, replica)[1]
                if current != incarnation:
                    return current
                db.execute(
                    "INSERT INTO replicas (replica, incarnation) VALUES (?, ?)"
                    " ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation",
                    (replica, incarnation + 1),
                )
                self._log_replica(db, replica)
            return incarnation + 1

        return await self._run(fence)

    async def replica_incarnations(self) -> dict[str, int]:
        """See :meth:`gateway.routing.registry.Registry.replica_incarnations`."""

        def incarnations(db: sqlite3.Connection) -> dict[str, int]:
            return dict(
                db.execute("SELECT replica, incarnation FROM replicas WHERE incarnation > 0")
            )

        return await self._run(incarnations)

    async def set_replica_mark(self, replica: str, mark: str | None) -> None:
        """See :meth:`gateway.routing.registry.Registry.set_replica_mark`."""

        def set_mark(db: sqlite3.Connection) -> None:
            with self._writing(db, None):
                db.execute(
                    "INSERT INTO replicas (replica, mark) VALUES (?, ?)"
                    " ON CONFLICT DO UPDATE SET mark = excluded.mark",
                    (replica, mark),
                )
                self._log_replica(db, replica)

        await self._run(set_mark)

    async def replica_marks(self) -> dict[str, str]:
        """See :meth:`gateway.routing.registry.Registry.replica_marks`."""

        def marks(db: sqlite3.Connection) -> dict[str, str]:
            return dict(db.execute("SELECT replica, mark FROM replicas WHERE mark IS NOT NULL"))

        return await self._run(marks)

    async def watch(self, callback: Callable[[Change], None]) -> None:
        """See :meth:`gateway.routing.registry.Registry.watch`."""
        if self._watcher is None:
            await self._run(self._start_watching)
            self._watcher = asyncio.create_task(self._watch(), name="registry-watch")
        self._callbacks.append(callback)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work(connection, *args)`` on the registry's thread, in bounded time."""
        if self._executor is None:
            raise RegistryUnavailableError(f"registry {self._path}: not open")

        def translated() -> T:
            db = self._db
            assert db is not None
            try:
                return work(db, *args)
            except sqlite3.Error as exc:
                raise RegistryUnavailableError(f"registry {self._path}: {exc}") from exc
            except StartupError as exc:
                raise RegistryUnavailableError(str(exc)) from exc

        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(self._executor, translated)
        except TimeoutError:
            # Work still queued is cancelled with the wait; work under way may yet take effect.
            raise RegistryUnavailableError(
                f"registry {self._path}: no answer in {self._timeout:g} s"
            ) from None

    @contextlib.contextmanager
    def _writing(self, db: sqlite3.Connection, gateway_id: str | None) -> Iterator[None]:
        """One transaction, refused if ``gateway_id`` is given and has no lease."""
        db.execute("BEGIN IMMEDIATE")
        try:
            if gateway_id is not None and not _alive(db, gateway_id):
                raise RegistryUnavailableError("registry: this gateway's lease has ended")
            yield
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _replace(self, db: sqlite3.Connection, placement: Placement) -> None:
        """Give a known session a new place, which ends all holds on it."""
        db.execute(
            "UPDATE placements SET replica = ?, epoch = ? WHERE session_id = ?",
            (placement.replica, placement.epoch, placement.session_id),
        )
        db.execute("DELETE FROM holds WHERE session_id = ?", (placement.session_id,))
        self._log_session(db, placement.session_id)

    def _log_session(self, db: sqlite3.Connection, session_id: str) -> None:
        db.execute(
            "INSERT INTO changes (origin, session_id) VALUES (?, ?)", (self._origin, session_id)
        )

    def _log_replica(self, db: sqlite3.Connection, replica: str) -> None:
        db.execute("INSERT INTO changes (origin, replica) VALUES (?, ?)", (self._origin, replica))

    def _start_watching(self, db: sqlite3.Connection) -> None:
        self._data_version = -1
        self._position = _last_change(db)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            try:
                changes = await self._run(self._read_changes)
            except RegistryUnavailableError as exc:
                logger.debug("watching: %s", exc)
                continue
            deliver(changes, self._callbacks)

    def _read_changes(self, db: sqlite3.Connection) -> list[Change]:
        """Return what others changed since the last call."""
        (data_version,) = db.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version and self._position is not None:
            return []
        changes: list[Change] = []
        # One snapshot for the log and the records it speaks of.
        db.execute("BEGIN")
        try:
            last = _last_change(db)
            (kept,) = db.execute("SELECT count(*) FROM changes").fetchone()
            if self._position is None or self._position < last - kept:
                changes.append(ChangesLost())
            else:
                rows = db.execute(
                    "SELECT session_id, replica, max(seq) AS latest FROM changes"
                    " WHERE seq > ? AND origin != ? GROUP BY session_id, replica ORDER BY latest",
                    (self._position, self._origin),
                ).fetchall()
                for session_id, replica, _latest in rows:
                    if session_id is not None:
                        changes.append(PlacementChanged(session_id, _select(db, session_id)))
                    else:
                        changes.append(ReplicaChanged(replica, *_replica(db, replica)))
        finally:
            db.execute("COMMIT")
        self._data_version = data_version
        self._position = last
        return changes

    def _connect(self) -> None:
        """Open the file and bring it to this version's schema.

        Raises:
            StartupError: it cannot be used.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An existing file is not opened here: closing it again would drop the locks of other
            # connections of this process.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            status = self._path.stat()
        except OSError as exc:
            raise StartupError(f"registry {self._path}: {exc.strerror}") from None
        with contextlib.ExitStack() as on_failure:
            try:
                db = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
                on_failure.callback(db.close)
                self._prepare(db)
            except sqlite3.Error as exc:
                raise StartupError(f"registry {self._path}: {exc}") from None
            on_failure.pop_all()
        self._db = db
        self._file_id = (status.st_dev, status.st_ino)

    def _prepare(self, db: sqlite3.Connection) -> None:
        self._check_version(db)  # before anything is written to a file that may not be ours
        self._enter_wal_mode(db)
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        with self._writing(db, None):
            if self._check_version(db) == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_version(self, db: sqlite3.Connection) -> int:
        """Return the file's schema version, 0 for an empty file; raise StartupError otherwise."""
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application_id == APPLICATION_ID:
            if version > SCHEMA_VERSION:
                raise StartupError(
                    f"registry {self._path}: written by a newer version of copilot-gateway"
                    f" (schema {version}, this one knows {SCHEMA_VERSION})"
                )
            return int(version)
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application_id or version or tables:
            raise StartupError(
                f"registry {self._path}: a database of another program; name another file"
            )
        return 0

    def _enter_wal_mode(self, db: sqlite3.Connection) -> None:
        """Switch to WAL; several processes may be doing so at once, without a busy handler."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise StartupError(
                    f"registry {self._path}: its file system cannot share memory between processes"
                    " (network file systems cannot); use a local file or Redis"
                )
            return

    def _reconnect_if_replaced(self, db: sqlite3.Connection) -> sqlite3.Connection:
        try:
            status = self._path.stat()
        except OSError:
            file_id = None
        else:
            file_id = (status.st_dev, status.st_ino)
        if file_id == self._file_id:
            return db
        logger.warning("registry %s: deleted or replaced while in use; opening it anew", self._path)
        self._connect()
        db.close()
        self._position = None
        assert self._db is not None
        return self._db

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _placement(row: tuple[str, str, str, str, int]) -> Placement:
    session_id, tenant, user, replica, epoch = row
    return Placement(session_id, Owner(tenant, user), replica, epoch)


def _select(db: sqlite3.Connection, session_id: str) -> Placement | None:
    row = db.execute(_SELECT + " WHERE session_id = ?", (session_id,)).fetchone()
    return None if row is None else _placement(row)


def _select_many(db: sqlite3.Connection, session_ids: list[str]) -> dict[str, Placement]:
    rows = db.execute(
        _SELECT + " WHERE session_id IN (SELECT value FROM json_each(?))",  # noqa: S608 (constants)
        (orjson.dumps(session_ids).decode(),),
    )
    return {row[0]: _placement(row) for row in rows}


def _replica(db: sqlite3.Connection, replica: str) -> tuple[str | None, int]:
    """Return a replica's mark and incarnation."""
    row = db.execute(
        "SELECT mark, incarnation FROM replicas WHERE replica = ?", (replica,)
    ).fetchone()
    return (None, 0) if row is None else row


def _alive(db: sqlite3.Connection, gateway_id: str) -> bool:
    now = time.monotonic()
    row = db.execute(
        "SELECT 1 FROM gateways WHERE gateway_id = ? AND expires_at > ? AND expires_at - ? <= ttl",
        (gateway_id, now, now),
    ).fetchone()
    return row is not None


def _holders(db: sqlite3.Connection, session_id: str) -> frozenset[str]:
    now = time.monotonic()
    rows = db.execute(
        "SELECT gateway_id FROM holds"
        " JOIN placements USING (session_id) JOIN gateways USING (gateway_id)"
        " LEFT JOIN replicas USING (replica)"
        " WHERE session_id = ? AND expires_at > ? AND expires_at - ? <= ttl"
        " AND holds.incarnation = coalesce(replicas.incarnation, 0)",
        (session_id, now, now),
    )
    return frozenset(gateway_id for (gateway_id,) in rows)


def _held_by_others(db: sqlite3.Connection, session_id: str, gateway_id: str | None) -> bool:
    return bool(_holders(db, session_id) - {gateway_id})


def _take_hold(db: sqlite3.Connection, placement: Placement, gateway_id: str | None) -> None:
    if gateway_id is not None:
        db.execute(
            "INSERT INTO holds VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation",
            (placement.session_id, gateway_id, _replica(db, placement.replica)[1]),
        )


def _last_change(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return 0 if row is None else int(row[0])
