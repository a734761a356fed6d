"""A lean client connection: requests out, answers matched, events handed to their session.

Neither a task nor a parsed document is spent on an event that nobody needs; sessions read what they
must out of the raw body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

from gateway.errors import METHOD_NOT_FOUND
from gateway.loadtest.plan import CONNECT_TIMEOUT
from gateway.wire import envelope, framing
from gateway.wire.stream import Kind, peek

MAX_FRAME = 1 << 30
"""Bytes; far above any answer a load test asks for."""

PROTOCOL_VERSION = 3
"""In earlier versions tools and permissions are asked for in another way."""


class CallError(Exception):
    """A request was answered with an error.

    Attributes:
        code: the JSON-RPC error code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class ConnectionLostError(Exception):
    """The connection ended while something was awaited from it, or before it was asked."""


class Receiver(Protocol):
    """Who gets the events of a session."""

    def event(self, kind: str, body: bytes) -> None:
        """Take an event; ``body`` is the whole notification."""


class Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        receivers: sessions by id.
        events: number of events received and not yet fetched by :meth:`take_counts`.
        lost: done once the connection has ended.
    """

    def __init__(self, stray: Callable[[str, str], None]) -> None:
        """Prepare a connection.

        Args:
            stray: called with session id and type of an event that no receiver is there for.
        """
        self.receivers: dict[str, Receiver] = {}
        self.events = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stray = stray
        self._decoder = framing.FrameDecoder(MAX_FRAME)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._bytes_in = 0
        self._bytes_out = 0
        self._transport: asyncio.Transport | None = None

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. Both loops set TCP_NODELAY; TCP_QUICKACK is left as SDKs have it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Cut frames and deliver them; a stream that cannot be cut ends the connection."""
        self._bytes_in += len(data)
        try:
            for body in self._decoder.feed(data):
                self._deliver(body)
        except (framing.FramingError, ValueError):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whatever is awaited."""
        self._transport = None
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(ConnectionLostError())
        if not self.lost.done():
            self.lost.set_result(None)

    def _deliver(self, body: bytes) -> None:
        peeked = peek(body, 0, len(body))
        if peeked.kind is Kind.EVENT:
            self.events += 1
            receiver = self.receivers.get(peeked.key)
            if receiver is not None:
                receiver.event(peeked.name, body)
            else:
                self._stray(str(peeked.key), peeked.name)
        elif peeked.kind is Kind.RESPONSE:
            future = self._pending.pop(peeked.key, None)
            if future is not None and not future.done():
                self._settle(future, envelope.loads(body))
        elif peeked.kind is Kind.REQUEST:
            # Nothing is registered that would make a CLI ask; what asks all the same must not wait.
            error = {"code": METHOD_NOT_FOUND, "message": "the load test does not answer this"}
            self._write(envelope.encode({"jsonrpc": "2.0", "id": peeked.key, "error": error}))

    @staticmethod
    def _settle(future: asyncio.Future[Any], message: dict[str, Any]) -> None:
        error = message.get("error")
        if error is None:
            future.set_result(message.get("result"))
        else:
            code = error.get("code", 0)
            future.set_exception(CallError(code, str(error.get("message", "without a message"))))

    # -- for its users -----------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self._transport is not None and not self._transport.is_closing()

    def post(self, method: str, params: dict[str, Any]) -> asyncio.Future[Any]:
        """Send a request; return the future of its result.

        The future raises :class:`CallError` or :class:`ConnectionLostError`.
        """
        self._last_id += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.is_open:
            future.set_exception(ConnectionLostError())
            return future
        self._pending[self._last_id] = future
        self._write(envelope.request_frame(self._last_id, method, params))
        return future

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        """Send a request and return its result.

        Raises:
            CallError: the answer is an error.
            ConnectionLostError: the connection ended first.
            TimeoutError: no answer within ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout):
            return await self.post(method, params)

    def take_counts(self) -> tuple[int, int, int]:
        """Return events, bytes in and bytes out since the last call."""
        counts = self.events, self._bytes_in, self._bytes_out
        self.events = self._bytes_in = self._bytes_out = 0
        return counts

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close the connection and wait until it is gone; idempotent."""
        if self._transport is not None:
            self._transport.close()
        await self.lost

    def _write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._bytes_out += len(frame)
            self._transport.write(frame)


async def connect(
    host: str,
    port: int,
    token: str | None,
    *,
    tls: ssl.SSLContext | None,
    server_name: str | None,
    stray: Callable[[str, str], None],
) -> Connection:
    """Open a connection and perform the handshake.

    Raises:
        OSError, TimeoutError: nobody answers there, or TLS fails.
        CallError: the handshake is refused, or the peer is too old.
        ConnectionLostError: the peer closed the connection.
    """
    loop = asyncio.get_running_loop()
    name = (server_name or host) if tls is not None else None
    async with asyncio.timeout(CONNECT_TIMEOUT):
        _, connection = await loop.create_connection(
            lambda: Connection(stray), host, port, ssl=tls, server_hostname=name
        )
        try:
            version = await _shake_hands(connection, token)
        except BaseException:
            connection.abort()
            raise
    if version != PROTOCOL_VERSION:
        connection.abort()
        raise CallError(0, f"the peer speaks protocol version {version}, not {PROTOCOL_VERSION}")
    return connection


async def _shake_hands(connection: Connection, token: str | None) -> Any:
    """Return the peer's protocol version."""
    try:
        hello = await connection.post("connect", {} if token is None else {"token": token})
    except CallError as error:
        if error.code != METHOD_NOT_FOUND:
            raise
        hello = await connection.post("ping", {"message": "loadtest"})
    return hello.get("protocolVersion") if isinstance(hello, dict) else None
