"""Conditions of ``--fail-if``."""

from __future__ import annotations

import pytest

from gateway.loadtest.figures import Figures
from gateway.loadtest.thresholds import Threshold


@pytest.fixture
def figures() -> Figures:
    """100 turns of 10 to 1000 ms in 10 s, 2 errors, 1 fault."""
    figures = Figures()
    for number in range(1, 101):
        figures.time("turn", number * 10_000)
        figures.completed["turn"] += 1
    figures.time("create", 3_000_000)
    figures.error("turn: timed out", 2)
    figures.fault("lost event", "x")
    return figures


@pytest.mark.parametrize(
    ("condition", "missed"),
    [
        ("p99>2s", False),
        ("p99 > 900ms", True),
        ("p50>=500ms", True),
        ("p50>502ms", False),
        ("max>1s", False),
        ("max>=1s", True),
        ("mean<600ms", True),
        ("min<10ms", False),
        ("create.p50>2s", True),
        ("errors>0", True),
        ("errors>2", False),
        ("error_rate>1%", True),
        ("error_rate>0.1", False),
        ("faults>0", True),
        ("throughput<100/s", True),
        ("throughput<10/s", False),
        ("throughput<590/m", False),
        ("turn.throughput<11", True),
        ("create.throughput<0.2/s", True),
        ("unstarted>0", False),
        ("reconnects>=0", True),
        ("resume.p99>1h", True),
    ],
)
def test_conditions_are_judged(figures: Figures, condition: str, missed: bool) -> None:
    assert Threshold.parse(condition).judge(figures, 10.0).missed is missed


def test_a_verdict_shows_the_figure_in_its_unit(figures: Figures) -> None:
    shown = {
        condition: Threshold.parse(condition).judge(figures, 10.0).value
        for condition in ("max>1s", "throughput<1/s", "error_rate>1%", "errors>1", "ping.p99>1s")
    }
    assert list(shown.values()) == ["1.00s", "10/s", "1.942%", "2", "none finished"]


@pytest.mark.parametrize(
    "text",
    [
        "p99",
        "p99=2s",
        "p99>",
        "p99>fast",
        "p100>1s",
        "p999>1s",
        "speed>1",
        "errors>many",
        "turn.errors>1",
        "flight.p99>1s",
        "throughput<100/h",
        "error_rate>x%",
    ],
)
def test_what_is_no_condition_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        Threshold.parse(text)
    assert text in str(caught.value)
