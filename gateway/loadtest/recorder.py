"""Takes down what users experience, second by second, until the figures are sent off."""

from __future__ import annotations

import re
from collections.abc import Callable

from gateway.loadtest.figures import STEPS, Figures

_ID = re.compile(r"lt-[a-z0-9]+-[0-9-]+")
_LONGEST_LABEL = 120


class Recorder:
    """The figures of one process.

    Attributes:
        figures: what was recorded since :meth:`take`.
        clock: the clock, in seconds.
        last: when the last step that counts succeeded, in seconds from the start.
    """

    def __init__(self, clock: Callable[[], float], warmup: float) -> None:
        """Record nothing but errors and faults until the clock is started.

        Args:
            clock: a clock that never goes back, in seconds.
            warmup: seconds after the start that are not timed.
        """
        self.figures = Figures()
        self.last = 0.0
        self.clock = clock
        self._warmup = warmup
        self._start: float | None = None
        self._end = float("inf")

    def start(self, moment: float, seconds: float) -> None:
        """The run begins at a moment of the clock, and its time is over ``seconds`` later."""
        self._start = moment
        self._end = seconds

    def now(self) -> float:
        """Seconds since the start; negative before it."""
        return -1.0 if self._start is None else self.clock() - self._start

    def take(self) -> Figures:
        """Return the figures so far and begin new ones."""
        figures, self.figures = self.figures, Figures()
        return figures

    def time(self, action: str, since: float) -> None:
        """Record that an action that began at a moment of the clock is done."""
        moment = self.clock()
        elapsed = self.now()
        if self._start is not None and elapsed < self._warmup:
            return
        self.figures.time(action, round((moment - since) * 1e6))

    def step(self, action: str, since: float) -> None:
        """Record that a step is done: its time, and that it counts for the throughput."""
        self.time(action, since)
        elapsed = self.now()
        if elapsed < 0 or elapsed >= self._end:
            return
        self.last = elapsed
        tick = self.figures.tick(int(elapsed))
        tick.steps += 1
        if action == STEPS[0]:
            tick.latency.record(round((self.clock() - since) * 1e6))
        if elapsed >= self._warmup:
            self.figures.completed[action] += 1

    def error(self, action: str, cause: str) -> None:
        """Count a failed action; ids are taken out of the cause, so that causes are few."""
        label = f"{action}: {_ID.sub('SESSION', cause)}"
        self.figures.error(label[:_LONGEST_LABEL])
        if (elapsed := self.now()) >= 0:
            self.figures.tick(int(elapsed)).errors += 1

    def fault(self, kind: str, detail: str) -> None:
        """Count a broken answer."""
        self.figures.fault(kind, detail)
        if (elapsed := self.now()) >= 0:
            self.figures.tick(int(elapsed)).faults += 1

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        self.figures.counts[name] += number

    def traffic(self, events: int, bytes_in: int, bytes_out: int) -> None:
        """Add what went over a connection since it was last asked."""
        self.count("events", events)
        self.count("bytes_in", bytes_in)
        self.count("bytes_out", bytes_out)
        if (elapsed := self.now()) >= 0:
            self.figures.tick(int(elapsed)).events += events
