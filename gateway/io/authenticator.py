"""Proves identities: by the token file, by an issuer's tokens, by the static token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from gateway.core.ports import Denied
from gateway.core.stats import Stats
from gateway.io.jwks import JwtAuthenticator
from gateway.io.token_file import TokenStore
from gateway.policy.auth_limits import FailureLimiter
from gateway.policy.jwt_identity import JwtFailure
from gateway.policy.tokens import id_of, verify_static
from gateway.types import Identity, Role

EVERYBODY = Identity("default", "admin", Role.ADMIN, None, "none")
"""Who every client is where authentication is off."""


class TokenAuthenticator:
    """Implements :class:`gateway.core.ports.Authenticator`.

    A token of the file and one that an issuer has signed hold too much randomness to be guessed:
    they are judged at once, so that a guesser behind a shared address locks nobody out. The static
    token is whatever the operator chose: an attempt at it waits while its source is slowed.

    Args:
        static_token: the one token of the environment, or "".
        store: tokens of the token file.
        limiter: failures by source.
        stats: where slowed attempts are counted.
        jwt: tokens of an issuer, or None.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        static_token: str,
        store: TokenStore,
        limiter: FailureLimiter,
        *,
        stats: Stats | None = None,
        jwt: JwtAuthenticator | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._static_token = static_token
        self._store = store
        self._limiter = limiter
        self._stats = stats
        self._jwt = jwt
        self._clock = clock

    def authenticate(
        self, token: object, peer: str
    ) -> Identity | Denied | Awaitable[Identity | Denied]:
        """Return who holds ``token``."""
        identity = self._store.verify(token)
        if identity is not None:
            return identity
        if not isinstance(token, str):
            return Denied("no token")
        token_id = id_of(token)
        if token_id is not None:
            # As random as the file's tokens even where it is the static one.
            return verify_static(self._static_token, token) or Denied(
                f"token {token_id} is unknown, revoked or has expired"
            )
        if self._jwt is not None and token.count(".") == 2:
            return self._by_issuer(self._jwt, token, peer)
        return self._by_static_token(token, peer)

    def failed(self, peer: str) -> float:
        """Note a failure; return the seconds its answer has to wait."""
        return self._limiter.failed(_host(peer), self._clock())

    async def _by_issuer(self, jwt: JwtAuthenticator, token: str, peer: str) -> Identity | Denied:
        outcome = await jwt.authenticate(token)
        if isinstance(outcome, Identity):
            return outcome
        # A static token may hold dots, too.
        proof = self._by_static_token(token, peer)
        if not isinstance(proof, Identity | Denied):
            proof = await proof
        return proof if isinstance(proof, Identity) else _denied(outcome)

    def _by_static_token(
        self, token: str, peer: str
    ) -> Identity | Denied | Awaitable[Identity | Denied]:
        if not self._static_token:
            return Denied("unknown token")
        wait = self._limiter.wait(_host(peer), self._clock())
        if wait > 0:
            return self._wait_and_judge(token, _host(peer), wait)
        return verify_static(self._static_token, token) or Denied("unknown token")

    async def _wait_and_judge(self, token: str, host: str, wait: float) -> Identity | Denied:
        """Judge once the source's failures are forgiven.

        Of many attempts that wait at the same time the first to fail makes the others wait anew.
        """
        if self._stats is not None:
            self._stats.auth["limited"] += 1
        while wait > 0:
            await asyncio.sleep(wait)
            wait = self._limiter.wait(host, self._clock())
        return verify_static(self._static_token, token) or Denied("unknown token")


class NoAuthenticator:
    """Lets everybody in, as the only identity."""

    def authenticate(self, token: object, peer: str) -> Identity:
        """Return :data:`EVERYBODY`."""
        return EVERYBODY

    def failed(self, peer: str) -> float:
        """Return no wait: nothing fails but what would be another identity."""
        return 0.0


def _denied(failure: JwtFailure) -> Denied:
    return Denied(f"jwt: {failure.reason}")


def _host(peer: str) -> str:
    return peer.rpartition(":")[0].strip("[]")
