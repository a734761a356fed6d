"""Reading a replica's stream: the fast readings agree with the full one."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire import stream
from gateway.wire.framing import encode
from gateway.wire.stream import EVENT_PREFIX, LOUD_EVENTS, Kind, peek, skim, skim_python, with_id
from tests.support.strategies import json_text, mutated, replica_messages, spoiled

BODY_START = len(b"Content-Length: ")

captured = st.lists(replica_messages(), max_size=6).map(
    lambda found: b"".join(encode(orjson.dumps(message)) for message in found)
)
"""Streams as a CLI writes them."""


def event(name: str, session_id: str = "s", data: str = "{}") -> bytes:
    text = EVENT_PREFIX + session_id.encode() + b'","event":{"type":"' + name.encode() + b'"'
    return encode(text + b',"data":' + data.encode() + b"}}}")


@pytest.mark.skipif(not stream.ACCELERATED, reason="the C scanner was not built")
@given(st.one_of(captured, captured.flatmap(spoiled), mutated()), st.integers(0, 40))
@example(event("x" * 64) + event("x" * 65), 0)
@example(event("x", "a" * 250) + event("x", "a" * 251), 0)
@example(b"Content-Length: 0000000009\r\n\r\n", 0)
@example(b"Content-Length: 999999999\r\n\r\n" + EVENT_PREFIX + b'a","event":{"type":"b"', 0)
@example(b"Content-Length: 90\r\n\r\n" + EVENT_PREFIX + b'abc","event":{"type":"b","data":1', 0)
def test_both_scanners_agree(data: bytes, pos: int) -> None:
    pos = min(pos, len(data))
    assert skim(data, pos) == skim_python(data, pos)


@pytest.mark.skipif(not stream.ACCELERATED, reason="the C scanner was not built")
@given(
    st.one_of(captured, captured.flatmap(spoiled), mutated()),
    st.integers(0, 40),
    st.sampled_from([80, 1 << 20]),
)
@example(encode(b'{"jsonrpc":"2.0","id":-5,"result":{}}'), 0, 99)
@example(encode(b'{"jsonrpc":"2.0","id":"a","method":"hooks.invoke"}'), 0, 99)
@example(encode(b'{"jsonrpc":"2.0","id":1'), 0, 99)
@example(encode(b'{"jsonrpc":"2.0","id":01,"result":{}}'), 0, 99)
def test_what_the_c_form_recognises_the_python_form_sees_alike(
    data: bytes, pos: int, limit: int
) -> None:
    pos = min(pos, len(data))
    found = stream.look(data, pos, limit)
    if found is not None:
        assert found == stream.look_python(data, pos, limit)


@pytest.mark.parametrize("form", [stream.look, stream.look_python])
@pytest.mark.parametrize(
    ("body", "kind", "key", "name"),
    [
        (b'{"jsonrpc":"2.0","id":12,"result":{}}', Kind.RESPONSE, 12, "result"),
        (b'{"jsonrpc":"2.0","id":"a-1","error":{}}', Kind.RESPONSE, "a-1", "error"),
        (b'{"jsonrpc":"2.0","id":3,"method":"x.y","params":{}}', Kind.REQUEST, 3, "x.y"),
        (EVENT_PREFIX + b's","event":{"type":"session.idle"}}}', Kind.EVENT, "s", "session.idle"),
        (
            b'{"jsonrpc":"2.0","method":"session.lifecycle","params":{"type":"session.updated",'
            b'"sessionId":"s"}}',
            Kind.LIFECYCLE,
            "s",
            "session.updated",
        ),
    ],
)
def test_the_usual_forms_are_recognised_by_a_look(
    form: Any, body: bytes, kind: Kind, key: Any, name: str
) -> None:
    data = b"junk" + encode(body)
    found = form(data, 4, len(body))
    start = len(data) - len(body)
    assert found[:3] == (kind, key, name)
    assert found[4:] == (start, len(data))
    if kind is Kind.REQUEST:
        assert with_id(data, start, len(data), found[3], 44) == encode(
            body.replace(b'"id":3', b'"id":44')
        )
    assert form(data, 4, len(body) - 1) is None
    assert form(data[:-1], 4, len(body)) is None


@given(captured, st.binary(max_size=20))
def test_skimming_passes_over_whole_quiet_events_only(data: bytes, rest: bytes) -> None:
    end, count = skim(data + rest, 0)
    assert end <= len(data)
    passed = data[:end]
    found = []
    while passed:
        header, _, passed = passed.partition(b"\r\n\r\n")
        length = int(header.removeprefix(b"Content-Length: "))
        found.append(json.loads(passed[:length]))
        passed = passed[length:]
    assert len(found) == count
    assert all(m["method"] == "session.event" for m in found)
    assert not {m["params"]["event"]["type"] for m in found} & LOUD_EVENTS


@pytest.mark.parametrize("name", sorted(LOUD_EVENTS))
def test_loud_events_stop_the_scanner(name: str) -> None:
    quiet = event("assistant.message_delta")
    assert skim(quiet * 2 + event(name) + quiet, 0) == (len(quiet) * 2, 2)
    assert skim(event(name + "x"), 0) == (len(event(name + "x")), 1)


def test_the_scanner_starts_where_it_is_told() -> None:
    quiet = event("assistant.message_delta")
    assert skim(b"junk" + quiet, 4) == (4 + len(quiet), 1)
    assert skim(quiet, len(quiet)) == (len(quiet), 0)


@pytest.mark.skipif(not stream.ACCELERATED, reason="the C scanner was not built")
@pytest.mark.parametrize("args", [(b"", 1), (b"", -1)])
def test_the_c_scanner_keeps_inside_its_data(args: tuple[bytes, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        skim(*args)


def told(message: Any) -> tuple[Kind, Any, str]:
    """Say what a message is, by the plain reading of it."""
    if not isinstance(message, dict):
        return Kind.UNKNOWN, None, ""
    params = message.get("params")
    params = params if isinstance(params, dict) else {}
    if "method" not in message:
        if message["id"] is None:
            return Kind.NULL_RESPONSE, None, "error" if "error" in message else "result"
        return Kind.RESPONSE, message["id"], "error" if "error" in message else "result"
    method = message["method"]
    if "id" in message:
        return Kind.REQUEST, message["id"], method
    if method == "session.event":
        return Kind.EVENT, params["sessionId"], params["event"]["type"]
    if method == "session.lifecycle":
        return Kind.LIFECYCLE, params["sessionId"], params["type"]
    return Kind.NOTIFICATION, params.get("sessionId"), method


@given(replica_messages(), st.binary(max_size=30), st.binary(max_size=30))
def test_a_peek_agrees_with_a_full_reading(
    message: dict[str, Any], before: bytes, after: bytes
) -> None:
    body = orjson.dumps(message)
    found = peek(before + body + after, len(before), len(before) + len(body))
    assert found[:3] == told(message)


@given(replica_messages().flatmap(json_text))
def test_a_peek_agrees_whatever_the_form(body: bytes) -> None:
    assert peek(body, 0, len(body))[:3] == told(json.loads(body))


@given(st.one_of(mutated(), replica_messages().map(orjson.dumps).flatmap(spoiled)))
@example(b'{"jsonrpc":"2.0","id":')
@example(b'{"jsonrpc":"2.0","id":"\xff","result":1}')
@example(b'{"jsonrpc":"2.0","id":"x')
@example(b'{"jsonrpc":"2.0","id":--5,"result":1}')
@example(b'{"jsonrpc":"2.0","id":-,"result":1}')
@example(b'{"jsonrpc":"2.0","id":5,"method":"\xff"}')
@example(b'{"jsonrpc":"2.0","id":5,"method":"x')
@example(EVENT_PREFIX + b'\xff","event":{"type":"x"}}}')
@example(EVENT_PREFIX + b's","event":{"type":"\xff"}}}')
def test_a_peek_at_anything_says_something(body: bytes) -> None:
    found = peek(body, 0, len(body))
    assert isinstance(found.kind, Kind)
    assert isinstance(found.name, str)


@given(
    replica_messages().filter(lambda m: "id" in m and "method" in m),
    st.integers(1, 2**53),
    st.binary(max_size=20),
    st.sampled_from([orjson.dumps, lambda m: json.dumps(m).encode()]),
)
def test_another_id_is_put_in(
    message: dict[str, Any], alias: int, around: bytes, write: Any
) -> None:
    body = write(message)
    data = around + body + around
    start, end = len(around), len(around) + len(body)
    frame = with_id(data, start, end, peek(data, start, end).tail, alias)
    header, _, text = frame.partition(b"\r\n\r\n")
    assert header == b"Content-Length: %d" % len(text)
    assert json.loads(text) == {**message, "id": alias}


def test_unusual_forms_are_told_right() -> None:
    body = (
        b'{"method":"session.event","params":{"event":{"data":1,"type":"abort"},"sessionId":"s"}}'
    )
    assert peek(body, 0, len(body))[:3] == (Kind.EVENT, "s", "abort")
    body = b'{"id":7,"jsonrpc":"2.0","result":null}'
    assert peek(body, 0, len(body))[:3] == (Kind.RESPONSE, 7, "result")
    body = b'{"jsonrpc":"2.0","id":"a\\u0062","result":null}'
    assert peek(body, 0, len(body))[:3] == (Kind.RESPONSE, "ab", "result")
    body = b'{"jsonrpc":"2.0"}'
    assert peek(body, 0, len(body)).kind is Kind.UNKNOWN
