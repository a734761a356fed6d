"""Sticky routing: stable, spread, bounded."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.ring import Ring

NAMES = ["cli-0", "cli-1", "cli-2", "cli-3"]
SESSIONS = [f"session-{number}" for number in range(2000)]


def ring(*names: str, load_factor: float = 1.25, **weights: int) -> Ring:
    return Ring({name: weights.get(name.replace("-", "_"), 1) for name in names}, load_factor)


def placed(where: Ring, names: list[str]) -> dict[str, str | None]:
    """Place all sessions as if none were a load."""
    return {session: where.choose(session, names, {}) for session in SESSIONS}


def test_an_empty_ring_has_no_answer() -> None:
    assert ring().preference("s") == []
    assert ring().choose("s", ["cli-0"], {}) is None


def test_no_candidate_no_answer() -> None:
    assert ring(*NAMES).choose("s", [], {}) is None
    assert ring(*NAMES).choose("s", ["unknown"], {}) is None


def test_preference_names_every_replica_once() -> None:
    for session in SESSIONS[:50]:
        assert sorted(ring(*NAMES).preference(session)) == NAMES


def test_the_order_of_names_does_not_matter() -> None:
    one, two = ring(*NAMES), ring(*reversed(NAMES))
    assert all(one.preference(s) == two.preference(s) for s in SESSIONS[:200])


def test_every_process_prefers_alike() -> None:
    """Workers and gateways must agree; Python's own hash differs from process to process."""
    script = (
        "from gateway.routing.ring import Ring\n"
        f"r = Ring(dict.fromkeys({NAMES!r}, 1))\n"
        "print(*(r.preference(f'session-{n}')[0] for n in range(50)))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert said == [ring(*NAMES).preference(session)[0] for session in SESSIONS[:50]]


def test_sessions_spread() -> None:
    counts = Counter(placed(ring(*NAMES), NAMES).values())
    fair = len(SESSIONS) / len(NAMES)
    assert all(0.6 * fair < counts[name] < 1.4 * fair for name in NAMES)


def test_a_new_replica_takes_sessions_only_for_itself() -> None:
    before = placed(ring(*NAMES[:3]), NAMES[:3])
    after = placed(ring(*NAMES), NAMES)
    moved = [session for session in SESSIONS if before[session] != after[session]]
    assert {after[session] for session in moved} == {"cli-3"}
    assert len(moved) < len(SESSIONS) / 2


def test_a_missing_replica_moves_only_its_own_sessions() -> None:
    where = ring(*NAMES)
    before, after = placed(where, NAMES), placed(where, NAMES[:3])
    assert all(before[s] == after[s] for s in SESSIONS if before[s] != "cli-3")
    heirs = Counter(after[s] for s in SESSIONS if before[s] == "cli-3")
    assert len(heirs) == 3


def test_a_heavier_replica_gets_more() -> None:
    counts = Counter(placed(ring("cli-0", "cli-1", cli_1=3), ["cli-0", "cli-1"]).values())
    assert 2 < counts["cli-1"] / counts["cli-0"] < 4.5


def test_an_overloaded_favourite_is_passed_over() -> None:
    where = ring(*NAMES)
    first, second, *_ = where.preference("s")
    assert where.choose("s", NAMES, {}) == first
    assert where.choose("s", NAMES, dict.fromkeys(NAMES, 10)) == first
    assert where.choose("s", NAMES, {name: 30 if name == first else 10 for name in NAMES}) == second


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 50), max_size=4),
    st.sets(st.sampled_from(NAMES), min_size=1),
    st.sampled_from(SESSIONS),
    st.sampled_from([1.01, 1.25, 2.0]),
)
def test_the_bound_holds_for_whoever_is_chosen(
    load: dict[str, int], candidates: set[str], session: str, factor: float
) -> None:
    chosen = ring(*NAMES, load_factor=factor).choose(session, candidates, load)
    assert chosen in candidates
    total = sum(load.get(name, 0) for name in candidates) + 1
    bound = math.ceil(factor * total / len(candidates))
    assert load.get(chosen, 0) + 1 <= bound
    preferred = [n for n in ring(*NAMES).preference(session) if n in candidates]
    for name in preferred[: preferred.index(chosen)]:
        assert load.get(name, 0) + 1 > bound


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_placing_many_keeps_every_replica_within_its_share(count: int) -> None:
    where = ring(*NAMES)
    load: Counter[str] = Counter()
    for number in range(count):
        chosen = where.choose(f"s{number}", NAMES, load)
        assert chosen is not None
        load[chosen] += 1
    assert max(load.values()) <= math.ceil(1.25 * count / len(NAMES)) + 1
