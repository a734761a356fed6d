"""Metrics: a worker's :class:`~gateway.core.stats.Stats` in Prometheus text form, by OpenTelemetry.

The data path never touches an OpenTelemetry object: each counter and gauge is an *observable*
instrument whose callback reads the ``Stats`` when somebody scrapes. OpenTelemetry has no observable
histogram (only ``record()``, one call per value), so the histograms, aggregated already, enter the
same registry through a small collector of Prometheus' own.

:data:`METRICS` is the only list of metrics; ``docs/reference/metrics.md`` is held against it.

With several workers each renders its own text and :func:`merge_expositions` makes one of them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway.core.stats import Histogram, Stats
from gateway.types import ReplicaState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The ``Content-Type`` of what :meth:`Telemetry.render` returns."""

_PREFIX: Final = "copilot_gateway_"

_UNITS: Final = {"bytes": "By", "seconds": "s", "": ""}
"""A metric's unit, as Prometheus names end and as OpenTelemetry spells it."""

Labels = dict[str, str]
Value = float | Histogram
Rows = Iterable[tuple[Labels, Value]]


class Kind(enum.Enum):
    """What a number does over time."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(enum.Enum):
    """How the values of several workers become one."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name without prefix, and how to read it from a ``Stats``.

    Attributes:
        name: name without ``copilot_gateway_``; counters without ``_total``.
        kind: counter, gauge or histogram.
        help: one line for the scraper and the reference page.
        read: yields each series' labels and value; a :class:`Histogram` for a histogram.
        labels: the label names, in order.
        unit: ``bytes``, ``seconds`` or nothing; the name ends with it.
        merge: how workers are combined.
    """

    name: str
    kind: Kind
    help: str
    read: Callable[[Stats], Rows]
    labels: tuple[str, ...] = ()
    unit: str = ""
    merge: Merge = Merge.SUM

    @property
    def family(self) -> str:
        """The full name, without the suffixes of its samples."""
        return _PREFIX + self.name

    @property
    def exposed_name(self) -> str:
        """The full name as queries and the ``# TYPE`` line write it."""
        return f"{self.family}_total" if self.kind is Kind.COUNTER else self.family


def _one(read: Callable[[Stats], Value]) -> Callable[[Stats], Rows]:
    return lambda stats: [({}, read(stats))]


def _by(label: str, read: Callable[[Stats], dict[str, int]]) -> Callable[[Stats], Rows]:
    return lambda stats: [({label: key}, value) for key, value in read(stats).items()]


def _directions(
    from_client: str, to_client: str, from_replica: str, to_replica: str
) -> Callable[[Stats], Rows]:
    names = {
        "from_client": from_client,
        "to_client": to_client,
        "from_replica": from_replica,
        "to_replica": to_replica,
    }
    return lambda stats: [
        ({"direction": direction}, getattr(stats, name)) for direction, name in names.items()
    ]


_OUTCOMES: Final = ("ok", "error", "denied", "refused", "lost")


def _requests(stats: Stats) -> Rows:
    for method, entry in stats.methods.items():
        for outcome in _OUTCOMES:
            yield {"method": method, "outcome": outcome}, getattr(entry, outcome)


def _registry_operations(stats: Stats) -> Rows:
    for operation, entry in stats.registry.items():
        yield {"operation": operation, "outcome": "ok"}, entry.ok
        yield {"operation": operation, "outcome": "failed"}, entry.failed


def _tenants(attribute: str) -> Callable[[Stats], Rows]:
    return lambda stats: [
        ({"tenant": name}, getattr(entry, attribute)) for name, entry in stats.tenants.items()
    ]


def _replicas(attribute: str) -> Callable[[Stats], Rows]:
    return lambda stats: [
        ({"replica": name}, value)
        for name, entry in stats.replicas.items()
        if (value := getattr(entry, attribute)) is not None
    ]


def _replica_states(stats: Stats) -> Rows:
    for name, entry in stats.replicas.items():
        for state in ReplicaState:
            yield {"replica": name, "state": state.value}, int(entry.state is state)


