"""When a CLI is worn out."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.recycling import RecyclePolicy

MIB = 1 << 20


def test_without_limits_nothing_wears_out() -> None:
    assert RecyclePolicy().reason(age=1e9, sessions=10**9, memory=1 << 50) is None


@pytest.mark.parametrize(
    ("policy", "below", "reached", "said"),
    [
        (RecyclePolicy(age=60), {"age": 59.9}, {"age": 60.0}, "it has run for 60 s"),
        (RecyclePolicy(sessions=5), {"sessions": 4}, {"sessions": 5}, "it has served 5 sessions"),
        (
            RecyclePolicy(memory=500 * MIB),
            {"memory": 500 * MIB - 1},
            {"memory": 500 * MIB},
            "it holds 500 MiB",
        ),
    ],
)
def test_limits(
    policy: RecyclePolicy, below: dict[str, Any], reached: dict[str, Any], said: str
) -> None:
    fresh: dict[str, Any] = {"age": 0.0, "sessions": 0, "memory": 0}
    assert policy.reason(**{**fresh, **below}) is None
    assert policy.reason(**{**fresh, **reached}) == said


def test_one_limit_is_enough() -> None:
    policy = RecyclePolicy(age=60, sessions=5, memory=MIB)
    assert policy.reason(age=1, sessions=9, memory=0) == "it has served 9 sessions"
