"""Letting a client in: the ``connect`` handshake, and how long what it proved is good for.

Nothing but ``connect`` is answered before it; what is pipelined behind one that is still being
looked at is held, bounded, and served afterwards in order.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.core.ports import Denied
from gateway.errors import RpcError
from gateway.types import Identity, Role
from gateway.wire import envelope

if TYPE_CHECKING:
    from gateway.core.client import Client

_CONNECT_FIELDS = frozenset(
    {"token", "supportedTaskKinds", "clientInfo", "enableGitHubTelemetryForwarding"}
)
_TASK_KINDS = ("agent", "shell", "client")
_DEFAULT_TASK_KINDS = frozenset({"agent", "shell"})


class Admission:
    """The handshake of one client, and of its later ``connect`` calls."""

    __slots__ = ("_client", "_deadline", "_expiry", "_failures", "_held", "_held_size")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._failures = 0
        self._held: list[bytes] = []
        self._held_size = 0
        self._expiry: Any = None
        hub = client.hub
        self._deadline: Any = hub.tasks.call_later(hub.limits.connect_deadline, self.too_late)

    def admitted(self, identity: Identity) -> None:
        """Note that the client is in."""
        self._deadline.cancel()
        self._set_expiry(identity)

    def close(self) -> None:
        """Note that the client has gone."""
        self._deadline.cancel()
        if self._expiry is not None:
            self._expiry.cancel()

    def too_late(self) -> None:
        """Close a client that has not proven who it is in time."""
        client = self._client
        if client.identity is not None:
            return
        if client.authenticating:
            # Its source is being slowed after failures, its own or a neighbour's.
            client.hub.stats.auth["limited"] += 1
            self.record("denied", "too many failures from this address")
            client.cut("auth_timeout", "slowed for too long")
            return
        client.write(
            envelope.error_frame(
                None, RpcError(errors.AUTHENTICATION_REQUIRED, "No connect arrived in time")
            )
        )
        client.cut("auth_timeout", "no connect in time")

    def before(self, message: dict[str, Any]) -> None:
        """Answer a message of a client that is not in yet."""
        client = self._client
        if message.get("method") == "connect":
            self.connect(message)
            return
        client.hub.stats.auth["missing"] += 1
        if message.get("method") is not None and "id" in message:
            client.write(
                envelope.error_frame(
                    message["id"],
                    RpcError(
                        errors.AUTHENTICATION_REQUIRED,
                        "Authentication required: the first request must be connect with a token",
                    ),
                )
            )
        self.failed()

    def failed(self) -> None:
        """Count a failure, and close the connection after too many."""
        client = self._client
        self._failures += 1
        if self._failures >= client.hub.limits.max_auth_failures:
            client.cut("auth_failures", "too many failures before authentication")

    def connect(self, message: dict[str, Any]) -> None:
        """Authenticate: the first ``connect``, or one more by the same identity."""
        client = self._client
        params = message.get("params")
        params = params if type(params) is dict else {}
        request_id = message.get("id")
        unknown = next((name for name in params if name not in _CONNECT_FIELDS), None)
        if unknown is not None:
            self.refuse(
                request_id,
                RpcError(
                    errors.INVALID_PARAMS,
                    f"Invalid connect request: unknown field `{unknown[:64]}`",
                ),
            )
            return
        place = client.entry.identity
        if place is not None and params.get("token") is None:
            self._authenticated(request_id, params, place)
            return
        proof = client.hub.authenticator.authenticate(params.get("token"), client.peer)
        if not inspect.isawaitable(proof):
            self._authenticated(request_id, params, proof)
            return
        client.authenticating = True

        async def prove() -> None:
            self._authenticated(request_id, params, await proof)

        client.hub.tasks.spawn(prove(), f"authenticate {client.peer}")

    def _authenticated(
        self, request_id: Any, params: dict[str, Any], proof: Identity | Denied | None
    ) -> None:
        client = self._client
        if client.closed:
            return
        before = client.identity
        if not isinstance(proof, Identity):
            self._not_authenticated(request_id, proof.reason if proof is not None else None)
            return
        if before is not None:
            if _who(proof) != _who(before):
                self._not_authenticated(request_id, "proves another identity")
                return
            # Where the listener is the proof a token adds nothing, not even an end.
            if client.entry.identity is None:
                client.identity = proof
                self._set_expiry(proof)
        elif not client.enter(proof, request_id):
            return
        else:
            client.follow(client.hub.policy.view(proof))
            if client.tenant_stats is not None:
                # The connect itself, read before it was known whose it is.
                client.tenant_stats.requests += 1
        if client.entry.identity is None or before is None:
            client.hub.stats.auth["accepted"] += 1
            self.record("ok")
        client.connect_params = {key: value for key, value in params.items() if key != "token"}
        client.authenticating = True
        client.hub.tasks.spawn(self._welcome(request_id), f"welcome {client.peer}")

    def _not_authenticated(self, request_id: Any, reason: str | None) -> None:
        """Refuse a ``connect``; what was proven before stays."""
        client = self._client
        hub = client.hub
        hub.stats.auth["failed"] += 1
        self.record("failed", reason)
        hub.log.info("authentication failed", extra={"peer": client.peer, "reason": reason})
        error = RpcError(errors.AUTHENTICATION_FAILED, "Authentication failed: invalid token")
        delay = hub.authenticator.failed(client.peer)
        if delay > 0:
            # Nothing else is read from this client meanwhile; a good token never waits.
            client.authenticating = True
            hub.tasks.call_later(delay, self.refuse, request_id, error)
        else:
            self.refuse(request_id, error)

    def record(self, outcome: str, reason: str | None = None) -> None:
        """Write the outcome of an authentication to the audit log."""
        client = self._client
        client.hub.audit.record("authentication", **client.who(), outcome=outcome, reason=reason)

    def _set_expiry(self, identity: Identity) -> None:
        client = self._client
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if identity.expires_at is not None:
            seconds = max(0.0, identity.expires_at - client.hub.wall_clock())
            # A timer's range is bounded; what ends later than that is looked at again.
            self._expiry = client.hub.tasks.call_later(min(seconds, 86400.0), self._expired)

    def _expired(self) -> None:
        client = self._client
        identity = client.identity
        if identity is None or identity.expires_at is None:
            return
        if identity.expires_at <= client.hub.wall_clock():
            client.cut("revoked", "the token has expired")
        else:
            self._set_expiry(identity)

    def refuse(self, request_id: Any, error: RpcError) -> None:
        """Answer a ``connect`` with an error, and go on with what came behind it."""
        client = self._client
        if request_id is not None:
            client.write(envelope.error_frame(request_id, error))
        client.authenticating = False
        if client.identity is None:
            self.failed()
        self._release()

    async def _welcome(self, request_id: Any) -> None:
        """Answer an accepted ``connect`` as a CLI would."""
        client = self._client
        kinds = client.connect_params.get("supportedTaskKinds", [])
        plain = (
            type(kinds) is list
            and all(type(kind) is str and kind in _TASK_KINDS for kind in kinds)
            and client.connect_params.keys() <= {"supportedTaskKinds"}
        )
        try:
            if plain:
                hello = await client.hub.hello()
                offered = _DEFAULT_TASK_KINDS.union(kinds)
                result = {
                    "ok": True,
                    "protocolVersion": hello.get("protocolVersion", 3),
                    "version": hello.get("version", ""),
                    "taskKinds": [kind for kind in _TASK_KINDS if kind in offered],
                }
            else:
                # Only a CLI can tell whether it accepts these.
                result = await client.hub.greet_with(client.connect_params)
        except RpcError as error:
            self.refuse(request_id, error)
            return
        if request_id is not None:
            client.hub.stats.method("connect").ok += 1
            client.write(envelope.result_frame(request_id, result))
        client.authenticating = False
        self._release()

    def _release(self) -> None:
        client = self._client
        held, self._held = self._held, []
        for index, body in enumerate(held):
            if client.closed:
                return
            if client.authenticating:
                self._held = held[index:] + self._held
                return
            self._held_size -= len(body)
            client.body(body)

    def hold(self, body: bytes) -> None:
        """Keep what was pipelined behind a ``connect`` that is still being checked."""
        client = self._client
        self._held.append(body)
        self._held_size += len(body)
        limits = client.hub.limits
        if self._held_size > (
            limits.max_unauthenticated_frame if client.identity is None else limits.queue_bytes
        ):
            client.cut("limit", "too much was sent before the authentication was answered")


def _who(identity: Identity) -> tuple[str, str, Role]:
    return identity.tenant, identity.user, identity.role
