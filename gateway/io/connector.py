"""The local connector: a sidecar that gives SDKs what they lack, a token and TLS.

It takes SDK connections on loopback, a unix socket or its own standard streams, dials the gateway,
authenticates there by its own token and then passes bytes on as they are, both ways. The
counterpart is a gateway's listener; anything that speaks ``connect`` will do.

A connection begins with one decision, by its first message. A ``connect`` is sent on with the
connector's token in it. A client that begins otherwise (SDKs before 1.0, with a ``ping``) cannot
authenticate, so the connector sends a ``connect`` of its own and keeps the answer to itself; from
then on what the gateway sends is read frame by frame, and bridged as :mod:`gateway.wire.compat`
says. An SDK that believes it started a CLI of its own also tells it to shut down; that ends the
connector, not a CLI that others use.

While the gateway cannot be reached, each request is answered with an error and the connection
stays, so that a client that tries again is served as soon as the gateway is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gateway import errors
from gateway.errors import ConfigError, RpcError, StartupError
from gateway.wire import compat, envelope, framing

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""How long a failure answers for the gateway, without dialling it again for every request."""

DIAL_TIMEOUT_SECONDS = 5.0
HANDSHAKE_TIMEOUT_SECONDS = 15.0
"""How long the gateway may take to answer the connector's own ``connect``."""

CLOSE_SECONDS = 1.0
"""How long connections may take to send what is buffered when the connector ends."""

KEEPALIVE_SECONDS = (20, 10, 3)
"""Idle time before the first probe, time between probes, and how many may fail: a peer that
vanished is noticed in under a minute."""

MAX_OPENING_BYTES = 1024 * 1024
"""Most that is held for a client that is not yet connected; its first message must fit."""

MAX_BRIDGED_FRAME_BYTES = 512 * 1024 * 1024
"""Largest message to a client that is read frame by frame; the gateway's own limit is lower."""

MAX_TOKEN_BYTES = 16 * 1024

CONNECT_ID = "copilot-gateway-connect"
"""Id of the connector's own request; clients cannot see it, so it cannot clash."""

SHUTDOWN = "runtime.shutdown"
_SHUTDOWN_MARK = b'"runtime.shutdown"'

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_KEEPALIVE_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
_FULL_READ = 64 * 1024
_CLOSING_BRACE = 0x7D


