"""What a run measures, in a form that processes send and add up. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from gateway.loadtest.histogram import Histogram

STEPS = ("turn", "resume", "history", "ping", "list")
"""What a user can do at each step; a scenario weighs them, a rate counts them."""

ACTIONS = (
    "connect",
    "create",
    *STEPS,
    "turn_service",
    "send",
    "first_token",
    "tool",
    "permission",
    "detach",
    "delete",
)
"""All that is timed, in the order of the report."""

EXAMPLES = 20
"""How many faults are told in full; the rest is only counted."""

LABELS = 50
"""How many different errors are told apart; the rest counts as :data:`OTHER`."""

OTHER = "other errors"


@dataclass(slots=True)
class Tick:
    """One second of the run.

    Attributes:
        steps: steps that succeeded.
        errors: actions that failed.
        faults: broken answers that were found.
        events: events received.
        latency: of the turns that ended in it.
    """

    steps: int = 0
    errors: int = 0
    faults: int = 0
    events: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def merge(self, other: Tick) -> None:
        """Add another process' figures of the same second, or those of a neighbouring second."""
        self.steps += other.steps
        self.errors += other.errors
        self.faults += other.faults
        self.events += other.events
        self.latency.merge(other.latency)


class Figures:
    """Everything measured.

    Attributes:
        actions: latency in microseconds by action; those that failed are not in it.
        completed: steps that succeeded within the measured time, by action.
        ticks: by second since the start.
        errors: failed actions, by what went wrong.
        faults: broken answers, by kind.
        examples: the first faults in full.
        counts: ``events``, ``bytes_in``, ``bytes_out``, ``tools``, ``permissions``,
            ``reconnects``, ``sessions``, ``unstarted``, ``rolled_back`` ...
    """

    __slots__ = ("actions", "completed", "counts", "errors", "examples", "faults", "ticks")

    def __init__(self) -> None:
        self.actions: dict[str, Histogram] = {}
        self.completed: Counter[str] = Counter()
        self.ticks: dict[int, Tick] = {}
        self.errors: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.examples: list[str] = []
        self.counts: Counter[str] = Counter()

    def tick(self, second: int) -> Tick:
        """Return the figures of a second."""
        tick = self.ticks.get(second)
        if tick is None:
            tick = self.ticks[second] = Tick()
        return tick

    def time(self, action: str, micros: int) -> None:
        """Record how long an action took."""
        histogram = self.actions.get(action)
        if histogram is None:
            histogram = self.actions[action] = Histogram()
        histogram.record(micros)

    def error(self, label: str, count: int = 1) -> None:
        """Count failed actions."""
        known = label in self.errors or len(self.errors) < LABELS
        self.errors[label if known else OTHER] += count

    def fault(self, kind: str, detail: str) -> None:
        """Count a broken answer."""
        self.faults[kind] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{kind}: {detail}")

    def merge(self, other: Figures) -> None:
        """Add what another process, or the same one since, has measured."""
        for action, histogram in other.actions.items():
            self.actions.setdefault(action, Histogram()).merge(histogram)
        self.completed.update(other.completed)
        for second, tick in other.ticks.items():
            self.tick(second).merge(tick)
        for label, count in other.errors.items():
            self.error(label, count)
        self.faults.update(other.faults)
        self.examples.extend(other.examples[: EXAMPLES - len(self.examples)])
        self.counts.update(other.counts)

    @property
    def error_count(self) -> int:
        """Actions that failed."""
        return self.errors.total()

    @property
    def fault_count(self) -> int:
        """Broken answers."""
        return self.faults.total()

    @property
    def error_rate(self) -> float:
        """Failed actions as a share of all."""
        done = sum(
            histogram.count
            for action, histogram in self.actions.items()
            if action not in ("turn_service", "first_token")
        )
        failed = self.error_count
        return failed / (failed + done) if failed else 0.0

    def throughput(self, seconds: float, action: str | None = None) -> float:
        """Return the steps that succeeded per second, of all kinds or of one."""
        if seconds <= 0:
            return 0.0
        if action is None:
            return self.completed.total() / seconds
        if action in self.completed:
            return self.completed[action] / seconds
        histogram = self.actions.get(action)
        return histogram.count / seconds if histogram else 0.0

    def timeline(self, until: int, points: int) -> tuple[int, list[Tick]]:
        """Return the seconds up to ``until`` as at most ``points`` ticks, and their width in s."""
        width = max(1, -(-until // points))
        ticks = [Tick() for _ in range(-(-until // width))]
        for second, tick in self.ticks.items():
            if 0 <= second < until:
                ticks[second // width].merge(tick)
        return width, ticks

    def recent(self, now: int, seconds: int) -> Tick:
        """Return the sums of the last full ``seconds`` before second ``now``."""
        whole = Tick()
        for second in range(max(now - seconds, 0), now):
            if second in self.ticks:
                whole.merge(self.ticks[second])
        return whole

    def dump(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "actions": {name: histogram.dump() for name, histogram in self.actions.items()},
            "completed": dict(self.completed),
            "ticks": [
                [second, tick.steps, tick.errors, tick.faults, tick.events, tick.latency.dump()]
                for second, tick in self.ticks.items()
            ],
            "errors": dict(self.errors),
            "faults": dict(self.faults),
            "examples": self.examples,
            "counts": dict(self.counts),
        }

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Return the figures that :meth:`dump` was called on."""
        figures = cls()
        figures.actions = {name: Histogram.load(v) for name, v in values["actions"].items()}
        figures.completed = Counter(values["completed"])
        for second, steps, errors, faults, events, latency in values["ticks"]:
            figures.ticks[second] = Tick(steps, errors, faults, events, Histogram.load(latency))
        figures.errors = Counter(values["errors"])
        figures.faults = Counter(values["faults"])
        figures.examples = list(values["examples"])
        figures.counts = Counter(values["counts"])
        return figures
