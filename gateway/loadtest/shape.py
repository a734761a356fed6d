"""How much load there is at which moment: stages, arrival times, active sessions. Pure.

A shape is a level over time, made of stages in which it changes linearly. In an open loop the level
is a rate in actions per second; in a closed loop it is a number of active sessions. Time is in
seconds from the start of the run.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.config.kinds import parse_duration


@dataclass(frozen=True, slots=True)
class Stage:
    """A time in which the level goes from one value to another, linearly.

    Attributes:
        seconds: how long it takes; above 0.
        begin: level at its start.
        end: level at its end.
    """

    seconds: float
    begin: float
    end: float

    @property
    def area(self) -> float:
        """What the level adds up to: for a rate, the number of arrivals."""
        return self.seconds * (self.begin + self.end) / 2

    def level(self, offset: float) -> float:
        """Return the level ``offset`` seconds into the stage."""
        return self.begin + (self.end - self.begin) * offset / self.seconds

    def offset_of_area(self, area: float) -> float:
        """Return after how many seconds the level has added up to ``area``."""
        slope = (self.end - self.begin) / self.seconds
        if slope == 0:
            return area / self.begin
        # The root of slope/2 * t^2 + begin * t - area that is stable for small slopes.
        root = math.sqrt(max(self.begin * self.begin + 2 * slope * area, 0.0))
        return 2 * area / (self.begin + root) if self.begin + root else 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Stages one after the other."""

    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        """The length of the whole."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> float:
        """The highest level."""
        return max(max(stage.begin, stage.end) for stage in self.stages)

    def level(self, moment: float) -> float:
        """Return the level at a moment; 0 before the start and after the end."""
        if moment < 0:
            return 0.0
        for stage in self.stages:
            if moment < stage.seconds:
                return stage.level(moment)
            moment -= stage.seconds
        return 0.0

    def next_above(self, level: float, moment: float) -> float | None:
        """Return the first moment not before ``moment`` at which the level is above ``level``.

        None if there is none before the end.
        """
        start = 0.0
        for stage in self.stages:
            stop = start + stage.seconds
            offset = max(moment - start, 0.0)
            if offset < stage.seconds:
                if stage.level(offset) > level:
                    return start + offset
                if stage.end > level:
                    slope = (stage.end - stage.begin) / stage.seconds
                    return start + max((level - stage.begin) / slope, offset)
            start = stop
        return None


def arrivals(shape: Shape, *, poisson: bool, seed: int) -> Iterator[float]:
    """Yield the moments at which actions are to start, in order.

    Args:
        shape: the rate over time, in actions per second.
        poisson: whether gaps are random, as those between independent users, or even.
        seed: makes random gaps the same in every process.
    """
    gaps = random.Random(seed)  # noqa: S311 - traffic, not secrets
    due = gaps.expovariate(1.0) if poisson else 0.0
    start, done = 0.0, 0.0
    for stage in shape.stages:
        while due < done + stage.area:
            yield start + stage.offset_of_area(due - done)
            due += gaps.expovariate(1.0) if poisson else 1.0
        start += stage.seconds
        done += stage.area


_STAGE = re.compile(r"([^:\s]+):(\d+(?:\.\d+)?)(?:/s)?")


def parse_stages(text: str) -> Shape:
    """Read ``30s:50,2m:50,30s:0``: lengths, and the level reached at the end of each.

    The level starts at 0. A length of ``0s`` jumps to its level.

    Raises:
        ValueError: the text has another form, or all stages are empty; says what is expected.
    """
    stages: list[Stage] = []
    level = 0.0
    for part in text.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"stage {part.strip()!r}: expected TIME:LEVEL, such as 30s:50")
        try:
            seconds, target = parse_duration(match[1]), float(match[2])
        except ValueError as error:
            raise ValueError(f"stage {part.strip()!r}: {error}") from None
        if seconds:
            stages.append(Stage(seconds, level, target))
        level = target
    if not stages or all(stage.area == 0 for stage in stages):
        raise ValueError("the stages hold no load at all")
    return Shape(tuple(stages))


def steady(level: float, seconds: float, ramp: float = 0.0) -> Shape:
    """Return a level that is held, after ``ramp`` seconds in which it rises from 0."""
    held = Stage(seconds, level, level)
    return Shape((Stage(ramp, 0.0, level), held) if ramp else (held,))