class ClientToken:
    """The connector's token, from a file that is read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read the file, and warn if others can read it too.

        Raises:
            ConfigError: it cannot be read or holds no token.
        """
        self._path = path
        self._stamp = self._read_stamp()
        self._token = self._read()
        if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            logger.warning("token file %s can be read by every user of this machine", path)

    def current(self) -> str:
        """Return the token as the file has it now; a spoiled file leaves the last good one."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._token = self._read()
            except ConfigError as error:
                logger.warning("keeping the token read before: %s", error)
            else:
                logger.info("read a new token from %s", self._path)
        return self._token

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_TOKEN_BYTES + 1).strip()
        except OSError as error:
            raise ConfigError(f"token file {self._path}: {error.strerror}") from None
        if not raw:
            raise ConfigError(f"token file {self._path} is empty")
        if len(raw) > MAX_TOKEN_BYTES or not raw.isascii() or not raw.decode().isprintable():
            raise ConfigError(f"token file {self._path} must hold one line with one token")
        return raw.decode()

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)  # noqa: PTH116 - follows links, as mounted secrets need
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where and how to reach the gateway.

    Attributes:
        host: name or IP address.
        port: TCP port.
        tls: context to verify it with, or None for a plain connection.
        server_name: name its certificate must have, if not ``host``.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_name: str | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Upstream:
    """The way to the gateway, shared by all clients; remembers for a moment that it is closed."""

    def __init__(
        self,
        address: GatewayAddress,
        token: ClientToken,
        *,
        retry: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._token = token
        self._retry = retry
        self._clock = clock
        self._failure: RpcError | None = None
        self._failed_at = 0.0
        self._failed_token = ""

    async def open(self, first: envelope.Message) -> GatewaySide:
        """Connect and authenticate for a client whose first message is ``first``.

        Returns:
            A connection on which ``first`` has been sent if it was a ``connect``; otherwise one
            that is authenticated and ready for it.

        Raises:
            RpcError: the gateway cannot be reached, or refuses the connector's token.
        """
        token = self._token.current()
        wait = self._failed_at + self._retry - self._clock()
        if self._failure is not None and wait > 0 and token == self._failed_token:
            raise self._explain(self._failure, wait)
        try:
            gateway = await self._dial()
            try:
                await self._authenticate(gateway, first, token)
            except BaseException:
                gateway.abort()
                raise
        except RpcError as error:
            if self._failure is None or self._failure.message != error.message:
                logger.warning("%s", error.message)
            self._failure, self._failed_at, self._failed_token = error, self._clock(), token
            raise self._explain(error, self._retry) from None
        if self._failure is not None:
            logger.warning("the gateway at %s serves again", self._address)
            self._failure = None
        return gateway

    async def _dial(self) -> GatewaySide:
        address = self._address
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_SECONDS):
                _, gateway = await loop.create_connection(
                    GatewaySide,
                    address.host,
                    address.port,
                    ssl=address.tls,
                    server_hostname=(address.server_name or address.host) if address.tls else None,
                )
        except TimeoutError:
            raise self._unreachable("no answer in time") from None
        except ssl.SSLCertVerificationError as error:
            raise self._unreachable(f"its certificate is not valid: {error.verify_message}") from (
                None
            )
        except ssl.SSLError:
            raise self._unreachable("the TLS handshake failed") from None
        except UnicodeError:
            raise self._unreachable("its name is not a valid host name") from None
        except OSError as error:
            raise self._unreachable(_reason(error)) from None
        return gateway

    async def _authenticate(
        self, gateway: GatewaySide, first: envelope.Message, token: str
    ) -> None:
        if first["method"] == "connect":
            params = first.get("params")
            params = {**params, "token": token} if isinstance(params, dict) else {"token": token}
            gateway.write(envelope.encode({**first, "params": params}))
            return
        gateway.bridging = compat.is_old_client(first["method"])
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_SECONDS):
                answer = await gateway.call(
                    envelope.request_frame(CONNECT_ID, "connect", {"token": token})
                )
        except TimeoutError:
            raise self._unreachable("no answer to the handshake in time") from None
        except (ConnectionError, framing.FramingError):
            raise self._unreachable("it closed the connection in the handshake") from None
        if "result" not in answer:
            error = answer.get("error")
            error = error if isinstance(error, dict) else {}
            code, text = error.get("code"), error.get("message")
            raise RpcError(
                code if isinstance(code, int) else errors.INTERNAL_ERROR,
                f"The gateway at {self._address} refused the connector: {text or 'no reason'}",
            )

    def _unreachable(self, reason: str) -> RpcError:
        return RpcError(
            errors.REPLICA_UNAVAILABLE,
            f"The gateway at {self._address} cannot be reached: {reason}",
        )

    @staticmethod
    def _explain(error: RpcError, wait: float) -> RpcError:
        return RpcError(error.code, error.message, {"retryAfterMs": max(1, round(wait * 1000))})


class GatewaySide(asyncio.Protocol):
    """A connection to the gateway on behalf of one client."""

    def __init__(self) -> None:
        # Set between the connector's own connect and its answer, and only then.
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        # Set once a connect of the connector's own has been sent: from then on, frame by frame.
        self._decoder: framing.FrameDecoder | None = None
        # Frames that came before the client was attached.
        self._early: list[bytes] = []
        self._client: ClientSide | None = None
        self._paused = False
        self._lost = False
        self.bridging = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._acknowledge = _make_acknowledge(transport)

    def write(self, data: bytes) -> None:
        """Send bytes to the gateway."""
        self._transport.write(data)

    async def call(self, frame: bytes) -> dict[str, Any]:
        """Send the connector's own request and return its response.

        Raises:
            ConnectionError: the gateway closed the connection first.
            FramingError: what came is no frame.
        """
        self._decoder = framing.FrameDecoder(MAX_BRIDGED_FRAME_BYTES)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(frame)
        try:
            return await self._answer
        finally:
            self._answer = None

    def attach(self, client: ClientSide) -> None:
        """Pass everything on to ``client`` from now on."""
        self._client = client
        early, self._early = self._early, []
        if early:
            client.write(b"".join(early))
        if self._lost:
            client.gateway_lost()
        elif self._paused:
            client.pause_reading()

    def pause_reading(self) -> None:
        """Stop reading from the gateway: the client is slow."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read from the gateway again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the connection after what is buffered has been sent; idempotent."""
        self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on what the gateway sends."""
        if len(data) < _FULL_READ:
            self._acknowledge()
        if self._decoder is not None:
            data = self._bridge(data)
        if self._client is not None:
            self._client.write(data)
        elif data:
            self._early.append(data)

    def _bridge(self, data: bytes) -> bytes:
        """Return the frames completed by ``data`` as the client is to see them."""
        assert self._decoder is not None
        try:
            bodies = self._decoder.feed(data)
        except framing.FramingError as error:
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(error)
            self.abort()
            return b""
        out: list[bytes] = []
        for body in bodies:
            if self._answer is not None and not self._answer.done() and self._take_answer(body):
                continue
            out.append(framing.encode(compat.for_old_client(body) if self.bridging else body))
        return b"".join(out)

    def _take_answer(self, body: bytes) -> bool:
        """Take the answer to the connector's own request; False if it is something else."""
        assert self._answer is not None
        try:
            message = envelope.loads(body)
        except ValueError:
            return False
        if not isinstance(message, dict) or "method" in message:
            return False
        # Some CLIs answer what they dislike under a null id; nothing else was asked.
        if message.get("id") not in (CONNECT_ID, None):
            return False
        self._answer.set_result(message)
        return True

    def pause_writing(self) -> None:
        """Stop reading from the client: the gateway is slow."""
        self._paused = True
        if self._client is not None:
            self._client.pause_reading()

    def resume_writing(self) -> None:
        """Read from the client again."""
        self._paused = False
        if self._client is not None:
            self._client.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the client too: SDKs notice, and connect again."""
        self._lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed by the gateway"))
        if self._client is not None:
            self._client.gateway_lost()


class ClientSide(asyncio.Protocol):
    """A connection of an SDK: first what opens it, then a pump of bytes.

    Attributes:
        cut: whether it ended because the gateway's side did.
    """

    def __init__(
        self,
        upstream: Upstream,
        on_lost: Callable[[ClientSide], None],
        *,
        writer: asyncio.WriteTransport | None = None,
        on_shutdown: Callable[[], None] | None = None,
    ) -> None:
        """Serve a socket, or, where a ``writer`` is given, two pipes.

        Args:
            upstream: the way to the gateway.
            on_lost: called when the connection has ended.
            writer: the writing half of two pipes.
            on_shutdown: what to do when the client shuts "its" CLI down, or None to let the
                gateway judge such a request. With it, what the client sends is read frame by frame.
        """
        self._upstream = upstream
        self._on_shutdown = on_shutdown
        self._decoder = framing.FrameDecoder(MAX_BRIDGED_FRAME_BYTES) if on_shutdown else None
        self._on_lost = on_lost
        self.cut = False
        self._gateway: GatewaySide | None = None
        # What came before the gateway was there, and is not answered yet.
        self._pending = bytearray()
        self._opening: asyncio.Task[None] | None = None
        self._reader: asyncio.ReadTransport | None = None
        self._writer = writer
        self._acknowledge: Callable[[], None] = _do_nothing
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a socket's transport, or the reading half of two pipes."""
        self._reader = cast("asyncio.ReadTransport", transport)
        if self._writer is None:
            self._writer = cast("asyncio.WriteTransport", transport)
            self._acknowledge = _make_acknowledge(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what the client sends, or keep it until there is somebody to take it."""
        # SDKs write header and body apart, and send the body when the header is acknowledged.
        if data[-1] != _CLOSING_BRACE:
            self._acknowledge()
        if self._gateway is not None:
            self._forward(self._gateway, data)
            return
        self._pending += data
        if self._opening is None:
            self._advance()
        elif len(self._pending) > MAX_OPENING_BYTES:
            self.pause_reading()

    def _forward(self, gateway: GatewaySide, data: bytes) -> None:
        """Send on what the client sent, save its wish to shut the CLI down."""
        if self._decoder is not None:
            try:
                bodies = self._decoder.feed(data)
            except framing.FramingError as error:
                self._give_up(None, RpcError(errors.PARSE_ERROR, error.hint))
                return
            data = b"".join(framing.encode(b) for b in bodies if not self._is_shutdown(b))
        if data:
            gateway.write(data)

    def _is_shutdown(self, body: bytes) -> bool:
        """Tell whether a message shuts the CLI down; if so, answer it and do it."""
        if _SHUTDOWN_MARK not in body:
            return False
        try:
            message = envelope.parse(body)
        except envelope.BadMessageError:
            return False
        if message.get("method") != SHUTDOWN:
            return False
        self._shut_down(message)
        return True

    def _shut_down(self, request: envelope.Message) -> None:
        assert self._on_shutdown is not None
        if "id" in request:
            self.write(envelope.result_frame(request["id"], None))
        self._on_shutdown()

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        if self._writer is not None and data:
            self._writer.write(data)

    def pause_reading(self) -> None:
        """Stop reading from the client."""
        if self._reader is not None and not self._reader.is_closing():
            self._reader.pause_reading()

    def resume_reading(self) -> None:
        """Read from the client again."""
        if self._reader is not None and not self._reader.is_closing():
            self._reader.resume_reading()

    def close(self) -> None:
        """Close the connection after what is buffered has been sent; idempotent."""
        if self._writer is not None:
            self._writer.close()
        if self._reader is not None:
            self._reader.close()

    def abort(self) -> None:
        """Drop the connection, with what is buffered."""
        if self._writer is not None:
            self._writer.abort()
        if self._reader is not None:
            self._reader.close()

    def gateway_lost(self) -> None:
        """Close the connection because the gateway's is gone."""
        # Not where the client left first and the gateway's side followed.
        self.cut = not self._lost
        self.close()

    def _advance(self) -> None:
        """Look at the next message of a client that is not connected."""
        while not self._lost:
            data = bytes(self._pending)
            try:
                header = framing.read_header(data, 0)
            except framing.FramingError as error:
                self._give_up(None, RpcError(errors.PARSE_ERROR, error.hint))
                return
            if header is None:
                return
            if header.end - header.body > MAX_OPENING_BYTES:
                if len(data) - header.body < framing.SALVAGE_BYTES:
                    return
                self._give_up(
                    envelope.salvage_id(data[header.body :]),
                    RpcError(errors.INVALID_REQUEST, "The first message is too large"),
                )
                return
            if header.end > len(data):
                return
            try:
                first = envelope.parse(data[header.body : header.end])
            except envelope.BadMessageError as error:
                self.write(envelope.error_frame(error.request_id, error.error))
                del self._pending[: header.end]
                continue
            if "id" not in first or "method" not in first:
                # Nobody waits for an answer, and nothing can follow from it before a handshake.
                del self._pending[: header.end]
                continue
            if self._on_shutdown is not None and first["method"] == SHUTDOWN:
                self._shut_down(first)
                del self._pending[: header.end]
                continue
            self._opening = asyncio.create_task(
                self._open(first, header.end), name="connector-open"
            )
            return

    def _give_up(self, request_id: Any, error: RpcError) -> None:
        self.write(envelope.error_frame(request_id, error))
        self.close()

    async def _open(self, first: envelope.Message, end: int) -> None:
        """Connect the client by its first message, or answer that message with the reason."""
        try:
            gateway = await self._upstream.open(first)
        except RpcError as error:
            self.write(envelope.error_frame(first["id"], error))
            del self._pending[:end]
            self._opening = None
            self.resume_reading()
            self._advance()
            return
        self._opening = None
        if self._lost:
            gateway.close()
            return
        rest = bytes(self._pending[end:] if first["method"] == "connect" else self._pending)
        self._pending = bytearray()
        self._gateway = gateway
        if rest:
            self._forward(gateway, rest)
        self.resume_reading()
        gateway.attach(self)

    def pause_writing(self) -> None:
        """Stop reading from the gateway: the client is slow."""
        if self._gateway is not None:
            self._gateway.pause_reading()

    def resume_writing(self) -> None:
        """Read from the gateway again."""
        if self._gateway is not None:
            self._gateway.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the gateway's side too."""
        if self._lost:
            return
        self._lost = True
        if self._opening is not None:
            self._opening.cancel()
        if self._gateway is not None:
            self._gateway.close()
        self.close()
        self._on_lost(self)


class _PipeWriter(asyncio.BaseProtocol):
    """The writing half of a client on two pipes; tells its reading half what happens.

    Attributes:
        client: the reading half, once there is one.
    """

    def __init__(self) -> None:
        self.client: ClientSide | None = None

    def pause_writing(self) -> None:
        """Pass it on."""
        if self.client is not None:
            self.client.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self.client is not None:
            self.client.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        if self.client is not None:
            self.client.connection_lost(exc)


class Connector:
    """Listens, or serves the standard streams, until it is closed.

    Attributes:
        shut_down: set when an SDK that the connector stands in for a CLI to has shut that down.
    """

    def __init__(self, upstream: Upstream, *, stands_in: bool = False) -> None:
        """Prepare to serve.

        Args:
            upstream: the way to the gateway.
            stands_in: whether an SDK started the connector in the belief that it is the CLI.
        """
        self._upstream = upstream
        self.shut_down = asyncio.Event()
        self._on_shutdown = self.shut_down.set if stands_in else None
        self._clients: set[ClientSide] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: asyncio.Server | None = None
        self._socket_path: Path | None = None

    async def listen(self, host: str, port: int) -> int:
        """Take connections on a TCP address; return its port.

        Raises:
            StartupError: the address is not to be had.
        """
        loop = asyncio.get_running_loop()
        if port == 0 and host == "localhost":
            host = "127.0.0.1"  # its two addresses would get different ports
        try:
            self._server = await loop.create_server(self._new_client, host, port, backlog=128)
        except OSError as error:
            raise StartupError(f"cannot listen on {host}:{port}: {_reason(error)}") from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: Path) -> None:
        """Take connections on a unix socket that only this user may open.

        Raises:
            StartupError: the path is in use, or cannot be created.
        """
        loop = asyncio.get_running_loop()
        try:
            listener = _bind_unix(path)
        except OSError as error:
            raise StartupError(f"cannot listen on unix:{path}: {_reason(error)}") from None
        self._server = await loop.create_unix_server(self._new_client, sock=listener, backlog=128)
        self._socket_path = path

    async def serve_streams(self) -> bool:
        """Serve one client on standard input and output until it or the gateway is gone.

        Returns:
            True if the client left, False if the gateway did.

        Raises:
            StartupError: they are neither pipes nor sockets.
        """
        loop = asyncio.get_running_loop()
        if not (_is_pipe(sys.stdin.fileno()) and _is_pipe(sys.stdout.fileno())):
            raise StartupError(
                "--stdio needs pipes on standard input and output: it is for an SDK to start"
            )
        # Pipes under numbers of our own, so that closing them does not take the interpreter's.
        source = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        transport, writer = await loop.connect_write_pipe(_PipeWriter, sink)
        client = ClientSide(
            self._upstream, self._forget, writer=transport, on_shutdown=self._on_shutdown
        )
        writer.client = client
        self._add(client)
        await loop.connect_read_pipe(lambda: client, source)
        await self._idle.wait()
        return not client.cut

    async def close(self) -> None:
        """Stop listening and close every connection; idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
            self._socket_path = None
        for client in list(self._clients):
            client.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            for client in list(self._clients):
                client.abort()
            await self._idle.wait()

    def _new_client(self) -> ClientSide:
        client = ClientSide(self._upstream, self._forget, on_shutdown=self._on_shutdown)
        self._add(client)
        return client

    def _add(self, client: ClientSide) -> None:
        self._clients.add(client)
        self._idle.clear()

    def _forget(self, client: ClientSide) -> None:
        self._clients.discard(client)
        if not self._clients:
            self._idle.set()


def _is_pipe(number: int) -> bool:
    """Tell whether a file descriptor is a pipe, or a socket as Node gives its children."""
    mode = os.fstat(number).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _bind_unix(path: Path) -> socket.socket:
    """Bind a unix socket with mode 0600, replacing one that nobody listens on.

    Raises:
        OSError: it cannot be bound, or somebody listens.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_alive(path):
            path.unlink()
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_alive(path: Path) -> bool:
    with (
        contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe,
        contextlib.suppress(ConnectionRefusedError),
    ):
        probe.connect(str(path))
        return True
    return False


def _reason(error: OSError) -> str:
    """Return what went wrong in words; asyncio puts addresses and numbers around them."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error) or type(error).__name__
    return os.strerror(error.errno)


def _do_nothing() -> None:
    """Stand in where there is nothing to acknowledge."""


def _make_acknowledge(transport: asyncio.BaseTransport) -> Callable[[], None]:
    """Set a TCP socket up for small messages; return what acknowledges a read at once.

    Without it a peer that waits for an acknowledgement before it sends the rest waits 40 ms. The
    kernel forgets the wish, so it is said again when a read leaves the peer waiting.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return _do_nothing
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in zip(_KEEPALIVE_OPTIONS, KEEPALIVE_SECONDS, strict=True):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    option = _QUICKACK
    if option is None:
        return _do_nothing

    def acknowledge() -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)

    acknowledge()
    return acknowledge
