"""Bad input over real sockets: an error with a stable code, under its own id wherever one is
readable, and other sessions untouched.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway import errors
from tests.e2e.conftest import Fleet
from tests.support.gateway import ADMIN_TOKEN, LocalGateway
from tests.support.rpc import Message, RpcClient, RpcFault, frame
from tests.support.sessions import run_turn
from tests.support.wait import eventually


class Scene:
    """A gateway, the client that misbehaves and one that must not notice.

    Attributes:
        client: owns session ``mine``.
        victim: of another tenant, owns session ``victims``.
    """

    def __init__(self, fleet: Fleet, gateway: LocalGateway) -> None:
        self.fleet = fleet
        self.gateway = gateway
        self.client: RpcClient = None  # type: ignore[assignment]
        self.victim: RpcClient = None  # type: ignore[assignment]

    async def answered(self, data: bytes, client: RpcClient | None = None) -> Message:
        """Send bytes; return the next answer that belongs to no request made by name."""
        client = client or self.client
        client.send_raw(data)
        return await client.strays.wait_for(lambda m: True)


@pytest.fixture
async def scene(fakes: Fleet) -> AsyncIterator[Scene]:
    """A scene on two fake CLIs; afterwards the victim's turn still runs."""
    gateway = await fakes.local(limits={"max_frame": 1 << 20}, auth={"static_token": ADMIN_TOKEN,
        "source_failures": 100_000, "max_failures": 100, "token_poll": 0.05})  # fmt: skip
    scene = Scene(fakes, gateway)
    scene.client = await fakes.client(gateway, gateway.add_token("evil", "eve"))
    scene.victim = await fakes.client(gateway, gateway.add_token("acme", "alice"))
    await scene.client.request("session.create", fakes.params("mine"))
    await scene.victim.request("session.create", fakes.params("victims"))
    yield scene
    assert await run_turn(scene.victim, "victims", "still there?") == (
        "echo: still there? [user messages: 1]"
    )
    assert not scene.victim.ended.is_set()


def body(**message: Any) -> bytes:
    return frame({"jsonrpc": "2.0", **message})


async def test_unknown_session(scene: Scene) -> None:
    with pytest.raises(RpcFault, match="Session not found") as caught:
        await scene.client.request("session.send", {"sessionId": "nowhere", "prompt": "x"})
    assert caught.value.code == errors.INTERNAL_ERROR


async def test_foreign_session_reads_like_an_unknown_one(scene: Scene) -> None:
    answers = []
    for session_id in ("victims", "nowhere"):
        with pytest.raises(RpcFault) as caught:
            await scene.client.request("session.send", {"sessionId": session_id, "prompt": "x"})
        answers.append((caught.value.code, caught.value.message.replace(session_id, "ID")))
    assert answers[0] == answers[1]


async def test_oversized_frame(scene: Scene) -> None:
    answer = await scene.answered(body(id="big", method="ping", params={"m": "x" * (1 << 20)}))
    assert answer["id"] == "big"
    assert answer["error"]["code"] == errors.OVERLOADED
    assert answer["error"]["data"]["limit"] == "max_frame"
    await scene.client.wait_ended()


async def test_oversized_frame_is_refused_from_its_first_bytes(scene: Scene) -> None:
    head = b'{"jsonrpc":"2.0","id":"big","method":"ping","params":{"m":"' + b"x" * 600
    answer = await scene.answered(b"Content-Length: 999999999999\r\n\r\n" + head)
    assert (answer["id"], answer["error"]["code"]) == ("big", errors.OVERLOADED)
    await scene.client.wait_ended()


async def test_oversized_frame_before_authentication(scene: Scene) -> None:
    stranger = await scene.fleet.bare(scene.gateway)
    params = {"token": "x" * 20_000}
    answer = await scene.answered(body(id=1, method="connect", params=params), stranger)
    assert (answer["id"], answer["error"]["code"]) == (1, errors.OVERLOADED)
    assert answer["error"]["data"]["limit"] == "max_unauthenticated_frame"
    await stranger.wait_ended()


