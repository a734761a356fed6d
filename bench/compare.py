"""The regression guard: what got worse from one result file to another, beyond noise.

A figure of ours is judged as its ratio to the baseline in the same round where both files have
that, because such a ratio does not depend on how fast or how busy the machine was; otherwise as it
stands. It counts as changed when its median moved by more than the tolerance and by more than three
standard errors of both medians together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.metrics import METRICS
from bench.results import Measured, Result, ScenarioResult
from bench.stats import Summary, figures, ratios, summarize
from bench.targets import BASELINE, TARGETS

TOLERANCE = 0.05

SIGNIFICANT_ERRORS = 3.0
"""Changes within this many standard errors are noise."""

_NOT_JUDGED = frozenset({"p999_us", "requests_per_second", "memory_peak_growth"})
"""Too rare events, what another figure already says, and what depends on garbage collection."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both files.

    Attributes:
        scenario: Its scenario.
        target: Its target.
        metric: Which figure.
        relative: Whether it is a ratio to the baseline.
        before: In the older file.
        after: In the newer file.
        growth: Relative change, positive when it got worse.
        noise: Change below which nothing is said.
    """

    scenario: str
    target: str
    metric: str
    relative: bool
    before: Summary
    after: Summary
    growth: float
    noise: float

    @property
    def worse(self) -> bool:
        """Whether it got worse beyond noise."""
        return self.growth > self.noise

    @property
    def better(self) -> bool:
        """Whether it got better beyond noise."""
        return self.growth < -self.noise

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        unit = "x the baseline" if self.relative else metric.unit
        return (
            f"{self.scenario} on {self.target}: {metric.title} {self.before.median:,.4g} -> "
            f"{self.after.median:,.4g} {unit}, {abs(self.growth):.1%} "
            f"{'worse' if self.growth > 0 else 'better'} (noise {self.noise:.1%})"
        )


def compare(before: Result, after: Result, tolerance: float = TOLERANCE) -> list[Change]:
    """Every figure of ours that both results have."""
    return [
        change
        for new in after.scenarios
        if (old := before.scenario(new.name)) is not None
        for change in _changes(old, new, tolerance)
    ]


def text(changes: list[Change]) -> str:
    """What got worse, what got better, and how much was looked at."""
    lines = [f"worse:  {change}" for change in changes if change.worse]
    lines += [f"better: {change}" for change in changes if change.better]
    worse = sum(change.worse for change in changes)
    lines.append(f"{len(changes)} figures compared, {worse} worse beyond noise")
    return "\n".join(lines)


def _changes(old: ScenarioResult, new: ScenarioResult, tolerance: float) -> Iterator[Change]:
    if old.parameters != new.parameters:
        return
    for name in new.targets:
        target = TARGETS.get(name)
        if target is None or not target.subject or name not in old.targets:
            continue
        for metric, meaning in METRICS.items():
            if meaning.better is None or metric in _NOT_JUDGED:
                continue
            relative = bool(_ratios(old, name, metric)) and bool(_ratios(new, name, metric))
            first = _summary(old, name, metric, relative)
            second = _summary(new, name, metric, relative)
            if first is None or second is None or not first.median or not second.median:
                continue
            growth = second.median / first.median - 1
            if meaning.better == "higher":
                growth = first.median / second.median - 1
            noise = SIGNIFICANT_ERRORS * math.hypot(first.error, second.error)
            yield Change(
                new.name, name, metric, relative, first, second, growth, max(tolerance, noise)
            )


def _ratios(scenario: ScenarioResult, name: str, metric: str) -> list[float]:
    baseline = scenario.targets.get(BASELINE, Measured())
    return ratios(scenario.targets[name].rounds, baseline.rounds, metric)


def _summary(scenario: ScenarioResult, name: str, metric: str, relative: bool) -> Summary | None:
    if relative:
        return summarize(_ratios(scenario, name, metric))
    return summarize(figures(scenario.targets[name].rounds, metric))
