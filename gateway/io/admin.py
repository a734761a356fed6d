"""The admin HTTP API: health, metrics, replicas, sessions, drain, reload.

The counterpart is ``gateway.cli.admin_client``, a load balancer's health check or Prometheus. What
is shown and done comes from an :class:`AdminView`, which the application implements in one process
or over several workers; this module knows HTTP only: routes, the token, paging, errors as JSON.
``docs/reference/admin-api.md`` describes the API to its users.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from gateway.core.ports import Audit
from gateway.errors import ConfigError, RegistryUnavailableError, StartupError
from gateway.io.telemetry import CONTENT_TYPE

DEFAULT_LIMIT: Final = 100
"""Sessions on a page, unless the caller says otherwise."""

MAX_LIMIT: Final = 1000
"""Sessions on a page at most: some 200 kB of JSON."""

MAX_BODY: Final = 16 * 1024
"""Bytes of a request's body; no request needs one, and none is read."""

VIEW_TIMEOUT: Final = 30.0
"""Seconds an answer may take; the registry's own time-outs are far below."""

IDLE_TIMEOUT: Final = 30.0
"""Seconds a connection may take for its next request, the first one included."""

LINGER: Final = 1.0
"""Seconds in which the rest of a request that was answered already is read and dropped."""

SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that requests in progress are given at the end."""

_NAME = re.compile(r"[!-~]{1,255}")  # Printable ASCII: replicas, cursors and tenants are named so.

_HEADERS: Final = {
    "Server": "copilot-gateway",  # No version: it helps an attacker more than anybody else.
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


class AdminError(Exception):
    """What was asked cannot be done; becomes the HTTP answer.

    Attributes:
        status: the HTTP status.
        code: a stable word for programs.
        message: one sentence for a person.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class UnknownReplicaError(AdminError):
    """There is no replica of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(HTTPStatus.NOT_FOUND, "unknown_replica", f"no replica is named {name!r}")


class ConflictError(AdminError):
    """The thing exists but is not in a state, or of a kind, that allows the action."""

    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.CONFLICT, "conflict", message)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether new clients should be sent here.

    Attributes:
        accepting: the client listeners are open.
        draining: the gateway is shutting down.
        replicas_up: replicas that can take sessions.
        replicas: replicas configured.
        notes: further reasons against, one sentence each; any makes the gateway not ready.
    """

    accepting: bool
    draining: bool
    replicas_up: int
    replicas: int
    notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """Why the gateway is not ready; empty if it is."""
        reasons = []
        if self.draining:
            reasons.append("the gateway is shutting down")
        elif not self.accepting:
            reasons.append("no listener accepts connections")
        if not self.replicas_up:
            reasons.append(f"none of {self.replicas} replicas is up")
        return reasons + list(self.notes)


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica, as operators see it.

    Attributes:
        name: its stable name.
        address: ``host:port``.
        pool: the pool it belongs to.
        state: a :class:`~gateway.types.ReplicaState`.
        supervised: started by the gateway, so that it can be recycled.
        version: the CLI's version, or None before it was first reached.
        pid: process id of a supervised replica that runs.
        links: connections open to it.
        sessions: sessions live on it.
        in_flight: requests sent to it and not yet answered.
        ejections: times it was taken out after failures.
        restarts: times it was started again.
        probe_seconds: duration of the last successful health probe.
        served: sessions made live on it since this gateway started.
        drained: it is draining and nothing is left on it; it can be stopped.
        reason: why it is in this state, if that is not obvious.
    """

    name: str
    address: str
    pool: str
    state: str
    supervised: bool
    version: str | None = None
    pid: int | None = None
    links: int = 0
    sessions: int = 0
    in_flight: int = 0
    ejections: int = 0
    restarts: int = 0
    probe_seconds: float | None = None
    served: int = 0
    drained: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session, as operators see it: never its contents.

    Attributes:
        session: the session's id.
        tenant: owner.
        user: owner.
        replica: where it is placed.
        epoch: how often it was placed.
        live: it is in the replica's memory and has clients, or lingers for them.
        busy: a turn is running.
        clients: clients attached through this gateway.
        pool: the pool of its tenant.
    """

    session: str
    tenant: str
    user: str
    replica: str
    epoch: int
    live: bool
    busy: bool = False
    clients: int = 0
    pool: str = "default"


