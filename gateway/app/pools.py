"""Which pool serves whom; pools whose tenants or users each have a CLI of their own.

A CLI of such a pool is started when the first client of its tenant or user connects, and ended when
none has used it for a while. Its home stays, and with it its sessions: they are found again under
the same replica name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gateway.app.caretaker import Caretaker
from gateway.app.tasks import TaskGroup
from gateway.config.kinds import SecretRef
from gateway.config.settings import PoolSettings, Settings, SpawnSettings
from gateway.core import answers
from gateway.core.hub import Hub, Serves
from gateway.core.replica import Replica
from gateway.errors import ConfigError, StartupError
from gateway.io.admin import ReplicaInfo
from gateway.io.cli_binary import locate_cli
from gateway.io.prober import Prober
from gateway.io.supervisor import LOOPBACK, RestartPolicy, Supervisor, SupervisorSettings
from gateway.io.token_file import read_secret_file
from gateway.routing.recycling import RecyclePolicy
from gateway.types import Identity, ReplicaSpec

log = logging.getLogger("gateway")

_ANY_TENANT = "*"

_LOOKS_PER_TIMEOUT = 8
"""How often within its idle timeout a CLI is looked at."""

_LOOK_MAX = 5.0
"""Longest pause in seconds between two looks."""

_RETRY_AFTER_MS = 5000
"""What clients are told to wait for a CLI when all that may run are in use."""

_NAME_BYTES = 10
"""Bytes of the digest in a replica's name: two tenants or users never share one."""


def routes_freely(routing: str, storage: str) -> bool:
    """Whether a session may live on any replica: said, or known from shared storage."""
    return routing == "free" or (routing == "auto" and storage == "shared")


def examines_storage(routing: str, storage: str) -> bool:
    """Whether what is believed of the storage is compared with what replicas say."""
    return (routing == "auto" and storage == "auto") or routes_freely(routing, storage)


def pool_of_tenant(pools: Sequence[PoolSettings], tenant: str) -> PoolSettings | None:
    """Return the pool that serves a tenant; None is the default pool."""
    fallback = None
    for pool in pools:
        if tenant in pool.tenants:
            return pool
        if _ANY_TENANT in pool.tenants:
            fallback = pool
    return fallback


def pool_of_replica(pools: Sequence[PoolSettings], name: str) -> PoolSettings | None:
    """Return the pool that has a replica; None is the default pool."""
    for pool in pools:
        if any(fnmatchcase(name, pattern) for pattern in pool.replicas):
            return pool
    return None


def replica_infos(hub: Hub) -> list[ReplicaInfo]:
    """Return a hub's replicas as operators see them."""
    infos = []
    for name, replica in sorted(hub.replicas.items()):
        stats = replica.stats
        infos.append(
            ReplicaInfo(
                name=name,
                address=f"{replica.spec.host}:{replica.spec.port}",
                pool=hub.pool,
                state=replica.health.state.value,
                supervised=False,
                version=replica.version or None,
                links=stats.links,
                sessions=stats.sessions,
                in_flight=stats.in_flight,
                ejections=stats.ejections,
                restarts=stats.restarts,
                probe_seconds=stats.probe_seconds,
                served=stats.served,
                drained=_drained(hub, replica),
                reason=None if replica.health.accepts_new else replica.health.reason,
            )
        )
    return infos


def _drained(hub: Hub, replica: Replica) -> bool:
    """Whether a replica can be stopped: nothing runs on it, and what can be moved is gone."""
    if not replica.health.draining or replica.stats.in_flight:
        return False
    sessions = [s for s in hub.sessions.values() if s.placement.replica == replica.name and s.live]
    return not sessions if hub.placer.free else not any(s.turn.busy for s in sessions)


