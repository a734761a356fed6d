"""What is measured: the scenarios, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Work = Literal["request", "stream", "connect", "create", "idle"]

PLAIN = ("direct", "haproxy", "nginx", "gateway")
"""The targets that nearly every scenario is run on."""

KIB = 1024


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of traffic.

    Attributes:
        name: How it is called on the command line and in result files.
        title: What it is, for tables and plots.
        work: What a connection does: small requests; prompts answered by a burst of events;
            connecting and authenticating; creating sessions; or nothing.
        connections: Client connections, all driven by one load generator.
        sessions: Sessions per connection, used in turn.
        outstanding: Requests under way per connection, each on another session.
        replicas: Stub replicas behind the target.
        events: Events that answer a prompt.
        event_bytes: Size of an event's JSON body.
        per_write: Events that the replica writes at once; 0 writes a whole burst.
        slow: How many of the connections read slowly; latency is that of the others.
        tls: Whether clients speak TLS with the proxy, which speaks plainly with the replicas.
        targets: Names of the targets it is meant for.
    """

    name: str
    title: str
    work: Work
    connections: int = 1
    sessions: int = 1
    outstanding: int = 1
    replicas: int = 2
    events: int = 0
    event_bytes: int = 350
    per_write: int = 0
    slow: int = 0
    tls: bool = False
    targets: tuple[str, ...] = PLAIN

    def parameters(self) -> dict[str, Any]:
        """What a result file records of it."""
        kept = asdict(self)
        for name in ("name", "title", "targets"):
            del kept[name]
        return kept

    def arguments(self) -> list[str]:
        """The load generator's arguments for it."""
        return [
            *(["--tls"] if self.tls else []),
            f"--work={self.work}",
            f"--connections={self.connections}",
            f"--sessions={self.sessions}",
            f"--outstanding={self.outstanding}",
            f"--slow={self.slow}",
            f"--events={self.events}",
            f"--event-bytes={self.event_bytes}",
            f"--per-write={self.per_write}",
        ]


def _request(connections: int, targets: tuple[str, ...] = PLAIN) -> Scenario:
    return Scenario(
        f"request-{connections}",
        f"request/response, {_connections(connections)}",
        "request",
        connections=connections,
        targets=targets,
    )


def _stream(connections: int, targets: tuple[str, ...] = PLAIN) -> Scenario:
    return Scenario(
        f"stream-{connections}",
        f"bursts of 100 events of 350 B, {_connections(connections)}",
        "stream",
        connections=connections,
        events=100,
        targets=targets,
    )


def _trickle(connections: int) -> Scenario:
    return Scenario(
        f"trickle-{connections}",
        f"100 events of 350 B written one by one, {_connections(connections)}",
        "stream",
        connections=connections,
        events=100,
        per_write=1,
    )


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


_ALL_GATEWAYS = (
    *PLAIN,
    "gateway-2-workers",
    "gateway-admin",
    "gateway-scraped",
    "gateway-connector",
)
_REGISTRIES = (*PLAIN, "gateway-memory", "gateway-redis")
_PROXIES = tuple(name for name in PLAIN if name != "direct")

SCENARIOS: tuple[Scenario, ...] = (
    _request(1, (*PLAIN, "gateway-connector")),
    _request(32, _ALL_GATEWAYS),
    _request(256),
    _stream(1),
    _stream(32, _ALL_GATEWAYS),
    _trickle(1),
    _trickle(32),
    Scenario(
        "events-4k",
        "bursts of 50 events of 4 KiB, 8 connections",
        "stream",
        connections=8,
        events=50,
        event_bytes=4 * KIB,
    ),
    Scenario(
        "events-40k",
        "bursts of 20 events of 40 KiB, 8 connections",
        "stream",
        connections=8,
        events=20,
        event_bytes=40 * KIB,
    ),
    Scenario(
        "events-2m",
        "bursts of 4 events of 2 MiB, 4 connections",
        "stream",
        connections=4,
        events=4,
        event_bytes=2048 * KIB,
    ),
    Scenario("connect", "connect and authenticate, 32 at a time", "connect", connections=32),
    Scenario(
        "create",
        "create sessions, 8 connections",
        "create",
        connections=8,
        targets=_REGISTRIES,
    ),
    Scenario(
        "connect-tls",
        "connect and authenticate over TLS, 32 at a time",
        "connect",
        connections=32,
        tls=True,
        targets=("haproxy", "gateway"),
    ),
    Scenario(
        "request-32-tls",
        "request/response over TLS, 32 connections",
        "request",
        connections=32,
        tls=True,
        targets=_PROXIES,
    ),
    Scenario(
        "stream-32-tls",
        "bursts of 100 events of 350 B over TLS, 32 connections",
        "stream",
        connections=32,
        events=100,
        tls=True,
        targets=_PROXIES,
    ),
    Scenario(
        "sessions-10",
        "1 connection, 10 sessions, 8 replicas",
        "request",
        sessions=10,
        outstanding=8,
        replicas=8,
    ),
    Scenario(
        "sessions-100",
        "1 connection, 100 sessions, 8 replicas",
        "request",
        sessions=100,
        outstanding=8,
        replicas=8,
    ),
    Scenario(
        "sessions-1000",
        "1 connection, 1,000 sessions, 8 replicas",
        "request",
        sessions=1000,
        outstanding=8,
        replicas=8,
    ),
    Scenario(
        "replicas-1", "request/response, 32 connections, 1 replica", "request", 32, replicas=1
    ),
    Scenario(
        "replicas-4", "request/response, 32 connections, 4 replicas", "request", 32, replicas=4
    ),
    Scenario(
        "replicas-8", "request/response, 32 connections, 8 replicas", "request", 32, replicas=8
    ),
    Scenario("idle-5000", "5,000 idle authenticated connections", "idle", connections=5000),
    Scenario(
        "slow-reader",
        "bursts of 100 events, 28 connections beside 4 slow readers",
        "stream",
        connections=32,
        events=100,
        slow=4,
    ),
)

PROXIES: tuple[str, ...] = (
    "request-1",
    "request-32",
    "stream-1",
    "stream-32",
    "trickle-1",
    "trickle-32",
)
"""The short comparison with HAProxy that ``python -m bench proxies`` runs."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Scenarios that differ in one parameter: a plot of how cost grows with it."""

    name: str
    title: str
    parameter: str
    scenarios: tuple[str, ...]


SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        "connections",
        "Cost against connections (request/response)",
        "connections",
        ("request-1", "request-32", "request-256"),
    ),
    Sweep(
        "sessions",
        "Cost against sessions of one connection",
        "sessions",
        ("sessions-10", "sessions-100", "sessions-1000"),
    ),
    Sweep(
        "replicas",
        "Cost against replicas (32 connections)",
        "replicas",
        ("replicas-1", "request-32", "replicas-4", "replicas-8"),
    ),
    Sweep(
        "event-size",
        "Cost against event size",
        "event_bytes",
        ("stream-32", "events-4k", "events-40k", "events-2m"),
    ),
)


def by_name(name: str) -> Scenario | None:
    """The scenario called ``name``."""
    return next((each for each in SCENARIOS if each.name == name), None)