@pytest.mark.parametrize(
    ("text", "under"),
    [
        (b"{broken", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b'{"jsonrpc":"2.0","id":8,"method":"ping","params":{]}', 8),
        (b'{"jsonrpc":"2.0","id":"u","method":"ping","params":{"m":"\xff"}}', "u"),
        (b'{"jsonrpc":"2.0","id":9,"method":"ping","params":{"m":"\\ud800"}}', 9),
    ],
)
async def test_broken_json(scene: Scene, text: bytes, under: Any) -> None:
    answer = await scene.answered(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
    assert (answer["id"], answer["error"]["code"]) == (under, errors.PARSE_ERROR)
    assert "echo" in await run_turn(scene.client, "mine", "go on")


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\nHost: x",
        b"Content-Length: 2\r\nContent-Length: 2",
        b"Content-Length: 2\r\ncontent-length: 40",
        b"Content-Length: -2",
        b"Content-Length: 0x2",
        b"Content-Length: two",
        b"Content-Length : 2",
        b"Content-Length: 2\nX: 1",
        b"X: 1",
        b"\r\nContent-Length: 2",
        b"Content-Length: 99999999999999999999",
    ],
)
async def test_broken_or_duplicate_header(scene: Scene, header: bytes) -> None:
    answer = await scene.answered(header + b"\r\n\r\n{}")
    assert (answer["id"], answer["error"]["code"]) == (None, errors.PARSE_ERROR)
    await scene.client.wait_ended()


async def test_endless_header(scene: Scene) -> None:
    answer = await scene.answered(b"X: " + b"y" * 9000)
    assert (answer["id"], answer["error"]["code"]) == (None, errors.PARSE_ERROR)
    await scene.client.wait_ended()


async def test_unknown_method(scene: Scene) -> None:
    with pytest.raises(RpcFault, match="Unhandled method nonsense") as caught:
        await scene.client.request("nonsense")
    assert caught.value.code == errors.METHOD_NOT_FOUND


