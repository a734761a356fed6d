"""Conditions under which a run has failed: ``p99>2s``, ``errors>0``, ``throughput<100/s``. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from gateway.config.kinds import parse_duration
from gateway.loadtest.figures import ACTIONS, Figures
from gateway.loadtest.units import format_micros, format_number

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"(?:([a-z_]+)\.)?([a-z_]+(?:\d+(?:\.\d+)?)?)\s*(>=|<=|>|<)\s*(.+)")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*([sm]))?")
_COUNTS = ("errors", "faults", "unstarted", "reconnects", "rolled_back")


@dataclass(frozen=True, slots=True)
class Threshold:
    """One condition that must not hold.

    Attributes:
        text: as it was written.
        action: whose figures are meant.
        metric: ``pNN``, ``mean``, ``min``, ``max``, ``throughput``, ``error_rate`` or a count.
        compare: one of ``> >= < <=``.
        limit: microseconds for latencies, actions per second for throughput, a share for
            ``error_rate``, else a count.
    """

    text: str
    action: str | None
    metric: str
    compare: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read a condition.

        Raises:
            ValueError: it is none; says what would be.
        """
        match = _CONDITION.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r}: expected METRIC>LIMIT or METRIC<LIMIT, such as p99>2s")
        action, metric, compare, limit = match.groups()
        if action is not None and action not in ACTIONS:
            raise ValueError(f"{text!r}: {action} is none of {', '.join(ACTIONS)}")
        try:
            value = _limit(metric, limit)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        if action is not None and not (_is_latency(metric) or metric == "throughput"):
            raise ValueError(f"{text!r}: {metric} is counted over all actions")
        return cls(text.strip(), action, metric, compare, value)

    def judge(self, figures: Figures, seconds: float) -> Verdict:
        """Return whether the condition holds.

        Args:
            figures: what was measured.
            seconds: over how long.
        """
        value = self._value(figures, seconds)
        if value is None:  # nothing was measured that could be good enough
            return Verdict(self, "none finished", missed=True)
        return Verdict(self, self._show(value), _COMPARE[self.compare](value, self.limit))

    def _value(self, figures: Figures, seconds: float) -> float | None:
        if _is_latency(self.metric):
            histogram = figures.actions.get(self.action or "turn")
            if histogram is None or not histogram.count:
                return None
            match self.metric:
                case "mean":
                    return histogram.mean
                case "min":
                    return histogram.low
                case "max":
                    return histogram.high
            return histogram.quantile(float(self.metric[1:]) / 100)
        match self.metric:
            case "throughput":
                return figures.throughput(seconds, self.action)
            case "errors":
                return figures.error_count
            case "error_rate":
                return figures.error_rate
            case "faults":
                return figures.fault_count
        return figures.counts[self.metric]

    def _show(self, value: float) -> str:
        if _is_latency(self.metric):
            return format_micros(value)
        if self.metric == "throughput":
            return f"{format_number(value)}/s"
        if self.metric == "error_rate":
            return f"{value:.3%}"
        return f"{value:.0f}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a threshold.

    Attributes:
        threshold: the condition.
        value: what was measured, for people.
        missed: the condition holds, so the run has failed.
    """

    threshold: Threshold
    value: str
    missed: bool


def _is_latency(metric: str) -> bool:
    return metric in ("mean", "min", "max") or _PERCENTILE.fullmatch(metric) is not None


def _limit(metric: str, text: str) -> float:
    if _is_latency(metric):
        return parse_duration(text) * 1e6
    if metric == "throughput":
        match = _RATE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a rate such as 100/s")
        return float(match[1]) / (60.0 if match[2] == "m" else 1.0)
    if metric == "error_rate":
        return _number(text[:-1]) / 100 if text.endswith("%") else _number(text)
    if metric in _COUNTS:
        return _number(text)
    known = ", ".join(("p50 to p99.999", "mean", "min", "max", "throughput", "error_rate"))
    raise ValueError(f"{metric} is not one of {known}, {', '.join(_COUNTS)}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a number") from None
