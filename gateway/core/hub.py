"""What the clients of one worker share: replicas, sessions, owners, and where sessions go.

The hub decides nothing about sockets: it is given a registry, a dialer and a clock, and asks
:mod:`gateway.routing` where a session belongs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gateway import errors
from gateway.core import answers
from gateway.core.link import Link, LinkLostError
from gateway.core.placer import Placer
from gateway.core.ports import Audit, Authenticator, Dialer, Tasks
from gateway.core.queries import Queries
from gateway.core.replica import Replica
from gateway.core.session import Session, SessionNotFoundError
from gateway.core.stats import Stats
from gateway.errors import RegistryUnavailableError, RpcError
from gateway.policy import results
from gateway.policy.params import ParamRule
from gateway.policy.quotas import Quotas, TenantRule
from gateway.policy.rules import MethodPolicy
from gateway.routing.health import Health, HealthPolicy
from gateway.routing.registry import Registry
from gateway.routing.ring import DEFAULT_LOAD_FACTOR, Ring
from gateway.types import Identity, Owner, Placement, ReplicaSpec, Role

if TYPE_CHECKING:
    from gateway.core.client import Client

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_POOL = "default"
"""The pool of the replicas and tenants that no other pool names."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a worker's memory and patience; times in seconds, sizes in bytes.

    Attributes:
        max_frame: largest frame of an authenticated client.
        max_unauthenticated_frame: largest frame before authentication.
        max_header: largest header block.
        max_replica_frame: largest frame of a replica.
        max_pending: requests in flight per client.
        max_sessions: sessions per client.
        queue_frames: messages that may wait per session and client.
        queue_bytes: their total size.
        connect_deadline: time until a client must have authenticated.
        max_auth_failures: failures after which a connection is closed.
        handshake_timeout: time a replica has to answer the handshake.
        ask_timeout: time a replica has to answer a question of the gateway's.
        rebind_timeout: how long requests wait for a session to be live again.
        registry_patience: how long a registry that is away is waited for.
        redial_delay: pause between attempts to reach a replica.
        retry_after: what clients are told to wait after a failure.
        linger: how long a turn goes on without its client.
        owners_cached: owners of sessions kept in memory.
    """

    max_frame: int = 64 * 1024 * 1024
    max_unauthenticated_frame: int = 16 * 1024
    max_header: int = 8 * 1024
    max_replica_frame: int = 512 * 1024 * 1024
    max_pending: int = 10_000
    max_sessions: int = 10_000
    queue_frames: int = 1_000
    queue_bytes: int = 64 * 1024 * 1024
    connect_deadline: float = 10.0
    max_auth_failures: int = 5
    handshake_timeout: float = 5.0
    ask_timeout: float = 10.0
    rebind_timeout: float = 30.0
    registry_patience: float = 10.0
    redial_delay: float = 0.1
    retry_after: float = 1.0
    linger: float = 300.0
    owners_cached: int = 100_000


@dataclass(frozen=True, slots=True)
class Serves:
    """Whom the replicas serve alone, where they do not serve all.

    Attributes:
        tenant: the one tenant.
        user: its one user, or empty for all of its users.
    """

    tenant: str
    user: str = ""


class Hub:
    """The shared state of one pool of replicas in a worker.

    Attributes:
        pool: the pool's name.
        home_of: returns the hub that a client belongs to once it is known who it is; raises
            ``RpcError`` where there is none for it. Clients come in through one hub for all pools.
        replicas: by name.
        sessions: sessions that a client of this pool uses, by id.
        owners: owners of sessions seen lately, by id; None for sessions that have none.
        files_gone: a client that provided the files of a CLI process has gone: the process can
            store no sessions any more, until it is started anew.
        clients: its connections, and in the hub where clients come in also those that have not
            proven who they are.
    """

    def __init__(
        self,
        *,
        pool: str = DEFAULT_POOL,
        registry: Registry,
        dialer: Dialer,
        authenticator: Authenticator,
        policy: MethodPolicy,
        audit: Audit,
        tasks: Tasks,
        stats: Stats,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        log: logging.Logger,
        limits: Limits | None = None,
        health: HealthPolicy | None = None,
        load_factor: float = DEFAULT_LOAD_FACTOR,
        adopt: str = "admin",
        recovers_turns: bool = True,
        durable: bool = False,
        free: bool = False,
        gateway_id: str | None = None,
        slow_start: float = 0.0,
        examines_storage: bool = False,
        param_rules: Sequence[ParamRule] = (),
        quotas: Quotas | None = None,
        serves: Serves | None = None,
    ) -> None:
        self.pool = pool
        self.home_of: Callable[[Identity], Hub] = self._own
        self.registry = registry
        self.dialer = dialer
        self.authenticator = authenticator
        self.policy = policy
        self.audit = audit
        self.tasks = tasks
        self.stats = stats
        self.now = clock
        self.wall_clock = wall_clock
        self.log = log
        self.limits = limits or Limits()
        self._health = health or HealthPolicy()
        self._load_factor = load_factor
        self._adopt = adopt
        self.recovers_turns = recovers_turns
        self.durable = durable
        self.placer = Placer(
            self,
            gateway_id,
            free=free,
            slow_start=slow_start,
            examines_storage=examines_storage,
        )
        self._serves = serves
        self.param_rules = tuple(param_rules)
        self.quotas = quotas if quotas is not None else Quotas(clock)
        self.replicas: dict[str, Replica] = {}
        self.sessions: dict[str, Session] = {}
        self.owners: OrderedDict[str, Owner] = OrderedDict()
        self.clients: set[Client] = set()
        self.files_gone = False
        self.queries = Queries(self)
        self._by_tenant: dict[str, set[Client]] = {}
        self.ring = Ring({}, load_factor)
        self._unknown: dict[str, list[tuple[Client, bytes]]] = {}
        self._greeted = asyncio.Event()
        self._hello: dict[str, Any] = {}

    # Replicas

    def set_replicas(self, specs: Iterable[ReplicaSpec]) -> None:
        """Make these the replicas: new ones are added, missing ones removed, moved ones redialed.

        A replica that comes back under its name keeps its sessions.
        """
        wanted = {spec.name: spec for spec in specs}
        for name in list(self.replicas):
            if name not in wanted:
                replica = self.replicas.pop(name)
                self._state(replica, replica.health.gone(self.now(), "removed"))
                self._close_links(replica)
                self.stats.forget_replica(name)
        for name, spec in wanted.items():
            known = self.replicas.get(name)
            if known is None:
                self.replicas[name] = Replica(spec, Health(self._health), self.stats.replica(name))
                self.tasks.spawn(self.placer.read_mark(name), f"mark of {name}")
            elif known.spec != spec:
                moved = _address(known.spec) != _address(spec)
                known.spec = spec
                if moved:
                    self._close_links(known)
        weights = {name: replica.weight for name, replica in self.replicas.items()}
        if self.ring.weights != weights:
            self.ring = Ring(weights, self._load_factor)

    def _state(self, replica: Replica, changed: bool) -> None:
        """Publish a move of a replica's state machine and act on it."""
        replica.state_changed()
        if not changed:
            return
        self.log.info(
            "replica state",
            extra={
                "replica": replica.name,
                "state": replica.health.state.value,
                "reason": replica.health.reason,
            },
        )
        if not replica.reachable:
            self._close_links(replica)

    def _close_links(self, replica: Replica) -> None:
        # The control link first, so that its end is not taken for the replica's.
        control, replica.control = replica.control, None
        if control is not None:
            control.close()
        replica.nudged.set()
        for link in list(replica.links):
            link.close()

    def note_success(self, replica: Replica, seconds: float) -> None:
        """Note a good probe that took ``seconds``."""
        replica.stats.probe_seconds = seconds
        self._state(replica, replica.health.succeeded(self.now()))

    def note_failure(self, replica: Replica, reason: str) -> None:
        """Note a failed probe, connection or question."""
        self._state(replica, replica.health.failed(self.now(), reason))

    def note_gone(self, replica: Replica, reason: str) -> None:
        """Note that a replica's process has ended, or was told to."""
        self._state(replica, replica.health.gone(self.now(), reason))

    def drain(self, name: str, draining: bool) -> None:
        """Start or end the draining of a replica.

        Raises:
            KeyError: no such replica.
        """
        replica = self.replicas[name]
        self._state(replica, replica.health.drain(draining))

    def new_control_link(self, replica: Replica) -> Link:
        """Return an unopened link for the gateway's own questions."""
        link = Link(self, replica, None)
        replica.links.add(link)
        replica.stats.links += 1
        return link

    def control_ready(self, link: Link) -> None:
        """Use an opened control link."""
        replica = link.replica
        replica.control = link
        replica.incarnation = self.placer.incarnations.get(replica.name, 0)
        replica.fenced = False
        self.files_gone = False
        replica.up_since = self.now()
        self._hello = link.replica.hello
        self._greeted.set()

    def link_lost(self, link: Link, reason: str) -> None:
        """Deal with the end of a link."""
        replica = link.replica
        if link in replica.links:
            replica.links.discard(link)
            replica.stats.links -= 1
        if replica.control is link:
            replica.control = None
            self._state(replica, replica.health.gone(self.now(), reason))
            replica.nudged.set()
        if link.client is not None:
            link.client.link_lost(link)

    async def until_any_reachable(self, seconds: float) -> None:
        """Return once a replica can serve, or after ``seconds``."""
        waits = [asyncio.ensure_future(r.until_reachable()) for r in self.replicas.values()]
        try:
            if waits:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(min(seconds, self.limits.redial_delay))
        finally:
            for wait in waits:
                wait.cancel()

    async def any_replica(self) -> Replica:
        """Return the reachable replica with the fewest links, waiting for one if need be.

        Raises:
            RpcError: none came up in time.
        """
        candidates = [r for r in self.replicas.values() if r.health.accepts_new]
        candidates = candidates or [r for r in self.replicas.values() if r.reachable]
        if not candidates:
            await self.until_any_reachable(self.limits.rebind_timeout)
            candidates = [r for r in self.replicas.values() if r.reachable]
        if not candidates:
            raise answers.replica_unavailable(None, self.limits.retry_after)
        return min(candidates, key=lambda replica: len(replica.links))

    async def hello(self) -> dict[str, Any]:
        """Return what a replica said in its handshake, waiting for the first one.

        Raises:
            RpcError: no replica came up in time.
        """
        if not self._greeted.is_set():
            try:
                async with asyncio.timeout(self.limits.rebind_timeout):
                    await self._greeted.wait()
            except TimeoutError:
                raise answers.replica_unavailable(None, self.limits.retry_after) from None
        return self._hello

    async def greet_with(self, params: dict[str, Any]) -> Any:
        """Return a replica's own answer to a client's connection parameters.

        Raises:
            RpcError: the replica refuses them, or none is available.
        """
        replica = await self.any_replica()
        link = self.new_control_link(replica)
        try:
            await link.open()
            return await link.request("connect", params, self.limits.handshake_timeout)
        except (OSError, LinkLostError, TimeoutError):
            raise answers.replica_unavailable(None, self.limits.retry_after) from None
        finally:
            link.close()

    async def ask(self, replica: Replica, method: str, params: Any) -> Any:
        """Ask a replica over its control link.

        Raises:
            RpcError: it answered with an error.
            LinkLostError: it cannot be asked now.
        """
        link = replica.control
        if link is None or not link.ready:
            raise LinkLostError(f"{replica.name} is not connected")
        try:
            return await link.request(method, params, self.limits.ask_timeout)
        except TimeoutError:
            self.note_failure(replica, f"no answer to {method}")
            raise LinkLostError(f"{replica.name} does not answer") from None

    # Clients

    def _own(self, identity: Identity) -> Hub:
        return self

    @property
    def serves_one_user(self) -> bool:
        """Whether the replicas are one user's own: what others of the tenant have is elsewhere."""
        return self._serves is not None and bool(self._serves.user)

    def client_authenticated(self, client: Client) -> None:
        """Index a client by its tenant."""
        assert client.owner is not None
        self._by_tenant.setdefault(client.owner.tenant, set()).add(client)

    def client_gone(self, client: Client) -> None:
        """Forget a client."""
        if client.owner is not None:
            peers = self._by_tenant.get(client.owner.tenant)
            if peers is not None:
                peers.discard(client)
                if not peers:
                    del self._by_tenant[client.owner.tenant]

    def check_admitted(self, identity: Identity) -> None:
        """Check that these replicas serve somebody.

        Raises:
            RpcError: they are for another tenant or user alone.
        """
        serves = self._serves
        if serves is not None and not (
            identity.tenant == serves.tenant and serves.user in ("", identity.user)
        ):
            raise RpcError(errors.FORBIDDEN, "This gateway serves somebody else alone")

    def change_rules(
        self,
        policy: MethodPolicy,
        param_rules: Sequence[ParamRule],
        tenants: Mapping[str, TenantRule],
    ) -> None:
        """Put other rules in force, for connected clients too."""
        self.policy = policy
        self.param_rules = tuple(param_rules)
        self.quotas.change(tenants)
        for client in list(self.clients):
            client.rules_changed()
        for session in self.sessions.values():
            if session.live:
                self.quotas.session_live(session.turn, session.placement.owner)

    def cut_identities(self, ended: Callable[[Identity], bool], detail: str) -> None:
        """Close the connections of all identities for which ``ended`` holds."""
        for client in list(self.clients):
            if client.identity is not None and ended(client.identity):
                client.cut("revoked", detail)

    # Ownership and placement

    async def registered(
        self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a method of the registry, counted, its failure in the client's terms.

        All of them may be repeated. A registry that is away is waited for, as its restart takes
        seconds; placed sessions need it for nothing and go on meanwhile.

        Args:
            call: the method.
            args: its arguments.
            kwargs: its keyword arguments.

        Raises:
            RpcError: it stayed away for too long.
        """
        operation = call.__name__
        give_up = self.now() + self.limits.registry_patience
        while True:
            started = self.now()
            try:
                result = await call(*args, **kwargs)
            except RegistryUnavailableError as error:
                now = self.now()
                self.stats.registry_done(operation, now - started, ok=False)
                if now >= give_up:
                    raise RpcError(
                        errors.REGISTRY_UNAVAILABLE,
                        "The registry of sessions is not available; nothing was changed",
                        {"retryAfterMs": int(self.limits.retry_after * 1000)},
                    ) from error
                await asyncio.sleep(self.limits.redial_delay)
            else:
                self.stats.registry_done(operation, self.now() - started, ok=True)
                return result

    def _learned(self, placement: Placement) -> Placement:
        owners = self.owners
        owners[placement.session_id] = placement.owner
        owners.move_to_end(placement.session_id)
        if len(owners) > self.limits.owners_cached:
            owners.popitem(last=False)
        return placement

    async def authorize(self, client: Client, session_id: str, *, adopt: bool = False) -> Placement:
        """Return where a session lives if it is the client's to use.

        Args:
            client: who asks.
            session_id: the session.
            adopt: a session that a replica knows and the registry does not may be taken over.

        Raises:
            SessionNotFoundError: there is none, or it belongs to somebody else.
            RpcError: the registry is not available.
        """
        session = self.sessions.get(session_id)
        placement: Placement | None
        if session is not None:
            placement = session.placement
        else:
            placement = await self.registered(self.registry.get, session_id)
        if placement is None:
            holder = await self._holder(session_id) if adopt and self._may_adopt(client) else None
            if holder is None:
                raise SessionNotFoundError(session_id)
            placement = await self.claim(client, session_id, holder)
            self.log.warning(
                "session without an owner adopted",
                extra={"session": session_id, "replica": holder, **client.who()},
            )
        self._learned(placement)
        if not client.sees(placement.owner):
            # The client cannot tell this from a session that does not exist; the operator can.
            self.audit.record(
                "denied",
                **client.who(),
                session=session_id,
                outcome="denied",
                reason="session of another owner",
            )
            raise SessionNotFoundError(session_id)
        return placement

    def _may_adopt(self, client: Client) -> bool:
        assert client.identity is not None
        return self._adopt == "tenant" or (
            # Whose it was is not known: nobody but the operator may look.
            self._adopt == "admin"
            and client.identity.role is Role.ADMIN
            and client.identity.tenant == OPERATOR_TENANT
        )

    async def _holder(self, session_id: str) -> str | None:
        """Return the name of a replica that has a session on its disk."""
        replicas = [r for r in self.replicas.values() if r.control is not None]

        async def has(replica: Replica) -> bool:
            try:
                found = await self.ask(replica, "sessions.getMetadata", {"sessionId": session_id})
            except (RpcError, LinkLostError):
                return False
            return type(found) is dict and bool(found.get("session"))

        answers_ = await asyncio.gather(*(has(replica) for replica in replicas))
        return next((r.name for r, yes in zip(replicas, answers_, strict=True) if yes), None)

    async def owned_by(self, tenant: str, user: str | None) -> dict[str, Placement]:
        """Return the sessions of a tenant, or of one user of it.

        Raises:
            RpcError: the registry is not available.
        """
        return await self.registered(self.registry.owned_by, tenant, user)

    async def known(self, session_ids: Iterable[str]) -> dict[str, Placement]:
        """Return the placements of those sessions that are recorded.

        Raises:
            RpcError: the registry is not available.
        """
        return await self.registered(self.registry.get_many, session_ids)

    async def claim(
        self, client: Client, session_id: str, replica: str, *, unseen: bool = False
    ) -> Placement:
        """Record a session as the client's on ``replica``, unless it is recorded already.

        Args:
            client: who it shall belong to.
            session_id: the session.
            replica: where it is, or shall be.
            unseen: all replicas were asked and none has it.

        Raises:
            RpcError: the registry is not available.
        """
        assert client.owner is not None
        await self.placer.will_hold(session_id)
        return self._learned(
            await self.registered(
                self.registry.claim,
                session_id,
                client.owner,
                replica,
                self.placer.gateway_id,
                unseen=unseen,
            )
        )

    async def place(self, client: Client, session_id: str, method: str) -> tuple[Placement, bool]:
        """Decide where a session that a client creates shall live, and record it.

        Returns:
            The placement, and whether this call made it.

        Raises:
            RpcError: the id is taken, no replica is available, or the registry is not.
        """
        recorded = await self.registered(self.registry.get, session_id)
        if recorded is None:
            holder = await self._holder(session_id)
            if holder is not None:
                if not self._may_adopt(client):
                    raise _taken(method, session_id)
                recorded = await self.claim(client, session_id, holder)
        if recorded is None:
            if not any(r.health.accepts_new for r in self.replicas.values()):
                await self.any_replica()
            name = self.placer.choose(session_id)
            if name is None:
                raise answers.replica_unavailable(session_id, self.limits.retry_after)
            recorded = await self.claim(client, session_id, name, unseen=True)
            if recorded.replica == name and recorded.owner == client.owner:
                self.stats.sessions_placed += 1
                return recorded, True
        self._learned(recorded)
        if not client.sees(recorded.owner):
            raise _taken(method, session_id)
        await self._refuse_existing(recorded, method)
        return recorded, False

    async def _refuse_existing(self, placement: Placement, method: str) -> None:
        """Refuse to create a session that is stored but not live.

        The CLI would start an empty conversation in the same journal; a live one it attaches to.
        """
        session_id = placement.session_id
        session = self.sessions.get(session_id)
        if session is not None and session.live:
            return
        replica = self.replicas.get(placement.replica)
        if replica is None:
            raise answers.replica_unavailable(session_id, self.limits.retry_after)
        try:
            async with asyncio.timeout(self.limits.rebind_timeout):
                await replica.until_reachable()
            found = await self.ask(replica, "sessions.getMetadata", {"sessionId": session_id})
            if type(found) is not dict or not found.get("session"):
                return
            await self.ask(replica, "session.metadata.isProcessing", {"sessionId": session_id})
        except (TimeoutError, LinkLostError):
            raise answers.replica_unavailable(session_id, self.limits.retry_after) from None
        except RpcError:
            raise results.failed(
                method, f"Session {session_id} already exists; use session.resume"
            ) from None

    async def forget(self, placement: Placement) -> None:
        """Take back the record of a session that was not made after all."""
        try:
            await self.registered(
                self.registry.forget, placement.session_id, placement.epoch, self.placer.gateway_id
            )
        except RpcError:
            self.log.warning(
                "record of a failed session kept", extra={"session": placement.session_id}
            )
            return
        self.owners.pop(placement.session_id, None)

    async def settled(self, session: Session, patience: float) -> Replica:
        """Return the replica on which a session is, or shall become, live, once it can serve.

        Raises:
            RpcError: it cannot within ``patience`` seconds.
        """
        return await self.placer.settled(session, patience)

    # Sessions

    def session(self, placement: Placement) -> Session:
        """Return the worker's session for a placement, made at the first call."""
        session = self.sessions.get(placement.session_id)
        if session is None:
            session = self.sessions[placement.session_id] = Session(placement)
        elif placement.epoch > session.placement.epoch:
            self.placer.placed(session, placement)
        return session

    def session_attached(self, session: Session) -> None:
        """Count a binding that became attached."""
        if sum(binding.attached for binding in session.bindings) == 1:
            self.stats.sessions_live += 1
            self.quotas.session_live(session.turn, session.placement.owner)
            stats = self.stats.replica(session.placement.replica)
            stats.sessions += 1
            stats.served += 1

    def session_detached(self, session: Session) -> None:
        """Count a binding that is no longer attached."""
        if not session.live:
            self.stats.sessions_live -= 1
            self.quotas.session_ended(session.turn, session.placement.owner)
            if session.placement.replica in self.replicas:
                self.stats.replica(session.placement.replica).sessions -= 1
            session.turn.ended()
            self.placer.release_later(session.id)

    def forget_owner(self, session_id: str) -> None:
        """Look a session's owner up again when it is asked for next."""
        self.owners.pop(session_id, None)

    def session_left(self, session: Session) -> None:
        """Forget a session that no client of this worker uses."""
        if not session.bindings and self.sessions.get(session.id) is session:
            del self.sessions[session.id]

    def session_closed(self, session_id: str) -> None:
        """Note that a session was unloaded for everybody."""
        session = self.sessions.get(session_id)
        if session is not None:
            for binding in list(session.bindings):
                binding.leave()

    def session_deleted(self, session_id: str) -> None:
        """Note that a session was deleted for good."""
        self.session_closed(session_id)
        self.owners.pop(session_id, None)

        async def remove() -> None:
            try:
                await self.registered(
                    self.registry.forget, session_id, gateway_id=self.placer.gateway_id
                )
            except RpcError:
                self.log.warning("record of a deleted session kept", extra={"session": session_id})

        self.tasks.spawn(remove(), f"forget {session_id}")

    # Lifecycle notifications

    def lifecycle(self, replica: Replica, session_id: Any, frame: bytes) -> None:
        """Pass a notification from a control link to clients that have no link to the replica."""
        owner = self.owners.get(session_id)
        if owner is None:
            return
        for client in self._by_tenant.get(owner.tenant, ()):
            if replica.name not in client.links and client.sees(owner):
                client.write(frame)

    def deliver_when_known(self, client: Client, session_id: Any, frame: bytes) -> None:
        """Look up the owner of a session that this worker has not met, then deliver or drop."""
        if type(session_id) is not str or len(self._unknown) >= self.limits.queue_frames:
            self.stats.lifecycle_dropped += 1
            return
        waiting = self._unknown.get(session_id)
        if waiting is not None:
            waiting.append((client, frame))
            return
        self._unknown[session_id] = [(client, frame)]
        self.tasks.spawn(self._deliver_unknown(session_id), f"owner of {session_id}")

    async def _deliver_unknown(self, session_id: str) -> None:
        try:
            placement = await self.registered(self.registry.get, session_id)
        except RpcError:
            placement = None
        if placement is not None:
            self._learned(placement)
        else:
            self.owners[session_id] = _NOBODY
            self.tasks.call_later(_NOBODY_SECONDS, self._forget_nobody, session_id)
        for client, frame in self._unknown.pop(session_id, ()):
            if placement is not None and client.sees(placement.owner) and not client.closed:
                client.write(frame)
            else:
                self.stats.lifecycle_dropped += 1

    def _forget_nobody(self, session_id: str) -> None:
        if self.owners.get(session_id) is _NOBODY:
            del self.owners[session_id]


def _address(spec: ReplicaSpec) -> tuple[str, int, str | None]:
    return spec.host, spec.port, spec.token


_NOBODY = Owner("", "")
"""Stands for the owner of a session that the registry does not know."""

_NOBODY_SECONDS = 5.0
"""How long a session is remembered as nobody's: it may be claimed by another worker meanwhile."""


OPERATOR_TENANT = "default"
"""The tenant of the static token and of gateways without authentication."""


def _taken(method: str, session_id: str) -> RpcError:
    return results.failed(method, f"Session id {session_id} is not available")
