"""Requests that concern several replicas: asked of all, answered as one.

What to ask and how to merge is decided in :mod:`gateway.policy.results`; here it is asked, over
the control links, with the registry telling which sessions are the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gateway.core import answers
from gateway.core.link import LinkLostError
from gateway.errors import RpcError
from gateway.policy import results
from gateway.policy.rules import Route
from gateway.policy.session_ids import select_ids, session_ids
from gateway.types import Placement

if TYPE_CHECKING:
    from gateway.core.client import Client
    from gateway.core.hub import Hub
    from gateway.core.replica import Replica
    from gateway.core.request import Request


class Queries:
    """Asks several replicas on behalf of clients."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def ask(self, client: Client, request: Request) -> Any:
        """Return the result of a MERGE, SCATTER or ALL request.

        Raises:
            RpcError: no replica could be asked, all refused, or the registry is not available.
        """
        if request.rule.route is Route.ALL:
            return await self._everywhere(client, request)
        if request.rule.route is Route.SCATTER:
            return await self._scatter(client, request)
        return await self._merge(client, request)

    def _reachable(self) -> list[Replica]:
        replicas = [r for r in self._hub.replicas.values() if r.reachable and r.control is not None]
        if not replicas:
            raise answers.replica_unavailable(None, self._hub.limits.retry_after)
        return replicas

    async def _gather(
        self, asked: Iterable[tuple[Replica, str, dict[str, Any]]]
    ) -> list[tuple[str, Any]]:
        """Ask several replicas at once; return what those said that answered.

        Raises:
            RpcError: none answered with a result.
        """
        questions = list(asked)
        said = await asyncio.gather(
            *(self._hub.ask(replica, method, params) for replica, method, params in questions),
            return_exceptions=True,
        )
        good: list[tuple[str, Any]] = []
        refusal: RpcError | None = None
        for (replica, method, _), result in zip(questions, said, strict=True):
            if isinstance(result, RpcError):
                refusal = result
            elif isinstance(result, LinkLostError):
                self._hub.log.warning(
                    "replica missing from a merged answer",
                    extra={"replica": replica.name, "method": method},
                )
            elif isinstance(result, BaseException):
                raise result
            else:
                good.append((replica.name, result))
        if not good and questions:
            raise refusal or answers.replica_unavailable(None, self._hub.limits.retry_after)
        return good

    async def _merge(self, client: Client, request: Request) -> Any:
        method, params = results.plan(request.method, request.params)
        replicas = self._reachable()
        identity = client.identity
        assert identity is not None
        user = None if client.sees_tenant else identity.user
        owned, said = await asyncio.gather(
            self._hub.owned_by(identity.tenant, user),
            self._gather((replica, method, params) for replica in replicas),
        )
        return results.merge(
            request.method, request.params, said, owned.__contains__, _placed(owned)
        )

    async def _scatter(self, client: Client, request: Request) -> Any:
        """Ask each replica about the sessions placed on it; ids of others' sessions are dropped."""
        params = request.params
        paths = request.rule.session_paths
        known = await self._hub.known(session_ids(paths, params))
        mine = {sid: p for sid, p in known.items() if client.sees(p.owner)}
        by_replica: dict[str, set[str]] = {}
        for session_id, placement in mine.items():
            by_replica.setdefault(placement.replica, set()).add(session_id)
        said = await self._gather(
            (
                replica,
                request.method,
                select_ids(paths, params, by_replica[replica.name].__contains__),
            )
            for replica in self._hub.replicas.values()
            if replica.name in by_replica
        )
        if request.method == "sessions.bulkDelete":
            asked = {replica for replica, _ in said}
            for session_id, placement in mine.items():
                if placement.replica in asked:
                    self._hub.session_deleted(session_id)
        return results.merge(request.method, params, said, mine.__contains__, _placed(mine))

    async def _everywhere(self, client: Client, request: Request) -> Any:
        """Make a change on every replica; the first refusal is the answer."""
        replicas = self._reachable()
        said = await asyncio.gather(
            *(self._hub.ask(replica, request.rule.sent_as, request.params) for replica in replicas),
            return_exceptions=True,
        )
        self._hub.audit.record("host-change", **client.who(), method=request.method, outcome="ok")
        for replica, result in zip(replicas, said, strict=True):
            if isinstance(result, LinkLostError):
                raise answers.replica_unavailable(None, self._hub.limits.retry_after)
            if isinstance(result, RpcError):
                self._hub.log.warning(
                    "host-wide change refused by a replica",
                    extra={"replica": replica.name, "method": request.method},
                )
                raise result
            if isinstance(result, BaseException):
                raise result
        return said[0]


def _placed(placements: dict[str, Placement]) -> Callable[[str], str | None]:
    def replica(session_id: str) -> str | None:
        placement = placements.get(session_id)
        return placement.replica if placement is not None else None

    return replica
