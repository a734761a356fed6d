"""Histograms: exact to within the stated error, and merging without loss."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loadtest.histogram import RELATIVE_ERROR, Histogram

values = st.lists(st.integers(0, 10**11), min_size=1, max_size=200)


def of(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.record(number)
    return histogram


@given(values, st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_a_quantile_is_never_below_the_exact_one_and_hardly_above(
    numbers: list[int], share: float
) -> None:
    exact = sorted(numbers)[max(1, math.ceil(round(share * len(numbers), 6))) - 1]
    assert exact <= of(numbers).quantile(share) <= exact * (1 + RELATIVE_ERROR)


@given(values, values)
def test_merging_equals_recording_everything_in_one(one: list[int], two: list[int]) -> None:
    merged = of(one)
    merged.merge(of(two))
    assert merged.dump()[:3] == of(one + two).dump()[:3]
    assert list(merged.steps()) == list(of(one + two).steps())
    assert (merged.count, merged.mean) == (len(one + two), sum(one + two) / len(one + two))


@given(values)
def test_a_histogram_survives_json(numbers: list[int]) -> None:
    histogram = of(numbers)
    again = Histogram.load(json.loads(json.dumps(histogram.dump())))
    assert (again.count, again.total, again.low, again.high) == (
        len(numbers),
        sum(numbers),
        min(numbers),
        max(numbers),
    )
    assert list(again.steps()) == list(histogram.steps())


def test_an_empty_histogram_has_no_figures_and_changes_nothing_when_merged() -> None:
    histogram = of([5])
    histogram.merge(Histogram())
    assert (histogram.count, histogram.low, histogram.high) == (1, 5, 5)
    assert (Histogram().quantile(0.99), Histogram().mean) == (0, 0.0)


@pytest.mark.parametrize("number", [0, 1, 511, 512, 513, 1023, 1024, 10**6, 10**10])
def test_a_single_value_is_told_exactly(number: int) -> None:
    assert of([number]).quantile(0.5) == number


def test_a_negative_time_counts_as_none() -> None:
    assert of([-3]).dump()[:3] == [0, 0, 0]
