"""Messages that the gateway and the CLI might read differently."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway import errors
from tests.attack.conftest import LIVE, UNKNOWN, Attack
from tests.support.rpc import ConnectionEnded, Message, RpcClient, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN = "mallorys-own"


def framed(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def prompt(session_id: str, **more: object) -> bytes:
    params = {"sessionId": session_id, "prompt": "smuggled", **more}
    message = {"jsonrpc": "2.0", "id": "smuggled", "method": "session.send", "params": params}
    return json.dumps(message).encode()


async def answered(client: RpcClient, data: bytes) -> Message | None:
    """Send bytes; return the answer, or None if the connection was closed without one."""
    client.send_raw(data)
    try:
        return await client.strays.wait_for(lambda m: True)
    except ConnectionEnded:
        return None


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":"d","method":"session.send",'
        b'"params":{"sessionId":"%s","prompt":"x","sessionId":"%s"}}',
        b'{"jsonrpc":"2.0","id":"d","method":"session.send",'
        b'"params":{"sessionId":"%s","prompt":"x","session\\u0049d":"%s"}}',
        b'{"jsonrpc":"2.0","id":"d","method":"session.send",'
        b'"params":{"sessionId":"%s"},"params":{"prompt":"x","sessionId":"%s"}}',
        b'{"jsonrpc":"2.0","id":"d","method":"session.send",'
        b'"params":{"sessionId":"%s"},"p\\u0061rams":{"prompt":"x","sessionId":"%s"}}',
    ],
)
async def test_duplicate_and_escaped_keys(attack: Attack, body: bytes) -> None:
    """The CLI takes the last of duplicate keys: that one must be the one that is checked."""
    await attack.mallory.request("session.create", attack.field.params(OWN))
    answer = await answered(attack.mallory, framed(body % (OWN.encode(), LIVE.encode())))
    assert answer is not None
    assert answer["id"] == "d"
    assert "Session not found" in answer["error"]["message"]
    await attack.mallory.request("sessions.close", {"sessionId": OWN})


async def test_a_duplicate_method(attack: Attack) -> None:
    body = (
        b'{"jsonrpc":"2.0","id":"d","method":"ping","params":{"sessionId":"%s","prompt":"x"},'
        b'"method":"session.send"}' % LIVE.encode()
    )
    answer = await answered(attack.mallory, framed(body))
    assert answer is not None
    assert "Session not found" in answer["error"]["message"]


@pytest.mark.parametrize(
    "name", ["sessionid", "SessionId", "session_id", "sessionId ", "sessionId\x00"]
)
async def test_names_that_nearly_match(attack: Attack, name: str) -> None:
    answer = await attack.answer("session.send", {name: LIVE, "prompt": "x"})
    assert "error" in answer


@pytest.mark.parametrize(
    "session_id",
    [LIVE + "\x00", LIVE + " ", " " + LIVE, LIVE.upper(), LIVE + "\n", f"./{LIVE}", f"../{LIVE}",
     f"{LIVE}/", f"{LIVE}%00", [LIVE], {"id": LIVE}],
)  # fmt: skip
async def test_ids_that_nearly_match(attack: Attack, session_id: object) -> None:
    for method in ("session.send", "session.resume", "session.getMessages", "session.delete"):
        answer = await attack.answer(method, {"sessionId": session_id, "prompt": "x"})
        assert "error" in answer or answer["result"]["success"] is False


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 2\r\nContent-Length: %d",
        b"Content-Length: %d\r\nContent-Length: 2",
        b"Content-Length: 2\r\ncontent-length: %d",
        b"Content-Length: 2\r\n Content-Length: %d",
        b"Content-Length: 0x2\r\nX: %d",
        b"Content-Length: +%d",
        b"Content-Length: %d, 2",
        b"Content-Length : %d",
        b"X: 1\nContent-Length: %d",
        b"Content-Length: %d\rX: 1",
        b"Content-Length: %d\x00",
        b"Transfer-Encoding: chunked\r\nX: %d",
    ],
)
async def test_header_tricks(attack: Attack, header: bytes) -> None:
    """Each would be cut into frames differently by some reader."""
    hidden = b"{}" + framed(prompt(LIVE))
    answer = await answered(attack.mallory, header % len(hidden) + b"\r\n\r\n" + hidden)
    assert answer is not None
    assert answer["error"]["code"] == errors.PARSE_ERROR
    await attack.mallory.wait_ended()


async def test_a_batch(attack: Attack) -> None:
    answer = await answered(attack.mallory, framed(b"[" + prompt(LIVE) + b"]"))
    assert answer is not None
    assert answer["error"]["code"] == errors.INVALID_REQUEST


async def test_two_messages_in_one_frame(attack: Attack) -> None:
    answer = await answered(attack.mallory, framed(b'{"jsonrpc":"2.0"}' + prompt(LIVE)))
    assert answer is not None
    assert answer["error"]["code"] == errors.PARSE_ERROR


@pytest.mark.parametrize("request_id", ["1.5", "1e3", "9223372036854775808", "[1]", "{}", "true"])
async def test_ids_that_a_cli_would_answer_with_null(attack: Attack, request_id: str) -> None:
    body = prompt(LIVE).replace(b'"smuggled"', request_id.encode(), 1)
    answer = await answered(attack.mallory, framed(body))
    assert answer is not None
    assert answer["error"]["code"] == errors.INVALID_REQUEST


async def test_an_id_in_flight_used_for_something_else(attack: Attack) -> None:
    """The answer to one request must not be taken for that to another."""
    await attack.mallory.request("session.create", attack.field.params(OWN))
    for method in ("session.getMessages", "session.resume"):
        message = {"jsonrpc": "2.0", "id": "same", "method": method, "params": {"sessionId": OWN}}
        foreign = {**message, "params": {"sessionId": LIVE}}
        attack.mallory.send_raw(frame(message) + frame(foreign))
        for _ in range(2):
            answer = await attack.mallory.strays.wait_for(lambda m: m["id"] == "same")
            assert LIVE not in repr(answer.get("result", ""))
    await attack.mallory.request("sessions.close", {"sessionId": OWN})


@pytest.mark.parametrize(
    "junk",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"%s\x00"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"%s\xff"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"%s\\ud800"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"%s"}}\x00',
        b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"session.send","params":{"sessionId":"%s"}}',
    ],
)
async def test_null_bytes_bad_utf8_and_marks(attack: Attack, junk: bytes) -> None:
    answer = await answered(attack.mallory, framed(junk % LIVE.encode()))
    assert answer is not None
    assert answer["error"]["code"] == errors.PARSE_ERROR


@pytest.mark.parametrize("levels", [127, 128, 1000, 100_000])
async def test_deep_nesting(attack: Attack, levels: int) -> None:
    body = b'{"jsonrpc":"2.0","id":"deep","method":"ping","params":{"message":'
    body += b"[" * levels + b"]" * levels + b"}}"
    answer = await answered(attack.mallory, framed(body))
    assert answer is not None
    assert answer["id"] == "deep"
    assert answer["error"]["code"] in (errors.INVALID_REQUEST, errors.PARSE_ERROR)


@pytest.mark.parametrize("length", [b"4294967296", b"999999999999", b"1" * 30])
async def test_gigabyte_lengths(attack: Attack, length: bytes) -> None:
    """A bare CLI waits for the rest for ever."""
    start = b"Content-Length: " + length + b"\r\n\r\n" + prompt(UNKNOWN, filler="x" * 600)
    answer = await answered(attack.mallory, start)
    assert answer is not None
    assert answer["error"]["code"] in (errors.OVERLOADED, errors.PARSE_ERROR)
    await attack.mallory.wait_ended()


async def test_what_follows_a_broken_frame_is_not_read(attack: Attack) -> None:
    attack.mallory.send_raw(b"X\r\n\r\n" + framed(prompt(LIVE)))
    await attack.mallory.wait_ended()
    assert [m["id"] for m in attack.mallory.strays.all] == [None]


async def test_replies_to_what_was_never_asked(attack: Attack) -> None:
    """Ids of a replica's requests are small integers: the victim's could be guessed."""
    forged = b"".join(
        frame({"jsonrpc": "2.0", "id": n, "result": {"kind": "approve-once"}}) for n in range(50)
    )
    attack.mallory.send_raw(forged)
    await attack.mallory.request("ping")


async def test_one_byte_per_while_does_not_keep_a_connection(attack: Attack) -> None:
    """An unauthenticated connection has a deadline, however busy it looks."""
    gateway = attack.field.gateway
    assert gateway is not None, "a bare CLI has no deadline"
    from dataclasses import replace

    hub = gateway.worker.hub
    hub.limits, kept = replace(hub.limits, connect_deadline=0.3), hub.limits
    try:
        slow = await attack.field.bare()
        for byte in framed(prompt(LIVE)):
            if slow.ended.is_set():
                break
            slow.send_raw(bytes([byte]))
            await asyncio.sleep(0.02)
        await slow.wait_ended()
    finally:
        hub.limits = kept
