from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.compat import (
    destroy_for_detach,
    for_old_client,
    idle_without_mode,
    integer_timestamp,
    is_old_client,
    lacks_detach,
)


def compact(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def pong(timestamp: Any, text: str = "pong: hi", **more: Any) -> bytes:
    result = {"message": text, "timestamp": timestamp, "protocolVersion": 3, **more}
    return compact({"jsonrpc": "2.0", "id": "a", "result": result})


def event(kind: str, data: Any) -> bytes:
    inner = {"type": kind, "data": data, "ephemeral": True, "id": "e", "parentId": None}
    params = {"sessionId": "s" * 250, "event": inner}
    return compact({"jsonrpc": "2.0", "method": "session.event", "params": params})


@pytest.mark.parametrize("method", ["connect", "session.create", "Ping", "", "session.ping"])
def test_only_a_client_that_opens_with_ping_is_old(method: str) -> None:
    assert is_old_client("ping")
    assert not is_old_client(method)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-20T21:37:02.304209808Z", 1795210622304),
        ("2026-11-20T22:06:21.253Z", 1795212381253),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_a_pings_timestamp_becomes_an_integer(text: str, milliseconds: int) -> None:
    assert for_old_client(pong(text)) == pong(milliseconds)


def test_a_ping_with_a_long_text() -> None:
    assert for_old_client(pong("1970-01-01T00:00:01Z", "pong: " + "é" * 9000)) == pong(
        1000, "pong: " + "é" * 9000
    )


@pytest.mark.parametrize(
    "body",
    [
        pong(1795210622304),
        pong("yesterday"),
        pong("2026-11-20T21:37:02.304Z", more=1),
        pong(None),
        compact({"jsonrpc": "2.0", "id": 1, "result": {"timestamp": "2026-11-20T21:37:02Z"}}),
        compact({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "timestamp": "x"}}),
        compact({"jsonrpc": "2.0", "id": 1, "result": [{"timestamp": "2026-11-20T21:37:02Z"}]}),
        b'{"jsonrpc":"2.0","id":1,"result":{"timestamp":"',
        b'[{"timestamp":"2026-11-20T21:37:02Z"}]',
    ],
)
def test_other_answers_stay_as_they_are(body: bytes) -> None:
    assert for_old_client(body) == body
    assert integer_timestamp(body) == body


def test_an_idle_event_loses_its_mode_and_nothing_else() -> None:
    body = event("session.idle", {"mode": "interactive", "aborted": True})
    assert for_old_client(body) == event("session.idle", {"aborted": True})


@pytest.mark.parametrize(
    "body",
    [
        event("session.idle", {}),
        event("session.idle", None),
        event("assistant.idle", {"mode": "interactive"}),
        event("session.start", {"mode": "interactive", "last": "session.idle"}),
        event("assistant.message", {"mode": "x", "content": '"session.idle" and "timestamp":"'}),
        compact({"jsonrpc": "2.0", "method": "session.event", "params": []}),
        b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s","event":{"type":'
        b'"session.idle"',
    ],
)
def test_other_events_stay_as_they_are(body: bytes) -> None:
    assert for_old_client(body) == body
    assert idle_without_mode(body) == body


@given(st.binary(max_size=200), st.sampled_from([b"", b'{"timestamp":"', b'"session.idle"']))
def test_any_input_gives_a_result(tail: bytes, head: bytes) -> None:
    for function in (for_old_client, integer_timestamp, idle_without_mode):
        assert function(head + tail) == head + tail


def test_detach_becomes_destroy_for_a_cli_that_lacks_it() -> None:
    request = {"jsonrpc": "2.0", "id": 7, "method": "session.detach", "params": {"sessionId": "s"}}
    assert lacks_detach({"code": -32601, "message": "Unhandled method session.detach"})
    assert not lacks_detach({"code": -32603, "message": "Session not found"})
    assert destroy_for_detach(request) == {**request, "method": "session.destroy"}
    assert request["method"] == "session.detach"


def test_other_requests_are_not_changed() -> None:
    request = {"jsonrpc": "2.0", "id": 7, "method": "session.send", "params": {}}
    assert destroy_for_detach(request) is request
