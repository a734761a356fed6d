"""Reading what a replica sends, without decoding it. Pure; the counterpart of ``envelope``.

A replica's stream is nearly all ``session.event`` notifications that concern nobody but the
client. The CLI writes them in one fixed form (compact JSON, fixed key order), so that their
session and type stand at the start of the body. :func:`skim` passes over runs of them, and
:func:`look` tells what the frame behind a run is, if it has a usual form; :func:`peek` tells it
of any frame, parsing what it has to.

:func:`skim` and :func:`look` have twins in C (``_stream.c``), built where a compiler is at hand;
both forms pass the same tests.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

EVENT_PREFIX = b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"'
_EVENT_MIDDLE = b'","event":{"type":"'
_LIFECYCLE_PREFIX = b'{"jsonrpc":"2.0","method":"session.lifecycle","params":{"type":"'
_LIFECYCLE_MIDDLE = b'","sessionId":"'
_ID_PREFIX = b'{"jsonrpc":"2.0","id":'
_NOTIFICATION_PREFIX = b'{"jsonrpc":"2.0","method":"'

LOUD_EVENTS = frozenset(
    {
        "abort",
        "assistant.message",
        "assistant.turn_start",
        "external_tool.completed",
        "external_tool.requested",
        "permission.completed",
        "permission.requested",
        "session.error",
        "session.idle",
        "session.resume",
        "session.shutdown",
        "session.start",
        "tool.execution_complete",
        "user.message",
        "user_input.completed",
        "user_input.requested",
    }
)
"""Event types that change what the gateway knows of a turn; all others are only forwarded."""

_PLAIN_HEADER = re.compile(rb"Content-Length: ([0-9]{1,9})\r\n\r\n")

_QUIET_FRAME = re.compile(
    rb"Content-Length: ([0-9]{1,9})\r\n\r\n"
    + re.escape(EVENT_PREFIX)
    + rb'[A-Za-z0-9_-]{1,250}","event":\{"type":"(?!(?:'
    + b"|".join(re.escape(name.encode()) for name in sorted(LOUD_EVENTS))
    + rb')")[a-z0-9_.]{1,64}"'
)


def begins_quiet(data: bytes) -> bool:
    """Whether ``data`` begins with the start of a quiet event's frame, in the CLI's usual form."""
    return _QUIET_FRAME.match(data) is not None


def skim_python(data: bytes, pos: int) -> tuple[int, int]:
    """Pass over the whole quiet event frames at ``pos``; the reference form of :func:`skim`."""
    frames = 0
    size = len(data)
    match = _QUIET_FRAME.match(data, pos)
    while match is not None:
        # The body starts where its prefix does, right behind the blank line.
        end = match.end(1) + 4 + int(match[1])
        if end > size or end < match.end():
            break
        pos = end
        frames += 1
        match = _QUIET_FRAME.match(data, pos)
    return pos, frames


skim: Callable[[bytes, int], tuple[int, int]] = skim_python
"""``skim(data, pos) -> (end, frames)``: pass over whole, quiet ``session.event`` frames.

Stops at the first frame that is incomplete, of another method, of a type in :data:`LOUD_EVENTS`,
or in any form but the CLI's usual one.
"""


class Kind(enum.IntEnum):
    """What a frame from a replica is."""

    EVENT = 0
    LIFECYCLE = 1
    RESPONSE = 2
    REQUEST = 3
    NOTIFICATION = 4
    NULL_RESPONSE = 5
    UNKNOWN = 6


class Peeked(NamedTuple):
    """What :func:`peek` found.

    Attributes:
        kind: what the frame is.
        key: EVENT, LIFECYCLE: the session id; RESPONSE, REQUEST: the request id.
        name: EVENT, LIFECYCLE: the type; REQUEST, NOTIFICATION: the method; RESPONSE: "result" or
            "error".
        tail: REQUEST: where the body goes on behind the id, so that another can be put in its
            place; else 0.
    """

    kind: Kind
    key: Any
    name: str
    tail: int


def peek(data: bytes, body: int, end: int) -> Peeked:
    """Tell what the frame ``data[body:end]`` is, parsing it only if its form is unusual."""
    try:
        return _peek(data, body, end)
    except (IndexError, ValueError):
        # Cut off, not UTF-8, or not a number where one should be.
        return _parse(data[body:end])


def _peek(data: bytes, body: int, end: int) -> Peeked:
    if data.startswith(_ID_PREFIX, body):
        start = body + len(_ID_PREFIX)
        key: Any
        if data[start] == 0x22:
            stop = data.find(b'"', start + 1, end)
            raw = data[start + 1 : stop]
            tail = stop + 1
            key = None if b"\\" in raw or stop < 0 else raw.decode()
        else:
            tail = data.find(b",", start, start + 24)
            raw = data[start:tail]
            key = int(raw) if tail > 0 and raw.lstrip(b"-").isdigit() else None
        if key is not None:
            if data.startswith(b',"result"', tail):
                return Peeked(Kind.RESPONSE, key, "result", 0)
            if data.startswith(b',"error"', tail):
                return Peeked(Kind.RESPONSE, key, "error", 0)
            if data.startswith(b',"method":"', tail):
                stop = data.find(b'"', tail + 11, end)
                return Peeked(Kind.REQUEST, key, data[tail + 11 : stop].decode(), tail)
    elif data.startswith(EVENT_PREFIX, body):
        start = body + len(EVENT_PREFIX)
        stop = data.find(b'"', start, start + 256)
        if stop > 0 and data.startswith(_EVENT_MIDDLE, stop):
            begin = stop + len(_EVENT_MIDDLE)
            quote = data.find(b'"', begin, begin + 128)
            if quote > 0:
                session_id, name = data[start:stop], data[begin:quote]
                if b"\\" not in session_id and b"\\" not in name:
                    return Peeked(Kind.EVENT, session_id.decode(), name.decode(), 0)
    elif data.startswith(_LIFECYCLE_PREFIX, body):
        start = body + len(_LIFECYCLE_PREFIX)
        stop = data.find(b'"', start, start + 128)
        if stop > 0 and data.startswith(_LIFECYCLE_MIDDLE, stop):
            begin = stop + len(_LIFECYCLE_MIDDLE)
            quote = data.find(b'"', begin, begin + 256)
            session_id = data[begin:quote]
            if quote > 0 and b"\\" not in session_id:
                return Peeked(Kind.LIFECYCLE, session_id.decode(), data[start:stop].decode(), 0)
    return _parse(data[body:end])


_WITH_ID = frozenset({Kind.RESPONSE, Kind.REQUEST})

Looked = tuple[int, Any, str, int, int, int]
"""What :func:`look` found: the fields of :class:`Peeked`, then where the body starts and ends.

