from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError, StartupError
from gateway.io import connector as module
from gateway.io.connector import ClientToken, Connector, GatewayAddress, Upstream
from gateway.io.tls import ServerTlsFiles, client_context, server_context
from gateway.wire.envelope import encode
from gateway.wire.framing import SALVAGE_BYTES
from tests.support.certificates import Authority
from tests.support.rpc import ConnectionEnded, RpcClient, RpcFault
from tests.support.standin import PING_MILLISECONDS, PING_TIMESTAMP, Link, Message, StandIn
from tests.support.wait import eventually


class Clock:
    """Monotonic seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def gateway() -> AsyncIterator[StandIn]:
    async with StandIn() as standin:
        yield standin


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def connector(gateway: StandIn, token_file: Path, clock: Clock) -> AsyncIterator[Connector]:
    address = GatewayAddress("127.0.0.1", gateway.port)
    connector = Connector(Upstream(address, ClientToken(token_file), clock=clock))
    yield connector
    await connector.close()


@pytest.fixture
async def port(connector: Connector) -> int:
    return await connector.listen("127.0.0.1", 0)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def event(kind: str, data: dict[str, Any]) -> Message:
    params = {"sessionId": "s", "event": {"type": kind, "data": data, "id": "e"}}
    return {"jsonrpc": "2.0", "method": "session.event", "params": params}


async def test_a_connect_is_sent_on_with_the_token(gateway: StandIn, port: int) -> None:
    async with await RpcClient.connect(
        "127.0.0.1", port, handshake={"supportedTaskKinds": ["agent"]}
    ) as client:
        assert client.hello["version"] == "1.0.102"
        [link] = gateway.links
        [connect] = link.messages
        assert connect["params"] == {"supportedTaskKinds": ["agent"], "token": "secret"}


async def test_a_token_of_the_clients_own_is_replaced(gateway: StandIn, port: int) -> None:
    async with await RpcClient.connect("127.0.0.1", port, token="other"):
        assert gateway.links[0].messages[0]["params"] == {"token": "secret"}


async def test_after_connect_bytes_pass_as_they_are(gateway: StandIn, port: int) -> None:
    gateway.respond = lambda link, message: None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connect = {"jsonrpc": "2.0", "id": 0, "method": "connect", "params": {}}
    odd = b'content-length:  32\r\nX: y\r\n\r\n{"jsonrpc": "2.0", "method":"a"}'
    writer.write(encode(connect) + odd[:40])
    await eventually(lambda: gateway.links and gateway.links[0].received.endswith(odd[:40]))
    for byte in odd[40:]:
        writer.write(bytes([byte]))
    [link] = gateway.links
    await eventually(lambda: link.received.endswith(odd))
    back = b"Content-Length: 2\r\nOdd: 1\r\n\r\n{}" + encode(
        {"result": {"message": "", "timestamp": PING_TIMESTAMP, "protocolVersion": 3}}
    )
    link.writer.write(back)
    assert await reader.readexactly(len(back)) == back
    writer.close()
    await link.ended.wait()


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_handshake_in_any_chunking(gateway: StandIn, port: int, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ping = {"jsonrpc": "2.0", "id": "p", "method": "ping", "params": {"message": "x"}}
    data = encode(ping) * 2
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await asyncio.sleep(0)
    answer = encode(
        {
            "jsonrpc": "2.0",
            "id": "p",
            "result": {
                "message": "pong: x",
                "timestamp": PING_MILLISECONDS,
                "protocolVersion": 3,
            },
        }
    )
    assert await reader.readexactly(2 * len(answer)) == 2 * answer
    assert [message["method"] for message in gateway.links[0].messages] == [
        "connect",
        "ping",
        "ping",
    ]
    writer.close()


async def test_an_old_client_is_logged_in_and_bridged(gateway: StandIn, port: int) -> None:
    async with await RpcClient.connect("127.0.0.1", port) as client:
        assert (await client.request("ping"))["timestamp"] == PING_MILLISECONDS
        [link] = gateway.links
        assert link.messages[0]["params"] == {"token": "secret"}
        link.send(event("session.idle", {"mode": "interactive", "aborted": True}))
        link.send(event("session.start", {"mode": "interactive"}))
        idle = await client.wait_event("s", "session.idle")
        assert idle["data"] == {"aborted": True}
        start = await client.wait_event("s", "session.start")
        assert start["data"] == {"mode": "interactive"}
        assert not client.strays.all  # the answer to the connector's own request


async def test_what_comes_with_the_handshakes_answer_is_not_lost(
    gateway: StandIn, port: int
) -> None:
    def respond(link: Link, message: Message) -> None:
        if message["method"] == "connect":
            link.send(event("before", {}))
        gateway.answer(link, message)
        if message["method"] == "connect":
            link.send(event("after", {}))

    gateway.respond = respond
    async with await RpcClient.connect("127.0.0.1", port) as client:
        await client.request("ping")
        assert [message["type"] for message in client.events("s")] == ["before", "after"]


async def test_today_s_client_is_not_bridged(gateway: StandIn, port: int) -> None:
    async with await RpcClient.connect("127.0.0.1", port, handshake={}) as client:
        assert (await client.request("ping"))["timestamp"] == PING_TIMESTAMP
        gateway.links[0].send(event("session.idle", {"mode": "interactive"}))
        assert (await client.wait_event("s", "session.idle"))["data"] == {"mode": "interactive"}


async def test_a_client_that_opens_with_anything_else_is_logged_in_and_not_bridged(
    gateway: StandIn, port: int
) -> None:
    async with await RpcClient.connect("127.0.0.1", port) as client:
        assert (await client.request("session.list", {"a": 1}))["method"] == "session.list"
        assert (await client.request("ping"))["timestamp"] == PING_TIMESTAMP
        assert gateway.links[0].messages[0]["params"] == {"token": "secret"}


async def test_a_changed_token_serves_new_clients(
    gateway: StandIn, port: int, token_file: Path
) -> None:
    async with await RpcClient.connect("127.0.0.1", port, handshake={}) as first:
        gateway.token = "renewed"
        write(token_file, "renewed")
        async with await RpcClient.connect("127.0.0.1", port, handshake={}):
            assert await first.request("x")


async def test_a_refused_token_is_the_gateways_own_answer(gateway: StandIn, port: int) -> None:
    gateway.token = "other"
    with pytest.raises(RpcFault) as caught:
        await RpcClient.connect("127.0.0.1", port, handshake={})
    assert caught.value.code == -32002


async def test_an_old_client_is_told_of_a_refused_token_until_it_is_right(
    gateway: StandIn, port: int, token_file: Path
) -> None:
    gateway.token = "renewed"
    async with await RpcClient.connect("127.0.0.1", port) as client:
        for _ in range(3):
            with pytest.raises(RpcFault) as caught:
                await client.request("ping")
            assert caught.value.code == -32002
            assert "AUTHENTICATION_FAILED" in str(caught.value)
        assert len(gateway.links) == 1  # guesses are not repeated for every request
        await gateway.links[0].ended.wait()
        write(token_file, "renewed")
        assert await client.request("ping")


async def test_while_the_gateway_is_away_requests_are_answered(
    gateway: StandIn, port: int, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await gateway.stop()
    async with (
        await RpcClient.connect("127.0.0.1", port) as old,
        await RpcClient.connect("127.0.0.1", port) as new,
    ):
        futures = [old.post("ping", {}) for _ in range(3)] + [new.post("connect", {})]
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(outcome, RpcFault)
            assert outcome.code == -32010
            assert 0 < outcome.data["retryAfterMs"] <= 1000
            assert str(outcome).endswith("cannot be reached: Connection refused")
        old.notify("ignored")
        await gateway.start()
        with pytest.raises(RpcFault):
            await old.request("ping")  # not dialled again so soon
        clock.now += module.RETRY_SECONDS
        assert (await old.request("ping"))["timestamp"] == PING_MILLISECONDS
        assert (await new.request("connect", {}))["ok"]
        async with await RpcClient.connect("127.0.0.1", port, handshake={}) as third:
            assert await third.request("x")
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2 and lines[1].endswith("serves again")


async def test_a_gateway_that_is_lost_takes_its_clients_with_it_and_serves_new_ones(
    gateway: StandIn, port: int
) -> None:
    clients = [
        await RpcClient.connect("127.0.0.1", port, handshake={}),
        await RpcClient.connect("127.0.0.1", port),
    ]
    await clients[1].request("ping")
    gateway.respond = lambda link, message: None
    waiting = [client.post("x", {}) for client in clients]
    await eventually(lambda: all(link.messages[-1]["method"] == "x" for link in gateway.links))
    await gateway.stop()
    for client, future in zip(clients, waiting, strict=True):
        await client.wait_ended()
        with pytest.raises(ConnectionEnded):
            await future
        await client.close()
    gateway.respond = None
    await gateway.start()
    async with await RpcClient.connect("127.0.0.1", port, handshake={}) as client:
        assert await client.request("x")


async def test_a_gateway_that_closes_in_the_handshake_counts_as_away(
    gateway: StandIn, port: int
) -> None:
    gateway.respond = lambda link, message: link.writer.close()
    async with await RpcClient.connect("127.0.0.1", port) as client:
        with pytest.raises(RpcFault) as caught:
            await client.request("ping")
        assert caught.value.code == -32010


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\r\n\r\n"])
async def test_a_peer_that_is_no_gateway_counts_as_away(
    gateway: StandIn, port: int, answer: bytes
) -> None:
    gateway.respond = lambda link, message: link.writer.write(answer)
    async with await RpcClient.connect("127.0.0.1", port) as client:
        with pytest.raises(RpcFault) as caught:
            await client.request("ping")
        assert caught.value.code == -32010


async def test_a_gateway_that_does_not_answer_the_handshake_counts_as_away(
    gateway: StandIn, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_SECONDS", 0.05)
    gateway.respond = lambda link, message: None
    async with await RpcClient.connect("127.0.0.1", port) as client:
        with pytest.raises(RpcFault, match="in time"):
            await client.request("ping")
        await gateway.links[0].ended.wait()


async def test_a_name_that_does_not_resolve_counts_as_away(token_file: Path) -> None:
    for name in ("gateway.invalid", "a" * 70):
        connector = Connector(Upstream(GatewayAddress(name, 1), ClientToken(token_file)))
        port = await connector.listen("127.0.0.1", 0)
        async with await RpcClient.connect("127.0.0.1", port) as client:
            with pytest.raises(RpcFault) as caught:
                await client.request("connect", {})
            assert caught.value.code == -32010
        await connector.close()


async def test_a_client_that_leaves_takes_its_connection_with_it(
    gateway: StandIn, port: int
) -> None:
    client = await RpcClient.connect("127.0.0.1", port, handshake={})
    await client.close()
    await eventually(lambda: gateway.links)
    await gateway.links[0].ended.wait()


async def test_a_client_that_leaves_during_the_handshake(gateway: StandIn, port: int) -> None:
    gateway.respond = lambda link, message: None
    client = await RpcClient.connect("127.0.0.1", port)
    client.post("ping", {})
    await eventually(lambda: gateway.links and gateway.links[0].messages)
    await client.close()
    await gateway.links[0].ended.wait()


@pytest.mark.parametrize("first", ["connect", "ping"])
async def test_a_slow_client_holds_the_gateway_up_and_loses_nothing(
    gateway: StandIn, port: int, first: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(encode({"jsonrpc": "2.0", "id": 1, "method": first, "params": {}}))
    await reader.readuntil(b"}}")
    writer.transport.pause_reading()
    [link] = gateway.links
    data = encode(event("session.start", {"text": "x" * 65536})) * 512
    link.writer.write(data)
    drained = asyncio.create_task(link.writer.drain())
    sizes: list[int] = []

    def stalled() -> bool:
        """Whether nothing has moved for a while, with most of it still at the gateway."""
        sizes.append(link.writer.transport.get_write_buffer_size())
        return len(sizes) > 20 and len(set(sizes[-20:])) == 1

    await eventually(stalled)
    assert sizes[-1] > len(data) // 2
    assert not drained.done()
    writer.transport.resume_reading()
    assert await reader.readexactly(len(data)) == data
    await drained
    writer.close()


async def test_a_slow_gateway_holds_the_client_up_and_loses_nothing(
    gateway: StandIn, port: int
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    gateway.listening.clear()
    writer.write(encode({"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {}}))
    await eventually(lambda: gateway.links and gateway.links[0].messages)
    data = encode({"jsonrpc": "2.0", "method": "x", "params": {"text": "x" * 65536}}) * 512
    writer.write(data)
    sizes: list[int] = []

    def stalled() -> bool:
        sizes.append(writer.transport.get_write_buffer_size())
        return len(sizes) > 20 and len(set(sizes[-20:])) == 1

    await eventually(stalled)
    assert sizes[-1] > len(data) // 2
    gateway.listening.set()
    await eventually(lambda: len(gateway.links[0].messages) == 513)
    assert gateway.links[0].received.endswith(data)
    writer.close()


async def test_messages_that_are_none_are_answered_before_the_handshake(
    gateway: StandIn, port: int
) -> None:
    async with await RpcClient.connect("127.0.0.1", port) as client:
        for body in (b"[]", b"{", b'{"jsonrpc":"2.0","id":null,"method":"ping"}'):
            client.send_raw(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await eventually(lambda: len(client.strays.all) == 3)
        assert {stray["error"]["code"] for stray in client.strays.all} == {-32600, -32700}
        assert not gateway.links
        assert await client.request("ping")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"x" * 10000,
    ],
)
async def test_what_is_no_frame_ends_the_connection(
    gateway: StandIn, port: int, data: bytes
) -> None:
    async with await RpcClient.connect("127.0.0.1", port) as client:
        client.send_raw(data)
        await client.wait_ended()
        [stray] = client.strays.all
        assert stray["error"]["code"] == -32700
    assert not gateway.links


async def test_a_first_message_that_is_too_large_is_refused_unread(
    gateway: StandIn, port: int
) -> None:
    async with await RpcClient.connect("127.0.0.1", port) as client:
        head = b'{"jsonrpc":"2.0","id":7,"method":"connect","params":{"x":"'
        length = module.MAX_OPENING_BYTES + 1
        client.send_raw(b"Content-Length: %d\r\n\r\n%b" % (length, head.ljust(SALVAGE_BYTES, b"x")))
        await client.wait_ended()
        [stray] = client.strays.all
        assert stray["id"] == 7 and stray["error"]["code"] == -32600
    assert not gateway.links


async def test_what_is_pipelined_behind_the_first_message_is_sent_on_however_large(
    gateway: StandIn, port: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    big = encode({"jsonrpc": "2.0", "method": "x", "params": {"text": "x" * 3_000_000}})
    writer.write(encode({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}) + big)
    await eventually(lambda: gateway.links and len(gateway.links[0].messages) == 3)
    assert gateway.links[0].received.endswith(big)
    assert b"pong" in await reader.readuntil(b"}}")
    writer.close()


async def test_tls_with_a_client_certificate(tmp_path: Path, token_file: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server()
    tls = server_context(ServerTlsFiles(certificate, key, authority.path))
    trust = client_context(authority.path, *authority.issue("sidecar"))
    async with StandIn(tls=tls) as gateway:
        address = GatewayAddress("127.0.0.1", gateway.port, trust, "localhost")
        connector = Connector(Upstream(address, ClientToken(token_file)))
        port = await connector.listen("127.0.0.1", 0)
        async with await RpcClient.connect("127.0.0.1", port, handshake={}) as client:
            assert await client.request("x", {"text": "x" * 1_000_000})
        assert gateway.links[0].certificate["subject"] == ((("commonName", "sidecar"),),)
        await connector.close()


@pytest.mark.parametrize("server_name", ["example.com", None])
async def test_the_token_is_not_sent_to_a_gateway_that_is_not_verified(
    tmp_path: Path, token_file: Path, server_name: str | None
) -> None:
    authority = Authority(tmp_path)
    tls = server_context(ServerTlsFiles(*authority.issue_server()))
    trust = client_context(authority.path if server_name else None)
    async with StandIn(tls=tls) as gateway:
        address = GatewayAddress("127.0.0.1", gateway.port, trust, server_name)
        connector = Connector(Upstream(address, ClientToken(token_file)))
        port = await connector.listen("127.0.0.1", 0)
        with pytest.raises(RpcFault, match="certificate is not valid"):
            await RpcClient.connect("127.0.0.1", port, handshake={})
        assert not any(link.received for link in gateway.links)
        await connector.close()


async def test_a_unix_socket_is_for_its_owner_alone(
    gateway: StandIn, connector: Connector, tmp_path: Path
) -> None:
    path = tmp_path / "cli.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    await connector.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(encode({"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {}}))
    assert b'"ok":true' in await reader.readuntil(b"}}")
    writer.close()
    await connector.close()
    assert not path.exists()


async def test_a_unix_socket_in_use_is_not_taken_away(
    connector: Connector, token_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cli.sock"
    await connector.listen_unix(path)
    second = Connector(Upstream(GatewayAddress("127.0.0.1", 1), ClientToken(token_file)))
    with pytest.raises(StartupError, match="Address already in use"):
        await second.listen_unix(path)
    await second.close()
    assert path.is_socket()


@pytest.mark.parametrize("name", ["token", "absent/cli.sock", "x" * 120])
async def test_a_unix_socket_that_cannot_be_made(
    connector: Connector, token_file: Path, name: str
) -> None:
    with pytest.raises(StartupError, match=r"^cannot listen on unix:"):
        await connector.listen_unix(token_file.parent / name)
    assert ClientToken(token_file).current() == "secret"


async def test_a_port_in_use_is_an_error_of_one_line(connector: Connector, port: int) -> None:
    with pytest.raises(StartupError) as caught:
        await connector.listen("127.0.0.1", port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"


async def test_closing_waits_for_no_client(gateway: StandIn, connector: Connector) -> None:
    port = await connector.listen("localhost", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(encode({"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {}}))
    await reader.readuntil(b"}}")
    writer.transport.pause_reading()
    gateway.links[0].writer.write(encode(event("x", {"text": "x" * 8_000_000})))
    async with asyncio.timeout(10):
        await connector.close()
    await gateway.links[0].ended.wait()
    writer.transport.abort()


def test_a_token_file_is_read_again_and_a_spoiled_one_is_not(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = ClientToken(token_file)
    assert token.current() == "secret"
    token_file.write_text("  next-token \n")
    assert token.current() == "next-token"
    for spoil in (lambda: token_file.write_text(""), token_file.unlink):
        spoil()
        assert token.current() == "next-token"
        assert "keeping the token" in caplog.text
        caplog.clear()
    token_file.write_text("third")
    assert token.current() == "third"
    assert "third" not in caplog.text and "third" not in repr(token)


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"two\nlines", b"\xff\xfe", b"a\0b", b"x" * 20000]
)
def test_a_bad_token_file_is_named_at_the_start(token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^token file .*/token "):
        ClientToken(token_file)


def test_an_absent_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ClientToken(tmp_path / "absent")


def test_a_token_file_that_all_can_read_is_worth_a_warning(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ClientToken(token_file)
    assert not caplog.records
    token_file.chmod(0o644)
    ClientToken(token_file)
    assert "can be read by every user" in caplog.text
