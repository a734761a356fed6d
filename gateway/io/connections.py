"""The sockets of clients and replicas: thin shells around :mod:`gateway.core`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from gateway.core.client import Client
from gateway.core.hub import Hub
from gateway.core.lane import receive_answers, receive_requests
from gateway.core.link import Link
from gateway.core.ports import Entry, Sink
from gateway.io.sockets import Keepalive, acknowledge, is_tcp, options_of, tune


@dataclass(frozen=True, slots=True)
class Flow:
    """Back pressure and time-outs of connections.

    Attributes:
        high_water: unsent bytes at which the peer's counterpart is no longer read.
        low_water: unsent bytes at which it is read again.
        stall_timeout: seconds for which a client may take nothing while bytes wait for it.
        dial_timeout: seconds to connect to a replica.
        max_clients: connections at a time.
        keepalive: see :class:`~gateway.io.sockets.Keepalive`.
    """

    high_water: int = 1 << 20
    low_water: int = 256 << 10
    stall_timeout: float = 60.0
    dial_timeout: float = 3.0
    max_clients: int = 10_000
    keepalive: Keepalive = field(default_factory=Keepalive)


Gate = Callable[[asyncio.Transport], tuple[str, Entry] | None]
"""Says who connects (the address that counts) and how, or None to turn the connection away."""


def _open_gate(transport: asyncio.Transport) -> tuple[str, Entry]:
    return peer_of(transport), Entry()


class ClientProtocol(asyncio.Protocol):
    """One accepted connection."""

    __slots__ = (
        "_flow",
        "_gate",
        "_hub",
        "_loop",
        "_sock",
        "_stalled",
        "_transport",
        "client",
        "reads",
    )

    def __init__(self, hub: Hub, flow: Flow, gate: Gate = _open_gate) -> None:
        """Prepare for a connection.

        Args:
            hub: what the clients share.
            flow: options of the connection.
            gate: decides on the connection once it is made, TLS handshake included.
        """
        self._hub = hub
        self._flow = flow
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self.client: Client | None = None
        self.reads = 0
        self._sock: socket.socket | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection."""
        self._transport = transport = cast(asyncio.Transport, transport)
        if self._hub.stats.clients_open >= self._flow.max_clients:
            self._hub.stats.clients_rejected["limit"] += 1
            transport.abort()
            return
        admitted = self._gate(transport)
        if admitted is None:
            self._hub.stats.clients_rejected["source"] += 1
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if is_tcp(sock):
            self._sock = options_of(sock)
            tune(self._sock, self._flow.keepalive)
        transport.set_write_buffer_limits(self._flow.high_water, self._flow.low_water)
        peer, entry = admitted
        self.client = Client(self._hub, transport, peer, entry)

    data_received = receive_requests  # type: ignore[assignment]

    def timed(self, data: bytes) -> None:
        """Hand a chunk to the core, and measure how long that takes."""
        client = self.client
        assert client is not None
        stats = self._hub.stats
        before = stats.frames_from_client
        started = time.perf_counter()
        client.feed(data)
        frames = stats.frames_from_client - before
        stats.time_to_replica.observe(time.perf_counter() - started, frames)

    def acknowledge(self) -> None:
        """Let the client go on sending a frame that it has begun."""
        if self._sock is not None:
            acknowledge(self._sock)

    def eof_received(self) -> bool:
        """Treat a half-close as the end, as the CLI does."""
        return False

    def pause_writing(self) -> None:
        """The client does not keep up: read less for it, and not for ever."""
        if self.client is not None:
            self.client.pause_writing()
            self._watch()

    def _watch(self) -> None:
        transport = self._transport
        assert transport is not None
        left = transport.get_write_buffer_size()
        self._stalled = self._loop.call_later(self._flow.stall_timeout, self._check, left)

    def _check(self, before: int) -> None:
        """Cut the client if it has taken nothing since the last look."""
        transport, client = self._transport, self.client
        assert transport is not None
        assert client is not None
        if transport.get_write_buffer_size() < before:
            self._watch()
            return
        client.cut("stalled", f"took nothing for {self._flow.stall_timeout:g} s")
        transport.abort()

    def resume_writing(self) -> None:
        """The client keeps up again."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self.client is not None:
            self.client.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        if self._sock is not None:
            self._sock.detach()
            self._sock = None
        if self._stalled is not None:
            self._stalled.cancel()
        if self.client is not None:
            if isinstance(exc, TimeoutError) and not self.client.closed:
                self._hub.stats.clients_cut["dead"] += 1
            self.client.lost()


class ReplicaProtocol(asyncio.Protocol):
    """One dialed connection."""

    __slots__ = ("_flow", "_sock", "_stats", "link", "reads")

    def __init__(self, link: Link, hub: Hub, flow: Flow) -> None:
        self.link = link
        self._flow = flow
        self._stats = hub.stats
        self.reads = 0
        self._sock: socket.socket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the options."""
        sock = transport.get_extra_info("socket")
        if is_tcp(sock):
            self._sock = options_of(sock)
            tune(self._sock, self._flow.keepalive)
        cast(asyncio.Transport, transport).set_write_buffer_limits(
            self._flow.high_water, self._flow.low_water
        )

    data_received = receive_answers  # type: ignore[assignment]

    def timed(self, data: bytes) -> None:
        """Hand a chunk to the core, and measure how long that takes."""
        stats = self._stats
        before = stats.frames_from_replica
        started = time.perf_counter()
        self.link.feed(data)
        frames = stats.frames_from_replica - before
        stats.time_to_client.observe(time.perf_counter() - started, frames)

    def acknowledge(self) -> None:
        """Let the replica go on sending."""
        if self._sock is not None:
            acknowledge(self._sock)

    def pause_writing(self) -> None:
        """The replica does not keep up."""
        self.link.pause_writing()

    def resume_writing(self) -> None:
        """The replica keeps up again."""
        self.link.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        if self._sock is not None:
            self._sock.detach()
            self._sock = None
        self.link.lost(f"connection lost: {exc}" if exc else "the replica closed the connection")


class ReplicaDialer:
    """Connects links; implements :class:`gateway.core.ports.Dialer`.

    Attributes:
        flow: options of new connections; replaced by a reload.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    async def dial(self, link: Link) -> Sink:
        """Connect ``link``.

        Raises:
            OSError: refused, unreachable or timed out.
        """
        spec = link.replica.spec
        flow = self.flow
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(flow.dial_timeout):
                transport, _ = await loop.create_connection(
                    lambda: ReplicaProtocol(link, link.hub, flow), spec.host, spec.port
                )
        except TimeoutError:
            raise OSError(f"{spec.name}: no connection within {flow.dial_timeout:g} s") from None
        return transport


def peer_of(transport: asyncio.Transport) -> str:
    """Return the address of a connection's other end, for logs and limits."""
    name = transport.get_extra_info("peername")
    return address_text(name[0], name[1]) if isinstance(name, tuple) else "unix"


def address_text(host: str, port: int) -> str:
    """Write an address as ``host:port``, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
