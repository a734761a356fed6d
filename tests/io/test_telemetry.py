"""Metrics: what is exposed, that the page says the same, and how workers are merged."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.stats import (
    AUTH_OUTCOMES,
    CUT_REASONS,
    METHOD_CLASSES,
    REJECT_REASONS,
    Stats,
)
from gateway.io.telemetry import (
    BUILD_INFO,
    METRICS,
    PROCESS_METRICS,
    Kind,
    Telemetry,
    merge_expositions,
)
from gateway.types import ReplicaState

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def _samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def _value(text: bytes, name: str, **labels: str) -> float:
    return _samples(text)["copilot_gateway_" + name, frozenset(labels.items())]


def _busy() -> Stats:
    """A Stats in which every metric has at least one series."""
    stats = Stats()
    stats.replica("cli-0").state = ReplicaState.UP
    stats.replica("cli-0").probe_seconds = 0.25
    stats.tenant("acme").requests += 3
    stats.method("session.send").ok += 2
    stats.method("session.send").duration.observe(0.02, n=2)
    stats.time_to_replica.observe(4e-5)
    stats.registry_done("claim", 0.001, ok=True)
    stats.bytes_to_client += 512
    stats.clients_cut["stalled"] += 1
    stats.clients_open = 7
    stats.audit_lost = 1
    return stats


def test_every_declared_metric_is_exposed_and_nothing_else() -> None:
    text = Telemetry(_busy(), version="1.2.3").render().decode()
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    expected = {metric.exposed_name: metric.kind.value for metric in METRICS}
    expected[BUILD_INFO] = "gauge"
    ours = {name: kind for name, kind in exposed.items() if not name.startswith("process_")}
    assert ours == expected
    if sys.platform == "linux":
        assert set(exposed) - set(ours) == set(PROCESS_METRICS)


def test_every_series_has_the_declared_labels() -> None:
    labels = {metric.exposed_name: set(metric.labels) for metric in METRICS}
    seen = set()
    for (name, pairs), _ in _samples(Telemetry(_busy(), version="1").render()).items():
        base = re.sub(r"_(bucket|count|sum)\Z", "", name)
        if base in labels:
            assert {key for key, _ in pairs} - {"le"} == labels[base], name
            seen.add(base)
    assert seen == set(labels)


def test_the_page_names_exactly_the_exposed_metrics() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]*) \|", PAGE.read_text(), re.M)
    documented = {name: (kind, labels.strip()) for name, kind, labels in rows}
    assert len(documented) == len(rows), "a metric has two rows"
    expected = {
        metric.exposed_name: (
            metric.kind.value,
            ", ".join(f"`{label}`" for label in metric.labels),
        )
        for metric in METRICS
    }
    expected[BUILD_INFO] = ("gauge", "`version`")
    for name in PROCESS_METRICS:
        expected[name] = ("counter" if name.endswith("_total") else "gauge", "")
    assert documented == expected


def test_the_page_lists_the_method_classes() -> None:
    page = PAGE.read_text()
    assert [name for name in METHOD_CLASSES if f"| `{name}` |" not in page] == []


def test_the_page_explains_every_reason_and_outcome() -> None:
    page = PAGE.read_text()
    words = (
        *REJECT_REASONS,
        *CUT_REASONS,
        *AUTH_OUTCOMES,
        *(state.value for state in ReplicaState),
    )
    assert [word for word in words if f"`{word}`" not in page] == []


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
        assert not metric.name.endswith("_total")
        assert metric.name.endswith(metric.unit)
        if metric.kind is Kind.HISTOGRAM:
            assert metric.unit == "seconds"


def test_values_and_labels() -> None:
    text = Telemetry(_busy(), version="1.2.3").render()
    assert _value(text, "requests_total", method="session.send", outcome="ok") == 2
    assert _value(text, "requests_total", method="ping", outcome="lost") == 0
    assert _value(text, "transferred_bytes_total", direction="to_client") == 512
    assert _value(text, "clients_cut_total", reason="stalled") == 1
    assert _value(text, "replica_state", replica="cli-0", state="up") == 1
    assert _value(text, "replica_state", replica="cli-0", state="down") == 0
    assert _value(text, "replica_probe_duration_seconds", replica="cli-0") == 0.25
    assert _value(text, "tenant_requests_total", tenant="acme") == 3
    assert _value(text, "build_info", version="1.2.3") == 1


def test_histogram_buckets_are_cumulative() -> None:
    stats = Stats()
    duration = stats.method("ping").duration
    duration.observe(0.001)
    duration.observe(0.0015, n=2)
    duration.observe(1e9)
    text = Telemetry(stats, version="1").render()
    name = "request_duration_seconds"
    assert _value(text, f"{name}_bucket", method="ping", le="0.0005") == 0
    assert _value(text, f"{name}_bucket", method="ping", le="0.001") == 1
    assert _value(text, f"{name}_bucket", method="ping", le="0.002") == 3
    assert _value(text, f"{name}_bucket", method="ping", le="300.0") == 3
    assert _value(text, f"{name}_bucket", method="ping", le="+Inf") == 4
    assert _value(text, f"{name}_count", method="ping") == 4
    assert _value(text, f"{name}_sum", method="ping") == pytest.approx(1e9 + 0.004)


def test_each_scrape_shows_the_present_and_forgets_replicas_that_left() -> None:
    stats = Stats()
    stats.replica("cli-0").links = 1
    stats.replica("cli-1").ejections = 1
    telemetry = Telemetry(stats, version="1")
    assert _value(telemetry.render(), "replica_links_open", replica="cli-0") == 1
    stats.replica("cli-0").links = 0
    stats.forget_replica("cli-1")
    text = telemetry.render()
    assert _value(text, "replica_links_open", replica="cli-0") == 0
    assert b"cli-1" not in text


def test_a_replica_that_was_never_probed_has_no_latency() -> None:
    stats = Stats()
    stats.replica("cli-0")
    text = Telemetry(stats, version="1").render()
    assert b"replica_probe_duration_seconds{" not in text


def test_two_instances_do_not_share_anything() -> None:
    first, second = Stats(), Stats()
    first.clients_open = 1
    telemetries = [Telemetry(first, version="1"), Telemetry(second, version="1")]
    assert [_value(t.render(), "clients_open") for t in telemetries] == [1, 0]
    assert not [f.name for f in REGISTRY.collect() if f.name.startswith("copilot_gateway")]
    for telemetry in telemetries:
        telemetry.close()


def test_awkward_label_values_survive() -> None:
    name = 'a"b\\c\nd{e="f"},é\u202e'
    stats = Stats()
    stats.tenant(name).requests = 4
    text = Telemetry(stats, version="1").render()
    assert _value(text, "tenant_requests_total", tenant=name) == 4
    assert _value(merge_expositions([text, text]), "tenant_requests_total", tenant=name) == 8


def test_merge_sums_workers_but_not_states() -> None:
    left, right = _busy(), _busy()
    right.replica("cli-0").state = ReplicaState.EJECTED
    right.replica("cli-0").probe_seconds = 0.5
    right.replica("cli-9").links = 5
    right.clients_open = 1
    text = merge_expositions([Telemetry(s, version="1").render() for s in (left, right)])
    assert _value(text, "clients_open") == 8
    assert _value(text, "requests_total", method="session.send", outcome="ok") == 4
    name = "request_duration_seconds"
    assert _value(text, f"{name}_bucket", method="session.send", le="0.02") == 4
    assert _value(text, f"{name}_count", method="session.send") == 4
    assert _value(text, f"{name}_sum", method="session.send") == pytest.approx(0.08)
    assert _value(text, "replica_state", replica="cli-0", state="up") == 1
    assert _value(text, "replica_state", replica="cli-0", state="ejected") == 1
    assert _value(text, "replica_state", replica="cli-0", state="down") == 0
    assert _value(text, "replica_probe_duration_seconds", replica="cli-0") == 0.5
    assert _value(text, "replica_links_open", replica="cli-9") == 5
    assert _value(text, "build_info", version="1") == 1


def test_merging_one_changes_nothing() -> None:
    text = Telemetry(_busy(), version="1").render()
    assert _samples(merge_expositions([text])) == _samples(text)
    assert merge_expositions([]) == b""


def test_merge_refuses_what_is_not_an_exposition() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        merge_expositions([b"copilot_gateway_clients_open many\n"])
