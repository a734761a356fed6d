r"""Content-Length framing: bytes in, frames out. Pure; the counterpart is ``envelope``.

A frame is ``Content-Length: N\r\n\r\n`` and N bytes of JSON. Reading is strict where two readers
could disagree about where a frame ends (a second Content-Length, a length that is not plain
digits, white space before the colon), and tolerant otherwise (header case, blanks after the colon,
further headers, any chunking). Writing knows one form only: :func:`encode`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HEADER_END = b"\r\n\r\n"
_PREFIX = b"Content-Length: "
_PREFIX_LENGTH = len(_PREFIX)

MAX_HEADER_BYTES = 8 * 1024
"""Largest header block; the CLI itself stops at 64 KiB, SDKs send about 22 bytes."""

MAX_LENGTH_DIGITS = 12
"""Digits a length may have: a terabyte is out of reach of every frame limit."""

SALVAGE_BYTES = 512
"""How much of an oversized body is awaited so that its request id can be read and answered."""

_HEADER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*", re.DOTALL)


class FramingError(Exception):
    """The stream can no longer be cut into frames; the connection must end.

    Attributes:
        hint: what is wrong, for the error sent back; quotes nothing of the input.
    """

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


class FrameTooLargeError(FramingError):
    """A frame declares more than the limit.

    Attributes:
        length: declared body length in bytes.
        limit: the limit in bytes.
        head: the first bytes of the body, from which a request id may be read.
    """

    def __init__(self, length: int, limit: int, head: bytes) -> None:
        super().__init__(f"frame of {length} bytes is over the limit of {limit}")
        self.length = length
        self.limit = limit
        self.head = head


class Header(NamedTuple):
    """Where a frame's body stands in the buffer: ``buffer[body:end]``."""

    body: int
    end: int


def encode(body: bytes) -> bytes:
    """Return ``body`` as one frame in the only form the SDKs' strictest reader accepts."""
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def read_header(data: bytes, pos: int, max_header: int = MAX_HEADER_BYTES) -> Header | None:
    """Read the header block at ``pos``; None if it is not complete yet.

    Raises:
        FramingError: the block is malformed or over ``max_header`` bytes.
    """
    stop = data.find(HEADER_END, pos, pos + max_header + 4)
    if stop < 0:
        if len(data) - pos >= max_header + len(HEADER_END):
            raise FramingError(f"header block is over the limit of {max_header} bytes")
        return None
    if data.startswith(_PREFIX, pos):
        digits = data[pos + _PREFIX_LENGTH : stop]
        if digits.isdigit() and len(digits) <= MAX_LENGTH_DIGITS:
            body = stop + 4
            return Header(body, body + int(digits))
    return _read_unusual_header(data[pos:stop], stop + 4)


def _read_unusual_header(block: bytes, body: int) -> Header:
    """Parse a header block that is not the common one-line form."""
    length: int | None = None
    for line in block.split(b"\r\n"):
        match = _HEADER_LINE.fullmatch(line)
        if match is None or b"\n" in line or b"\r" in line or b"\0" in line:
            raise FramingError("header line is not `Name: value`")
        if match[1].lower() != b"content-length":
            continue
        if length is not None:
            raise FramingError("more than one Content-Length")
        if not match[2].isdigit() or not match[2].isascii():
            raise FramingError("Content-Length is not plain digits")
        if len(match[2]) > MAX_LENGTH_DIGITS:
            raise FramingError("Content-Length is out of range")
        length = int(match[2])
    if length is None:
        raise FramingError("Content-Length is missing")
    return Header(body, body + length)


class FrameBuffer:
    """Holds the incomplete frame at the end of a stream, and nothing else.

    A caller scans each chunk in place with :func:`read_header`; only what is left over comes here.
    A large frame is gathered in the chunks it arrived in, and joined once or released in them.

    Attributes:
        chunks: what is held, in one and the same list; while nothing is, :meth:`join` need not be
            called.
        max_frame: largest body in bytes; may be raised after authentication.
    """

    __slots__ = ("_have", "_is_frame", "_max_header", "_need", "chunks", "max_frame")

    def __init__(self, max_frame: int, max_header: int = MAX_HEADER_BYTES) -> None:
        self.max_frame = max_frame
        self._max_header = max_header
        self.chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._is_frame = False

    def __len__(self) -> int:
        """Return the number of bytes held."""
        return self._have

    def ends_in(self, data: bytes) -> int:
        """Return where in ``data`` the frame that is held ends; 0 if not there, or not known."""
        missing = self._need - self._have
        return missing if self._is_frame and missing <= len(data) else 0

    def release(self) -> list[bytes]:
        """Return what is held, in chunks, and hold it no longer."""
        held = self.chunks.copy()
        self.chunks.clear()
        self._have = self._need = 0
        return held

    def join(self, data: bytes) -> bytes | None:
        """Add a chunk; return everything held once it may hold a whole frame, else None."""
        if not self.chunks:
            return data
        self.chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return None
        return b"".join(self.release())

    def frame(self, data: bytes, pos: int) -> Header | None:
        """Locate the frame at ``pos``; if it is incomplete, keep the rest and return None.

        Raises:
            FramingError: the header is malformed.
            FrameTooLargeError: the body is over ``max_frame``.
        """
        header = read_header(data, pos, self._max_header)
        size = len(data)
        if header is not None:
            length = header.end - header.body
            if length > self.max_frame:
                if size - header.body >= min(length, SALVAGE_BYTES):
                    head = data[header.body : header.body + SALVAGE_BYTES]
                    raise FrameTooLargeError(length, self.max_frame, head)
                self._keep(data, pos, header.body - pos + min(length, SALVAGE_BYTES))
                return None
            if header.end <= size:
                return header
            self._keep(data, pos, header.end - pos)
            self._is_frame = True
            return None
        self._keep(data, pos, 0)
        return None

    def _keep(self, data: bytes, pos: int, need: int) -> None:
        rest = data[pos:] if pos else data
        self.chunks.append(rest)
        self._have = len(rest)
        self._need = need
        self._is_frame = False


class FrameDecoder:
    """Cuts a stream into bodies, whatever the chunking."""

    __slots__ = ("buffer",)

    def __init__(self, max_frame: int, max_header: int = MAX_HEADER_BYTES) -> None:
        self.buffer = FrameBuffer(max_frame, max_header)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies completed by ``data``, in order.

        Bodies that precede a broken header in the same chunk are not lost: they are returned, and
        the error is raised by the next call (also by one with no data).

        Raises:
            FramingError: see :meth:`FrameBuffer.frame`.
        """
        bodies: list[bytes] = []
        buffer = self.buffer
        whole = buffer.join(data)
        if whole is None:
            return bodies
        pos, size = 0, len(whole)
        while pos < size:
            try:
                header = buffer.frame(whole, pos)
            except FramingError:
                if not bodies:
                    raise
                buffer._keep(whole, pos, 0)
                break
            if header is None:
                break
            bodies.append(whole[header.body : header.end])
            pos = header.end
        return bodies

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and not ended."""
        return len(self.buffer) > 0
