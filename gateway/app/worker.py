"""One process of the data path: clients on one side, replicas on the other."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Sequence
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
from gateway.app.tasks import TaskGroup
from gateway.config.settings import Settings
from gateway.core.hub import Hub, Limits
from gateway.core.placer import DRAINING
from gateway.core.ports import Authenticator
from gateway.core.stats import Stats
from gateway.errors import RegistryUnavailableError
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


def routes_freely(settings: Settings) -> bool:
    """Whether a session may live on any replica: said, or known from shared storage."""
    mode = settings.routing.mode
    return mode == "free" or (mode == "auto" and settings.storage.mode == "shared")


def examines_storage(settings: Settings) -> bool:
    """Whether what is believed of the storage is compared with what replicas say."""
    undecided = settings.routing.mode == "auto" and settings.storage.mode == "auto"
    return undecided or routes_freely(settings)


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
        hub: the core.
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
        health = settings.health
        self._jwt = jwt_authenticator(settings)
        self.hub = Hub(
            registry=self._registry,
            dialer=self._dialer,
            authenticator=self._authenticator(),
            policy=method_policy(settings),
            audit=audit,
            tasks=self.tasks,
            stats=self.stats,
            clock=time.monotonic,
            wall_clock=time.time,
            log=log,
            limits=limits_of(settings),
            health=HealthPolicy(health.failures, health.ban_base, health.ban_max),
            load_factor=settings.routing.load_factor,
            adopt=settings.sessions.adopt,
            recovers_turns=settings.sessions.turn_recovery == "continue",
            durable=settings.sessions.durable,
            free=routes_freely(settings),
            gateway_id=secrets.token_hex(8),
            slow_start=settings.routing.slow_start,
            examines_storage=examines_storage(settings),
            param_rules=param_rules(settings),
            quotas=Quotas(time.monotonic, tenant_rules(settings)),
            serves=serves(settings),
        )
        self._lease = Lease(self.hub, settings.registry.lease)
        self._prober = Prober(self.hub, health.probe_interval, health.probe_timeout)

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

        self.hub.cut_identities(holds, "the token was revoked, changed or has expired")

    async def start(self) -> None:
        """Open what the data path needs; replicas may be absent.

        Raises:
            StartupError: token file or registry cannot be used.
        """
        self._tokens.load()
        self.tasks.spawn(self._tokens.watch(self._settings.auth.token_poll), "token watch")
        if self._jwt is not None:
            await self._jwt.start()
        await self._registry.open()
        await self._lease.start()

    def set_replicas(self, specs: Sequence[ReplicaSpec], gone: Sequence[str] = ()) -> None:
        """Make these the replicas; those named ``gone`` are known not to run at present."""
        self.hub.set_replicas(specs)
        for name in gone:
            replica = self.hub.replicas.get(name)
            if replica is not None:
                self.hub.note_gone(replica, "not running")
        self._prober.follow()

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
        methods, params = method_policy(settings), param_rules(settings)
        self._settings = settings
        self._flow = self._dialer.flow = flow_of(settings)
        self.hub.limits = limits_of(settings)
        self.hub.change_rules(methods, params, tenant_rules(settings))
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
            for client in list(self.hub.clients):
                if not client.busy:
                    client.cut("shutdown", "the gateway is shutting down")
            if not self.hub.clients or time.monotonic() >= give_up:
                break
            await asyncio.sleep(_DRAIN_POLL)

    async def drain_replica(self, name: str, draining: bool) -> None:
        """Start or end the draining of a replica, here and on all gateways of the registry."""
        mark = DRAINING if draining else None
        try:
            await self._registry.set_replica_mark(name, mark)
        except RegistryUnavailableError as error:
            log.warning(
                "drain is not known to other gateways",
                extra={"replica": name, "reason": str(error)},
            )
        self.hub.placer.marked(name, mark)

    async def close(self) -> None:
        """End everything."""
        for listener in self._listeners:
            await listener.close()
        for client in list(self.hub.clients):
            client.cut("shutdown", "the gateway is shutting down")
        await self._prober.close()
        self.hub.set_replicas([])
        await self.tasks.close()
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
        for name, count in restarts.items():
            if name in self._worker.hub.replicas:
                self._worker.stats.replica(name).restarts = count

    async def readiness(self) -> Readiness:
        """Return whether new clients should be sent to this worker."""
        replicas = self._worker.hub.replicas.values()
        return Readiness(
            accepting=self._worker.accepting,
            draining=self._worker.draining,
            replicas_up=sum(replica.health.accepts_new for replica in replicas),
            replicas=len(replicas),
        )

    async def metrics(self) -> bytes:
        """Return the worker's metrics."""
        return self._worker.metrics()

    async def replicas(self) -> list[ReplicaInfo]:
        """Return the replicas as this worker sees them."""
        infos = []
        for name, replica in sorted(self._worker.hub.replicas.items()):
            stats = replica.stats
            infos.append(
                ReplicaInfo(
                    name=name,
                    address=f"{replica.spec.host}:{replica.spec.port}",
                    pool="default",
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
                    drained=replica.health.draining and not stats.sessions and not stats.in_flight,
                    reason=None if replica.health.accepts_new else replica.health.reason,
                )
            )
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
            )
            for session in self._worker.hub.sessions.values()
            if (cursor is None or session.id > cursor)
            and tenant in (None, session.placement.owner.tenant)
            and replica in (None, session.placement.replica)
        ]

    async def drain_replica(self, name: str, draining: bool) -> None:
        """Start or end the draining of a replica."""
        await self._worker.drain_replica(name, draining)

    async def drain(self, patience: float) -> None:
        """See :meth:`Worker.drain`."""
        await self._worker.drain(patience)

    async def close(self) -> None:
        """See :meth:`Worker.close`."""
        await self._worker.close()
