"""Sockets of clients and replicas: options, limits, what dialing may run into."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.io.connections import Flow, ReplicaDialer, address_text
from gateway.io.sockets import Keepalive
from gateway.types import ReplicaSpec
from tests.support.fake_cli import FakeCli
from tests.support.gateway import ADMIN_TOKEN, LocalGateway
from tests.support.rpc import ConnectionEnded, RpcClient, frame
from tests.support.sessions import session_params
from tests.support.wait import eventually


@pytest.fixture
async def gateway(fake_cli: FakeCli, tmp_path: Path) -> AsyncIterator[LocalGateway]:
    """A worker in front of one fake CLI."""
    flow = {"keepalive_idle": 7.0, "keepalive_interval": 3.0, "keepalive_count": 2}
    async with LocalGateway(tmp_path, fake_cli, flow=flow, limits={"max_clients": 3}) as gateway:
        yield gateway


def options(sock: Any) -> dict[str, int]:
    tcp = socket.IPPROTO_TCP
    return {
        "nodelay": sock.getsockopt(tcp, socket.TCP_NODELAY),
        "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "idle": sock.getsockopt(tcp, socket.TCP_KEEPIDLE),
        "interval": sock.getsockopt(tcp, socket.TCP_KEEPINTVL),
        "count": sock.getsockopt(tcp, socket.TCP_KEEPCNT),
        "user_timeout": sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
    }


async def test_both_sides_find_dead_peers_and_send_at_once(gateway: LocalGateway) -> None:
    async with await gateway.connect() as client:
        await client.request("session.create", session_params("s"))
        (core,) = gateway.worker.hub.clients
        link = core.links["cli-0"]
        expected = {
            "nodelay": 1, "keepalive": 1, "idle": 7, "interval": 3, "count": 2,
            "user_timeout": 13_000,
        }  # fmt: skip
        for sink in (core.sink, link.sink):
            transport: Any = sink
            assert options(transport.get_extra_info("socket")) == expected


async def test_connections_beyond_the_limit_are_turned_away(gateway: LocalGateway) -> None:
    clients = [await gateway.connect() for _ in range(3)]
    with pytest.raises((ConnectionEnded, OSError)):
        await gateway.connect()
    assert sum(gateway.worker.stats.clients_rejected.values()) == 1
    await clients.pop().close()
    await eventually(lambda: len(gateway.worker.hub.clients) == 2)
    clients.append(await gateway.connect())
    await clients[-1].request("ping")
    for client in clients:
        await client.close()


async def test_header_and_body_apart_cost_no_delayed_acknowledgement(
    gateway: LocalGateway,
) -> None:
    """As SDKs write them; without prompt acknowledgements each request takes 40 ms."""
    loop = asyncio.get_running_loop()
    sock = socket.create_connection((gateway.host, gateway.port))
    sock.setblocking(False)
    request = {"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {"token": ADMIN_TOKEN}}
    took = []
    with sock:
        for _ in range(12):
            header, _, body = frame(request).partition(b"\r\n\r\n")
            started = time.perf_counter()
            await loop.sock_sendall(sock, header + b"\r\n\r\n")
            await loop.sock_sendall(sock, body)
            assert b'"result"' in await loop.sock_recv(sock, 65536)
            took.append(time.perf_counter() - started)
            request["method"], request["params"] = "ping", {}
    assert min(took) < 0.02


async def test_what_is_written_before_a_cut_still_arrives(gateway: LocalGateway) -> None:
    reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
    writer.write(b"rubbish\r\n\r\n")
    assert b"-32700" in await reader.read()
    writer.close()


async def test_a_reset_is_an_end_like_any_other(gateway: LocalGateway) -> None:
    client = await gateway.connect()
    await client.request("session.create", session_params("s"))
    client.abort()
    await client.close()
    await eventually(lambda: not gateway.worker.hub.clients)


class Target:
    """A link as far as a dialer looks at it."""

    def __init__(self, host: str, port: int) -> None:
        self.replica = self
        self.spec = ReplicaSpec("cli-0", host, port, "secret")


async def dial(gateway: LocalGateway, flow: Flow, host: str, port: int) -> Any:
    dialer = ReplicaDialer(flow)
    dialer.hub = gateway.worker.hub
    return await dialer.dial(Target(host, port))  # type: ignore[arg-type]


async def test_a_refused_connection(gateway: LocalGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await dial(gateway, Flow(), "127.0.0.1", port)


async def test_a_name_that_does_not_resolve(gateway: LocalGateway) -> None:
    with pytest.raises(OSError):
        await dial(gateway, Flow(), "no-such-host.invalid", 1)


async def test_a_connection_that_nobody_accepts_in_time(gateway: LocalGateway) -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = []
    try:
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            waiting.append(filler)
        with pytest.raises(OSError, match="cli-0: no connection within") as caught:
            await dial(gateway, Flow(dial_timeout=0.2), *full.getsockname())
        assert "secret" not in str(caught.value)
    finally:
        for one in (full, *waiting):
            one.close()


def test_addresses_as_text() -> None:
    assert address_text("192.0.2.1", 5) == "192.0.2.1:5"
    assert address_text("2001:db8::1", 5) == "[2001:db8::1]:5"


def test_the_time_after_which_a_silent_peer_is_dead() -> None:
    assert Keepalive(30, 10, 3).total == 60


async def test_ipv6_clients_are_served(fake_cli: FakeCli, tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.fail("this machine has no IPv6 loopback")
    async with LocalGateway(tmp_path, fake_cli) as gateway:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
            sock.setblocking(False)
            port = sock.getsockname()[1]
            loop = asyncio.get_running_loop()
            from gateway.io.connections import ClientProtocol

            server = await loop.create_server(
                lambda: ClientProtocol(gateway.worker.hub, Flow()), sock=sock
            )
            async with await RpcClient.connect("::1", port, ADMIN_TOKEN) as client:
                await client.request("ping")
                (core,) = gateway.worker.hub.clients
                assert core.peer.startswith("[::1]:")
            server.close()
