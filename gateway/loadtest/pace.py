"""When users start their steps: the clock of a run, its end, and the wait for the next moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from gateway.loadtest.plan import Share

TIMER_SLACK = 0.002
"""Seconds by which a timer may be late, or early, without the fault of what is tested."""


class Pace:
    """The timing of one process.

    Attributes:
        unstarted: steps that were due before the end and that nobody was free to start.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._start = 0.0
        self._end = float("inf")
        self._due: Iterator[float] = iter(())
        self._left = share.steps
        self._sleepers: set[asyncio.Future[None]] = set()
        self.unstarted = 0

    def now(self) -> float:
        """The clock, in seconds; uvloop's own counts whole milliseconds only."""
        return time.monotonic()

    def start(self, moment: float) -> None:
        """The run begins at a moment of the clock."""
        self._start = moment
        self._end = moment + self._share.plan.shape.seconds
        if self._share.plan.open_loop:
            self._due = self._share.arrivals()
        self._loop.call_later(self._share.plan.shape.seconds, self.stop)

    def stop(self) -> None:
        """No step starts from now on; whoever sleeps is woken."""
        now = self.now()
        self._end = min(self._end, now)
        self._wake_all()

    def _wake_all(self) -> None:
        for sleeper in self._sleepers:
            _wake(sleeper)

    @property
    def over(self) -> bool:
        """Whether no step will start any more."""
        if self._left == 0 and not self._sleepers:
            return True
        return self.now() >= self._end

    async def pause(self, seconds: float) -> None:
        """Sleep, at most until the end of the run."""
        await self._sleep_until(self.now() + seconds)

    async def next_due(self) -> float | None:
        """Wait until the next step of an open loop is due; return the moment it was due.

        None if the run is over. Late steps are returned at once.
        """
        if self.over or self._left == 0:
            return None
        due = next(self._due, None)
        if due is None:  # the session stays as it is until the end, like everybody's
            await self._sleep_until(self._end)
            return None
        if self._left is not None:
            self._left -= 1
        moment = self._start + due
        await self._sleep_until(moment)
        if moment >= self._end:
            return None
        now = self.now()
        return moment if now - moment > TIMER_SLACK else now

    async def next_turn(self, user: int) -> bool:
        """Wait until a user of a closed loop may start a step; False if the run is over."""
        rank = self._share.rank(user)
        shape = self._share.plan.shape
        while not self.over and self._left != 0:
            elapsed = self.now() - self._start
            moment = shape.next_above(rank, elapsed)
            if moment is None:
                return False
            if moment <= elapsed:
                if self._left is not None:
                    self._left -= 1
                    if self._left == 0:
                        self._wake_all()
                return True
            await self._sleep_until(self._start + moment)
        return False

    def finish(self) -> None:
        """Count what was due and never started."""
        if self._left is not None:
            return
        for due in self._due:
            if self._start + due >= self._end:
                return
            self.unstarted += 1

    async def _sleep_until(self, moment: float) -> None:
        if moment <= self.now() or self.over:
            return
        sleeper: asyncio.Future[None] = self._loop.create_future()
        timer = self._loop.call_later(moment - self.now(), _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
