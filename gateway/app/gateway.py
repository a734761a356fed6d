"""The main process: listeners, replicas, workers, admin API, signals.

With one worker the data path runs here too. With several, this process only supervises and
answers the operator, and the workers share the port by ``SO_REUSEPORT``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.app.auditing import Audit, NoAudit, open_audit
from gateway.app.caretaker import Caretaker
from gateway.app.policies import check_policies, secrets_of
from gateway.app.pools import (
    pool_of_replica,
    recycle_policy,
    routes_freely,
    supervisor_settings,
)
from gateway.app.worker import Worker
from gateway.app.workers import LocalWorker, WorkerProcess
from gateway.config.load import check, reloaded
from gateway.config.settings import REPLICAS, SETTINGS, TABLES, Settings
from gateway.core.stats import Stats
from gateway.errors import EXIT_FAILURE, EXIT_OK, ConfigError, StartupError
from gateway.io.admin import (
    AdminServer,
    ConflictError,
    Readiness,
    ReplicaInfo,
    SessionInfo,
    SessionPage,
    UnknownReplicaError,
    build_admin_app,
)
from gateway.io.cli_binary import locate_cli
from gateway.io.discovery import Discovery
from gateway.io.logs import configure
from gateway.io.supervisor import LOOPBACK, Supervisor
from gateway.io.telemetry import merge_expositions
from gateway.io.token_file import read_secret_file
from gateway.routing.discovery import parse_source
from gateway.routing.recycling import RecyclePolicy
from gateway.types import ReplicaSpec, ReplicaState

log = logging.getLogger("gateway")

_STOP_MARGIN = 5.0
"""Seconds that a worker has to close its connections once it is told to end."""

_STATE_ORDER = (
    ReplicaState.UP,
    ReplicaState.DRAINING,
    ReplicaState.STARTING,
    ReplicaState.EJECTED,
    ReplicaState.DOWN,
)
"""Of the states that workers report for one replica, the first in this order is shown."""


class Gateway:
    """The whole program. Implements :class:`gateway.io.admin.AdminView`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: list[LocalWorker | WorkerProcess] = []
        self._supervisor: Supervisor | None = None
        self._admin: AdminServer | None = None
        self._stopping = asyncio.Event()
        self._draining = False
        self._audit: Audit = NoAudit()
        self._caretaker: Caretaker | None = None
        self._last_specs: dict[str, ReplicaSpec] = {}
        self._discovery = _discovery(settings, self._replicas_changed)
        self._background: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Run until a signal says otherwise; return the exit status.

        Raises:
            StartupError: something needed is missing or in use.
        """
        configure(self._settings.log, secrets_of(self._settings))
        check_policies(self._settings)
        _make_private(self._settings.server.state_dir)
        sockets = _bind(self._settings)
        stats = Stats()
        self._audit = audit = open_audit(self._settings, stats)
        self._catch_signals()
        try:
            await self._start_replicas()
            await self._start_workers(sockets, audit, stats)
            self._publish()
            if self._discovery is not None:
                await self._discovery.start()
            await self._start_admin(audit)
            for sock in sockets:
                # SDKs that start a server look for this form.
                print(f"copilot-gateway listening on port {sock.getsockname()[1]}", flush=True)
            await self._stopping.wait()
            self._draining = True
            log.info("draining", extra={"seconds": self._settings.drain.timeout})
            await self._ask_all("drain", self._settings.drain.timeout)
        finally:
            await self._stop(sockets)
            audit.close()
        log.info("stopped")
        return EXIT_OK

    # Start

    async def _start_replicas(self) -> None:
        spawn = self._settings.spawn
        if not spawn.count:
            return
        binary = await locate_cli(spawn.binary)
        self._supervisor = Supervisor(
            supervisor_settings(
                spawn,
                count=spawn.count,
                folder=self._settings.server.state_dir / "replicas",
                shared_storage=self._settings.storage.mode == "shared",
            ),
            binary,
            self._replicas_changed,
        )
        await self._supervisor.start()
        self._caretaker = Caretaker(
            self._supervisor, self.replicas, self._drain_everywhere, self._quiet
        )
        self._spawn(self._caretaker.watch(self._recycle_policy, self._recycle), "watch replicas")

    async def _start_workers(
        self, sockets: Sequence[socket.socket], audit: Audit, stats: Stats
    ) -> None:
        settings = self._settings
        if settings.server.workers == 1:
            worker = Worker(settings, audit, settings.server.state_dir, stats)
            self._workers.append(LocalWorker(worker))
            await worker.start()
            await worker.listen(sockets)
            return
        for index in range(settings.server.workers):
            await self._start_worker(index, sockets)

    async def _start_worker(self, index: int, sockets: Sequence[socket.socket]) -> None:
        # Each worker has sockets of its own: the kernel spreads connections over them.
        own = [_listener(sock.getsockname(), sock.family) for sock in sockets]
        try:
            worker = WorkerProcess(index)
            await worker.start(self._settings, own)
        finally:
            for sock in own:
                sock.close()
        self._workers.append(worker)
        self._spawn(self._watch_worker(worker, sockets), f"watch worker {index}")

    async def _watch_worker(self, worker: WorkerProcess, sockets: Sequence[socket.socket]) -> None:
        """Replace a worker that ends by itself: its clients reconnect to the others."""
        status = await worker.wait()
        if self._stopping.is_set():
            return
        log.error("worker ended", extra={"worker": worker.index, "status": status})
        self._workers.remove(worker)
        await worker.close(0)
        while not self._stopping.is_set():
            try:
                await self._start_worker(worker.index, sockets)
            except StartupError as error:
                log.error("worker not restarted", extra={"reason": str(error)})
                await asyncio.sleep(1.0)
            else:
                self._publish()
                return

    async def _start_admin(self, audit: Audit) -> None:
        admin = self._settings.admin
        if admin.listen is None:
            return
        token = admin.token or self._settings.auth.static_token or None
        if admin.token_file is not None:
            token = read_secret_file(admin.token_file, "admin token")
        self._admin = AdminServer(
            build_admin_app(self, token, open_metrics=admin.open_metrics, audit=audit)
        )
        port = await self._admin.start_tcp(admin.listen.host, admin.listen.port)
        log.info("admin listens", extra={"host": admin.listen.host, "port": port})

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: self._spawn(self._reload_on_signal(), "reload")
        )

    def _told_to_stop(self) -> None:
        if self._stopping.is_set():
            log.warning("second signal: stopping at once")
            for worker in self._workers:
                if isinstance(worker, WorkerProcess):
                    os.kill(worker.pid, signal.SIGKILL)
            # The reaper of each spawned CLI ends it when this process is gone.
            os._exit(EXIT_FAILURE)
        self._stopping.set()

    async def _stop(self, sockets: Sequence[socket.socket]) -> None:
        self._stopping.set()
        if self._admin is not None:
            await self._admin.close()
        await asyncio.gather(*(worker.close(_STOP_MARGIN) for worker in self._workers))
        if self._discovery is not None:
            await self._discovery.stop()
        if self._supervisor is not None:
            await self._supervisor.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for sock in sockets:
            sock.close()

    # Workers and replicas

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _ask_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker; those that have just ended are left out."""
        answers = await asyncio.gather(
            *(worker.call(method, *args) for worker in self._workers), return_exceptions=True
        )
        good = []
        for answer in answers:
            if isinstance(answer, ConnectionError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            good.append(answer)
        return good

    def _replicas_changed(self, _: Sequence[ReplicaSpec]) -> None:
        if self._workers and not self._stopping.is_set():
            self._publish()

    def _publish(self) -> None:
        """Tell the workers which replicas there are and which of them do not run."""
        specs = [
            ReplicaSpec(
                one.name,
                one.address.host,
                one.address.port,
                _replica_token(one),
                one.weight,
                one.backup,
            )
            for one in self._settings.replicas
        ]
        if self._discovery is not None:
            listed = {spec.name for spec in specs}
            specs += [spec for spec in self._discovery.replicas if spec.name not in listed]
        gone: list[str] = []
        restarts: dict[str, int] = {}
        if self._supervisor is not None:
            running = {spec.name: spec for spec in self._supervisor.specs}
            for status in self._supervisor.replicas:
                spec = running.get(status.name)
                if spec is None:
                    # Where it was last: it may come back there, and its sessions wait for it.
                    spec = self._last_specs.get(
                        status.name, ReplicaSpec(status.name, LOOPBACK, status.port)
                    )
                    gone.append(status.name)
                else:
                    self._last_specs[status.name] = spec
                specs.append(spec)
                restarts[status.name] = status.restarts
        self._spawn(self._send_replicas(specs, gone, restarts), "publish replicas")

    async def _send_replicas(
        self, specs: list[ReplicaSpec], gone: list[str], restarts: dict[str, int]
    ) -> None:
        await self._ask_all("set_replicas", specs, gone)
        await self._ask_all("note_restarts", restarts)

    # Admin

    async def readiness(self) -> Readiness:
        """Return whether new clients should be sent here."""
        seen: list[Readiness] = await self._ask_all("readiness")
        return Readiness(
            accepting=any(one.accepting for one in seen),
            draining=self._draining,
            replicas_up=max((one.replicas_up for one in seen), default=0),
            replicas=max((one.replicas for one in seen), default=0),
        )

    async def metrics(self) -> bytes:
        """Return the metrics of all workers as one."""
        pages: list[bytes] = await self._ask_all("metrics")
        return pages[0] if len(pages) == 1 else merge_expositions(pages)

    async def replicas(self) -> list[ReplicaInfo]:
        """Return all replicas."""
        merged: dict[str, ReplicaInfo] = {}
        for page in await self._ask_all("replicas"):
            for info in page:
                known = merged.get(info.name)
                merged[info.name] = info if known is None else _merged(known, info)
        if self._supervisor is not None:
            for status in self._supervisor.replicas:
                if status.name in merged:
                    merged[status.name] = dataclasses.replace(
                        merged[status.name], supervised=True, pid=status.pid
                    )
        return [merged[name] for name in sorted(merged)]

    async def _replica(self, name: str) -> ReplicaInfo:
        for info in await self.replicas():
            if info.name == name:
                return info
        raise UnknownReplicaError(name)

    async def sessions(
        self, *, limit: int, cursor: str | None, tenant: str | None, replica: str | None
    ) -> SessionPage:
        """Return the sessions in use, in the order of their ids."""
        merged: dict[str, SessionInfo] = {}
        for page in await self._ask_all("sessions", cursor, tenant, replica):
            for info in page:
                known = merged.get(info.session)
                merged[info.session] = (
                    info
                    if known is None
                    else dataclasses.replace(
                        info,
                        live=known.live or info.live,
                        busy=known.busy or info.busy,
                        clients=known.clients + info.clients,
                    )
                )
        ids = sorted(merged)[: limit + 1]
        more = len(ids) > limit
        return SessionPage([merged[one] for one in ids[:limit]], ids[limit - 1] if more else None)

    async def drain(self, name: str) -> ReplicaInfo:
        """Place no new sessions on a replica."""
        await self._replica(name)
        await self._drain_everywhere(name, True)
        return await self._replica(name)

    async def undrain(self, name: str) -> ReplicaInfo:
        """Place sessions on a replica again."""
        await self._replica(name)
        await self._drain_everywhere(name, False)
        return await self._replica(name)

    async def _drain_everywhere(self, name: str, draining: bool) -> None:
        await self._ask_all("drain_replica", name, draining)

    async def recycle(self, name: str) -> ReplicaInfo:
        """Restart a supervised replica."""
        info = await self._replica(name)
        if any(await self._ask_all("recycle", name)):
            return info
        if self._supervisor is None or not info.supervised:
            raise ConflictError(f"{name} was not started by this gateway")
        self._recycle(name)
        return info

    def _recycle(self, name: str) -> None:
        """Begin to restart a supervised replica without a client noticing."""
        assert self._caretaker is not None
        self._spawn(
            self._caretaker.recycle(
                name, self._settings.spawn.binary, self._settings.drain.timeout
            ),
            f"recycle {name}",
        )

    async def _quiet(self, name: str) -> bool:
        """Whether no turn and no request runs on a replica."""
        info = await self._replica(name)
        pages = await self._ask_all("sessions", None, None, name)
        busy = any(session.busy for page in pages for session in page)
        if self._moves_sessions(name) and any(session.live for page in pages for session in page):
            return False
        return not busy and not info.in_flight

    def _moves_sessions(self, name: str) -> bool:
        """Whether a replica's sessions go elsewhere when it is drained."""
        settings = self._settings
        pool = pool_of_replica(settings.pools, name)
        peers = [n for n in self._all_replicas if pool_of_replica(settings.pools, n) == pool]
        if pool is None:
            free = routes_freely(settings.routing.mode, settings.storage.mode)
        else:
            free = routes_freely(pool.routing, pool.storage)
        return free and len(peers) > 1

    @property
    def _all_replicas(self) -> list[str]:
        spawned = [one.name for one in self._supervisor.replicas] if self._supervisor else []
        return [one.name for one in self._settings.replicas] + spawned

    def _recycle_policy(self) -> RecyclePolicy:
        return recycle_policy(self._settings.spawn)

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except StartupError as error:
            log.error("configuration not reloaded", extra={"reason": str(error)})

    async def reload(self) -> list[str]:
        """Read configuration, tokens and replica lists again.

        Raises:
            ConfigError: the new configuration is not valid; nothing changed.
        """
        old = self._settings
        new = old.source.load() if old.source is not None else old
        check(new)
        check_policies(new)
        settings, restart = reloaded(old, new)
        said = [
            f"{name}: applied"
            for name in (*SETTINGS, *TABLES, REPLICAS.name)
            if settings.get(name) != old.get(name)
        ]
        said += [f"{name}: needs a restart to change" for name in restart]
        self._settings = settings
        configure(settings.log, secrets_of(settings))
        self._audit.reopen()
        await self._ask_all("apply", settings)
        self._publish()
        log.info("reloaded", extra={"changes": len(said)})
        return said


def _merged(one: ReplicaInfo, other: ReplicaInfo) -> ReplicaInfo:
    """Return one replica as two workers see it together."""
    states = {ReplicaState(one.state), ReplicaState(other.state)}
    state = next(state for state in _STATE_ORDER if state in states)
    shown = one if one.state == state.value else other
    return dataclasses.replace(
        shown,
        links=one.links + other.links,
        sessions=one.sessions + other.sessions,
        in_flight=one.in_flight + other.in_flight,
        served=one.served + other.served,
        ejections=max(one.ejections, other.ejections),
        drained=one.drained and other.drained,
    )


def _discovery(
    settings: Settings, on_change: Callable[[Sequence[ReplicaSpec]], None]
) -> Discovery | None:
    """Return what finds replicas, if any are to be found.

    Raises:
        ConfigError: a source is not one.
    """
    found = settings.discovery
    if not found.sources:
        return None
    try:
        sources = [parse_source(source) for source in found.sources]
    except ValueError as error:
        raise ConfigError(f"discovery.sources: {error}") from None
    return Discovery(
        sources,
        on_change,
        token=found.token or None,
        interval=found.interval,
        grace=found.grace,
    )


def _replica_token(replica: Any) -> str | None:
    if replica.token_file is not None:
        return read_secret_file(replica.token_file, f"token of replica {replica.name}")
    token: str | None = replica.token
    return token


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"state directory {folder}: {error.strerror}") from None


def _bind(settings: Settings) -> list[socket.socket]:
    """Bind the listeners' addresses, so that a port in use is said before anything starts.

    Raises:
        StartupError: an address cannot be bound.
    """
    sockets = []
    shared = settings.server.reuse_port or settings.server.workers > 1
    for address in settings.addresses:
        try:
            family, _, _, _, target = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sockets.append(_listener(target, family, shared))
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise StartupError(f"cannot listen on {address}: {error.strerror or error}") from None
    return sockets


def _listener(target: Any, family: int, shared: bool = True) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
