"""Shapes: levels, arrivals and active sessions over time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loadtest.plan import Plan
from gateway.loadtest.shape import Shape, Stage, arrivals, parse_stages, steady

shapes = st.lists(
    st.builds(Stage, st.floats(0.1, 30), st.floats(0, 40), st.floats(0, 40)),
    min_size=1,
    max_size=4,
).map(lambda stages: Shape(tuple(stages)))


def test_a_constant_rate_arrives_at_even_gaps_from_the_start() -> None:
    due = list(arrivals(steady(4, 2), poisson=False, seed=0))
    assert due == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])


def test_a_ramp_arrives_ever_faster_and_goes_on_evenly() -> None:
    due = list(arrivals(steady(10, 2, ramp=2), poisson=False, seed=0))
    assert len(due) == 30
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert gaps[:9] == sorted(gaps[:9], reverse=True)
    assert gaps[11:] == pytest.approx([0.1] * len(gaps[11:]))


@given(shapes)
def test_arrivals_are_in_order_within_the_run_and_as_many_as_the_area(shape: Shape) -> None:
    due = list(arrivals(shape, poisson=False, seed=0))
    area = sum(stage.area for stage in shape.stages)
    assert due == sorted(due)
    assert area - 1 <= len(due) <= area + 1
    assert all(0 <= moment <= shape.seconds + 1e-6 for moment in due)


@given(shapes, st.integers(1, 5))
def test_processes_together_do_what_one_would(shape: Shape, processes: int) -> None:
    plan = Plan(run="abc123", host="h", port=1, shape=shape, processes=processes, poisson=True)
    whole = list(arrivals(shape, poisson=True, seed=int("abc123", 36)))
    parts = [list(plan.share(number).arrivals()) for number in range(processes)]
    assert sorted(itertools.chain(*parts)) == whole


def test_random_arrivals_keep_the_rate() -> None:
    due = list(arrivals(steady(100, 100), poisson=True, seed=1))
    assert 9_500 < len(due) < 10_500
    assert len({round(b - a, 6) for a, b in itertools.pairwise(due)}) > 5_000


def test_stages_are_read_with_their_levels() -> None:
    shape = parse_stages("10s:50, 1m:50,0s:5,500ms:0")
    assert shape.stages == (Stage(10, 0, 50), Stage(60, 50, 50), Stage(0.5, 5, 0))
    assert (shape.seconds, shape.peak) == (70.5, 50)
    assert [shape.level(t) for t in (-1, 0, 5, 30, 70.25, 71)] == [0, 0, 25, 50, 2.5, 0]


@pytest.mark.parametrize("text", ["", "10s", "10s:x", "10s:-1", "x:5", "10s:0", "0s:5"])
def test_stages_that_make_no_load_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stage"):
        parse_stages(text)


def test_users_become_active_one_after_the_other_and_pause_again() -> None:
    shape = parse_stages("10s:10,10s:0")
    assert shape.next_above(0, 0) == 0
    assert shape.next_above(5, 0) == pytest.approx(5)
    assert shape.next_above(5, 7) == 7
    assert shape.next_above(5, 16) is None
    assert shape.next_above(10, 0) is None
    assert parse_stages("10s:10,10s:0,10s:10").next_above(5, 16) == pytest.approx(25)