The id of a response or request is a string or an integer, as it is not for any :func:`peek`.
"""


def look_python(data: bytes, pos: int, max_frame: int) -> Looked | None:
    """Tell what the frame at ``pos`` is; the reference form of :func:`look`."""
    match = _PLAIN_HEADER.match(data, pos)
    if match is None:
        return None
    body = match.end()
    end = body + int(match[1])
    if end > len(data) or end - body > max_frame:
        return None
    peeked = peek(data, body, end)
    if peeked.kind in _WITH_ID and type(peeked.key) not in (int, str):
        return None
    return (*peeked, body, end)


look: Callable[[bytes, int, int], Looked | None] = look_python
"""``look(data, pos, max_frame)``: tell what the frame at ``pos`` is if it is whole and usual.

None stands for a frame that is incomplete, over ``max_frame`` bytes or not in the CLI's form.
"""

try:
    from gateway.wire import _stream  # type: ignore[attr-defined,unused-ignore]

    skim, look = _stream.skim, _stream.look
except (ImportError, AttributeError):
    # Not built, or built from older sources.
    ACCELERATED = False
else:
    _stream.set_loud(tuple(sorted(name.encode() for name in LOUD_EVENTS)))
    ACCELERATED = True


_NOTHING = Peeked(Kind.UNKNOWN, None, "", 0)


def _parse(body: bytes) -> Peeked:
    """Tell what a frame in an unusual form is."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _NOTHING
    if type(message) is not dict:
        return _NOTHING
    method = message.get("method")
    request_id = message.get("id")
    if method is None:
        if "result" not in message and "error" not in message:
            return _NOTHING
        outcome = "error" if "error" in message else "result"
        if request_id is None:
            return Peeked(Kind.NULL_RESPONSE, None, outcome, 0)
        return Peeked(Kind.RESPONSE, request_id, outcome, 0)
    if type(method) is not str:
        return _NOTHING
    if request_id is not None:
        return Peeked(Kind.REQUEST, request_id, method, 0)
    params = message.get("params")
    params = params if type(params) is dict else {}
    session_id = params.get("sessionId")
    if method == "session.event":
        event = params.get("event")
        name = event.get("type") if type(event) is dict else None
        return Peeked(Kind.EVENT, session_id, name if type(name) is str else "", 0)
    if method == "session.lifecycle":
        name = params.get("type")
        return Peeked(Kind.LIFECYCLE, session_id, name if type(name) is str else "", 0)
    return Peeked(Kind.NOTIFICATION, session_id, method, 0)


def with_id(data: bytes, body: int, end: int, tail: int, request_id: int) -> bytes:
    """Return a replica's request as a frame under another id.

    Args:
        data: the buffer; the body is ``data[body:end]``.
        body: where the body starts.
        end: where the body ends.
        tail: :attr:`Peeked.tail`.
        request_id: the id to put in.
    """
    if tail:
        head = b"%b%d" % (_ID_PREFIX, request_id)
        length = len(head) + end - tail
        return b"Content-Length: %d\r\n\r\n%b%b" % (length, head, data[tail:end])
    message = orjson.loads(data[body:end])
    message["id"] = request_id
    text = orjson.dumps(message)
    return b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
