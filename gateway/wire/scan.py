"""Reading what a client sends, without decoding it. Pure; the counterpart of ``stream``.

Most of a client's messages are requests about an open session, written by an SDK in canonical
form: compact JSON that every parser reads alike. :func:`scan` recognises such a message and says
what routing needs, so that it can be passed on byte for byte. Whatever it does not recognise, valid
or not, is parsed and written anew, or refused, by ``envelope``.

The rule that keeps this safe: a message that is accepted here equals its own re-encoding.

:func:`scan` has a twin in C (``_scan.c``), built where a compiler is at hand; it accepts a part of
what the Python form accepts, and says the same of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson

from gateway.wire.envelope import MAX_DEPTH

Scanned = tuple[int, int, str | int | None, str, str | None]
"""Where the body starts and ends, the request id (None: a notification), the method and the
session id that the params name."""

_HEADER = re.compile(rb"Content-Length: ([0-9]{1,9})\r\n\r\n")
_METHOD = re.compile(r"[A-Za-z0-9./_$-]*")
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]*")
_TEXT_ID = re.compile(r"[ !#-\[\]-~]{0,128}")
_INTEGER_ID = range(-(10**15) + 1, 10**15)
_MEMBERS = frozenset({"jsonrpc", "id", "method", "params"})


def scan_python(data: bytes, pos: int, max_frame: int) -> Scanned | None:
    """Read the request at ``pos``; the reference form of :func:`scan`."""
    header = _HEADER.match(data, pos)
    if header is None:
        return None
    start = header.end()
    end = start + int(header[1])
    if end > len(data) or end - start > max_frame:
        return None
    body = data[start:end]
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        return None
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(message) is not dict or not message.keys() <= _MEMBERS or orjson.dumps(message) != body:
        return None
    method = message.get("method")
    params = message.get("params", {})
    request_id = message.get("id")
    if (
        message.get("jsonrpc") != "2.0"
        or type(method) is not str
        or not _METHOD.fullmatch(method)
        or type(params) is not dict
    ):
        return None
    if type(request_id) is str:
        if not _TEXT_ID.fullmatch(request_id):
            return None
    elif type(request_id) is int:
        if request_id not in _INTEGER_ID:
            return None
    elif "id" in message:
        return None
    session_id = params.get("sessionId")
    if type(session_id) is str:
        if not _SESSION_ID.fullmatch(session_id):
            return None
    elif "sessionId" in params:
        return None
    return start, end, request_id, method, session_id


scan: Callable[[bytes, int, int], Scanned | None] = scan_python
"""``scan(data, pos, max_frame)``: read the request at ``pos`` if it is whole and canonical.

None stands for a frame that is incomplete, over ``max_frame`` bytes, no request, or in any form
that two parsers might read differently; nothing is learned about which.
"""

try:
    from gateway.wire import _scan  # type: ignore[attr-defined,unused-ignore]
except ImportError:
    ACCELERATED = False
else:
    scan = _scan.scan
    ACCELERATED = True
