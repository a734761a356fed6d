"""One process of the data path: clients on one side, replicas on the other."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from gateway import __version__
from gateway.app.auditing import Audit
from gateway.app.policies import (
    jwt_authenticator,
    listener_plan,
    method_policy,
    param_rules,
    secrets_of,
    serves,
    tenant_rules,
)
from gateway.app.pools import (
    IsolatedPool,
    examines_storage,
    pool_of_replica,
    pool_of_tenant,
    replica_infos,
    routes_freely,
)
from gateway.app.tasks import TaskGroup
from gateway.config.settings import PoolSettings, Settings
from gateway.core.client import Client
from gateway.core.hub import DEFAULT_POOL, Hub, Limits, Serves
from gateway.core.placer import DRAINING, READY
from gateway.core.ports import Authenticator
from gateway.core.stats import Stats
from gateway.errors import RegistryUnavailableError, StartupError
from gateway.io.admin import Readiness, ReplicaInfo, SessionInfo
from gateway.io.authenticator import EVERYBODY, NoAuthenticator, TokenAuthenticator
from gateway.io.connections import Flow, ReplicaDialer
from gateway.io.lease import Lease
from gateway.io.listeners import Listener, ListenerPlan
from gateway.io.logs import configure
from gateway.io.prober import Prober
from gateway.io.registry import open_registry
from gateway.io.sockets import Keepalive
from gateway.io.telemetry import Telemetry
from gateway.io.token_file import TokenStore
from gateway.policy.auth_limits import FailureLimiter
from gateway.policy.quotas import Quotas
from gateway.policy.tokens import SOURCE_PREFIX
from gateway.routing.health import HealthPolicy
from gateway.types import Identity, ReplicaSpec

log = logging.getLogger("gateway")

_REGISTRY_PATIENCE = 10.0
"""Seconds for which a registry that does not answer at the start is waited for."""

_REGISTRY_PAUSE = 0.5
"""Seconds between two attempts to open it."""

_DRAIN_POLL = 0.05
"""Seconds between two looks at whether clients still have work under way."""


def limits_of(settings: Settings) -> Limits:
    """Return the core's limits."""
    limits = settings.limits
    return Limits(
        max_frame=limits.max_frame,
        max_unauthenticated_frame=limits.max_unauthenticated_frame,
        max_header=limits.max_header,
        max_pending=limits.max_pending_requests,
        queue_frames=limits.queue_frames,
        queue_bytes=limits.queue_bytes,
        connect_deadline=settings.auth.connect_deadline,
        max_auth_failures=settings.auth.max_failures,
        rebind_timeout=settings.sessions.rebind_timeout,
        linger=settings.sessions.linger,
    )


def flow_of(settings: Settings) -> Flow:
    """Return the options of connections."""
    flow = settings.flow
    return Flow(
        high_water=flow.high_water,
        low_water=flow.low_water,
        stall_timeout=flow.stall_timeout,
        max_clients=settings.limits.max_clients,
        keepalive=Keepalive(
            int(flow.keepalive_idle), int(flow.keepalive_interval), flow.keepalive_count
        ),
    )


