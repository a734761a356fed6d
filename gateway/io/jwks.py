"""Where the keys of a token issuer come from: a URL or a file, kept fresh; and logins with them.

The counterpart of :mod:`gateway.policy.jwt_identity`, which decides. A login never causes more
than one fetch per :data:`MIN_REFRESH_SECONDS`, however many unknown keys are presented.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from gateway.errors import ConfigError
from gateway.policy.jwt_identity import (
    JwtFailure,
    JwtProblem,
    JwtVerifier,
    KeySet,
    parse_jwks,
)
from gateway.types import Identity

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES = 256 * 1024
"""Largest key set read; providers publish a few kilobytes."""

FETCH_TIMEOUT_SECONDS = 5.0
"""How long a fetch may take; a login that needs the keys waits no longer."""

TTL_SECONDS = 300.0
"""How often keys are fetched, so that a key the issuer has withdrawn is soon not trusted."""

MIN_REFRESH_SECONDS = 10.0
"""Least time between two fetches, whatever tokens ask for."""


class KeySource(Protocol):
    """Keeps the keys of one issuer."""

    async def start(self) -> None:
        """Load the keys for the first time."""

    async def close(self) -> None:
        """Release everything; idempotent."""

    def current(self) -> KeySet:
        """Return the keys as known; cheap."""

    async def refresh(self) -> KeySet:
        """Look for newer keys now, unless that was done just before; return what is known then."""


class FileKeys:
    """Keys from a JWKS file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be read or holds no usable key.
        """
        self._path = path
        self._stamp = self._read_stamp()
        self._keys = self._load()

    async def start(self) -> None:
        """Do nothing: the keys were read at once."""

    async def close(self) -> None:
        """Do nothing."""

    def current(self) -> KeySet:
        """Return the keys, from the file as it is now; a spoiled file leaves the old ones."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = self._load()
            except ConfigError as error:
                logger.warning("keeping the keys read before: %s", error)
            else:
                logger.info("reloaded %d keys from %s", len(self._keys), self._path)
        return self._keys

    async def refresh(self) -> KeySet:
        """Return :meth:`current`, which is never out of date."""
        return self.current()

    def _load(self) -> KeySet:
        try:
            with self._path.open("rb") as file:
                document = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"jwt: JWKS file {self._path}: {error.strerror}") from None
        if len(document) > MAX_DOCUMENT_BYTES:
            raise ConfigError(f"jwt: JWKS file {self._path} is over {MAX_DOCUMENT_BYTES} bytes")
        try:
            keys = parse_jwks(document)
        except ValueError as error:
            raise ConfigError(f"jwt: JWKS file {self._path}: {error}") from None
        if not keys:
            raise ConfigError(f"jwt: JWKS file {self._path} holds no usable public key")
        return keys

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)  # noqa: PTH116 - follows links, as mounted secrets need
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


class UrlKeys:
    """Keys from an issuer's JWKS URL, fetched in the background and when an unknown one is named.

    While the endpoint cannot be reached, or answers nonsense, the keys known before stay in use.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: ssl.SSLContext | None = None,
        ttl: float = TTL_SECONDS,
        min_refresh: float = MIN_REFRESH_SECONDS,
        timeout: float = FETCH_TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the URL; nothing is fetched before :meth:`start`.

        Args:
            url: ``https``, or ``http`` on loopback.
            ca: TLS context for the fetch, or None for the system's authorities.
            ttl: seconds between fetches in the background.
            min_refresh: least seconds between fetches that tokens ask for.
            timeout: seconds a fetch may take.
            clock: monotonic seconds.

        Raises:
            ConfigError: the URL is not acceptable.
        """
        check_jwks_url(url)
        self._url = url
        self._ca = ca
        self._ttl = ttl
        self._min_refresh = min_refresh
        self._timeout = timeout
        self._clock = clock
        self._keys = KeySet()
        self._session: aiohttp.ClientSession | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at = float("-inf")
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fetch once, and go on in the background. An absent endpoint is logged, no error."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            connector=aiohttp.TCPConnector(limit=1, force_close=True, ssl=self._ca or True),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        await self.refresh()
        self._loop_task = asyncio.create_task(self._keep_fresh(), name="jwks-refresh")

    async def close(self) -> None:
        """Stop fetching; idempotent."""
        for task in (self._loop_task, self._fetching):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._loop_task = self._fetching = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def current(self) -> KeySet:
        """Return the keys as last fetched."""
        return self._keys

    async def refresh(self) -> KeySet:
        """Fetch now, or wait for the fetch under way, unless the last one is too recent."""
        if self._fetching is None:
            now = self._clock()
            if self._session is None or now - self._fetched_at < self._min_refresh:
                return self._keys
            self._fetched_at = now
            self._fetching = asyncio.create_task(self._fetch(), name="jwks-fetch")
            self._fetching.add_done_callback(self._fetch_done)
        # Shielded: a client that leaves must not cancel the fetch others wait for.
        await asyncio.shield(self._fetching)
        return self._keys

    def _fetch_done(self, _task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _keep_fresh(self) -> None:
        while True:
            # Until the first success, as often as allowed: logins wait for it.
            await asyncio.sleep(self._ttl if self._keys else max(self._min_refresh, 0.05))
            await self.refresh()

    async def _fetch(self) -> None:
        try:
            keys = parse_jwks(await self._download())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            logger.warning(
                "cannot fetch keys from %s, keeping %d: %s", self._url, len(self._keys), reason
            )
            return
        if not keys:
            logger.warning("no usable key at %s, keeping %d", self._url, len(self._keys))
            return
        if [key.kid for key in keys] != [key.kid for key in self._keys]:
            logger.info("fetched %d keys from %s", len(keys), self._url)
        self._keys = keys

    async def _download(self) -> bytes:
        assert self._session is not None
        # A redirect could leave https or point into a private network.
        async with self._session.get(
            self._url, allow_redirects=False, headers={"Accept": "application/json"}
        ) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            document = bytearray()
            async for chunk in response.content.iter_any():
                document += chunk
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise ValueError(f"answer is over {MAX_DOCUMENT_BYTES} bytes")
            return bytes(document)


def check_jwks_url(url: str) -> None:
    """Check that keys fetched from a URL cannot be replaced on the way.

    Raises:
        ConfigError: it is neither ``https`` nor ``http`` on loopback.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"jwt: jwks_url {url!r} is not a URL") from None
    if not host or parts.username is not None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"jwt: jwks_url {url!r} must look like https://host/path")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError("jwt: jwks_url must be https (http only on loopback)")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class JwtAuthenticator:
    """Logs clients in by the tokens of one issuer."""

    def __init__(
        self, verifier: JwtVerifier, keys: KeySource, clock: Callable[[], float] = time.time
    ) -> None:
        """Combine a verifier with the source of its keys; ``clock`` gives Unix seconds."""
        self._verifier = verifier
        self._keys = keys
        self._clock = clock

    async def start(self) -> None:
        """Load the keys."""
        await self._keys.start()

    async def close(self) -> None:
        """Release the keys' source; idempotent."""
        await self._keys.close()

    async def authenticate(self, token: str) -> Identity | JwtFailure:
        """Return who a token's bearer is; looks for newer keys once if its key is unknown."""
        outcome = self._verifier.verify(token, self._keys.current(), self._clock())
        if isinstance(outcome, JwtFailure) and outcome.problem is JwtProblem.UNKNOWN_KEY:
            known = self._keys.current()
            keys = await self._keys.refresh()
            if keys is not known:
                outcome = self._verifier.verify(token, keys, self._clock())
        return outcome
