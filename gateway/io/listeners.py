"""Listeners: plain ones, TLS, networks that prove an identity, PROXY protocol.

What a connection proves by itself is decided in :mod:`gateway.policy`; here it is accepted, its
PROXY header read off before anything else (the TLS handshake included), and its certificate looked
at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gateway.core.hub import Hub
from gateway.core.ports import Entry
from gateway.io.connections import ClientProtocol, Flow, address_text, peer_of
from gateway.io.tls import ServerTls
from gateway.policy.certificate_identity import CertificateMapping, identity_from_certificate
from gateway.policy.listener_identity import (
    ListenerRule,
    Network,
    in_networks,
    listener_identity,
)
from gateway.types import Identity
from gateway.wire.proxy_protocol import Address, ProxyHeaderParser, ProxyProtocolError

logger = logging.getLogger(__name__)

_SHORTEST_HEADER: Final = 15
"""Bytes of the shortest PROXY header (``PROXY UNKNOWN``): so many can be read without reading
anything of what follows."""

_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16

_ACCEPT_PAUSE: Final = 1.0
"""Seconds before accepting again when the system has no descriptors left."""


@dataclass(frozen=True, slots=True)
class ListenerPlan:
    """How one listener treats connections.

    Attributes:
        name: for logs and the audit; empty for a plain one.
        networks: source networks from which clients may connect; empty for all.
        identity: who everybody is who connects from there, or None.
        certificates: how certificates become identities, or None.
        fallback: who a client is that has proven nothing, where authentication is off.
        tls: the listener's TLS, or None.
        proxies: networks of balancers that put a PROXY header in front; empty for no header.
        handshake_timeout: seconds for PROXY header and TLS handshake together, each.
    """

    name: str = ""
    networks: tuple[Network, ...] = ()
    identity: ListenerRule | None = None
    certificates: CertificateMapping | None = None
    fallback: Identity | None = None
    tls: ServerTls | None = None
    proxies: tuple[Network, ...] = ()
    handshake_timeout: float = 10.0


def admit(
    plan: ListenerPlan, client: Address | None, transport: asyncio.Transport
) -> tuple[str, Entry] | None:
    """Return the address that counts and what the connection proves; None turns it away.

    Args:
        plan: the listener's rules.
        client: what a PROXY header says, or None to go by the connection.
        transport: the connection, its TLS handshake done.
    """
    peer = address_text(*client) if client is not None else peer_of(transport)
    host = client.host if client is not None else _host(transport)
    if plan.networks and not in_networks(plan.networks, host):
        logger.info("address not allowed", extra={"peer": peer, "listener": plan.name})
        return None
    identity = None
    if plan.identity is not None:
        identity = listener_identity(plan.identity, host)
    elif plan.certificates is not None:
        identity = identity_from_certificate(
            transport.get_extra_info("peercert"), plan.certificates
        )
    return peer, Entry(plan.name, identity or plan.fallback)


def _host(transport: asyncio.Transport) -> str | None:
    name = transport.get_extra_info("peername")
    return name[0] if isinstance(name, tuple) else None


class Listener:
    """One bound socket that accepts clients."""

    def __init__(self, hub: Hub, flow: Callable[[], Flow], plan: ListenerPlan) -> None:
        """Prepare; nothing is accepted yet.

        Args:
            hub: what the clients share.
            flow: gives the options of new connections.
            plan: how to treat them.
        """
        self._hub = hub
        self._flow = flow
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._arriving: set[asyncio.Task[None]] = set()

    async def start(self, sock: socket.socket, backlog: int) -> None:
        """Accept clients on a bound socket."""
        loop = asyncio.get_running_loop()
        if self._plan.proxies:
            sock.listen(backlog)
            self._accepting = loop.create_task(self._accept(sock), name=f"accept {self._plan.name}")
            return
        tls = self._plan.tls
        self._server = await loop.create_server(
            self._protocol,
            sock=sock,
            backlog=backlog,
            ssl=tls.context if tls is not None else None,
            ssl_handshake_timeout=self._plan.handshake_timeout if tls is not None else None,
        )

    def _protocol(self, client: Address | None = None) -> ClientProtocol:
        return ClientProtocol(self._hub, self._flow(), partial(admit, self._plan, client))

    def reload(self) -> None:
        """Take up a changed certificate."""
        if self._plan.tls is not None:
            self._plan.tls.reload_if_changed()

    def stop(self) -> None:
        """Accept nothing more; idempotent."""
        if self._server is not None:
            self._server.close()
        if self._accepting is not None:
            self._accepting.cancel()

    async def close(self) -> None:
        """Accept nothing more and drop what is not yet a client; idempotent."""
        self.stop()
        tasks = [*self._arriving, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Connections with a PROXY header

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                logger.error("cannot accept", extra={"reason": error.strerror})
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if len(self._arriving) >= self._flow().max_clients:
                self._hub.stats.clients_rejected["limit"] += 1
                sock.close()
                continue
            task = loop.create_task(self._arrive(sock), name="PROXY header")
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _arrive(self, sock: socket.socket) -> None:
        """Read the header off a connection, then treat it like any other."""
        loop = asyncio.get_running_loop()
        tls = self._plan.tls
        sock.setblocking(False)
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            try:
                peer = sock.getpeername()
            except OSError:
                return
            if not in_networks(self._plan.proxies, peer[0]):
                logger.info("no trusted balancer", extra={"peer": address_text(*peer[:2])})
                self._hub.stats.clients_rejected["source"] += 1
                return
            try:
                async with asyncio.timeout(self._plan.handshake_timeout):
                    client = await _read_proxy_header(sock)
            except (ProxyProtocolError, OSError, EOFError, TimeoutError) as error:
                logger.info(
                    "no PROXY header",
                    extra={"peer": address_text(*peer[:2]), "reason": str(error)},
                )
                self._hub.stats.clients_rejected["source"] += 1
                return
            stack.pop_all()
        try:
            await loop.connect_accepted_socket(
                partial(self._protocol, client),
                sock,
                ssl=tls.context if tls is not None else None,
                ssl_handshake_timeout=self._plan.handshake_timeout if tls is not None else None,
            )
        except OSError as error:
            logger.debug("connection lost in the handshake", extra={"reason": str(error)})


async def _read_proxy_header(sock: socket.socket) -> Address | None:
    """Read exactly a PROXY header off a connection; return the client's address, if it says.

    Not one byte more is read: what follows is for the TLS handshake or the client's protocol.

    Raises:
        ProxyProtocolError: there is no valid header.
        EOFError: the connection ended.
        OSError: the connection broke.
    """
    loop = asyncio.get_running_loop()
    parser = ProxyHeaderParser()
    held = b""
    while True:
        data = await loop.sock_recv(sock, _certain(held))
        if not data:
            raise EOFError("the connection ended in the header")
        held += data
        header = parser.feed(data)
        if header is not None:
            return header.source


def _certain(held: bytes) -> int:
    """Return how many more bytes certainly belong to a PROXY header that begins with ``held``."""
    if len(held) < _SHORTEST_HEADER:
        return _SHORTEST_HEADER - len(held)
    if not held.startswith(_V2_SIGNATURE):
        return 1  # A text line: only its end says how long it is.
    if len(held) < _V2_FIXED:
        return _V2_FIXED - len(held)
    return _V2_FIXED + int.from_bytes(held[14:16], "big") - len(held)
