"""Latency histograms with a bounded relative error, small enough to send and to merge. Pure.

As in HdrHistogram, values fall into buckets whose width grows with the value, so that every
quantile is exact to within :data:`RELATIVE_ERROR` from a microsecond up to hours. Only buckets in
use are stored, and two histograms merge without loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Self

_BITS = 9
_HALF = 1 << (_BITS - 1)

RELATIVE_ERROR = 1 / _HALF
"""A quantile is at most this share above the value that was recorded."""


def _bucket(value: int) -> int:
    """Return the number of the bucket of a value; buckets are numbered in order of value."""
    shift = value.bit_length() - _BITS
    return value if shift <= 0 else shift * _HALF + (value >> shift)


def _highest(bucket: int) -> int:
    """Return the highest value that falls into a bucket."""
    if bucket < 2 * _HALF:
        return bucket
    shift = bucket // _HALF - 1
    return ((bucket - shift * _HALF + 1) << shift) - 1


class Histogram:
    """Counts of values, in microseconds by convention.

    Attributes:
        count: number of values.
        total: their exact sum.
        low: exact smallest value; 0 while there is none.
        high: exact largest value; 0 while there is none.
    """

    __slots__ = ("_buckets", "count", "high", "low", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.low = 0
        self.high = 0

    def __repr__(self) -> str:
        return f"<Histogram {self.count} values, p50 {self.quantile(0.5)}, max {self.high}>"

    def record(self, value: int) -> None:
        """Count a value; a negative one counts as 0."""
        value = max(value, 0)
        if not self.count or value < self.low:
            self.low = value
        self.high = max(self.high, value)
        self.count += 1
        self.total += value
        bucket = _bucket(value)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Add all values of another histogram."""
        if not other.count:
            return
        self.low = min(self.low, other.low) if self.count else other.low
        self.high = max(self.high, other.high)
        self.count += other.count
        self.total += other.total
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    @property
    def mean(self) -> float:
        """The exact mean; 0 if there is no value."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> int:
        """Return the value that ``share`` (0 to 1) of all values do not exceed; 0 if none."""
        rank = max(1, math.ceil(round(share * self.count, 6)))
        for highest, upto in self.steps():
            if upto >= rank:
                return highest
        return self.high

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield, for each bucket in use, its highest value and how many values are up to it."""
        upto = 0
        for bucket in sorted(self._buckets):
            upto += self._buckets[bucket]
            yield min(_highest(bucket), self.high), upto

    def dump(self) -> list[int]:
        """Return the histogram as a flat list of integers."""
        flat = [self.total, self.low, self.high]
        for pair in self._buckets.items():
            flat.extend(pair)
        return flat

    @classmethod
    def load(cls, flat: Sequence[int]) -> Self:
        """Return the histogram that :meth:`dump` was called on."""
        histogram = cls()
        histogram.total, histogram.low, histogram.high = flat[:3]
        histogram._buckets = dict(zip(flat[3::2], flat[4::2], strict=True))
        histogram.count = sum(histogram._buckets.values())
        return histogram
