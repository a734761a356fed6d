"""Listeners on real sockets: TLS, certificates, networks, PROXY headers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from gateway.core.hub import Limits
from gateway.io.connections import Flow
from gateway.io.listeners import Listener, ListenerPlan
from gateway.io.tls import ServerTls, ServerTlsFiles, client_context
from gateway.policy.certificate_identity import CertificateMapping, FieldSelector
from gateway.policy.listener_identity import ListenerRule
from gateway.types import Identity, Role
from tests.support.certificates import Authority
from tests.support.playbook import Stage
from tests.support.rpc import RpcClient
from tests.support.wait import eventually

LOOPBACK = (ip_network("127.0.0.0/8"),)
ELSEWHERE = (ip_network("192.0.2.0/24"),)
LAB = ListenerRule("lab", "lab", "all", LOOPBACK)
HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4321\r\n"
HEADER_V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
    + bytes([192, 0, 2, 7, 127, 0, 0, 1])
    + b"\x15\xb3\x10\xe1"
)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A core behind the listeners, with one replica."""
    made = Stage(Limits())
    await made.adds("cli-0")
    yield made
    await made.close()


class Door:
    """A listener, and ways to knock."""

    def __init__(self, stage: Stage, port: int) -> None:
        self.stage = stage
        self.port = port

    async def open(
        self, context: ssl.SSLContext | None = None, before: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect; ``before`` goes ahead of the TLS handshake."""
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.sendall(before)
        return await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname="localhost" if context else None
        )

    async def client(self, context: ssl.SSLContext | None = None, before: bytes = b"") -> RpcClient:
        return RpcClient(*await self.open(context, before))


Opened = Callable[[ListenerPlan], Awaitable[Door]]


@pytest.fixture
async def opened(stage: Stage) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:

        async def open_(plan: ListenerPlan) -> Door:
            sock = socket.create_server(("127.0.0.1", 0))
            sock.setblocking(False)
            stack.callback(sock.close)
            listener = Listener(stage.hub, Flow, plan)
            await listener.start(sock, 100)
            stack.push_async_callback(listener.close)
            return Door(stage, sock.getsockname()[1])

        yield open_
        for client in list(stage.hub.clients):
            client.sink.abort()
        await eventually(lambda: not stage.hub.clients)


async def closed_at_once(door: Door, before: bytes = b"", after: bytes = b"x") -> bool:
    """Whether the listener hangs up on a plain connection without a word."""
    reader, writer = await door.open(before=before)
    try:
        writer.write(after)
        async with asyncio.timeout(10):
            return await reader.read() == b""
    except ConnectionError:
        return True
    finally:
        writer.close()


async def test_a_network_that_proves_who_connects(opened: Opened) -> None:
    door = await opened(ListenerPlan("lab", LOOPBACK, identity=LAB))
    async with await door.client() as client:
        assert (await client.request("ping"))["message"] == "pong"
    assert door.stage.audited("authentication")[0]["tenant"] == "lab"


@pytest.mark.parametrize("identity", [None, ListenerRule("x", "x", "x", ELSEWHERE)])
async def test_who_comes_from_elsewhere_is_turned_away(
    opened: Opened, identity: ListenerRule | None
) -> None:
    door = await opened(ListenerPlan("lab", ELSEWHERE, identity=identity))
    assert await closed_at_once(door)
    assert door.stage.stats.clients_rejected["source"] == 1
    assert door.stage.stats.clients_accepted == 0


# --- TLS ------------------------------------------------------------------------------------------


def tls(folder: Path, ca: Authority, *, clients: bool = False, required: bool = True) -> ServerTls:
    certificate, key = ca.issue_server()
    return ServerTls(ServerTlsFiles(certificate, key, ca.path if clients else None, required))


async def test_tls_and_a_token(opened: Opened, tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    door = await opened(ListenerPlan("tls", tls=tls(tmp_path, ca)))
    async with await door.client(client_context(ca.path)) as client:
        hello = await client.request("connect", {"token": "alice-token"})
        assert hello["ok"]
        big = "x" * 3_000_000
        assert (await client.request("ping", {"message": big}))["message"] == "pong"
        sink = next(iter(door.stage.hub.clients)).sink
        sock = sink.get_extra_info("socket")  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_plain_text_on_a_tls_listener_is_no_client(opened: Opened, tmp_path: Path) -> None:
    door = await opened(ListenerPlan("tls", tls=tls(tmp_path, Authority(tmp_path))))
    reader, writer = await door.open()
    writer.write(b"Content-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(10):
        try:
            answer = await reader.read()
        except ConnectionError:
            answer = b""
    assert b"jsonrpc" not in answer
    assert door.stage.stats.clients_accepted == 0
    writer.close()


MAPPING = CertificateMapping(
    FieldSelector.parse("t", "O"),
    FieldSelector.parse("u", "CN"),
    FieldSelector.parse("a", "OU:operators"),
)


@pytest.mark.parametrize(
    ("subject", "who"),
    [
        ([("CN", "ann"), ("O", "acme")], ("acme", "ann", Role.USER)),
        ([("CN", "ann"), ("O", "acme"), ("OU", "operators")], ("acme", "ann", Role.ADMIN)),
    ],
)
async def test_a_certificate_says_who_a_client_is(
    opened: Opened, tmp_path: Path, subject: list[tuple[str, str]], who: tuple[str, str, Role]
) -> None:
    ca = Authority(tmp_path)
    plan = ListenerPlan("mtls", certificates=MAPPING, tls=tls(tmp_path, ca, clients=True))
    door = await opened(plan)
    async with await door.client(client_context(ca.path, *ca.issue("ann", subject))) as client:
        await client.request("ping")
        (core,) = door.stage.hub.clients
        identity = core.identity
        assert identity is not None
        assert (identity.tenant, identity.user, identity.role) == who
        assert identity.source.startswith("certificate:")
        assert identity.expires_at is not None


async def test_a_certificate_that_says_too_little_leaves_the_token(
    opened: Opened, tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    plan = ListenerPlan("mtls", certificates=MAPPING, tls=tls(tmp_path, ca, clients=True))
    door = await opened(plan)
    context = client_context(ca.path, *ca.issue("ann", [("CN", "ann")]))
    async with await door.client(context) as client:
        await client.request("connect", {"token": "bob-token"})
        (core,) = door.stage.hub.clients
        assert core.identity is not None and core.identity.user == "bob"


async def test_without_a_certificate_there_is_no_handshake(opened: Opened, tmp_path: Path) -> None:
    ca, other = Authority(tmp_path), Authority(tmp_path, "other")
    door = await opened(ListenerPlan("mtls", tls=tls(tmp_path, ca, clients=True)))
    for context in (
        client_context(ca.path),
        client_context(ca.path, *other.issue("ann", [("CN", "ann"), ("O", "acme")])),
    ):
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            reader, writer = await door.open(context)
            try:
                writer.write(b"x")
                await reader.readexactly(1)
            finally:
                writer.close()
    assert door.stage.stats.clients_accepted == 0


async def test_a_renewed_certificate_serves_the_next_handshake(
    opened: Opened, tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    server = tls(tmp_path, ca)
    door = await opened(ListenerPlan("tls", tls=server))

    async def serial() -> Any:
        _, writer = await door.open(client_context(ca.path))
        shown = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return shown

    async with await door.client(client_context(ca.path)) as early:
        before = await serial()
        ca.issue_server()
        assert server.reload_if_changed()
        assert await serial() != before
        await early.request("connect", {"token": "alice-token"})


# --- PROXY headers --------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [HEADER, HEADER_V2])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_balancers_header_names_the_client(
    opened: Opened, tmp_path: Path, header: bytes, secure: bool
) -> None:
    ca = Authority(tmp_path)
    door = await opened(
        ListenerPlan(
            "lb",
            ELSEWHERE,
            ListenerRule("lb", "lab", "all", ELSEWHERE),
            tls=tls(tmp_path, ca) if secure else None,
            proxies=LOOPBACK,
        )
    )
    context = client_context(ca.path) if secure else None
    async with await door.client(context, before=header) as client:
        await client.request("ping")
        (core,) = door.stage.hub.clients
        assert core.peer == "192.0.2.7:5555"
        assert core.identity is not None and core.identity.tenant == "lab"


async def test_a_header_one_byte_at_a_time_with_the_first_message_behind_it(
    opened: Opened,
) -> None:
    door = await opened(ListenerPlan("lb", proxies=LOOPBACK))
    reader, writer = await door.open()
    body = b'{"jsonrpc":"2.0","id":1,"method":"connect","params":{"token":"alice-token"}}'
    for byte in HEADER[:-1]:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(HEADER[-1:] + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    async with asyncio.timeout(10):
        assert b'"ok":true' in await reader.readuntil(b"}")
    writer.close()


@pytest.mark.parametrize(
    "start",
    [
        b"Content-Length: 100\r\n\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 5555\r\n",
        b"PROXY " + b"x" * 200,
        b"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c" + b"x" * 12,
    ],
)
async def test_a_connection_without_a_valid_header_is_closed(opened: Opened, start: bytes) -> None:
    door = await opened(ListenerPlan("lb", proxies=LOOPBACK))
    assert await closed_at_once(door, after=start)
    assert door.stage.stats.clients_accepted == 0


async def test_a_header_from_elsewhere_is_not_believed(opened: Opened) -> None:
    door = await opened(ListenerPlan("lb", proxies=ELSEWHERE))
    assert await closed_at_once(door, after=HEADER)
    assert door.stage.stats.clients_rejected["source"] == 1


async def test_a_header_that_does_not_come_is_not_waited_for(opened: Opened) -> None:
    door = await opened(ListenerPlan("lb", proxies=LOOPBACK, handshake_timeout=0.1))
    assert await closed_at_once(door, after=b"PROXY ")


async def test_a_client_that_a_header_names_from_outside_is_turned_away(opened: Opened) -> None:
    door = await opened(ListenerPlan("lb", LOOPBACK, identity=LAB, proxies=LOOPBACK))
    assert await closed_at_once(door, after=HEADER)


async def test_a_header_without_an_address_leaves_the_balancers_own(opened: Opened) -> None:
    door = await opened(ListenerPlan("lb", proxies=LOOPBACK))
    async with await door.client(before=b"PROXY UNKNOWN\r\n") as client:
        await client.request("connect", {"token": "alice-token"})
        (core,) = door.stage.hub.clients
        assert core.peer.startswith("127.0.0.1:")


async def test_where_authentication_is_off_everybody_is_somebody(opened: Opened) -> None:
    somebody = Identity("default", "admin", Role.ADMIN, None, "none")
    door = await opened(ListenerPlan(fallback=somebody))
    async with await door.client() as client:
        await client.request("ping")
        (core,) = door.stage.hub.clients
        assert core.identity is somebody
        assert core.who()["peer"].startswith("127.0.0.1:")
