"""Quotas: rates, counts, memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import OVERLOADED, RpcError
from gateway.policy.quotas import Allowance, Quota, QuotaLimits, Quotas, Rate, TenantRule
from gateway.types import Owner

ALICE, BOB, EVE = Owner("acme", "alice"), Owner("acme", "bob"), Owner("evil", "eve")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Session:
    busy: bool = False


def quotas_of(clock: Clock | None = None, **tenants: TenantRule) -> Quotas:
    return Quotas(clock or Clock(), tenants)


def allowance(**limits: float) -> Allowance:
    return Allowance((Quota(QuotaLimits(**limits), "tenant", 0.0),))  # type: ignore[arg-type]


def of(quotas: Quotas, owner: Owner) -> Allowance:
    found = quotas.allowance(owner)
    assert found is not None
    return found


def refusal(error: RpcError | None) -> tuple[str, float]:
    assert error is not None
    assert error.code == OVERLOADED
    assert error.data is not None
    assert error.data["retryAfterMs"] > 0
    return error.data["limit"], error.data["value"]


# --- rates ----------------------------------------------------------------------------------------


def test_a_second_of_messages_may_come_at_once_and_then_the_rate_holds() -> None:
    mine = allowance(messages_per_second=10)
    passed = 0
    for _ in range(50):
        wait, _error = mine.take(100, 0.0)
        passed += wait == 0
    assert passed == 10
    wait, error = mine.take(100, 0.0)
    assert refusal(error) == ("tenant.messages_per_second", 10)
    assert mine.take(100, wait)[0] == 0


@given(
    st.floats(0.5, 1000), st.lists(st.tuples(st.floats(0, 2), st.floats(0.1, 500)), max_size=100)
)
def test_no_pattern_of_arrivals_gets_past_the_average(
    rate: float, arrivals: list[tuple[float, float]]
) -> None:
    bucket, now, spent, largest = Rate(rate, 0.0), 0.0, 0.0, 0.0
    for pause, cost in arrivals:
        now += pause
        if bucket.wait(now) == 0:
            bucket.spend(cost)
            spent += cost
            largest = max(largest, cost)
    assert spent <= max(rate, 1.0) + now * rate + largest + 1e-3


@given(st.floats(0.5, 1000), st.floats(0.1, 1e6))
def test_what_the_wait_says_is_enough(rate: float, cost: float) -> None:
    bucket = Rate(rate, 0.0)
    bucket.spend(cost)
    wait = bucket.wait(0.0)
    assert bucket.wait(wait + 1e-6) == 0


def test_a_message_larger_than_a_second_passes_and_is_paid_for() -> None:
    mine = allowance(bytes_per_second=1000)
    assert mine.take(5000, 0.0) == (0.0, None)
    wait, error = mine.take(1, 0.0)
    assert wait == pytest.approx(4.0, abs=0.01)
    assert refusal(error) == ("tenant.bytes_per_second", 1000)
    assert error is not None and error.data is not None
    assert 4000 <= error.data["retryAfterMs"] <= 4010


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Rate(10, 5.0)
    bucket.spend(20)
    assert bucket.wait(5.0) > 0
    assert bucket.wait(1.0) > 0


def test_a_refused_message_costs_nothing() -> None:
    mine = allowance(messages_per_second=1)
    mine.take(1, 0.0)
    waits = [mine.take(1, 0.0)[0] for _ in range(100)]
    assert waits[0] == waits[-1]


# --- counts ---------------------------------------------------------------------------------------


def test_connections_of_a_user_and_of_all_users_are_counted() -> None:
    quotas = quotas_of(acme=TenantRule(QuotaLimits(connections=3), QuotaLimits(connections=2)))
    alice = of(quotas, ALICE)
    assert alice.connect() is None
    assert alice.connect() is None
    assert refusal(alice.connect()) == ("user.connections", 2)
    bob = of(quotas, BOB)
    assert bob.connect() is None
    assert refusal(bob.connect()) == ("tenant.connections", 3)
    alice.disconnect()
    assert bob.connect() is None


def test_a_refused_connection_is_not_counted_anywhere() -> None:
    quotas = quotas_of(acme=TenantRule(QuotaLimits(connections=5), QuotaLimits(connections=1)))
    alice = of(quotas, ALICE)
    assert alice.connect() is None
    for _ in range(10):
        assert alice.connect() is not None
    assert [of(quotas, Owner("acme", f"u{n}")).connect() for n in range(4)] == [None] * 4


def test_sessions_being_opened_count_like_live_ones() -> None:
    quotas = quotas_of(acme=TenantRule(QuotaLimits(sessions=2)))
    alice = of(quotas, ALICE)
    assert alice.open_session() is None
    assert alice.open_session() is None
    assert refusal(alice.open_session()) == ("tenant.sessions", 2)
    session = Session()
    quotas.session_live(session, ALICE)
    alice.session_opened()
    assert refusal(alice.open_session()) == ("tenant.sessions", 2)
    alice.session_opened()
    assert alice.open_session() is None
    quotas.session_ended(session, ALICE)
    assert alice.open_session() is None


def test_turns_of_a_tenant_are_its_busy_sessions() -> None:
    quotas = quotas_of(acme=TenantRule(QuotaLimits(turns=1)))
    one, other = Session(busy=True), Session()
    quotas.session_live(one, ALICE)
    quotas.session_live(other, BOB)
    assert refusal(of(quotas, BOB).start_turn()) == ("tenant.turns", 1)
    one.busy = False
    assert of(quotas, BOB).start_turn() is None


def test_tenants_do_not_count_for_each_other() -> None:
    rule = TenantRule(QuotaLimits(connections=1, messages_per_second=1))
    quotas = quotas_of(**{"*": rule})
    assert of(quotas, ALICE).connect() is None
    assert of(quotas, EVE).connect() is None
    assert of(quotas, ALICE).take(1, 1000.0)[0] == 0
    assert of(quotas, ALICE).take(1, 1000.0)[0] > 0
    assert of(quotas, EVE).take(1, 1000.0)[0] == 0


def test_a_tenant_with_an_entry_is_not_every_other_tenant() -> None:
    quotas = quotas_of(**{"*": TenantRule(QuotaLimits(connections=1)), "acme": TenantRule()})
    assert quotas.allowance(ALICE) is None
    assert quotas.allowance(EVE) is not None


def test_without_limits_there_is_nothing_to_ask() -> None:
    assert quotas_of().allowance(ALICE) is None
    assert quotas_of(acme=TenantRule(shared_sessions=True)).allowance(ALICE) is None


def test_the_smallest_frame_limit_holds() -> None:
    quotas = quotas_of(acme=TenantRule(QuotaLimits(max_frame=500), QuotaLimits(max_frame=800)))
    assert of(quotas, ALICE).max_frame(1000) == 500
    assert of(quotas, ALICE).max_frame(100) == 100


# --- memory, reloads ------------------------------------------------------------------------------


def test_users_that_come_and_go_leave_nothing() -> None:
    clock = Clock()
    quotas = quotas_of(clock, acme=TenantRule(QuotaLimits(messages_per_second=5)))
    for number in range(10_000):
        user = of(quotas, Owner("acme", f"user-{number}"))
        user.connect()
        user.take(10, clock.now)
        user.disconnect()
        clock.now += 0.001
    assert len(quotas) < 1500
    clock.now += 10
    for number in range(1500):
        of(quotas, Owner("acme", f"later-{number}"))
        clock.now += 1
    assert len(quotas) < 10


def test_reconnecting_does_not_refill() -> None:
    clock = Clock()
    quotas = quotas_of(clock, acme=TenantRule(user_limits=QuotaLimits(messages_per_second=2)))
    first = of(quotas, ALICE)
    first.connect()
    first.take(1, clock.now)
    first.take(1, clock.now)
    first.disconnect()
    for number in range(20):
        of(quotas, Owner("acme", f"u{number}"))
    again = of(quotas, ALICE)
    assert again.take(1, clock.now)[0] > 0


def test_a_reload_changes_limits_and_keeps_counting() -> None:
    quotas = quotas_of(acme=TenantRule(QuotaLimits(connections=5)))
    alice = of(quotas, ALICE)
    for _ in range(3):
        alice.connect()
    quotas.change({"acme": TenantRule(QuotaLimits(connections=3))})
    assert refusal(of(quotas, BOB).connect()) == ("tenant.connections", 3)
    alice.disconnect()
    assert of(quotas, BOB).connect() is None
