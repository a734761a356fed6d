from __future__ import annotations

import itertools
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.proxy_protocol import (
    MAX_V1_BYTES,
    MAX_V2_PAYLOAD_BYTES,
    Address,
    ProxyHeader,
    ProxyHeaderParser,
    ProxyProtocolError,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REST = b"Content-Length: 2\r\n\r\n{}"


def v2(command: int, family: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", size) + payload


def inet(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    packed = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return packed + struct.pack(">HH", *ports)


V2_INET = v2(0x21, 0x11, inet("192.0.2.1", "198.51.100.2", (40000, 4321)))
V2_INET6 = v2(0x21, 0x21, inet("2001:db8::1", "2001:db8::2", (1, 65535)))
EXTENSION = b"\x02\x00\x03abc"

VALID = [
    (
        b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 4321\r\n",
        Address("192.0.2.1", 40000),
        Address("198.51.100.2", 4321),
    ),
    (
        b"PROXY TCP6 2001:DB8::1 2001:db8:0:0::2 0 65535\r\n",
        Address("2001:db8::1", 0),
        Address("2001:db8::2", 65535),
    ),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, None),
    (V2_INET, Address("192.0.2.1", 40000), Address("198.51.100.2", 4321)),
    (
        v2(0x21, 0x11, inet("192.0.2.1", "198.51.100.2", (40000, 4321)) + EXTENSION),
        Address("192.0.2.1", 40000),
        Address("198.51.100.2", 4321),
    ),
    (V2_INET6, Address("2001:db8::1", 1), Address("2001:db8::2", 65535)),
    (v2(0x20, 0x00, b""), None, None),
    (v2(0x20, 0x11, inet("192.0.2.1", "198.51.100.2", (1, 2))), None, None),
    (v2(0x21, 0x31, b"/" * 216), None, None),
    (v2(0x21, 0x00, b""), None, None),
]

INVALID = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a frame": REST,
    "tls": b"\x16\x03\x01\x02\x00\x01",
    "lower case": b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
    "two spaces": b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
    "unknown family": b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
    "v6 in tcp4": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "v4 in tcp6": b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
    "zone": b"PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n",
    "leading zero address": b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
    "leading zero port": b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
    "port out of range": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
    "signed port": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 +2\r\n",
    "missing port": b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
    "trailing space": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
    "line feed only": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + b"x" * MAX_V1_BYTES,
    "line too long": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "endless line": b"PROXY " + b"x" * MAX_V1_BYTES,
    "v2 version 1": v2(0x11, 0x11, b"\0" * 12),
    "v2 command": v2(0x22, 0x11, b"\0" * 12),
    "v2 family": v2(0x21, 0x41, b"\0" * 12),
    "v2 transport": v2(0x21, 0x13, b"\0" * 12),
    "v2 datagram": v2(0x21, 0x12, b"\0" * 12),
    "v2 too short": v2(0x21, 0x11, b"\0" * 11),
    "v2 too short for v6": v2(0x21, 0x21, b"\0" * 35),
    "v2 too long": v2(0x21, 0x11, b"", MAX_V2_PAYLOAD_BYTES + 1),
}


def feed(chunks: list[bytes]) -> ProxyHeader | str | None:
    """Feed chunks; bytes after the header's end are joined to its rest, as a caller would."""
    parser = ProxyHeaderParser()
    for index, chunk in enumerate(chunks):
        try:
            header = parser.feed(chunk)
        except ProxyProtocolError:
            return "error"
        if header is not None:
            return header._replace(rest=header.rest + b"".join(chunks[index + 1 :]))
    return None


@pytest.mark.parametrize(("data", "source", "destination"), VALID)
def test_valid_headers(data: bytes, source: Address | None, destination: Address | None) -> None:
    assert feed([data + REST]) == ProxyHeader(source, destination, REST)
    assert feed([data]) == ProxyHeader(source, destination, b"")


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID.keys())
def test_invalid_headers(data: bytes) -> None:
    assert feed([data]) == "error"
    assert feed([bytes([byte]) for byte in data]) == "error"


@pytest.mark.parametrize("data", [data for data, _, _ in VALID])
def test_an_incomplete_header_is_waited_for(data: bytes) -> None:
    for end in range(len(data)):
        assert feed([data[:end]]) is None


def test_what_is_no_header_is_refused_at_its_first_byte() -> None:
    with pytest.raises(ProxyProtocolError):
        ProxyHeaderParser().feed(b"C")


def test_an_oversized_block_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ProxyProtocolError, match="4096"):
        ProxyHeaderParser().feed(v2(0x21, 0x11, b"", 0xFFFF))


STREAMS = st.one_of(
    st.sampled_from([data for data, _, _ in VALID]).map(lambda data: data + REST),
    st.sampled_from(list(INVALID.values())),
    st.builds(
        lambda a, b: a + b, st.sampled_from([b"PROXY ", b"PROXY TCP4 ", SIGNATURE]), st.binary()
    ),
    st.binary(max_size=300),
)


@given(STREAMS, st.lists(st.integers(0, 300), max_size=8))
def test_any_chunking_gives_what_all_at_once_gives(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert feed(chunks) == feed([data])
    assert feed([bytes([byte]) for byte in data]) == feed([data])
