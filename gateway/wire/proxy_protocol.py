r"""PROXY protocol, versions 1 and 2: the real client's address ahead of its first byte. Pure.

A load balancer in front of the gateway hides who connects; with this header it says so. The header
is believed by whoever reads it, so a listener must demand it or not know it at all, and take
connections only from balancers it trusts.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

MAX_V1_BYTES = 107
"""Longest version 1 line, CRLF included, by its specification."""

MAX_V2_PAYLOAD_BYTES = 4096
"""Longest version 2 address block with its extensions; balancers send under 500 bytes."""

_V1_PREFIX = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEADER_BYTES = 16
_V1_INET = re.compile(rb"PROXY TCP([46]) (\S{2,39}) (\S{2,39}) (\d{1,5}) (\d{1,5})\r\n", re.ASCII)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")

_LOCAL, _PROXY = 0x0, 0x1
_INET, _INET6, _UNIX = 0x1, 0x2, 0x3
_ADDRESS_BYTES = {0x0: 0, _INET: 12, _INET6: 36, _UNIX: 216}


class ProxyProtocolError(Exception):
    """The connection does not begin with a valid PROXY header; it must be closed."""


class Address(NamedTuple):
    """An IP address in its usual form, and a TCP port."""

    host: str
    port: int


class ProxyHeader(NamedTuple):
    """What a PROXY header says.

    Attributes:
        source: the real client, or None where the balancer states none (its own health checks,
            ``UNKNOWN``, unix sockets): then the connection's own peer is the client.
        destination: the address that the client connected to, or None likewise.
        rest: the bytes after the header, which belong to the next protocol.
    """

    source: Address | None
    destination: Address | None
    rest: bytes


class ProxyHeaderParser:
    """Reads one header from a stream in any chunking; holds no more than one header."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Add bytes; return the header once it is complete, None before.

        Raises:
            ProxyProtocolError: what came cannot become a valid header; for a version 1 line that
                is known when it ends or reaches its limit.
        """
        self._buffer += data
        buffer = self._buffer
        if buffer.startswith(_V2_SIGNATURE):
            return _read_v2(buffer)
        if buffer.startswith(_V1_PREFIX):
            return _read_v1(buffer)
        if _V2_SIGNATURE.startswith(buffer) or _V1_PREFIX.startswith(buffer):
            return None
        raise ProxyProtocolError("connection does not begin with a PROXY header")


def _read_v1(buffer: bytes) -> ProxyHeader | None:
    end = buffer.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(buffer) >= MAX_V1_BYTES:
            raise ProxyProtocolError(f"PROXY line is over the limit of {MAX_V1_BYTES} bytes")
        return None
    line, rest = buffer[: end + 2], buffer[end + 2 :]
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(None, None, rest)
    match = _V1_INET.fullmatch(line)
    if match is None:
        raise ProxyProtocolError("PROXY line is malformed")
    version = int(match[1])
    return ProxyHeader(
        _v1_address(version, match[2], match[4]), _v1_address(version, match[3], match[5]), rest
    )


def _v1_address(version: int, host: bytes, port: bytes) -> Address:
    try:
        address = ipaddress.ip_address(host.decode("ascii"))
    except ValueError:
        raise ProxyProtocolError("PROXY line holds no valid address") from None
    number = int(port)
    if address.version != version or getattr(address, "scope_id", None) is not None:
        raise ProxyProtocolError("PROXY line holds an address of the wrong family")
    if number > 0xFFFF or (len(port) > 1 and port.startswith(b"0")):
        raise ProxyProtocolError("PROXY line holds no valid port")
    return Address(str(address), number)


def _read_v2(buffer: bytes) -> ProxyHeader | None:
    if len(buffer) < _V2_HEADER_BYTES:
        _check_v2_start(buffer)
        return None
    _check_v2_start(buffer)
    length = int.from_bytes(buffer[14:16], "big")
    if length > MAX_V2_PAYLOAD_BYTES:
        raise ProxyProtocolError(f"PROXY header is over the limit of {MAX_V2_PAYLOAD_BYTES} bytes")
    command, family = buffer[12] & 0xF, buffer[13] >> 4
    if command == _PROXY and length < _ADDRESS_BYTES[family]:
        raise ProxyProtocolError("PROXY header is too short for its address family")
    end = _V2_HEADER_BYTES + length
    if len(buffer) < end:
        return None
    payload, rest = buffer[_V2_HEADER_BYTES:end], buffer[end:]
    if command == _LOCAL or family not in (_INET, _INET6):
        return ProxyHeader(None, None, rest)
    size = 4 if family == _INET else 16
    ports = payload[2 * size : 2 * size + 4]
    source = Address(_v2_host(payload[:size]), int.from_bytes(ports[:2], "big"))
    destination = Address(_v2_host(payload[size : 2 * size]), int.from_bytes(ports[2:], "big"))
    return ProxyHeader(source, destination, rest)


def _check_v2_start(buffer: bytes) -> None:
    """Check version, command and family as far as they have come."""
    if len(buffer) > 12 and buffer[12] not in (0x20 | _LOCAL, 0x20 | _PROXY):
        raise ProxyProtocolError("PROXY header has an unknown version or command")
    if len(buffer) > 13:
        family, transport = buffer[13] >> 4, buffer[13] & 0xF
        if family not in _ADDRESS_BYTES or transport > 2:
            raise ProxyProtocolError("PROXY header has an unknown address family")
        if buffer[12] & 0xF == _PROXY and transport == 2:
            raise ProxyProtocolError("PROXY header is not about a stream")


def _v2_host(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))