class Worker:
    """A process's share of the gateway.

    Attributes:
        hub: the core of the default pool; clients come in here.
        stats: its counters.
        draining: the end has begun.
        accepting: the listeners are open.
    """

    def __init__(
        self, settings: Settings, audit: Audit, state_dir: Path, stats: Stats | None = None
    ) -> None:
        """Build the parts; nothing runs yet.

        Args:
            settings: all settings.
            audit: the audit log.
            state_dir: where token file and registry lie by default.
            stats: the counters, where others count in them too.

        Raises:
            ConfigError: settings that only their users can judge cannot be used.
        """
        self._settings = settings
        self._flow = flow_of(settings)
        self._listeners: list[Listener] = []
        self._audit = audit
        self.stats = stats or Stats()
        self.tasks = TaskGroup()
        self.draining = False
        self.accepting = False
        self._telemetry = Telemetry(self.stats, version=__version__)
        token_file = settings.auth.token_file
        self._tokens = TokenStore(
            token_file if token_file != Path() else state_dir / "tokens.json", self._tokens_ended
        )
        self._registry = open_registry(
            settings.registry.url or f"sqlite:///{state_dir / 'registry.db'}",
            timeout=settings.registry.timeout,
        )
        self._dialer = ReplicaDialer(self._flow)
        self._jwt = jwt_authenticator(settings)
        self._gateway_id = secrets.token_hex(8)
        self._quotas = Quotas(time.monotonic, tenant_rules(settings))
        self._checks_tokens = self._authenticator()
        self._pools = settings.pools
        self.hub = self._new_hub(None, serves(settings))
        self.hub.home_of = self._home_of
        self._probers = {self.hub.pool: self._new_prober(self.hub)}
        self._shared: dict[str, Hub] = {self.hub.pool: self.hub}
        self._isolated: dict[str, IsolatedPool] = {}
        for pool in settings.pools:
            if pool.isolated:
                self._isolated[pool.name] = IsolatedPool(
                    pool,
                    lambda: self._settings,
                    state_dir / "pools",
                    partial(self._new_home, pool),
                    self.tasks,
                )
            else:
                hub = self._shared[pool.name] = self._new_hub(pool)
                self._probers[pool.name] = self._new_prober(hub)
        self._lease = Lease(self.hub, settings.registry.lease, lambda: self.hubs)

    def _new_hub(self, pool: PoolSettings | None, whom: Serves | None = None) -> Hub:
        """Return a hub for a pool, by default for the default one."""
        settings = self._settings
        health = settings.health
        if pool is None:
            routing, storage = settings.routing.mode, settings.storage.mode
            recovery = settings.sessions.turn_recovery
        else:
            routing, storage = pool.routing, pool.storage
            recovery = pool.turn_recovery
        isolated = pool is not None and pool.isolated
        return Hub(
            pool=DEFAULT_POOL if pool is None else pool.name,
            registry=self._registry,
            dialer=self._dialer,
            authenticator=self._checks_tokens,
            policy=method_policy(settings, pool),
            audit=self._audit,
            tasks=self.tasks,
            stats=self.stats,
            clock=time.monotonic,
            wall_clock=time.time,
            log=log,
            limits=limits_of(settings),
            health=HealthPolicy(health.failures, health.ban_base, health.ban_max),
            load_factor=settings.routing.load_factor,
            adopt=settings.sessions.adopt,
            recovers_turns=recovery == "continue",
            durable=settings.sessions.durable,
            free=not isolated and routes_freely(routing, storage),
            gateway_id=self._gateway_id,
            slow_start=settings.routing.slow_start,
            examines_storage=not isolated and examines_storage(routing, storage),
            param_rules=param_rules(settings),
            quotas=self._quotas,
            serves=whom,
        )

    def _new_prober(self, hub: Hub) -> Prober:
        health = self._settings.health
        return Prober(hub, health.probe_interval, health.probe_timeout)

    def _new_home(self, pool: PoolSettings, whom: Serves) -> tuple[Hub, Prober]:
        """Return a hub for one tenant or user."""
        hub = self._new_hub(pool, whom)
        self._lease.cover(hub)
        return hub, self._new_prober(hub)

    def _home_of(self, identity: Identity) -> Hub:
        pool = pool_of_tenant(self._pools, identity.tenant)
        if pool is None:
            return self.hub
        if pool.isolated:
            return self._isolated[pool.name].hub_for(identity)
        return self._shared[pool.name]

    @property
    def hubs(self) -> list[Hub]:
        """The hubs of all pools."""
        isolated = [hub for pool in self._isolated.values() for hub in pool.hubs]
        return [*self._shared.values(), *isolated]

    @property
    def shared_hubs(self) -> Collection[Hub]:
        """The hubs of the pools that are not isolated."""
        return self._shared.values()

    @property
    def isolated_pools(self) -> Collection[IsolatedPool]:
        """The pools whose tenants or users have CLIs of their own."""
        return self._isolated.values()

    def _authenticator(self) -> Authenticator:
        auth = self._settings.auth
        if auth.mode == "none":
            return NoAuthenticator()
        limiter = FailureLimiter(
            auth.source_failures, auth.source_recovery, auth.source_max_delay, auth.tracked_sources
        )
        return TokenAuthenticator(
            auth.static_token, self._tokens, limiter, stats=self.stats, jwt=self._jwt
        )

    def _tokens_ended(self, ids: frozenset[str]) -> None:
        ended = {SOURCE_PREFIX + token_id for token_id in ids}

        def holds(identity: Identity) -> bool:
            return identity.source in ended

        for hub in self.hubs:
            hub.cut_identities(holds, "the token was revoked, changed or has expired")

    async def start(self) -> None:
        """Open what the data path needs; replicas may be absent.

        Raises:
            StartupError: token file or registry cannot be used.
        """
        self._tokens.load()
        self.tasks.spawn(self._tokens.watch(self._settings.auth.token_poll), "token watch")
        if self._jwt is not None:
            await self._jwt.start()
        await self._open_registry()
        await self._lease.start()
        for pool in self._isolated.values():
            await pool.start()

    async def _open_registry(self) -> None:
        """Open the registry; one on another machine may be starting at the same time.

        Raises:
            StartupError: it cannot be used.
        """
        remote = "redis" in self._settings.registry.url.partition(":")[0]
        give_up = time.monotonic() + (_REGISTRY_PATIENCE if remote else 0.0)
        while True:
            try:
                await self._registry.open()
            except StartupError as error:
                if time.monotonic() >= give_up:
                    raise
                log.warning("waiting for the registry", extra={"reason": str(error)})
                await asyncio.sleep(_REGISTRY_PAUSE)
            else:
                return

    def set_replicas(self, specs: Sequence[ReplicaSpec], gone: Sequence[str] = ()) -> None:
        """Make these the replicas; those named ``gone`` are known not to run at present."""
        by_pool: dict[str, list[ReplicaSpec]] = {name: [] for name in self._shared}
        for spec in specs:
            pool = pool_of_replica(self._pools, spec.name)
            by_pool[DEFAULT_POOL if pool is None else pool.name].append(spec)
        for pool_name, hub in self._shared.items():
            hub.set_replicas(by_pool[pool_name])
            for name in gone:
                replica = hub.replicas.get(name)
                if replica is not None:
                    hub.note_gone(replica, "not running")
            self._probers[pool_name].follow()

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept clients on bound sockets: those of ``server.listen``, then the listeners'."""
        for plan, sock in zip(self._plans(), sockets, strict=True):
            listener = Listener(self.hub, lambda: self._flow, plan)
            await listener.start(sock, self._settings.server.backlog)
            self._listeners.append(listener)
        if any(listener.tls is not None for listener in self._settings.listeners):
            self.tasks.spawn(self._watch_certificates(), "certificate watch")
        self.accepting = True

    def _plans(self) -> list[ListenerPlan]:
        settings = self._settings
        fallback = EVERYBODY if settings.auth.mode == "none" else None
        plans = [ListenerPlan(fallback=fallback) for _ in settings.server.listen]
        timeout = settings.auth.connect_deadline
        return plans + [listener_plan(one, fallback, timeout) for one in settings.listeners]

    async def _watch_certificates(self) -> None:
        while True:
            await asyncio.sleep(self._settings.auth.token_poll)
            self._reload_certificates()

    def _reload_certificates(self) -> None:
        for listener in self._listeners:
            listener.reload()

    def apply(self, settings: Settings) -> None:
        """Apply the reloadable settings, and read tokens and certificates again; connections stay.

        Raises:
            ConfigError: a file that the policy needs cannot be used; nothing changed.
        """
        params = param_rules(settings)
        policies = {pool.name: method_policy(settings, pool) for pool in self._pools}
        policies[DEFAULT_POOL] = method_policy(settings)
        self._settings = settings
        self._flow = self._dialer.flow = flow_of(settings)
        for hub in self.hubs:
            hub.limits = limits_of(settings)
            hub.change_rules(policies[hub.pool], params, tenant_rules(settings))
        configure(settings.log, secrets_of(settings))
        self._tokens.reload()
        self._reload_certificates()
        self._audit.reopen()

    def metrics(self) -> bytes:
        """Return this worker's metrics."""
        return self._telemetry.render()

    async def drain(self, patience: float) -> None:
        """Stop accepting and let what runs finish, for at most ``patience`` seconds."""
        self.draining = True
        self.accepting = False
        for listener in self._listeners:
            listener.stop()
        give_up = time.monotonic() + patience
        while True:
            for client in self._clients():
                if not client.busy:
                    client.cut("shutdown", "the gateway is shutting down")
            if not self._clients() or time.monotonic() >= give_up:
                break
            await asyncio.sleep(_DRAIN_POLL)

    async def drain_replica(self, name: str, draining: bool) -> None:
        """Start or end the draining of a replica, here and on all gateways of the registry."""
        mark = DRAINING if draining else READY
        try:
            await self._registry.set_replica_mark(name, mark)
        except RegistryUnavailableError as error:
            log.warning(
                "drain is not known to other gateways",
                extra={"replica": name, "reason": str(error)},
            )
        for hub in self.hubs:
            hub.placer.marked(name, mark)

    def _clients(self) -> list[Client]:
        return [client for hub in self.hubs for client in hub.clients]

    async def close(self) -> None:
        """End everything."""
        for listener in self._listeners:
            await listener.close()
        for client in self._clients():
            client.cut("shutdown", "the gateway is shutting down")
        for prober in self._probers.values():
            await prober.close()
        for hub in self._shared.values():
            hub.set_replicas([])
        await self.tasks.close()
        await asyncio.gather(*(pool.close() for pool in self._isolated.values()))
        if self._jwt is not None:
            await self._jwt.close()
        await self._lease.close()
        await self._registry.close()
        self._telemetry.close()