@dataclass(frozen=True, slots=True)
class SessionPage:
    """One page of sessions, in a stable order.

    Attributes:
        sessions: the page.
        cursor: what to pass for the next page, or None after the last.
    """

    sessions: list[SessionInfo]
    cursor: str | None = None


class AdminView(Protocol):
    """What the admin API shows and does.

    Every method may raise :class:`AdminError`, whose status and text then are the answer, and
    :class:`~gateway.errors.RegistryUnavailableError`. Calls that outlast :data:`VIEW_TIMEOUT` are
    cancelled.
    """

    async def readiness(self) -> Readiness:
        """Return whether new clients should be sent here; quickly, from memory."""

    async def metrics(self) -> bytes:
        """Return the metrics of all workers in the Prometheus text format."""

    async def replicas(self) -> list[ReplicaInfo]:
        """Return all replicas, in the order of their names."""

    async def sessions(
        self, *, limit: int, cursor: str | None, tenant: str | None, replica: str | None
    ) -> SessionPage:
        """Return up to ``limit`` sessions that follow ``cursor`` and match what is given."""

    async def drain(self, name: str) -> ReplicaInfo:
        """Begin to move sessions off a replica; return at once. Idempotent."""

    async def undrain(self, name: str) -> ReplicaInfo:
        """Let a replica take sessions again. Idempotent."""

    async def recycle(self, name: str) -> ReplicaInfo:
        """Begin to drain a supervised replica, start it anew and take it back; return at once."""

    async def reload(self) -> list[str]:
        """Read configuration, tokens and replica lists again.

        Returns:
            One sentence for each thing that changed, or that needs a restart to change.

        Raises:
            ConfigError: the new configuration is not valid; nothing changed.
        """