class Cell:
    """The one replica of a tenant or user, and its hub.

    Attributes:
        name: the replica's name, the same at every start.
        serves: whom it is for.
        hub: serves its clients.
        prober: keeps the control link.
        idle_since: when it was last seen in use.
        starting: brings the CLI up.
    """

    def __init__(self, name: str, serves: Serves, hub: Hub, prober: Prober) -> None:
        self.name = name
        self.serves = serves
        self.hub = hub
        self.prober = prober
        self.idle_since = time.monotonic()
        self.starting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Return a diagnosis."""
        return f"<Cell {self.name} clients={len(self.hub.clients)}>"

    @property
    def in_use(self) -> bool:
        """Whether it has clients, or turns that go on without theirs."""
        if self.hub.clients:
            return True
        return not self.worn and any(one.live for one in self.hub.sessions.values())

    @property
    def worn(self) -> bool:
        """Whether its process is of no use to whoever comes next."""
        return self.hub.files_gone

    def appear(self, spec: ReplicaSpec, *, runs: bool) -> None:
        """Note where the CLI is, or where it was last."""
        self.hub.set_replicas([spec])
        self.prober.follow()
        if not runs:
            self.hub.note_gone(self.hub.replicas[self.name], "not running")


class IsolatedPool:
    """A pool in which each tenant, or each user, has a CLI of its own.

    Args:
        pool: its settings.
        settings: returns all settings as they are now.
        folder: where the homes of the CLIs lie.
        make_hub: makes the hub for a tenant or user.
        tasks: runs what goes on in the background.
    """

    def __init__(
        self,
        pool: PoolSettings,
        settings: Callable[[], Settings],
        folder: Path,
        make_hub: Callable[[Serves], tuple[Hub, Prober]],
        tasks: TaskGroup,
    ) -> None:
        self.pool = pool
        self._settings = settings
        self._folder = folder
        self._make_hub = make_hub
        self._tasks = tasks
        self._cells: dict[Serves, Cell] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._salt = b""
        self._supervisor: Supervisor | None = None
        self._caretaker: Caretaker | None = None
        self._closed = False

    def __repr__(self) -> str:
        """Return a diagnosis."""
        return f"<IsolatedPool {self.pool.name} cells={len(self._cells)}>"

    @property
    def hubs(self) -> list[Hub]:
        """The hubs of all CLIs that run or are about to."""
        return [cell.hub for cell in self._cells.values()]

    @property
    def room(self) -> int:
        """How many more CLIs may be started."""
        return max(0, self.pool.max_replicas - len(self._cells))

    async def start(self) -> None:
        """Find the CLI and begin to look after those that will run.

        Raises:
            StartupError: there is no usable CLI, or the folder cannot be used.
        """
        spawn = self._spawn
        binary = await locate_cli(spawn.binary)
        self._salt = _salt(self._folder)
        self._supervisor = Supervisor(
            supervisor_settings(spawn, count=0, folder=self._folder, shared_storage=False),
            binary,
            self._changed,
        )
        self._caretaker = Caretaker(self._supervisor, self.replicas, self._drain, self._quiet)
        self._tasks.spawn(
            self._caretaker.watch(lambda: recycle_policy(self._spawn), self.recycle),
            f"watch replicas of {self.pool.name}",
        )
        self._tasks.spawn(self._watch(), f"reap replicas of {self.pool.name}")

    async def close(self) -> None:
        """End all CLIs; no more are started."""
        self._closed = True
        for cell in list(self._cells.values()):
            self._end(cell)
        await asyncio.gather(*self._ending.values())
        if self._supervisor is not None:
            await self._supervisor.stop()

    @property
    def _spawn(self) -> SpawnSettings:
        return self._settings().spawn

    # Clients

    def hub_for(self, identity: Identity) -> Hub:
        """Return the hub of an identity's tenant or user; its CLI is started if need be.

        Raises:
            RpcError: as many CLIs run as may, and all are in use.
        """
        serves = Serves(identity.tenant, identity.user if self.pool.isolation == "user" else "")
        cell = self._cells.get(serves)
        if cell is not None and cell.worn and not cell.in_use:
            self._end(cell)
            cell = None
        if cell is None:
            if self._closed or not self._make_room():
                raise answers.overloaded("max_replicas", self.pool.max_replicas, _RETRY_AFTER_MS)
            cell = self._cells[serves] = self._new_cell(serves)
        return cell.hub

    def _make_room(self) -> bool:
        """Whether one more CLI may run, one that is not in use being ended if need be."""
        if self.room:
            return True
        unused = [cell for cell in self._cells.values() if not cell.in_use]
        if not unused:
            return False
        self._end(min(unused, key=lambda cell: cell.idle_since))
        return True

    def _new_cell(self, serves: Serves) -> Cell:
        name = self._name(serves)
        cell = Cell(name, serves, *self._make_hub(serves))
        log.info(
            "replica for one tenant or user",
            extra={
                "pool": self.pool.name,
                "replica": name,
                "tenant": serves.tenant,
                "user": serves.user,
            },
        )
        # Known before it runs: clients wait for a replica that may come up, not for one that is
        # not there.
        cell.appear(ReplicaSpec(name, LOOPBACK, 0), runs=False)
        cell.starting = asyncio.create_task(self._run(cell), name=f"start {name}")
        return cell

    def _name(self, serves: Serves) -> str:
        """Return a name that is safe as a file's, always the same, and tells nothing to others."""
        text = json.dumps([self.pool.name, self.pool.isolation, serves.tenant, serves.user])
        digest = hashlib.blake2b(text.encode(), digest_size=_NAME_BYTES, key=self._salt)
        return f"{self.pool.name}-{digest.hexdigest()}"

    # CLIs

    async def _run(self, cell: Cell) -> None:
        """Start a cell's CLI, as soon as its last process has ended and there is room."""
        supervisor = self._supervisor
        assert supervisor is not None
        limit = self.pool.max_replicas
        while cell.name in self._ending or (
            self._ending and len(self._cells) + len(self._ending) > limit
        ):
            await asyncio.wait(self._ending.values(), return_when=asyncio.FIRST_COMPLETED)
        while True:
            try:
                await supervisor.add(cell.name, env=self._environment(cell.serves))
            except StartupError as error:
                log.error(
                    "replica does not start",
                    extra={"pool": self.pool.name, "replica": cell.name, "reason": str(error)},
                )
                await asyncio.sleep(self._spawn.restart_delay_max)
            else:
                return

    def _environment(self, serves: Serves) -> dict[str, str]:
        found = {}
        for name, value in (self.pool.env or {}).items():
            label = f"pools ({self.pool.name}) env.{name}"
            if not isinstance(value, SecretRef):
                found[name] = str(value)
            elif value.file is not None:
                found[name] = read_secret_file(_placed(value.file, serves, label), label)
            else:
                found[name] = value.value or ""
        return found

    def _changed(self, specs: Sequence[ReplicaSpec]) -> None:
        assert self._supervisor is not None
        running = {spec.name: spec for spec in specs}
        restarts = {one.name: one.restarts for one in self._supervisor.replicas}
        for cell in self._cells.values():
            replica = cell.hub.replicas[cell.name]
            spec = running.get(cell.name)
            cell.appear(spec or replica.spec, runs=spec is not None)
            replica.stats.restarts = restarts.get(cell.name, 0)

    async def _watch(self) -> None:
        """End the CLIs that nobody uses."""
        timeout = self.pool.idle_timeout
        while True:
            await asyncio.sleep(min(_LOOK_MAX, timeout / _LOOKS_PER_TIMEOUT))
            now = time.monotonic()
            for cell in list(self._cells.values()):
                if cell.in_use:
                    cell.idle_since = now
                elif cell.worn or now - cell.idle_since >= timeout:
                    self._end(cell)

    def _end(self, cell: Cell) -> None:
        """Begin to end a cell's CLI; whoever comes now gets another cell, which waits for that."""
        del self._cells[cell.serves]
        before = self._ending.get(cell.name)
        self._ending[cell.name] = asyncio.create_task(
            self._stop(cell, before), name=f"end {cell.name}"
        )

    async def _stop(self, cell: Cell, before: asyncio.Task[None] | None) -> None:
        supervisor = self._supervisor
        assert supervisor is not None
        if before is not None:
            await asyncio.wait([before])
        try:
            log.info(
                "replica is not in use and ends",
                extra={"pool": self.pool.name, "replica": cell.name},
            )
            if cell.starting is not None:
                cell.starting.cancel()
                await asyncio.gather(cell.starting, return_exceptions=True)
            await cell.prober.close()
            cell.hub.set_replicas([])
            if any(one.name == cell.name for one in supervisor.replicas):
                await supervisor.remove(cell.name)
        finally:
            if self._ending.get(cell.name) is asyncio.current_task():
                del self._ending[cell.name]

    # Operation

    async def replicas(self) -> list[ReplicaInfo]:
        """Return the pool's replicas as operators see them."""
        if self._supervisor is None:
            return []
        pids = {status.name: status.pid for status in self._supervisor.replicas}
        return [
            _supervised(info, pids.get(info.name))
            for hub in self.hubs
            for info in replica_infos(hub)
        ]

    def has(self, name: str) -> bool:
        """Whether a replica of that name is of this pool."""
        return any(cell.name == name for cell in self._cells.values())

    def recycle(self, name: str) -> None:
        """Begin to start a CLI anew, from the binary found now."""
        assert self._caretaker is not None
        settings = self._settings()
        self._tasks.spawn(
            self._caretaker.recycle(name, settings.spawn.binary, settings.drain.timeout),
            f"recycle {name}",
        )

    async def _drain(self, name: str, draining: bool) -> None:
        for hub in self.hubs:
            if name in hub.replicas:
                hub.drain(name, draining)

    async def _quiet(self, name: str) -> bool:
        for hub in self.hubs:
            replica = hub.replicas.get(name)
            if replica is not None:
                busy = any(session.turn.busy for session in hub.sessions.values())
                return not busy and not replica.stats.in_flight
        return True


