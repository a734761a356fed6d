"""What the gateway counts: plain integers that the data path increments in place.

One :class:`Stats` belongs to one worker process and one event loop; nothing here locks. Only names
that the gateway itself chose become labels: a method name from a client is folded into one of
:data:`METHOD_CLASSES`, and tenants beyond :data:`MAX_TENANTS` share one entry, so a client cannot
make the counters grow. :mod:`gateway.io.telemetry` turns a ``Stats`` into metrics when asked to;
until then a count costs one attribute increment.

Objects to keep, so that the hot path does no lookup: :meth:`Stats.method` when a request arrives
(kept with the pending request), :meth:`Stats.replica` in each link, :meth:`Stats.tenant` in each
client.
"""

from __future__ import annotations

import inspect
import re
from bisect import bisect_left
from collections import defaultdict

from gateway.routing.registry import Registry
from gateway.types import ReplicaState

GATEWAY_TIME_BOUNDS = (
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0,
)  # fmt: skip
"""Upper bounds in seconds of the time a message spends inside the gateway (tens of µs)."""

REQUEST_TIME_BOUNDS = (
    5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Upper bounds in seconds of an answer's time: 0.1 ms for a ping, minutes for a blocking send."""

REGISTRY_TIME_BOUNDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0)
"""Upper bounds in seconds of a registry operation: 0.1 ms for SQLite, the time-out at the top."""

REJECT_REASONS = ("limit", "source", "draining")
"""Why a connection is refused on arrival: too many, an address not allowed or banned, shutdown."""

CUT_REASONS = (
    "stalled", "dead", "limit", "protocol", "auth_timeout", "auth_failures", "revoked", "shutdown",
)  # fmt: skip
"""Why the gateway closes a client that did not ask for it."""

AUTH_OUTCOMES = ("accepted", "failed", "missing", "limited")
"""What became of an authentication; ``limited`` is refused unseen after too many failures."""

REGISTRY_OPERATIONS = tuple(
    name
    for name, member in vars(Registry).items()
    if inspect.iscoroutinefunction(member) and name not in ("open", "close")
)
"""The methods of the registry's interface that are counted."""

METHOD_CLASSES = (
    "connect",
    "ping",
    "session.create",
    "session.resume",
    "session.send",
    "session.abort",
    "session.answer",
    "session.end",
    "session.list",
    "session.read",
    "session.write",
    "server",
    "callback",
    "unknown",
)
"""Every value of the ``method`` label.

``session.answer`` settles a pending permission, tool call or input; ``session.end`` detaches,
closes or deletes; ``session.list`` asks about many sessions; ``server`` is all that concerns no
session; ``callback`` is what a replica asks of a client.
"""

MAX_TENANTS = 200
"""Tenants with counters of their own; a metrics store suffers from more series, not the gateway."""

OTHER_TENANTS = "(other)"
"""The entry shared by all tenants after the first :data:`MAX_TENANTS`."""

_MAX_CACHED_METHODS = 2048  # About three times what a CLI offers; some 300 kB if a client fills it.
_MAX_CACHED_METHOD_LENGTH = 96

_EXACT = {
    "connect": "connect",
    "ping": "ping",
    "session.create": "session.create",
    "session.resume": "session.resume",
    "sessions.open": "session.resume",
    "session.send": "session.send",
    "session.sendMessages": "session.send",
    "session.sendAndWait": "session.send",
    "session.abort": "session.abort",
    "session.interruptMainTurn": "session.abort",
    "session.detach": "session.end",
    "session.destroy": "session.end",
    "session.delete": "session.end",
    "session.shutdown": "session.end",
    "session.suspend": "session.end",
    "sessions.close": "session.end",
    "sessions.delete": "session.end",
    "sessions.bulkDelete": "session.end",
    "sessions.pruneOld": "session.end",
    "session.list": "session.list",
    "session.getLastId": "session.list",
    "session.getForeground": "session.list",
    "sessions.list": "session.list",
    "registerExtensionLaunchProvider": "server",
}
_ANSWER = re.compile(r"session\.(?:.+\.)?(?:handlePending|respondTo|handleHuman)[A-Za-z]*\Z")
_SESSION_READ = re.compile(
    r"sessions?\.(?:.+\.)?(?:get|list|read|find|is|has|check|stat|preview|pending|snapshot|tail"
    r"|activity|contextInfo|diff|browse|diagnose|waitFor|summarize)[A-Za-z]*\Z"
)
_CALLBACKS = frozenset((
    "autoModeSwitch", "canvas", "exitPlanMode", "extensionLaunchProvider", "factory",
    "gitHubToken", "hooks", "installations", "llmInference", "permission", "providerToken",
    "sessionFs", "skillProvider", "systemMessage", "tasks", "tool", "uiThread", "userInput",
    "workflow",
))  # fmt: skip
_SERVER_PREFIXES = (
    "hooks.discover", "llmInference.set", "llmInference.httpResponse", "sessionFs.setProvider",
)  # fmt: skip
"""What clients ask in a namespace that is otherwise the replica's to ask in."""
_SERVER = frozenset((
    "account", "agentRegistry", "agents", "auth", "azureMl", "catalog", "commands", "connectors",
    "contentExclusion", "environments", "extensions", "featureFlags", "git", "gitHubOwners",
    "gitHubRepository", "globalState", "host", "instructions", "managedSettings", "mcp", "models",
    "permissions", "persistence", "plugins", "repo", "runtime", "sandbox", "secrets", "skills",
    "status", "tools", "user",
))  # fmt: skip
_method_classes = dict(_EXACT)