METRICS: Final = (
    Metric(
        "clients_open",
        Kind.GAUGE,
        "Client connections open, authenticated or not.",
        _one(lambda s: s.clients_open),
    ),
    Metric(
        "clients_accepted",
        Kind.COUNTER,
        "Client connections accepted.",
        _one(lambda s: s.clients_accepted),
    ),
    Metric(
        "clients_rejected",
        Kind.COUNTER,
        "Client connections refused on arrival.",
        _by("reason", lambda s: s.clients_rejected),
        labels=("reason",),
    ),
    Metric(
        "clients_cut",
        Kind.COUNTER,
        "Client connections closed by the gateway.",
        _by("reason", lambda s: s.clients_cut),
        labels=("reason",),
    ),
    Metric(
        "authentications",
        Kind.COUNTER,
        "Authentication attempts.",
        _by("outcome", lambda s: s.auth),
        labels=("outcome",),
    ),
    Metric(
        "frames",
        Kind.COUNTER,
        "Protocol frames read or written.",
        _directions(
            "frames_from_client", "frames_to_client", "frames_from_replica", "frames_to_replica"
        ),
        labels=("direction",),
    ),
    Metric(
        "transferred_bytes",
        Kind.COUNTER,
        "Bytes of the frames read or written, headers included.",
        _directions(
            "bytes_from_client", "bytes_to_client", "bytes_from_replica", "bytes_to_replica"
        ),
        labels=("direction",),
        unit="bytes",
    ),
    Metric(
        "requests",
        Kind.COUNTER,
        "Requests, by class of method and outcome.",
        _requests,
        labels=("method", "outcome"),
    ),
    Metric(
        "request_duration_seconds",
        Kind.HISTOGRAM,
        "Time from a request's arrival to its answer.",
        lambda s: [({"method": name}, entry.duration) for name, entry in s.methods.items()],
        labels=("method",),
        unit="seconds",
    ),
    Metric(
        "time_in_gateway_seconds",
        Kind.HISTOGRAM,
        "Time a frame spends in the gateway, from read to write; one read in 16 is timed.",
        lambda s: [
            ({"direction": "to_replica"}, s.time_to_replica),
            ({"direction": "to_client"}, s.time_to_client),
        ],
        labels=("direction",),
        unit="seconds",
    ),
    Metric(
        "events_forwarded",
        Kind.COUNTER,
        "Session events passed on to clients.",
        _one(lambda s: s.events_forwarded),
    ),
    Metric(
        "lifecycle_dropped",
        Kind.COUNTER,
        "Lifecycle notifications not passed on because their receiver may not see the session.",
        _one(lambda s: s.lifecycle_dropped),
    ),
    Metric(
        "frames_queued",
        Kind.COUNTER,
        "Frames that had to wait while their session was placed or rebound.",
        _one(lambda s: s.frames_queued),
    ),
    Metric("sessions_live", Kind.GAUGE, "Sessions live.", _one(lambda s: s.sessions_live)),
    Metric(
        "sessions_waiting",
        Kind.GAUGE,
        "Sessions whose frames wait for a placement or a rebind.",
        _one(lambda s: s.sessions_waiting),
    ),
    Metric(
        "sessions_placed",
        Kind.COUNTER,
        "Sessions placed on a replica when they became live.",
        _one(lambda s: s.sessions_placed),
    ),
    Metric(
        "sessions_rebound",
        Kind.COUNTER,
        "Sessions made live again after a move or the end of a replica.",
        _one(lambda s: s.sessions_rebound),
    ),
    Metric(
        "sessions_failed",
        Kind.COUNTER,
        "Placements and rebinds that were given up.",
        _one(lambda s: s.sessions_failed),
    ),
    Metric(
        "replica_state",
        Kind.GAUGE,
        "1 for the state a replica is in, 0 for all others.",
        _replica_states,
        labels=("replica", "state"),
        merge=Merge.MAX,
    ),
    Metric(
        "replica_links_open",
        Kind.GAUGE,
        "Connections open to a replica.",
        _replicas("links"),
        labels=("replica",),
    ),
    Metric(
        "replica_sessions_live",
        Kind.GAUGE,
        "Sessions live on a replica.",
        _replicas("sessions"),
        labels=("replica",),
    ),
    Metric(
        "replica_requests_in_flight",
        Kind.GAUGE,
        "Requests sent to a replica and not yet answered.",
        _replicas("in_flight"),
        labels=("replica",),
    ),
    Metric(
        "replica_ejections",
        Kind.COUNTER,
        "Times a replica was taken out after failures.",
        _replicas("ejections"),
        labels=("replica",),
    ),
    Metric(
        "replica_restarts",
        Kind.COUNTER,
        "Times the supervisor started a replica again.",
        _replicas("restarts"),
        labels=("replica",),
    ),
    Metric(
        "replica_probe_duration_seconds",
        Kind.GAUGE,
        "Duration of a replica's last successful health probe.",
        _replicas("probe_seconds"),
        labels=("replica",),
        unit="seconds",
        merge=Merge.MAX,
    ),
    Metric(
        "tenant_clients_open",
        Kind.GAUGE,
        "Authenticated client connections of a tenant.",
        _tenants("clients"),
        labels=("tenant",),
    ),
    Metric(
        "tenant_requests",
        Kind.COUNTER,
        "Messages received from a tenant.",
        _tenants("requests"),
        labels=("tenant",),
    ),
    Metric(
        "tenant_limited",
        Kind.COUNTER,
        "Requests and connections of a tenant refused by a quota.",
        _tenants("limited"),
        labels=("tenant",),
    ),
    Metric(
        "registry_operations",
        Kind.COUNTER,
        "Registry operations.",
        _registry_operations,
        labels=("operation", "outcome"),
    ),
    Metric(
        "registry_duration_seconds",
        Kind.HISTOGRAM,
        "Duration of registry operations, failed ones included.",
        lambda s: [({"operation": name}, entry.duration) for name, entry in s.registry.items()],
        labels=("operation",),
        unit="seconds",
    ),
    Metric(
        "audit_records_lost",
        Kind.COUNTER,
        "Audit records that could not be written.",
        _one(lambda s: s.audit_lost),
    ),
)

