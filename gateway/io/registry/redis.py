"""The registry in Redis, shared by gateways on many machines.

Every change is one Lua script (:mod:`gateway.io.registry.redis_scripts`), so that it is atomic. All
keys share one hash tag: on a Cluster they live in one slot, which costs nothing at a few commands
per session that becomes live, and buys atomicity across sessions, index sets and the change log.

What Redis acknowledges it may yet lose: it restarts empty or with what it wrote last, or a replica
that lagged behind is promoted. A server other than the one before is noticed by its run id; then
heartbeats ask gateways to republish, and sessions that it does not know are not recorded for
``settle`` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from gateway.errors import RegistryUnavailableError, StartupError
from gateway.io.registry import redis_scripts as scripts
from gateway.io.registry.changes import deliver
from gateway.io.registry.redis_url import parse_redis_url
from gateway.routing.registry import Change, ChangesLost, PlacementChanged, ReplicaChanged
from gateway.types import Owner, Placement

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_VERSION = 1

CONCURRENCY = 16
"""Calls under way at once, each on a connection of its own; more would only queue in Redis."""

BATCH = 200
"""Sessions per script call: Redis serves nobody else meanwhile (about 1 ms)."""

CHANGES_PER_READ = 1000

WATCH_RETRY = 0.25
"""Seconds between attempts to read changes while Redis is away."""


class RedisRegistry:
    """The registry in Redis.

    Args:
        url: see :mod:`gateway.io.registry.redis_url`.
        timeout: seconds after which a call fails when Redis does not answer.

    Raises:
        ConfigError: the URL says nothing usable.
    """

    def __init__(self, url: str, *, timeout: float = 3.0) -> None:
        self._target = parse_redis_url(url)
        self._timeout = timeout
        self._root = f"{{{self._target.prefix}}}"
        self._origin = secrets.token_hex(8)
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._resources = contextlib.AsyncExitStack()
        self._client: Redis | RedisCluster | None = None
        self._callbacks: list[Callable[[Change], None]] = []
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<RedisRegistry {self._target} prefix={self._target.prefix}>"

    async def open(self) -> None:
        """Connect, and check that the data are of this version.

        Raises:
            StartupError: Redis cannot be used; the message says why.
        """
        try:
            self._client = self._connect()
            schema, policy = await self._run(scripts.OPEN, SCHEMA_VERSION)
            if int(schema) > SCHEMA_VERSION:
                raise StartupError(
                    f"registry {self._target}: written by a newer version of copilot-gateway"
                    f" (schema {schema}, this one knows {SCHEMA_VERSION})"
                )
        except RegistryUnavailableError as exc:
            await self.close()
            raise StartupError(str(exc)) from None
        except BaseException:
            await self.close()
            raise
        if policy.startswith("allkeys-"):
            logger.warning(
                "registry %s: maxmemory-policy is %s: Redis may drop the owners of sessions when"
                " its memory is full; use noeviction",
                self._target,
                policy,
            )

    async def close(self) -> None:
        """Stop watching and close all connections; idempotent."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        self._client = None
        with contextlib.suppress(RedisError, OSError):
            await self._resources.aclose()

    async def get(self, session_id: str) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.get`."""
        return (await self.get_many([session_id])).get(session_id)

    async def get_many(self, session_ids: Iterable[str]) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.get_many`."""
        found = {}
        for batch in _batches(list(session_ids)):
            for record in await self._run(scripts.GET, *batch):
                found[record[0]] = _placement(record)
        return found

    async def claim(
        self,
        session_id: str,
        owner: Owner,
        replica: str,
        gateway_id: str | None = None,
        *,
        unseen: bool = False,
    ) -> Placement:
        """See :meth:`gateway.routing.registry.Registry.claim`."""
        record = await self._run(
            scripts.CLAIM,
            self._origin,
            gateway_id or "",
            session_id,
            owner.tenant,
            owner.user,
            replica,
            "" if unseen else int(self._target.settle * 1000),
        )
        return _placement(record)

    async def move(
        self, session_id: str, epoch: int, replica: str, gateway_id: str | None = None
    ) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.move`."""
        record = await self._run(
            scripts.MOVE, self._origin, gateway_id or "", session_id, epoch, replica
        )
        return _placement(record) if record else None

    async def forget(
        self, session_id: str, epoch: int | None = None, gateway_id: str | None = None
    ) -> bool:
        """See :meth:`gateway.routing.registry.Registry.forget`."""
        expected = "" if epoch is None else epoch
        return bool(
            await self._run(scripts.FORGET, self._origin, gateway_id or "", session_id, expected)
        )

    async def owned_by(self, tenant: str, user: str | None) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.owned_by`."""
        if user is None:
            key = f"{self._root}:t:{tenant}"
        else:
            key = f"{self._root}:u:{len(tenant.encode())}:{tenant}:{user}"
        owned = await self.get_many(await self._members(key))
        return {
            session_id: placement
            for session_id, placement in owned.items()
            # The sets were read before the records.
            if placement.owner.tenant == tenant and user in (None, placement.owner.user)
        }

    async def placed_on(self, replica: str, limit: int = 1000) -> list[Placement]:
        """See :meth:`gateway.routing.registry.Registry.placed_on`."""
        members = await self._members(f"{self._root}:r:{replica}", limit)
        placed = await self.get_many(members)
        return [placement for placement in placed.values() if placement.replica == replica]

    async def counts(self) -> dict[str, int]:
        """See :meth:`gateway.routing.registry.Registry.counts`."""
        counts = await self._call(lambda client: client.hgetall(f"{self._root}:counts"))
        return {replica: int(count) for replica, count in counts.items()}

    async def heartbeat(self, gateway_id: str, ttl_seconds: float) -> bool:
        """See :meth:`gateway.routing.registry.Registry.heartbeat`."""
        return bool(await self._run(scripts.HEARTBEAT, gateway_id, int(ttl_seconds * 1000)))

    async def leave(self, gateway_id: str) -> None:
        """See :meth:`gateway.routing.registry.Registry.leave`."""
        await self._call(lambda client: client.hdel(f"{self._root}:gateways", gateway_id))

    async def hold(self, session_id: str, epoch: int, gateway_id: str) -> Placement | None:
        """See :meth:`gateway.routing.registry.Registry.hold`."""
        record = await self._run(scripts.HOLD, gateway_id, session_id, epoch)
        return _placement(record) if record else None

    async def release(self, session_ids: Iterable[str], gateway_id: str) -> None:
        """See :meth:`gateway.routing.registry.Registry.release`."""
        for batch in _batches(list(session_ids)):
            await self._run(scripts.RELEASE, gateway_id, *batch)

    async def holders(self, session_id: str) -> frozenset[str]:
        """See :meth:`gateway.routing.registry.Registry.holders`."""
        return frozenset(await self._run(scripts.HOLDERS, session_id))

    async def republish(
        self, gateway_id: str, placements: Iterable[Placement]
    ) -> dict[str, Placement]:
        """See :meth:`gateway.routing.registry.Registry.republish`."""
        standing = {}
        for batch in _batches(list(placements)):
            fields: list[str | int] = []
            for placement in batch:
                owner = placement.owner
                fields += [placement.session_id, owner.tenant, owner.user]
                fields += [placement.replica, placement.epoch]
            for record in await self._run(scripts.REPUBLISH, self._origin, gateway_id, *fields):
                standing[record[0]] = _placement(record)
        return standing

    async def fence_replica(self, replica: str, incarnation: int) -> int:
        """See :meth:`gateway.routing.registry.Registry.fence_replica`."""
        return int(await self._run(scripts.FENCE, self._origin, replica, incarnation))

    async def replica_incarnations(self) -> dict[str, int]:
        """See :meth:`gateway.routing.registry.Registry.replica_incarnations`."""
        key = f"{self._root}:incarnations"
        incarnations = await self._call(lambda client: client.hgetall(key))
        return {replica: int(incarnation) for replica, incarnation in incarnations.items()}

    async def set_replica_mark(self, replica: str, mark: str | None) -> None:
        """See :meth:`gateway.routing.registry.Registry.set_replica_mark`."""
        await self._run(scripts.MARK, self._origin, replica, mark or "")

    async def replica_marks(self) -> dict[str, str]:
        """See :meth:`gateway.routing.registry.Registry.replica_marks`."""
        marks = await self._call(lambda client: client.hgetall(f"{self._root}:marks"))
        return dict(marks)

    async def watch(self, callback: Callable[[Change], None]) -> None:
        """See :meth:`gateway.routing.registry.Registry.watch`."""
        if self._watcher is None:
            position = await self._last_change()
            self._watcher = asyncio.create_task(self._watch(position), name="registry-watch")
        self._callbacks.append(callback)

    # Changes are read from a stream, not subscribed to: a subscriber misses what is published
    # while it reconnects.

    async def _last_change(self) -> tuple[str, int]:
        """Return the id and the number of the latest change."""
        key = f"{self._root}:changes"
        entries = await self._call(lambda client: client.xrevrange(key, count=1))
        return (entries[0][0], int(entries[0][1]["n"])) if entries else ("0-0", 0)

    async def _watch(self, position: tuple[str, int]) -> None:
        at: tuple[str, int] | None = position
        while True:
            try:
                if at is None:
                    # Read before it is told: whoever rereads then misses nothing after it.
                    at = await self._last_change()
                    deliver([ChangesLost()], self._callbacks)
                at, changes = await self._next_changes(*at)
            except RegistryUnavailableError as exc:
                logger.debug("watching: %s", exc)
                # The server may come back another one, with a log that says nothing of the gap.
                at = None
                await asyncio.sleep(WATCH_RETRY)
            else:
                deliver(changes, self._callbacks)

    async def _next_changes(
        self, last_id: str, last_number: int
    ) -> tuple[tuple[str, int] | None, list[Change]]:
        """Wait a while for changes; return the new position (None: some were lost) and them."""
        key = f"{self._root}:changes"
        wait_ms = max(1, int(self._timeout * 250))  # well below the socket's timeout
        read = await self._call(
            lambda client: client.xread({key: last_id}, count=CHANGES_PER_READ, block=wait_ms),
            waits=True,
        )
        entries: Sequence[tuple[str, dict[str, str]]] = read[0][1] if read else ()
        # The latest change of each, in order; the records are then read once.
        latest: dict[tuple[str, str], None] = {}
        for entry_id, entry in entries:
            if int(entry["n"]) != last_number + 1:
                return None, []
            last_id, last_number = entry_id, last_number + 1
            if entry["o"] != self._origin:
                name = ("s", entry["s"]) if "s" in entry else ("r", entry["r"])
                latest.pop(name, None)
                latest[name] = None
        if not latest:
            return (last_id, last_number), []
        placements = await self.get_many(name for kind, name in latest if kind == "s")
        replicas = {}
        for batch in _batches([name for kind, name in latest if kind == "r"]):
            for replica, mark, incarnation in await self._run(scripts.REPLICAS, *batch):
                replicas[replica] = ReplicaChanged(replica, mark or None, int(incarnation))
        return (last_id, last_number), [
            PlacementChanged(name, placements.get(name)) if kind == "s" else replicas[name]
            for kind, name in latest
        ]

    async def _members(self, key: str, limit: int | None = None) -> list[str]:
        """Return the members of a set, or some of them, without holding Redis up."""
        members: dict[str, None] = {}
        cursor = -1
        while cursor != 0 and (limit is None or len(members) < limit):
            start = max(cursor, 0)
            cursor, page = await self._call(
                lambda client, at=start: client.sscan(key, at, count=BATCH)  # type: ignore[misc]
            )
            members.update(dict.fromkeys(page))
        return list(members)[:limit]

    async def _run(self, script: str, *args: str | int) -> Any:
        """Run a script; raise for the answers that mean that nothing was done."""
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        values = [str(value) for value in args]

        async def call(client: Redis | RedisCluster) -> Any:
            try:
                return await client.evalsha(digest, 1, self._root, *values)
            except NoScriptError:
                # A new server, or one whose script cache was flushed; EVAL caches it again.
                return await client.eval(script, 1, self._root, *values)

        answer = await self._call(call)
        if answer == ["LEASE"]:
            raise RegistryUnavailableError("registry: this gateway's lease has ended")
        if answer == ["SETTLING"]:
            raise RegistryUnavailableError(
                f"registry {self._target}: restarted a moment ago; waiting for the gateways to say"
                " which sessions they hold"
            )
        return answer

    async def _call(self, work: Callable[[Any], Awaitable[Any]], *, waits: bool = False) -> Any:
        """Run ``work(client)`` in bounded time, with Redis's errors made ours.

        Work that only waits for Redis to have something does not count as one of the calls.
        """
        client = self._client
        if client is None:
            raise RegistryUnavailableError(f"registry {self._target}: not open")
        task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        try:
            slot = contextlib.nullcontext() if waits else self._slots
            async with asyncio.timeout(self._timeout), slot:
                answer = await work(client)
            # redis-py sends under asyncio.wait_for, which before Python 3.12 may swallow a cancel.
            if task is not None and task.cancelling() > cancelling:
                raise asyncio.CancelledError
            return answer
        except TimeoutError:
            reason = f"no answer in {self._timeout:g} s"
        except (RedisError, OSError) as exc:
            reason = str(exc) or type(exc).__name__
        raise RegistryUnavailableError(f"registry {self._target}: {reason}")

    def _connect(self) -> Redis | RedisCluster:
        """Build the client; nothing is sent yet."""
        target = self._target
        options: dict[str, Any] = {
            "decode_responses": True,
            "protocol": 2,
            # Half of what a call has, so that one dead connection can be replaced within it.
            "socket_timeout": self._timeout / 2,
            "socket_connect_timeout": self._timeout / 2,
            "retry": Retry(NoBackoff(), 1),
        }
        if target.tls:
            options["ssl"] = True
            options["ssl_ca_certs"] = target.ca_file
            options["ssl_certfile"] = target.cert_file
            options["ssl_keyfile"] = target.key_file
        login: dict[str, Any] = {"username": target.username, "password": target.password}
        client: Redis | RedisCluster
        if target.kind == "cluster":
            client = RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in target.hosts],
                require_full_coverage=False,  # our keys live in one slot
                **options,
                **login,
            )
        elif target.kind == "sentinel":
            sentinel = Sentinel(  # type: ignore[no-untyped-call]
                target.hosts,
                sentinel_kwargs={**options, "password": target.sentinel_password},
                **options,
            )
            for monitor in sentinel.sentinels:
                self._resources.push_async_callback(monitor.aclose)
            client = sentinel.master_for(target.service, db=target.db, **login)
        elif target.kind == "unix":
            client = Redis(unix_socket_path=target.path, db=target.db, **options, **login)
        else:
            host, port = target.hosts[0]
            client = Redis(host=host, port=port, db=target.db, **options, **login)
        self._resources.push_async_callback(client.aclose)
        return client


def _placement(record: Sequence[str]) -> Placement:
    session_id, tenant, user, replica, epoch = record
    return Placement(session_id, Owner(tenant, user), replica, int(epoch))


def _batches(items: list[T]) -> list[list[T]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
