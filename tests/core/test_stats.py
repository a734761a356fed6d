"""Counters: labels stay bounded, buckets are exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import stats as stats_module
from gateway.core.stats import (
    MAX_TENANTS,
    METHOD_CLASSES,
    OTHER_TENANTS,
    REGISTRY_OPERATIONS,
    Histogram,
    Stats,
    method_class,
)
from gateway.types import ReplicaState


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("connect", "connect"),
        ("ping", "ping"),
        ("session.create", "session.create"),
        ("session.resume", "session.resume"),
        ("session.send", "session.send"),
        ("session.sendMessages", "session.send"),
        ("session.abort", "session.abort"),
        ("session.tools.handlePendingToolCall", "session.answer"),
        ("session.permissions.handlePendingPermissionRequest", "session.answer"),
        ("session.commands.respondToQueuedCommand", "session.answer"),
        ("session.detach", "session.end"),
        ("sessions.close", "session.end"),
        ("session.list", "session.list"),
        ("session.getMessages", "session.read"),
        ("session.metadata.isProcessing", "session.read"),
        ("session.eventLog.read", "session.read"),
        ("sessions.checkInUse", "session.read"),
        ("session.shell.exec", "session.write"),
        ("session.model.switchTo", "session.write"),
        ("sessions.fork", "session.write"),
        ("status.get", "server"),
        ("models.list", "server"),
        ("sessionFs.setProvider", "server"),
        ("llmInference.setProvider", "server"),
        ("hooks.discover", "server"),
        ("hooks.invoke", "callback"),
        ("userInput.request", "callback"),
        ("llmInference.httpRequestStart", "callback"),
        ("session.", "unknown"),
        ("", "unknown"),
        ("nonsense", "unknown"),
        ("nonsense.of.a.client", "unknown"),
        ("session." + "x" * 200, "unknown"),
    ],
)
def test_method_class(method: str, expected: str) -> None:
    assert method_class(method) == expected
    assert method_class(method) == expected  # from the cache now, if it is cached at all


@given(st.text(max_size=200))
def test_any_name_falls_into_a_known_class(name: str) -> None:
    assert method_class(name) in METHOD_CLASSES
    assert method_class("session." + name) in METHOD_CLASSES


def test_invented_names_do_not_grow_the_cache_without_bound() -> None:
    before = dict(stats_module._method_classes)
    try:
        for number in range(3 * stats_module._MAX_CACHED_METHODS):
            assert method_class(f"session.invented{number}") == "session.write"
        assert len(stats_module._method_classes) <= stats_module._MAX_CACHED_METHODS
        assert method_class("session.create") == "session.create"
    finally:
        stats_module._method_classes.clear()
        stats_module._method_classes.update(before)


def test_histogram_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, n=3)
    histogram.observe(2.5)
    assert histogram.counts == [1, 3, 1]
    assert histogram.sum == pytest.approx(8.0)


@pytest.mark.parametrize(
    "bounds",
    [
        stats_module.GATEWAY_TIME_BOUNDS,
        stats_module.REQUEST_TIME_BOUNDS,
        stats_module.REGISTRY_TIME_BOUNDS,
    ],
)
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_method_counters_are_shared_within_a_class() -> None:
    stats = Stats()
    stats.method("session.send").ok += 1
    stats.method("session.sendMessages").ok += 1
    assert stats.methods["session.send"].ok == 2
    assert stats.methods["session.create"].ok == 0


def test_registry_calls() -> None:
    stats = Stats()
    stats.registry_done("claim", 0.001, ok=True)
    stats.registry_done("claim", 1.0, ok=False)
    claim = stats.registry["claim"]
    assert (claim.ok, claim.failed, sum(claim.duration.counts)) == (1, 1, 2)
    with pytest.raises(KeyError):
        stats.registry_done("guess", 0.1, ok=True)


def test_all_operations_of_the_registry_are_counted() -> None:
    assert {"get", "claim", "move", "forget", "owned_by"} <= set(REGISTRY_OPERATIONS)
    assert not {"open", "close", "__init__"} & set(REGISTRY_OPERATIONS)


def test_replica_is_made_once_and_can_be_forgotten() -> None:
    stats = Stats()
    replica = stats.replica("cli-0")
    assert replica.state is ReplicaState.STARTING
    assert stats.replica("cli-0") is replica
    stats.forget_replica("cli-0")
    stats.forget_replica("cli-0")
    assert stats.replica("cli-0") is not replica


def test_tenants_beyond_the_limit_share_one_entry() -> None:
    stats = Stats()
    first = stats.tenant("t0")
    for number in range(MAX_TENANTS + 50):
        stats.tenant(f"t{number}").requests += 1
    assert stats.tenant("t0") is first
    assert len(stats.tenants) == MAX_TENANTS + 1
    assert stats.tenants[OTHER_TENANTS].requests == 50
