"""Hypothesis strategies for frames, JSON documents and what goes wrong with them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from gateway.wire.stream import EVENT_PREFIX, LOUD_EVENTS

_BLANK = st.text(" \t", max_size=3).map(str.encode)
_EXTRA = st.sampled_from(
    [
        b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\n",
        b"X-Trace:\r\n",
        b"x-colons: a:b: c\r\n",
    ]
)

FRAGMENTS = [
    b"\r\n\r\n",
    b"\r\n",
    b"\n\n",
    b"Content-Length: ",
    b"Content-Length: 5\r\n",
    b"content-length:2\r\n\r\n{}",
    b"Content-Length: 99999999\r\n\r\n",
    b": ",
    b"\0",
    b"\xff\xfe",
    b"-1",
    b'"',
    b'"id":',
    b'"jsonrpc":"2.0",',
    EVENT_PREFIX,
    b'","event":{"type":"',
    b"{",
    b"]",
    b"\\u0000",
    b"\\",
]
"""Bytes that mean something to one parser or another."""


@st.composite
def chunked(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """Cut a stream into chunks anywhere; empty ones included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@st.composite
def _frame(draw: st.DrawFn) -> tuple[bytes, bytes]:
    body = draw(st.binary(max_size=80))
    name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]))
    digits = b"0" * draw(st.integers(0, 3)) + str(len(body)).encode()
    line = name + b":" + draw(_BLANK) + digits + draw(_BLANK) + b"\r\n"
    lines = [*draw(st.lists(_EXTRA, max_size=2)), line]
    return b"".join(draw(st.permutations(lines))) + b"\r\n" + body, body


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream of frames under legal headers of many forms, and their bodies."""
    made = draw(st.lists(_frame(), max_size=5))
    return b"".join(frame for frame, _ in made), [body for _, body in made]


@st.composite
def spoiled(draw: st.DrawFn, stream: bytes) -> bytes:
    """A stream with a few bytes replaced, removed, repeated, or fragments put in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(stream)))
        end = min(len(stream), at + draw(st.integers(0, 6)))
        put = draw(st.one_of(st.binary(max_size=3), st.sampled_from(FRAGMENTS)))
        stream = stream[:at] + put + stream[end:]
    return stream


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Frames that were spoiled, or anything at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=300))
    stream, _ = draw(frames())
    return draw(spoiled(stream))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)

documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
"""JSON documents that every parser reads alike."""

request_ids = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=40))
methods = st.sampled_from(
    ["session.send", "session.create", "ping", "$/cancelRequest", "no.such", "", "connect"]
)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """Requests, notifications and responses with params of any form."""
    message: dict[str, Any] = {"jsonrpc": "2.0"}
    kind = draw(st.sampled_from(["request", "notification", "result", "error"]))
    if kind != "notification":
        message["id"] = draw(request_ids)
    if kind in ("request", "notification"):
        message["method"] = draw(methods)
        if draw(st.booleans()):
            message["params"] = draw(documents)
    else:
        message[kind] = draw(documents)
    return {key: message[key] for key in draw(st.permutations(list(message)))}


@st.composite
def json_text(draw: st.DrawFn, document: Any) -> bytes:
    """A document in one of the many ways to write it: spaces, escapes, order of keys."""
    text = json.dumps(
        document,
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r")])),
        sort_keys=draw(st.booleans()),
    )
    return text.encode()


event_types = st.one_of(
    st.sampled_from(sorted(LOUD_EVENTS)),
    st.sampled_from(
        ["assistant.message_delta", "assistant.streaming_delta", "session.idle2", "x", "a" * 65]
    ),
    st.text("abcz_.", min_size=1, max_size=20),
)


@st.composite
def replica_messages(draw: st.DrawFn) -> dict[str, Any]:
    """What a CLI sends, keys in its order."""
    session_id = draw(st.text("abcXYZ019_-", min_size=1, max_size=12))
    match draw(st.integers(0, 6)):
        case 0 | 1 | 2:
            event = {"type": draw(event_types), "data": draw(documents)}
            return _notification("session.event", {"sessionId": session_id, "event": event})
        case 3:
            kind = draw(st.sampled_from(["session.created", "session.updated", "session.deleted"]))
            params = {"type": kind, "sessionId": session_id, "metadata": {"a": "b"}}
            return _notification("session.lifecycle", params)
        case 4:
            outcome = draw(st.sampled_from(["result", "error"]))
            request_id = draw(st.one_of(st.none(), request_ids))
            return {"jsonrpc": "2.0", "id": request_id, outcome: draw(documents)}
        case 5:
            method = draw(st.sampled_from(["hooks.invoke", "userInput.request", "sessionFs.read"]))
            params = {"sessionId": session_id, "input": draw(documents)}
            return {"jsonrpc": "2.0", "id": draw(request_ids), "method": method, "params": params}
        case _:
            method = draw(st.sampled_from(["host.event", "$/cancelRequest", "later.thing"]))
            return _notification(method, draw(documents))


def _notification(method: str, params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}
