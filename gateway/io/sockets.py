"""TCP options, and why each is set."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How dead peers are found: the CLI and SDKs never probe, and half-open peers stay for ever.

    Attributes:
        idle: seconds of silence before the first probe.
        interval: seconds between probes.
        count: unanswered probes after which the peer is dead.
    """

    idle: int = 30
    interval: int = 10
    count: int = 3

    @property
    def total(self) -> int:
        """Seconds after which a silent peer is known to be dead."""
        return self.idle + self.interval * self.count


def options_of(sock: Any) -> socket.socket:
    """Return a socket object for the options of a transport's connection.

    ``uvloop`` makes a new one at each call of its own, with a system call. The descriptor stays the
    transport's: call ``detach`` once the connection is lost.

    Args:
        sock: the transport's ``socket``.
    """
    return socket.socket(sock.family, sock.type, sock.proto, sock.fileno())


def tune(sock: socket.socket, keepalive: Keepalive) -> None:
    """Set the options of a connection, accepted or dialed.

    NODELAY: frames are written whole, so there is nothing to coalesce. Keepalive finds peers that
    vanished while idle, the user time-out those that vanished with bytes under way.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.count)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, keepalive.total * 1000)


def acknowledge(sock: socket.socket) -> None:
    """Acknowledge what was read now, not up to 40 ms later.

    SDKs write header and body apart and CLIs leave Nagle's algorithm on: both hold back their next
    segment until the last one is acknowledged. The kernel leaves quick mode by itself, so it is
    entered again after each read that leaves the peer waiting.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def is_tcp(sock: Any) -> bool:
    """Whether TCP options apply."""
    return sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6)
