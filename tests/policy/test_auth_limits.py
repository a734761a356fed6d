"""The failure limiter: delays, forgiveness, and floods that try to grow it or to hide in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.auth_limits import FailureLimiter, source_key

BURST, RECOVERY, MAX_DELAY = 3, 10.0, 25.0


@pytest.fixture
def limiter() -> FailureLimiter:
    return FailureLimiter(BURST, RECOVERY, MAX_DELAY, capacity=4)


def test_a_burst_is_free_then_attempts_wait_for_the_recovery_up_to_the_limit(limiter):
    delays = [limiter.failed("192.0.2.1", 100.0) for _ in range(6)]
    assert delays == [0.0, 0.0, 10.0, 20.0, 25.0, 25.0]


def test_one_attempt_is_forgiven_at_a_time(limiter):
    for _ in range(BURST):
        limiter.failed("192.0.2.1", 100.0)
    assert limiter.wait("192.0.2.1", 105.0) == 5.0
    assert limiter.wait("192.0.2.1", 110.0) == 0.0
    assert limiter.failed("192.0.2.1", 110.0) == 10.0


def test_of_attempts_that_waited_together_only_one_may_go(limiter):
    while limiter.failed("192.0.2.1", 100.0) == 0.0:
        pass
    judged = 0
    for _ in range(50):  # fifty connections whose wait ended at the same time
        if limiter.wait("192.0.2.1", 110.0) == 0.0:
            limiter.failed("192.0.2.1", 110.0)
            judged += 1
    assert judged == 1


def test_everything_is_forgiven_in_the_end(limiter):
    for _ in range(1000):
        limiter.failed("192.0.2.1", 100.0)
    horizon = (BURST - 1) * RECOVERY + MAX_DELAY
    assert limiter.failed("192.0.2.1", 100.0 + horizon) == 0.0


def test_sources_do_not_slow_each_other(limiter):
    for _ in range(10):
        limiter.failed("192.0.2.1", 100.0)
    assert limiter.wait("192.0.2.2", 100.0) == 0.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "@unix", True),
        ("", "0.0.0.0", False),
    ],
)
def test_what_counts_as_one_source(one, other, same):
    assert (source_key(one) == source_key(other)) is same


def test_a_flood_of_sources_cannot_grow_the_table(limiter):
    for index in range(10_000):
        limiter.failed(f"10.0.{index // 256}.{index % 256}", 100.0)
    assert len(limiter) <= 4 + 1


def test_a_guesser_cannot_flood_its_own_entry_out(limiter):
    for _ in range(5):
        limiter.failed("192.0.2.1", 100.0)
    for index in range(1000):
        limiter.failed(f"10.0.{index // 256}.{index % 256}", 101.0)
    assert limiter.wait("192.0.2.1", 101.0) > 20.0


def test_sources_beyond_the_table_are_slowed_together(limiter):
    judged = 0
    for index in range(1000):
        address = f"10.0.{index // 256}.{index % 256}"
        if limiter.wait(address, 100.0) == 0.0:
            limiter.failed(address, 100.0)
            judged += 1
    assert judged == 4 + BURST


def test_after_a_flood_the_table_empties_and_serves_again(limiter):
    for index in range(100):
        limiter.failed(f"10.0.0.{index}", 100.0)
    later = 100.0 + (BURST - 1) * RECOVERY + MAX_DELAY
    for index in range(4):
        limiter.failed(f"10.9.0.{index}", later)
        assert limiter.wait("192.0.2.7", later) == 0.0
    for _ in range(BURST):
        limiter.failed("10.9.0.0", later)
    assert limiter.wait("10.9.0.0", later) > 0.0
    assert limiter.wait("10.9.0.1", later) == 0.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "10.0.0.1", "10.0.0.2", "::1", "2001:db8::1"]), st.floats(0, 50)
        ),
        max_size=60,
    )
)
def test_waits_are_bounded_and_never_negative(steps):
    limiter = FailureLimiter(BURST, RECOVERY, MAX_DELAY, capacity=2)
    now = 0.0
    for address, pause in steps:
        now += pause
        assert 0.0 <= limiter.failed(address, now) <= MAX_DELAY + 1e-6
        assert len(limiter) <= 3