class WorkerControl:
    """What the gateway's main process asks of a worker, in the same process or in another.

    Arguments and results can be pickled: :mod:`gateway.app.workers` carries them to a child.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def set_replicas(self, specs: Sequence[ReplicaSpec], gone: Sequence[str]) -> None:
        """See :meth:`Worker.set_replicas`."""
        self._worker.set_replicas(specs, gone)

    async def apply(self, settings: Settings) -> None:
        """See :meth:`Worker.apply`."""
        self._worker.apply(settings)

    async def note_restarts(self, restarts: dict[str, int]) -> None:
        """Take over how often the supervisor restarted each replica, for the counters."""
        known = {name for hub in self._worker.hubs for name in hub.replicas}
        for name, count in restarts.items():
            if name in known:
                self._worker.stats.replica(name).restarts = count

    async def readiness(self) -> Readiness:
        """Return whether new clients should be sent to this worker."""
        replicas = [one for hub in self._worker.hubs for one in hub.replicas.values()]
        # Those that would be started for the next client can take its sessions.
        room = sum(pool.room for pool in self._worker.isolated_pools)
        return Readiness(
            accepting=self._worker.accepting,
            draining=self._worker.draining,
            replicas_up=sum(replica.health.accepts_new for replica in replicas) + room,
            replicas=len(replicas) + room,
        )

    async def metrics(self) -> bytes:
        """Return the worker's metrics."""
        return self._worker.metrics()

    async def replicas(self) -> list[ReplicaInfo]:
        """Return the replicas as this worker sees them."""
        infos = [info for hub in self._worker.shared_hubs for info in replica_infos(hub)]
        for pool in self._worker.isolated_pools:
            infos += await pool.replicas()
        return infos

    async def sessions(
        self, cursor: str | None, tenant: str | None, replica: str | None
    ) -> list[SessionInfo]:
        """Return the sessions that this worker's clients use and that follow ``cursor``."""
        return [
            SessionInfo(
                session=session.id,
                tenant=session.placement.owner.tenant,
                user=session.placement.owner.user,
                replica=session.placement.replica,
                epoch=session.placement.epoch,
                live=session.live,
                busy=session.turn.busy,
                clients=len(session.bindings),
                pool=hub.pool,
            )
            for hub in self._worker.hubs
            for session in hub.sessions.values()
            if (cursor is None or session.id > cursor)
            and tenant in (None, session.placement.owner.tenant)
            and replica in (None, session.placement.replica)
        ]

    async def recycle(self, name: str) -> bool:
        """Begin to start a replica anew that serves one tenant or user; whether there is one."""
        for pool in self._worker.isolated_pools:
            if pool.has(name):
                pool.recycle(name)
                return True
        return False

    async def drain_replica(self, name: str, draining: bool) -> None:
        """Start or end the draining of a replica."""
        await self._worker.drain_replica(name, draining)

    async def drain(self, patience: float) -> None:
        """See :meth:`Worker.drain`."""
        await self._worker.drain(patience)

    async def close(self) -> None:
        """See :meth:`Worker.close`."""
        await self._worker.close()