def supervisor_settings(
    spawn: SpawnSettings, *, count: int, folder: Path, shared_storage: bool
) -> SupervisorSettings:
    """Return how CLIs are run that this gateway starts."""
    return SupervisorSettings(
        count=count,
        state_dir=folder,
        shared_storage=shared_storage,
        args=spawn.args,
        env=dict(spawn.env),
        start_timeout=spawn.start_timeout,
        stop_timeout=spawn.stop_timeout,
        restart=RestartPolicy(spawn.restart_delay, spawn.restart_delay_max),
    )


def recycle_policy(spawn: SpawnSettings) -> RecyclePolicy:
    """Return when CLIs that this gateway started are worn out."""
    return RecyclePolicy(spawn.recycle_age, spawn.recycle_sessions, spawn.recycle_memory)


def _supervised(info: ReplicaInfo, pid: int | None) -> ReplicaInfo:
    changes: dict[str, Any] = {"supervised": True, "pid": pid}
    return dataclasses.replace(info, **changes)


def _placed(path: Path, serves: Serves, label: str) -> Path:
    """Fill in a path's placeholders.

    Raises:
        ConfigError: a name would lead elsewhere.
    """
    text = str(path)
    for placeholder, name in (("{tenant}", serves.tenant), ("{user}", serves.user)):
        if placeholder in text:
            if not name or name in (".", "..") or "/" in name or "\0" in name or "{" in name:
                raise ConfigError(f"{label}: {name!r} cannot be part of a path")
            text = text.replace(placeholder, name)
    return Path(text)


def _salt(folder: Path) -> bytes:
    """Return what makes the names of replicas differ from those of other gateways.

    Homes lie on this machine, so the same user's sessions on another one are others; a registry
    that both use must not take their replicas for the same. It stays with the homes.

    Raises:
        StartupError: the folder cannot be used.
    """
    path = folder / "salt"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_bytes()
        with os.fdopen(fd, "wb") as file:
            salt = secrets.token_bytes(16)
            file.write(salt)
            return salt
    except OSError as error:
        raise StartupError(f"cannot use {folder} for homes of CLIs: {error.strerror}") from None
