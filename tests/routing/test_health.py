"""The state machine of a replica, told as it happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.health import Health, HealthPolicy
from gateway.types import ReplicaState

STARTING, UP = ReplicaState.STARTING, ReplicaState.UP
DRAINING, EJECTED, DOWN = ReplicaState.DRAINING, ReplicaState.EJECTED, ReplicaState.DOWN

POLICY = HealthPolicy(failures=3, ban_base=2.0, ban_max=10.0, forgive=100.0)


@pytest.fixture
def health() -> Health:
    return Health(POLICY)


def up(health: Health, now: float = 0.0) -> Health:
    health.succeeded(now)
    return health


def eject(health: Health, now: float) -> float:
    """Fail until ejected; return the length of the ban."""
    for _ in range(POLICY.failures):
        health.failed(now, "refused")
    assert health.state is EJECTED
    return health.retry_after(now)


def test_it_starts_unknown(health: Health) -> None:
    assert health.state is STARTING
    assert not health.reachable
    assert not health.accepts_new
    assert health.may_probe(0.0)


def test_the_first_good_probe_brings_it_up(health: Health) -> None:
    assert health.succeeded(1.0) is True
    assert health.state is UP
    assert health.reachable
    assert health.accepts_new
    assert health.succeeded(2.0) is False


def test_an_absent_replica_is_looked_for_at_every_probe(health: Health) -> None:
    for now in range(20):
        assert health.failed(now, "refused") is False
        assert health.state is STARTING
        assert health.may_probe(now)
    assert health.reason == "refused"
    assert health.ejections == 0


def test_failures_in_a_row_eject(health: Health) -> None:
    up(health)
    assert health.failed(1.0, "slow") is False
    assert health.failed(2.0, "slow") is False
    assert health.state is UP
    assert health.failed(3.0, "slow") is True
    assert health.state is EJECTED
    assert not health.reachable
    assert "slow" in health.reason
    assert health.ejections == 1


def test_a_success_between_starts_the_count_again(health: Health) -> None:
    up(health)
    for now in range(10):
        health.failed(now, "slow")
        health.failed(now, "slow")
        health.succeeded(now)
    assert health.state is UP


def test_a_ban_ends_and_a_good_probe_brings_it_back(health: Health) -> None:
    ban = eject(up(health), 10.0)
    assert ban == 2.0
    assert not health.may_probe(11.9)
    assert health.retry_after(11.5) == 0.5
    assert health.may_probe(12.0)
    assert health.retry_after(13.0) == 0.0
    assert health.succeeded(12.0) is True
    assert health.state is UP


def test_bans_grow_up_to_the_longest(health: Health) -> None:
    up(health)
    now, bans = 0.0, []
    for _ in range(6):
        bans.append(eject(health, now))
        now += bans[-1]
    assert bans == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_bans_grow_also_when_it_was_up_in_between(health: Health) -> None:
    up(health)
    assert eject(health, 0.0) == 2.0
    health.succeeded(2.0)
    assert eject(health, 3.0) == 4.0


def test_a_long_time_without_failure_is_forgiven(health: Health) -> None:
    up(health)
    eject(health, 0.0)
    health.succeeded(2.0)
    eject(health, 3.0)
    health.succeeded(200.0)
    assert eject(health, 300.0) == 2.0


def test_many_bans_do_not_overflow(health: Health) -> None:
    up(health)
    now = 0.0
    for _ in range(5000):
        now += eject(health, now)
    assert health.retry_after(now - 10.0) == 10.0


def test_a_process_that_ended_is_down_at_once(health: Health) -> None:
    up(health)
    assert health.gone(1.0, "exited") is True
    assert health.state is DOWN
    assert not health.reachable
    assert health.may_probe(1.0)
    assert health.ejections == 0
    assert health.succeeded(1.1) is True
    assert health.state is UP


def test_failures_while_down_are_no_news(health: Health) -> None:
    up(health)
    health.gone(1.0, "exited")
    for now in range(2, 30):
        assert health.failed(now, "refused") is False
    assert health.state is DOWN
    assert health.may_probe(30)


def test_draining_and_back(health: Health) -> None:
    up(health)
    assert health.drain(True) is True
    assert health.state is DRAINING
    assert health.reachable
    assert not health.accepts_new
    assert health.drain(True) is False
    assert health.drain(False) is True
    assert health.accepts_new


def test_a_drain_outlives_a_restart(health: Health) -> None:
    up(health)
    health.drain(True)
    health.gone(1.0, "exited")
    assert health.draining
    health.succeeded(2.0)
    assert health.state is DRAINING


def test_a_drain_asked_of_an_absent_replica_holds_when_it_comes(health: Health) -> None:
    assert health.drain(True) is False
    health.succeeded(1.0)
    assert health.state is DRAINING
    health.drain(False)
    assert health.state is UP


def test_a_draining_replica_that_fails_is_ejected_and_comes_back_draining(health: Health) -> None:
    up(health)
    health.drain(True)
    eject(health, 1.0)
    health.succeeded(5.0)
    assert health.state is DRAINING


moves = st.lists(
    st.tuples(
        st.sampled_from(["succeeded", "failed", "gone", "drain", "undrain"]), st.floats(0, 30)
    ),
    max_size=60,
)


@given(moves)
def test_whatever_happens_the_invariants_hold(story: list[tuple[str, float]]) -> None:
    health = Health(POLICY)
    now = 0.0
    for what, later in story:
        now += later
        before = health.state
        match what:
            case "succeeded":
                changed = health.succeeded(now)
                assert health.state is (DRAINING if health.draining else UP)
            case "failed":
                changed = health.failed(now, "reason")
            case "gone":
                changed = health.gone(now, "reason")
                assert health.state is DOWN
            case _:
                changed = health.drain(what == "drain")
                assert health.draining is (what == "drain")
        assert changed is (health.state is not before)
        assert health.reachable is (health.state in (UP, DRAINING))
        assert health.accepts_new is (health.state is UP)
        assert 0.0 <= health.retry_after(now) <= POLICY.ban_max
        assert health.may_probe(now + POLICY.ban_max)
        assert health.reason
