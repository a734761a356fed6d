"""Frames and envelopes as the CLI reads them, refusals included."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_HEADER_BYTES = 65536
MAX_DEPTH = 127
MAX_INT64 = (1 << 63) - 1

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
_UNRECOGNIZABLE = "not a recognizable JSON-RPC request, notification, or response"

_LENGTH = re.compile(r"\+?(\d+)")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Fault(Exception):
    """An error to answer with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class FramingFault(Fault):
    """A header that cannot be read; answered, then the connection is closed."""

    def __init__(self, message: str) -> None:
        super().__init__(PARSE_ERROR, message)


@dataclass(slots=True)
class Message:
    """One message after its envelope was accepted; ``id`` None marks a notification."""

    method: str | None
    id: str | int | None
    params: dict[str, Any]
    result: Any = None
    error: dict[str, Any] | None = None


class FrameReader:
    """Cuts a byte stream into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need: int | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies that ``data`` completes.

        Raises:
            FramingFault: the stream cannot be read any further.
        """
        self._buffer += data
        while True:
            if self._need is None:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(self._buffer) > MAX_HEADER_BYTES:
                        raise FramingFault(
                            f"Message header exceeds maximum length {MAX_HEADER_BYTES}"
                            f" (buffered {len(self._buffer)})"
                        )
                    return
                self._need = _content_length(bytes(self._buffer[:end]))
                del self._buffer[: end + 4]
            if len(self._buffer) < self._need:
                return
            body = bytes(self._buffer[: self._need])
            del self._buffer[: self._need]
            self._need = None
            yield body


def _content_length(header: bytes) -> int:
    value = ""
    for line in header.decode("latin-1").split("\r\n"):
        name, colon, rest = line.partition(":")
        if not colon:
            raise FramingFault("Message header must separate key and value using ':'")
        if name.lower() == "content-length":
            value = rest.strip()
    if not value:
        raise FramingFault("Header must provide a Content-Length property.")
    match = _LENGTH.match(value)
    if match is None or int(match[1]) >= 1 << 64:
        raise FramingFault(f"Content-Length value must be a number. Got {value}")
    return int(match[1])


def decode(body: bytes) -> Message:
    """Read one message body.

    Raises:
        Fault: it is refused; the answer carries a null id, whatever the body says.
    """
    try:
        if _depth(body) > MAX_DEPTH:
            raise Fault(PARSE_ERROR, "recursion limit exceeded at line 1 column 0")
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
        if b"\\ud" in body.lower():
            json.dumps(value, ensure_ascii=False).encode()  # fails on a lone surrogate
    except (ValueError, RecursionError) as error:
        raise Fault(PARSE_ERROR, f"{error} at line 1 column 0") from None
    return _envelope(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"expected value, got {name}")


def _depth(body: bytes) -> int:
    """Return how deep a body nests, or 0 where it cannot be deeper than allowed."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for match in _BRACKETS.finditer(body):
        if match[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in (b"]", b"}"):
            depth -= 1
    return deepest


def _envelope(value: Any) -> Message:
    if not isinstance(value, dict):
        raise Fault(INVALID_REQUEST, _UNRECOGNIZABLE)
    method = value.get("method")
    answers = "result" in value or "error" in value
    if not isinstance(method, str) and ("method" in value or not answers):
        raise Fault(INVALID_REQUEST, _UNRECOGNIZABLE)
    message_id = value.get("id")
    if "id" in value:
        if message_id is None or isinstance(message_id, bool | list | dict):
            raise Fault(INVALID_REQUEST, _UNRECOGNIZABLE)
        if isinstance(message_id, float) or (
            isinstance(message_id, int) and not -MAX_INT64 - 1 <= message_id <= MAX_INT64
        ):
            raise Fault(
                INVALID_REQUEST, "data did not match any variant of untagged enum RequestId"
            )
    if "jsonrpc" not in value:
        raise Fault(INVALID_REQUEST, "missing field `jsonrpc`")
    if value["jsonrpc"] != "2.0":
        got = json.dumps(value["jsonrpc"])
        raise Fault(INVALID_REQUEST, f'unsupported jsonrpc version: expected "2.0", got {got}')
    params = value.get("params")
    return Message(
        method,
        message_id,
        params if isinstance(params, dict) else {},
        value.get("result"),
        value.get("error"),
    )


def encode(message: Any) -> bytes:
    """Frame one message: compact JSON, header and body in one piece."""
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
