"""Small statistics for few noisy rounds: medians, ranges, and ratios taken within a round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.metrics import Round

_MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of a normal distribution times this is its standard deviation."""

_MEDIAN_ERROR = 1.2533
"""The standard error of a median is this times that of a mean."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, range and uncertainty of a figure over its rounds.

    Attributes:
        median: The figure to quote.
        low: Smallest round.
        high: Largest round.
        error: Standard error of the median relative to it, from the median absolute deviation.
        rounds: How many rounds there were.
    """

    median: float
    low: float
    high: float
    error: float
    rounds: int


def summarize(values: Iterable[float]) -> Summary | None:
    """Summarize rounds; ``None`` if there are none."""
    known = sorted(values)
    if not known:
        return None
    middle = statistics.median(known)
    deviation = statistics.median(abs(value - middle) for value in known)
    sigma = _MAD_TO_SIGMA * deviation
    error = _MEDIAN_ERROR * sigma / math.sqrt(len(known)) / abs(middle) if middle else 0.0
    return Summary(middle, known[0], known[-1], error, len(known))


def figures(rounds: Sequence[Round | None], metric: str) -> list[float]:
    """One metric over the rounds that have it."""
    return [figure[metric] for figure in rounds if figure is not None and metric in figure]


def ratios(
    rounds: Sequence[Round | None], baseline: Sequence[Round | None], metric: str
) -> list[float]:
    """One metric relative to a baseline, each round against the same round of the baseline.

    What disturbs the machine for seconds disturbs both sides of such a ratio, so it is steadier
    than a ratio of medians. Rounds that either side lacks are left out.
    """
    return [
        ours[metric] / theirs[metric]
        for ours, theirs in zip(rounds, baseline, strict=False)
        if ours is not None and theirs is not None
        if metric in ours and theirs.get(metric)
    ]
