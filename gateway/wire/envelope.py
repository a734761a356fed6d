"""JSON-RPC envelopes: reading what a client sends, building what the gateway says. Pure.

The gateway decides by what it reads and the CLI acts on what *it* reads, so both must read the
same. A client's message is therefore parsed once and forwarded in canonical form (compact, no
duplicate keys, no needless escapes); a message that already is canonical, as Node's and Python's
SDKs write them, leaves as it came. What the CLI would answer with a null id, which leaves the
caller waiting for ever, is refused here under the caller's own id wherever one can be read.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway import errors
from gateway.errors import RpcError
from gateway.wire import framing

MAX_DEPTH = 127
"""Nesting the CLI accepts; deeper input is answered with a null id."""

MAX_ID_BYTES = 1024
"""Longest string id: SDKs send 36 characters."""

_INT64 = range(-(2**63), 2**63)

_LEADING_ID = re.compile(
    rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"[^"\\]{0,8}"\s*,\s*)?'
    rb'(?:"method"\s*:\s*"[^"\\]{0,256}"\s*,\s*)?'
    rb'"id"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){0,1024}"|-?\d{1,19})\s*[,}]'
)

RequestId = str | int
Message = dict[str, Any]


class BadMessageError(Exception):
    """A body that is not a message the CLI would treat as one.

    Attributes:
        request_id: the id to answer under, or None if none is readable.
        error: the JSON-RPC error to answer with.
    """

    def __init__(self, request_id: Any, error: RpcError) -> None:
        super().__init__(error.message)
        self.request_id = request_id
        self.error = error


def salvage_id(head: bytes) -> RequestId | None:
    """Read the request id from the start of a body that cannot be parsed, or None."""
    match = _LEADING_ID.match(head)
    if match is None:
        return None
    try:
        value = orjson.loads(match[1])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, str | int) else None


def _too_deep(value: Any) -> bool:
    """Tell whether a parsed document nests deeper than the CLI accepts, without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                below.extend(v for v in item.values() if type(v) is dict or type(v) is list)
            elif type(item) is list:
                below.extend(v for v in item if type(v) is dict or type(v) is list)
        if not below:
            return False
        level = below
    return True


def parse(body: bytes) -> Message:
    """Parse a client's message and check its envelope.

    Returns:
        The message; ``id``, where present, is a string or a 64-bit integer, ``method``, where
        present, a string. A message without ``method`` is a response and has ``result`` or
        ``error``.

    Raises:
        BadMessageError: it is not JSON, not an object, or its envelope is not JSON-RPC 2.0.
    """
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadMessageError(
            salvage_id(body[: framing.SALVAGE_BYTES * 4]),
            RpcError(errors.PARSE_ERROR, "The message is not valid JSON"),
        ) from None
    if type(message) is not dict:
        kind = "a batch" if type(message) is list else "not an object"
        raise BadMessageError(None, RpcError(errors.INVALID_REQUEST, f"The message is {kind}"))
    request_id = message.get("id", _ABSENT)
    if request_id is not _ABSENT:
        kind_of_id = type(request_id)
        if kind_of_id is str:
            if len(request_id) > MAX_ID_BYTES:
                raise BadMessageError(
                    None, RpcError(errors.INVALID_REQUEST, "The request id is too long")
                )
        elif kind_of_id is not int or request_id not in _INT64:
            # An id echoed as it came is of more use to the caller than null, where JSON allows.
            echo = request_id if kind_of_id in (float, int) else None
            raise BadMessageError(
                echo,
                RpcError(errors.INVALID_REQUEST, "The request id must be a string or an integer"),
            )
    else:
        request_id = None
    if message.get("jsonrpc") != "2.0":
        raise BadMessageError(
            request_id, RpcError(errors.INVALID_REQUEST, 'The message lacks "jsonrpc": "2.0"')
        )
    method = message.get("method", _ABSENT)
    if method is _ABSENT:
        if "result" not in message and "error" not in message:
            raise BadMessageError(
                request_id,
                RpcError(errors.INVALID_REQUEST, "The message is neither request nor response"),
            )
    elif type(method) is not str:
        raise BadMessageError(
            request_id, RpcError(errors.INVALID_REQUEST, "The method must be a string")
        )
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _too_deep(message):
        raise BadMessageError(
            request_id,
            RpcError(errors.INVALID_REQUEST, f"The message nests deeper than {MAX_DEPTH} levels"),
        )
    return message


_ABSENT = object()

loads = orjson.loads
"""Parse a replica's message (trusted to be JSON)."""


def encode(message: Any) -> bytes:
    """Return a message as one frame, in canonical form."""
    body = orjson.dumps(message)
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def result_frame(request_id: Any, result: Any) -> bytes:
    """Return a success response as a frame."""
    return encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def error_frame(request_id: Any, error: RpcError) -> bytes:
    """Return an error response as a frame."""
    return encode({"jsonrpc": "2.0", "id": request_id, "error": error.to_object()})


def request_frame(request_id: RequestId, method: str, params: Any) -> bytes:
    """Return a request as a frame."""
    return encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def notification_frame(method: str, params: Any) -> bytes:
    """Return a notification as a frame."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})
