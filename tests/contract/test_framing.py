"""How a CLI reads frames and envelopes, and how it refuses them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.conftest import Bench
from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcClient, frame
from tests.support.stack import RealCli

Cli = FakeCli | RealCli

PING = b'{"jsonrpc":"2.0","id":77,"method":"ping","params":{"message":"q"}}'
LENGTH = b"%d" % len(PING)
SHORT = 0.3
"""Seconds of silence after which nothing more is expected."""


def raw(text: str | bytes) -> bytes:
    body = text.encode() if isinstance(text, str) else text
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


async def answer(client: RpcClient) -> dict[str, Any]:
    return await client.strays.wait_for(lambda _: True)


async def assert_open(client: RpcClient) -> None:
    assert (await client.request("ping", {"message": "still"}))["message"] == "pong: still"


READ = {
    "any header case": b"content-LENGTH: " + LENGTH + b"\r\n\r\n",
    "no space": b"Content-Length:" + LENGTH + b"\r\n\r\n",
    "many spaces": b"Content-Length:    " + LENGTH + b"  \r\n\r\n",
    "plus sign": b"Content-Length: +" + LENGTH + b"\r\n\r\n",
    "leading zeros": b"Content-Length: 000" + LENGTH + b"\r\n\r\n",
    "extra headers": b"X-A: b\r\nContent-Length: " + LENGTH + b"\r\nContent-Type: x\r\n\r\n",
    "the last of two lengths": b"Content-Length: 5\r\nContent-Length: " + LENGTH + b"\r\n\r\n",
}


async def test_headers_that_are_read(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for label, header in READ.items():
        client.send_raw(header + PING)
        assert (await answer(client))["result"]["message"] == "pong: q", label


async def test_frames_may_come_in_any_pieces(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.send_raw(raw(PING) + raw(PING))
    await answer(client)
    await answer(client)
    for byte in raw(PING):
        client.send_raw(bytes([byte]))
        await client.drain()
    assert (await answer(client))["id"] == 77


REFUSED_AND_CLOSED = {
    "space before the colon": b"Content-Length : " + LENGTH + b"\r\n\r\n" + PING,
    "no length": b"X: 1\r\n\r\n" + PING,
    "no colon": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "blank line first": b"\r\n" + raw(PING),
    "negative length": b"Content-Length: -5\r\n\r\n" + PING,
    "not a number": b"Content-Length: abc\r\n\r\n" + PING,
    "beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n\r\n" + PING,
    "endless header": b"X: " + b"a" * 70_000,
}


async def test_headers_that_end_the_connection(bench: Bench, cli: Cli) -> None:
    for label, data in REFUSED_AND_CLOSED.items():
        client = await bench.client(cli)
        client.send_raw(data)
        refusal = await answer(client)
        assert (refusal["id"], refusal["error"]["code"]) == (None, -32700), label
        await client.wait_ended()


async def test_wrong_length_loses_the_stream(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.send_raw(b"Content-Length: %d\r\n\r\n%s" % (len(PING) - 5, PING))
    assert (await answer(client))["error"]["code"] == -32700
    client.send_raw(raw(PING))
    await client.wait_ended()


async def test_hexadecimal_length_is_zero(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.send_raw(b"Content-Length: 0x10\r\n\r\n" + PING)
    assert (await answer(client))["error"]["code"] == -32700
    client.send_raw(raw(PING))
    await client.wait_ended()


async def test_waits_for_what_a_header_promises(bench: Bench, cli: Cli) -> None:
    for header in (b"Content-Length: 4000000000\r\n\r\n", b"Content-Length: 66\n\n"):
        client = await bench.client(cli)
        client.send_raw(header + PING)
        with pytest.raises(TimeoutError):
            await client.strays.wait_for(lambda _: True, SHORT)
        assert not client.ended.is_set()


BODIES_WITHOUT_ID = {
    -32700: {
        "empty": "",
        "invalid JSON": "{nope",
        "bad UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
        "byte order mark": b"\xef\xbb\xbf" + PING,
        "lone surrogate": '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"message":"\\ud800"}}',
        "not a number": '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"message":NaN}}',
        "nesting": '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":'
        + "[" * 126
        + "]" * 126
        + "}}",
    },
    -32600: {
        "batch": b"[" + PING + b"]",
        "scalar": "5",
        "empty object": "{}",
        "id null": '{"jsonrpc":"2.0","id":null,"method":"ping"}',
        "id boolean": '{"jsonrpc":"2.0","id":true,"method":"ping"}',
        "id array": '{"jsonrpc":"2.0","id":[1],"method":"ping"}',
        "id object": '{"jsonrpc":"2.0","id":{},"method":"ping"}',
        "id fraction": '{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
        "id 1.0": '{"jsonrpc":"2.0","id":1.0,"method":"ping"}',
        "id beyond int64": '{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}',
        "jsonrpc missing": '{"id":1,"method":"ping"}',
        "jsonrpc 1.0": '{"jsonrpc":"1.0","id":1,"method":"ping"}',
        "method not a string": '{"jsonrpc":"2.0","id":1,"method":5}',
    },
}


async def test_bodies_refused_with_a_null_id(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for code, bodies in BODIES_WITHOUT_ID.items():
        for label, body in bodies.items():
            client.send_raw(raw(body))
            refusal = await answer(client)
            assert (refusal["id"], refusal["error"]["code"]) == (None, code), label
    await assert_open(client)


async def test_nesting_just_below_the_limit_is_read(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    deep = "[" * 125 + "]" * 125
    client.send_raw(raw('{"jsonrpc":"2.0","id":78,"method":"ping","params":{"a":' + deep + "}}"))
    assert (await answer(client))["id"] == 78


async def test_all_ids_come_back_exactly(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for message_id in ("", "x", "ü", "5", 0, -3, (1 << 63) - 1, -(1 << 63)):
        client.send_raw(frame({"jsonrpc": "2.0", "id": message_id, "method": "ping"}))
        assert (await answer(client))["id"] == message_id


async def test_one_id_twice_is_answered_twice(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for _ in range(2):
        client.send_raw(raw(PING))
    assert [(await answer(client))["id"] for _ in range(2)] == [77, 77]


async def test_the_last_of_duplicate_keys_counts(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.send_raw(
        raw(
            '{"jsonrpc":"2.0","id":1000,"id":1001,"method":"nope","method":"ping",'
            '"params":{"message":"a","message":"b"}}'
        )
    )
    reply = await answer(client)
    assert (reply["id"], reply["result"]["message"]) == (1001, "pong: b")


async def test_unknown_method(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.send_raw(raw('{"jsonrpc":"2.0","id":500,"method":"x.y"}'))
    assert (await answer(client))["error"] == {"code": -32601, "message": "Unhandled method x.y"}


async def test_notifications_and_stray_answers_are_ignored(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.notify("ping", {"message": "a"})
    client.notify("no.such.method", {})
    client.send_raw(raw('{"jsonrpc":"2.0","id":55,"result":{}}'))
    await assert_open(client)
    assert client.strays.all == []


async def test_params_of_another_type_count_as_none(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for params in ("[]", '"a"', "null", "5"):
        client.send_raw(raw(f'{{"jsonrpc":"2.0","id":500,"method":"ping","params":{params}}}'))
        assert (await answer(client))["result"]["message"] == "pong", params
        client.send_raw(
            raw(f'{{"jsonrpc":"2.0","id":501,"method":"session.send","params":{params}}}')
        )
        error = (await answer(client))["error"]
        assert error["code"] == -32603, params
        assert "Missing sessionId" in error["message"], params


async def test_answers_are_compact_and_framed_plainly(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    seen = client.record()
    client.send_raw(raw(PING))
    await answer(client)
    header, _, body = bytes(seen).partition(b"\r\n\r\n")
    assert header == b"Content-Length: %d" % len(body)
    assert body.startswith(b'{"jsonrpc":"2.0","id":77,"result":{"message":"pong: q","timestamp":"')
    assert body == json.dumps(json.loads(body), separators=(",", ":")).encode()


async def test_half_close_is_a_close(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    client.transport.write_eof()
    await client.wait_ended()
