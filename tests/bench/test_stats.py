"""Medians, their uncertainty, and ratios within rounds."""

from __future__ import annotations

import pytest

from bench.stats import figures, ratios, summarize


def test_summary_of_rounds() -> None:
    summary = summarize([5.0, 1.0, 3.0])
    assert summary is not None
    assert (summary.median, summary.low, summary.high, summary.rounds) == (3.0, 1.0, 5.0, 3)
    assert summary.error > 0


def test_no_rounds_have_no_summary() -> None:
    assert summarize([]) is None


def test_equal_rounds_have_no_error() -> None:
    summary = summarize([2.0, 2.0, 2.0])
    assert summary is not None and summary.error == 0


def test_one_outlier_hardly_moves_the_error() -> None:
    calm = summarize([10.0, 10.1, 9.9, 10.0, 10.1])
    disturbed = summarize([10.0, 10.1, 9.9, 10.0, 50.0])
    assert calm is not None and disturbed is not None
    assert disturbed.error == pytest.approx(calm.error, abs=0.01)


def test_ratios_pair_rounds_and_skip_failed_ones() -> None:
    ours = [{"p50_us": 2.0}, None, {"p50_us": 9.0}, {"p50_us": 4.0}]
    theirs = [{"p50_us": 1.0}, {"p50_us": 1.0}, None, {"p50_us": 8.0}]
    assert ratios(ours, theirs, "p50_us") == [2.0, 0.5]


def test_figures_leave_out_rounds_without_them() -> None:
    assert figures([{"p50_us": 1.0}, None, {"p99_us": 3.0}], "p50_us") == [1.0]