def build_admin_app(
    view: AdminView,
    token: str | None,
    *,
    open_metrics: bool = True,
    audit: Audit | None = None,
) -> web.Application:
    """Return the admin API as an application; :class:`AdminServer` serves it.

    Args:
        view: what is shown and done.
        token: the bearer token of all but the health endpoints; without one these endpoints answer
            403.
        open_metrics: ``/metrics`` needs no token.
        audit: takes a record of each action and of each wrong token.

    Raises:
        ConfigError: the token is empty or holds characters that no header can carry.
    """
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("admin.token must be printable ASCII without spaces, and not empty")
    app = web.Application(middlewares=[_errors])
    app.on_response_prepare.append(_add_headers)
    api = _Api(view, token, audit)
    guarded = api.guarded
    app.add_routes(
        [
            web.get("/livez", api.livez),
            web.get("/readyz", api.readyz),
            web.get("/metrics", api.metrics if open_metrics else guarded(api.metrics)),
            web.get("/replicas", guarded(api.replicas)),
            web.get("/sessions", guarded(api.sessions)),
            web.post("/replicas/{name}/drain", guarded(api.action("drain", view.drain))),
            web.post("/replicas/{name}/undrain", guarded(api.action("undrain", view.undrain))),
            web.post("/replicas/{name}/recycle", guarded(api.action("recycle", view.recycle))),
            web.post("/reload", guarded(api.reload)),
        ]
    )
    return app


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Api:
    """The handlers."""

    def __init__(self, view: AdminView, token: str | None, audit: Audit | None) -> None:
        self._view = view
        self._digest = None if token is None else hashlib.sha256(token.encode()).digest()
        self._audit = audit

    def guarded(self, handler: _Handler) -> _Handler:
        """Return the handler, for holders of the admin token only."""

        async def check_token(request: web.Request) -> web.StreamResponse:
            self._authorize(request)
            return await handler(request)

        return check_token

    def _authorize(self, request: web.Request) -> None:
        if self._digest is None:
            raise AdminError(
                HTTPStatus.FORBIDDEN,
                "no_admin_token",
                "this endpoint needs an admin token and the gateway has none; set "
                "COPILOT_GATEWAY_ADMIN_TOKEN or admin.token_file and restart it",
            )
        headers = request.headers.getall("Authorization", [])
        scheme, _, given = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
        # Digests have one length, so that the comparison takes one time whatever was given.
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        if scheme.lower() == "bearer" and hmac.compare_digest(digest, self._digest):
            return
        if headers:
            self._record(request, "authentication", outcome="failed", reason="wrong admin token")
        raise AdminError(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "the admin token is wrong" if headers else "an admin token is needed",
        )

    def _record(self, request: web.Request, event: str, **fields: Any) -> None:
        if self._audit is not None:
            peer = request.transport and request.transport.get_extra_info("peername")
            # A unix socket has no peer name.
            where = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix socket"
            self._audit.record(event, peer=where, listener="admin", **fields)

    async def livez(self, _request: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def readyz(self, _request: web.Request) -> web.Response:
        facts = await self._view.readiness()
        reasons = facts.reasons
        body = {
            "ready": not reasons,
            "reasons": reasons,
            "accepting": facts.accepting,
            "draining": facts.draining,
            "replicas_up": facts.replicas_up,
            "replicas": facts.replicas,
        }
        return _json(body, HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK)

    async def metrics(self, _request: web.Request) -> web.Response:
        body = await self._view.metrics()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def replicas(self, _request: web.Request) -> web.Response:
        return _json({"replicas": await self._view.replicas()})

    async def sessions(self, request: web.Request) -> web.Response:
        query = _Query(request)
        limit = query.limit("limit")
        cursor, tenant, replica = (query.text(key) for key in ("cursor", "tenant", "replica"))
        query.finish()
        return _json(
            await self._view.sessions(limit=limit, cursor=cursor, tenant=tenant, replica=replica)
        )

    def action(self, name: str, act: Callable[[str], Awaitable[ReplicaInfo]]) -> _Handler:
        """Return the handler of an action on one replica."""

        async def handle(request: web.Request) -> web.Response:
            replica = request.match_info["name"]
            if not _NAME.fullmatch(replica):
                raise UnknownReplicaError(replica)
            try:
                done = await act(replica)
            except BaseException as error:
                outcome = "denied" if isinstance(error, AdminError) else "failed"
                self._record(request, f"admin.{name}", target=replica, outcome=outcome)
                raise
            self._record(request, f"admin.{name}", target=replica, outcome="ok")
            return _json({"replica": done}, HTTPStatus.ACCEPTED)

        return handle

    async def reload(self, request: web.Request) -> web.Response:
        try:
            changes = await self._view.reload()
        except BaseException as error:
            outcome = "denied" if isinstance(error, ConfigError) else "failed"
            self._record(request, "admin.reload", outcome=outcome)
            raise
        self._record(request, "admin.reload", outcome="ok")
        return _json({"changes": changes})


class _Query:
    """The query string: each key at most once, none that is not known."""

    def __init__(self, request: web.Request) -> None:
        self._left = dict(request.query)
        if len(self._left) != len(request.query):
            raise _bad_request("a query parameter is given twice")

    def text(self, key: str) -> str | None:
        value = self._left.pop(key, None)
        if value is not None and not _NAME.fullmatch(value):
            raise _bad_request(f"{key} must be 1 to 255 printable ASCII characters")
        return value

    def limit(self, key: str) -> int:
        text = self._left.pop(key, str(DEFAULT_LIMIT))
        value = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
        if not 1 <= value <= MAX_LIMIT:
            raise _bad_request(f"{key} must be a number from 1 to {MAX_LIMIT}")
        return value

    def finish(self) -> None:
        if self._left:
            raise _bad_request("known query parameters are limit, cursor, tenant and replica")


def _bad_request(message: str) -> AdminError:
    return AdminError(HTTPStatus.BAD_REQUEST, "bad_request", message)


def _json(body: object, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(
        body=orjson.dumps(body) + b"\n", status=status, content_type="application/json"
    )


def _error(status: int, code: str, message: str) -> web.Response:
    return _json({"error": {"code": code, "message": message}}, status)


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Bound every answer in time, and turn every failure into JSON without a traceback."""
    try:
        if request.can_read_body and (request.content_length or MAX_BODY + 1) > MAX_BODY:
            raise AdminError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", "the request body is too large"
            )
        async with asyncio.timeout(VIEW_TIMEOUT):
            return await handler(request)
    except AdminError as error:
        response = _error(error.status, error.code, error.message)
        if error.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = 'Bearer realm="copilot-gateway admin"'
    except ConfigError as error:
        response = _error(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_config", str(error))
    except RegistryUnavailableError:
        response = _error(
            HTTPStatus.SERVICE_UNAVAILABLE, "registry_unavailable", "the registry does not answer"
        )
    except TimeoutError:
        response = _error(
            HTTPStatus.GATEWAY_TIMEOUT, "timeout", f"no answer within {VIEW_TIMEOUT:g} s"
        )
    except web.HTTPException as error:
        code = HTTPStatus(error.status).phrase.lower().replace(" ", "_")
        response = _error(error.status, code, f"{request.method} {request.path}: {error.reason}")
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except Exception:
        _log.exception("admin API: %s %s failed", request.method, request.path)
        response = _error(
            HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "internal error; see the log"
        )
    return response


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


class _Protocol(web.RequestHandler):
    """aiohttp's HTTP/1.1 protocol, with our words for what never reaches the application."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be read, without a banner or a traceback."""
        _log.debug("admin API: unreadable request: %s", exc)
        response = _error(HTTPStatus.BAD_REQUEST, "bad_request", "this is not an HTTP request")
        response.headers.update(_HEADERS)
        response.force_close()
        return response


class AdminServer:
    """Serves an application on TCP or unix sockets until closed."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT)
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []

    async def start_tcp(self, host: str, port: int) -> int:
        """Listen on a TCP port; return the port, which the system picks if 0 is given.

        Raises:
            StartupError: the address cannot be listened on.
        """
        factory = await self._factory()
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(factory, host, port, reuse_address=True)
        except OSError as error:
            raise StartupError(f"admin listener {host}:{port}: {_reason(error)}") from None
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def start_unix(self, path: Path) -> None:
        """Listen on a unix socket that only this user may connect to.

        A socket file that is left over is replaced.

        Raises:
            StartupError: the socket cannot be made, or something else stands there.
        """
        factory = await self._factory()
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_unix_server(factory, sock=_bind_unix(path))
        except OSError as error:
            raise StartupError(f"admin socket {path}: {_reason(error)}") from None
        self._servers.append(server)
        self._paths.append(path)

    async def close(self) -> None:
        """Stop listening, let requests in progress end shortly, close; idempotent."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._servers.clear()
        self._paths.clear()
        await self._runner.cleanup()

    async def _factory(self) -> Callable[[], asyncio.Protocol]:
        if self._runner.server is None:
            await self._runner.setup()
        manager = self._runner.server
        assert manager is not None
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {
            "keepalive_timeout": IDLE_TIMEOUT,
            "lingering_time": LINGER,
            "access_log": None,  # One line per scrape tells nobody anything.
        }
        return lambda: _Protocol(manager, loop=loop, **options)


def _bind_unix(path: Path) -> socket.socket:
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Between bind() and chmod() anybody could connect, so the mode comes from the umask. It belongs
    # to the whole process, but nothing else runs until it is restored.
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