@pytest.mark.parametrize(
    ("written", "under"),
    [
        ("1.5", 1.5),
        ("1.0", 1.0),
        ("9223372036854775808", 2**63),
        ("null", None),
        ("true", None),
        ("[1]", None),
        ('{"a":1}', None),
    ],
)
async def test_ids_of_the_wrong_types(scene: Scene, written: str, under: Any) -> None:
    """A CLI answers these under a null id, so that the caller waits for ever."""
    text = f'{{"jsonrpc":"2.0","id":{written},"method":"ping","params":{{}}}}'.encode()
    answer = await scene.answered(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
    assert (answer["id"], answer["error"]["code"]) == (under, errors.INVALID_REQUEST)
    assert "echo" in await run_turn(scene.client, "mine", "go on")


@pytest.mark.parametrize("request_id", [0, -1, 2**63 - 1, "", "0", "ü", "x" * 1000])
async def test_ids_of_the_right_types(scene: Scene, request_id: Any) -> None:
    answer = await scene.answered(body(id=request_id, method="ping", params={}))
    assert answer["id"] == request_id
    assert answer["result"]["protocolVersion"] == 3


async def test_a_batch(scene: Scene) -> None:
    batch = [{"jsonrpc": "2.0", "id": 1, "method": "ping"}]
    answer = await scene.answered(frame(batch))
    assert (answer["id"], answer["error"]["code"]) == (None, errors.INVALID_REQUEST)


async def test_a_response_to_nothing(scene: Scene) -> None:
    for request_id in (1, 99, "x", ""):
        scene.client.send_raw(body(id=request_id, result={"forged": True}))
    await scene.client.request("ping")
    assert scene.client.strays.all == []


async def test_an_id_in_flight_used_again(scene: Scene) -> None:
    model = scene.fleet.model
    await scene.client.request("session.send", {"sessionId": "mine", "prompt": "[[gate g]] one"})
    await model.waiting("g")
    params = {"sessionId": "mine", "prompt": "two", "wait": True}
    first = scene.client.post("session.send", params, id="twice")
    cli = scene.fleet.fake(scene.gateway.replica_of("mine"))
    await eventually(lambda: len(cli.received("session.send")) >= 2)
    scene.client.send_raw(body(id="twice", method="session.abort", params={"sessionId": "mine"}))
    with pytest.raises(RpcFault) as caught:
        await first
    assert caught.value.code == errors.INVALID_REQUEST
    assert not cli.received("session.abort")
    await model.release("g")
    answer = await scene.client.strays.wait_for(lambda m: m["id"] == "twice")
    assert "messageId" in answer["result"]


@pytest.mark.parametrize("token", ["", "x" * 12_000, None, 5, True, ["t"], {"t": 1}])
async def test_a_token_that_is_empty_huge_or_not_a_string(scene: Scene, token: Any) -> None:
    stranger = await scene.fleet.bare(scene.gateway)
    with pytest.raises(RpcFault) as caught:
        await stranger.request("connect", {"token": token})
    assert caught.value.code == errors.AUTHENTICATION_FAILED


async def test_anything_before_connect(scene: Scene) -> None:
    stranger = await scene.fleet.bare(scene.gateway)
    for method in ("ping", "session.list", "session.create"):
        with pytest.raises(RpcFault) as caught:
            await stranger.request(method, {"sessionId": "mine"})
        assert caught.value.code == errors.AUTHENTICATION_REQUIRED


async def test_nesting_beyond_what_a_cli_reads(scene: Scene) -> None:
    deep = b'{"jsonrpc":"2.0","id":4,"method":"ping","params":{"message":'
    deep += b"[" * 126 + b"]" * 126 + b"}}"
    answer = await scene.answered(b"Content-Length: %d\r\n\r\n%s" % (len(deep), deep))
    assert (answer["id"], answer["error"]["code"]) == (4, errors.INVALID_REQUEST)


async def test_a_client_that_vanishes_in_the_middle_of_a_frame(scene: Scene) -> None:
    whole = frame({"jsonrpc": "2.0", "id": 1, "method": "session.send",
                   "params": {"sessionId": "mine", "prompt": "x" * 1000}})  # fmt: skip
    for cut in (5, 18, 30, len(whole) - 1):
        client = await scene.fleet.client(scene.gateway, scene.gateway.add_token("evil", "eve"))
        client.send_raw(whole[:cut])
        await client.drain()
        client.abort()
    clients = scene.gateway.worker.hub.clients
    await eventually(lambda: len(clients) == 2)
    assert not scene.fleet.fake(scene.gateway.replica_of("mine")).received("session.send")


async def test_a_client_that_half_closes_is_gone(scene: Scene) -> None:
    """As for the CLI, the end of what a client says is the end of the connection."""
    token = scene.gateway.add_token("evil", "eve")
    reader, writer = await asyncio.open_connection(scene.gateway.host, scene.gateway.port)
    writer.write(body(id=1, method="connect", params={"token": token}))
    assert b'"ok":true' in await reader.readuntil(b"}}")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await eventually(lambda: len(scene.gateway.worker.hub.clients) == 2)


async def test_one_byte_at_a_time(scene: Scene) -> None:
    for byte in body(id="slow", method="ping", params={}):
        scene.client.send_raw(bytes([byte]))
        await asyncio.sleep(0)
    answer = await scene.client.strays.wait_for(lambda m: m["id"] == "slow")
    assert answer["result"]["protocolVersion"] == 3


async def test_many_frames_in_one_packet(scene: Scene) -> None:
    scene.client.send_raw(b"".join(body(id=f"p{n}", method="ping", params={}) for n in range(200)))
    for number in range(200):
        await scene.client.strays.wait_for(lambda m, number=number: m["id"] == f"p{number}")


async def test_notifications_that_would_be_requests_do_nothing(scene: Scene) -> None:
    for name in ("victims", "nowhere"):
        scene.client.notify("session.abort", {"sessionId": name})
        scene.client.notify("session.send", {"sessionId": name, "prompt": "x"})
    scene.client.notify("runtime.shutdown")
    await scene.client.request("ping")
    for cli in scene.fleet.clis:
        calls = json.dumps([call.params for call in scene.fleet.fake(cli.name).calls])
        assert '"prompt": "x"' not in calls
