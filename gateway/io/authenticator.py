"""Proves identities by the static token and the token file, and slows guessing sources."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.io.token_file import TokenStore
from gateway.policy.auth_limits import FailureLimiter
from gateway.policy.tokens import verify_static
from gateway.types import Identity, Role

EVERYBODY = Identity("default", "admin", Role.ADMIN, None, "none")
"""Who every client is where authentication is off."""


class TokenAuthenticator:
    """Implements :class:`gateway.core.ports.Authenticator`.

    Args:
        static_token: the one token of the environment, or "".
        store: tokens of the token file.
        limiter: failures by source.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        static_token: str,
        store: TokenStore,
        limiter: FailureLimiter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._static_token = static_token
        self._store = store
        self._limiter = limiter
        self._clock = clock

    def authenticate(self, token: object, peer: str) -> Identity | None:
        """Return who holds ``token``, or None."""
        return verify_static(self._static_token, token) or self._store.verify(token)

    def failed(self, peer: str) -> float:
        """Note a failure; return the seconds its answer has to wait."""
        return self._limiter.failed(_host(peer), self._clock())


class NoAuthenticator:
    """Lets everybody in, as the only identity."""

    def authenticate(self, token: object, peer: str) -> Identity:
        """Return :data:`EVERYBODY`."""
        return EVERYBODY

    def failed(self, peer: str) -> float:
        """Nothing fails."""
        return 0.0


def _host(peer: str) -> str:
    return peer.rpartition(":")[0].strip("[]")