BUILD_INFO: Final = "copilot_gateway_build_info"
"""Always 1; its label ``version`` is the gateway's version."""

PROCESS_METRICS: Final = {
    "process_cpu_seconds_total": Merge.SUM,
    "process_resident_memory_bytes": Merge.SUM,
    "process_virtual_memory_bytes": Merge.SUM,
    "process_open_fds": Merge.SUM,
    "process_max_fds": Merge.MAX,
    "process_start_time_seconds": Merge.MAX,
}
"""The usual metrics of a process (Linux only) and how those of several workers combine."""

_MERGED_BY_MAX: Final = frozenset(
    {metric.exposed_name for metric in METRICS if metric.merge is Merge.MAX}
    | {name for name, merge in PROCESS_METRICS.items() if merge is Merge.MAX}
    | {BUILD_INFO}
)


class _Histograms(Collector):
    """Hands the pre-aggregated histograms of a ``Stats`` to Prometheus."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Family]:
        for metric in METRICS:
            if metric.kind is not Kind.HISTOGRAM:
                continue
            family = HistogramMetricFamily(metric.family, metric.help, labels=metric.labels)
            for labels, histogram in metric.read(self._stats):
                assert isinstance(histogram, Histogram)
                totals = list(accumulate(histogram.counts))
                # Unused methods are most of the text; a scrape should hold up the loop briefly.
                if not totals[-1]:
                    continue
                bounds = [*map(repr, histogram.bounds), "+Inf"]
                buckets: list[tuple[str, float]] = list(zip(bounds, totals, strict=True))
                family.add_metric(
                    [labels[name] for name in metric.labels], buckets, sum_value=histogram.sum
                )
            yield family


class Telemetry:
    """The metrics of one ``Stats``. Use from the event loop that changes the ``Stats``."""

    def __init__(self, stats: Stats, *, version: str) -> None:
        """Register every metric with a registry of its own; nothing global is touched.

        Args:
            stats: the counters to show.
            version: the gateway's version, for :data:`BUILD_INFO`.
        """
        self._registry = CollectorRegistry()
        # No scope labels and no target_info: they would repeat one constant on every series.
        reader = PrometheusMetricReader(
            disable_target_info=True, scope_info_enabled=False, registry=self._registry
        )
        self._provider = MeterProvider(
            [reader],
            resource=Resource({"service.name": "copilot-gateway", "service.version": version}),
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("gateway", version)
        for metric in METRICS:
            callbacks = [_observer(metric, stats)]
            unit = _UNITS[metric.unit]
            if metric.kind is Kind.COUNTER:
                meter.create_observable_counter(metric.family, callbacks, unit, metric.help)
            elif metric.kind is Kind.GAUGE:
                meter.create_observable_gauge(metric.family, callbacks, unit, metric.help)
        meter.create_observable_gauge(
            BUILD_INFO,
            [lambda _options: [Observation(1, {"version": version})]],
            description="Always 1, with the version of the gateway as a label.",
        )
        self._registry.register(_Histograms(stats))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format (:data:`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Release the OpenTelemetry provider."""
        self._provider.shutdown()


def _observer(metric: Metric, stats: Stats) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        for labels, value in metric.read(stats):
            assert not isinstance(value, Histogram)
            yield Observation(value, labels)

    return observe


class _Merged(Collector):
    """Families ready to be rendered."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def merge_expositions(expositions: Sequence[bytes]) -> bytes:
    """Combine what several workers rendered into one text.

    Counters, histograms and most gauges are summed series by series; what says the same thing in
    every worker (a replica's state, the build) is the largest value seen.

    Args:
        expositions: results of :meth:`Telemetry.render`, of the same version of the gateway.

    Raises:
        ValueError: one of the texts is not in the Prometheus format.
    """
    merged: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for exposition in expositions:
        for family in text_string_to_metric_families(exposition.decode()):
            merged.setdefault(family.name, family)
            series = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                before = series.get(key)
                if before is None:
                    series[key] = sample.value
                elif sample.name in _MERGED_BY_MAX:
                    series[key] = max(before, sample.value)
                else:
                    series[key] = before + sample.value
    for name, family in merged.items():
        family.samples = []
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Merged(list(merged.values())))
    return generate_latest(registry)