def method_class(method: str) -> str:
    """Fold a method name, however wild, into one of :data:`METHOD_CLASSES`."""
    found = _method_classes.get(method)
    if found is not None:
        return found
    found = _classify(method)
    if (
        found != "unknown"
        and len(method) <= _MAX_CACHED_METHOD_LENGTH
        and len(_method_classes) < _MAX_CACHED_METHODS
    ):
        _method_classes[method] = found
    return found


def _classify(method: str) -> str:
    # Only the head is looked at: a name may be as long as a frame.
    head = method[: _MAX_CACHED_METHOD_LENGTH + 1]
    namespace, dot, rest = head.partition(".")
    if not dot or not rest or len(head) > _MAX_CACHED_METHOD_LENGTH:
        return "unknown"
    if namespace in ("session", "sessions"):
        if _ANSWER.match(head):
            return "session.answer"
        return "session.read" if _SESSION_READ.match(head) else "session.write"
    if namespace in _CALLBACKS:
        return "server" if head.startswith(_SERVER_PREFIXES) else "callback"
    return "server" if namespace in _SERVER else "unknown"


class Histogram:
    """Counts of durations in fixed buckets.

    Attributes:
        bounds: ascending upper bounds in seconds, each inclusive.
        counts: one count per bound, not cumulative, and a last one for what exceeds them all.
        sum: total of the observed seconds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, n: int = 1) -> None:
        """Count ``n`` events that took ``seconds`` each."""
        self.counts[bisect_left(self.bounds, seconds)] += n
        self.sum += seconds * n


class MethodStats:
    """Requests of one method class, by outcome.

    Attributes:
        ok: answered with a result.
        error: answered by the peer with an error.
        denied: refused by policy or for want of ownership or authentication.
        refused: answered by the gateway with any other error (bad request, limit, no replica).
        lost: never answered: the asking side went away, or the asked one and no retry was safe.
        duration: seconds from the request's arrival to the peer's answer; only ``ok`` and
            ``error`` are observed.
    """

    __slots__ = ("denied", "duration", "error", "lost", "ok", "refused")

    def __init__(self) -> None:
        self.ok = 0
        self.error = 0
        self.denied = 0
        self.refused = 0
        self.lost = 0
        self.duration = Histogram(REQUEST_TIME_BOUNDS)


class ReplicaStats:
    """One replica as this worker sees it.

    Attributes:
        state: its present state.
        links: connections open to it.
        sessions: sessions live on it for clients of this worker.
        served: sessions made live on it by clients of this worker.
        in_flight: requests sent to it and not yet answered.
        ejections: times it was taken out after failures.
        restarts: times the supervisor started it again.
        probe_seconds: duration of the last successful health probe, or None before the first.
    """

    __slots__ = (
        "ejections",
        "in_flight",
        "links",
        "probe_seconds",
        "restarts",
        "served",
        "sessions",
        "state",
    )

    def __init__(self) -> None:
        self.state = ReplicaState.STARTING
        self.links = 0
        self.sessions = 0
        self.served = 0
        self.in_flight = 0
        self.ejections = 0
        self.restarts = 0
        self.probe_seconds: float | None = None


class TenantStats:
    """One tenant, or all those that share :data:`OTHER_TENANTS`.

    Attributes:
        clients: authenticated clients connected now.
        requests: messages received.
        limited: requests and connections refused by a quota.
    """

    __slots__ = ("clients", "limited", "requests")

    def __init__(self) -> None:
        self.clients = 0
        self.requests = 0
        self.limited = 0


class RegistryStats:
    """One registry operation.

    Attributes:
        ok: calls that were answered.
        failed: calls that ended with the registry unavailable.
        duration: seconds of each call, failed ones included.
    """

    __slots__ = ("duration", "failed", "ok")

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.duration = Histogram(REGISTRY_TIME_BOUNDS)


class Stats:
    """All counters of one worker. Counters only grow; gauges are marked.

    Attributes:
        clients_open: gauge: client connections open, authenticated or not.
        clients_accepted: connections accepted.
        clients_rejected: connections refused, by :data:`REJECT_REASONS`.
        clients_cut: clients closed by the gateway, by :data:`CUT_REASONS`.
        auth: authentications, by :data:`AUTH_OUTCOMES`.
        frames_from_client, frames_to_client, frames_from_replica, frames_to_replica: frames read
            or written on each side.
        bytes_from_client, bytes_to_client, bytes_from_replica, bytes_to_replica: their bytes,
            headers included.
        events_forwarded: ``session.event`` notifications passed to clients.
        lifecycle_dropped: ``session.lifecycle`` notifications that their receiver may not see.
        frames_queued: frames that had to wait for a placement or a rebind.
        time_to_replica: time in the gateway of client frames, from read to write; a sample.
        time_to_client: time in the gateway of replica frames, from read to write; a sample.
        sessions_live: gauge: sessions live through this worker.
        sessions_waiting: gauge: sessions whose frames queue until a placement or rebind is done.
        sessions_placed: first placements (create, or resume of a session that was not live).
        sessions_rebound: sessions made live again after a move or a replica's end.
        sessions_failed: placements and rebinds given up.
        methods: requests by method class; every class is present.
        registry: registry operations by name.
        audit_lost: audit records dropped because the disk did not keep up.
        replicas: by name; use :meth:`replica`.
        tenants: by name; use :meth:`tenant`.
    """

    __slots__ = (
        "audit_lost",
        "auth",
        "bytes_from_client",
        "bytes_from_replica",
        "bytes_to_client",
        "bytes_to_replica",
        "clients_accepted",
        "clients_cut",
        "clients_open",
        "clients_rejected",
        "events_forwarded",
        "frames_from_client",
        "frames_from_replica",
        "frames_queued",
        "frames_to_client",
        "frames_to_replica",
        "lifecycle_dropped",
        "methods",
        "registry",
        "replicas",
        "sessions_failed",
        "sessions_live",
        "sessions_placed",
        "sessions_rebound",
        "sessions_waiting",
        "tenants",
        "time_to_client",
        "time_to_replica",
    )

    def __init__(self) -> None:
        self.clients_open = 0
        self.clients_accepted = 0
        self.clients_rejected = defaultdict[str, int](int, dict.fromkeys(REJECT_REASONS, 0))
        self.clients_cut = defaultdict[str, int](int, dict.fromkeys(CUT_REASONS, 0))
        self.auth = defaultdict[str, int](int, dict.fromkeys(AUTH_OUTCOMES, 0))

        self.frames_from_client = 0
        self.frames_to_client = 0
        self.frames_from_replica = 0
        self.frames_to_replica = 0
        self.bytes_from_client = 0
        self.bytes_to_client = 0
        self.bytes_from_replica = 0
        self.bytes_to_replica = 0

        self.events_forwarded = 0
        self.lifecycle_dropped = 0
        self.frames_queued = 0
        self.time_to_replica = Histogram(GATEWAY_TIME_BOUNDS)
        self.time_to_client = Histogram(GATEWAY_TIME_BOUNDS)

        self.sessions_live = 0
        self.sessions_waiting = 0
        self.sessions_placed = 0
        self.sessions_rebound = 0
        self.sessions_failed = 0

        self.methods = {name: MethodStats() for name in METHOD_CLASSES}
        self.registry = {name: RegistryStats() for name in REGISTRY_OPERATIONS}
        self.audit_lost = 0
        self.replicas: dict[str, ReplicaStats] = {}
        self.tenants: dict[str, TenantStats] = {}

    def method(self, method: str) -> MethodStats:
        """Return the counters of the class that a method name belongs to."""
        return self.methods[method_class(method)]

    def registry_done(self, operation: str, seconds: float, *, ok: bool) -> None:
        """Count one registry call, named as in :data:`REGISTRY_OPERATIONS`.

        Raises:
            KeyError: the operation has no such name.
        """
        entry = self.registry[operation]
        if ok:
            entry.ok += 1
        else:
            entry.failed += 1
        entry.duration.observe(seconds)

    def replica(self, name: str) -> ReplicaStats:
        """Return the counters of a replica, made at the first call."""
        entry = self.replicas.get(name)
        if entry is None:
            entry = self.replicas[name] = ReplicaStats()
        return entry

    def forget_replica(self, name: str) -> None:
        """Drop a replica that left the configuration, with its metrics; idempotent."""
        self.replicas.pop(name, None)

    def tenant(self, name: str) -> TenantStats:
        """Return the counters of a tenant; late-comers share :data:`OTHER_TENANTS`."""
        entry = self.tenants.get(name)
        if entry is None:
            if len(self.tenants) >= MAX_TENANTS:
                name = OTHER_TENANTS
            entry = self.tenants.setdefault(name, TenantStats())
        return entry
