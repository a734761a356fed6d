"""The run as it is shown on a terminal, or in plain lines where there is none."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from gateway.loadtest.histogram import Histogram
from gateway.loadtest.runner import Display, Status
from gateway.loadtest.units import format_bytes, format_micros, format_number, format_seconds

PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines."""

RECENT = 5
"""Seconds over which live figures are taken."""

BUSY = 0.85
"""CPU share from which on the load tester measures itself."""

_BAR = 28


def display_for(stream: TextIO, *, quiet: bool) -> Display:
    """Return the display that suits a stream."""
    if quiet:
        return Silence()
    return LiveDisplay(stream) if stream.isatty() else PlainDisplay(stream)


class Silence:
    """Shows nothing."""

    def show(self, status: Status) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainDisplay:
    """A line now and then, for logs."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._next = PLAIN_INTERVAL

    def show(self, status: Status) -> None:
        """Print a line if it is time for one."""
        if status.elapsed is None or status.elapsed < self._next:
            return
        self._next = status.elapsed + PLAIN_INTERVAL
        total = status.plan.shape.seconds
        place = f"{format_seconds(status.elapsed)}/{format_seconds(total)}"
        print(f"{place}  {'  '.join(live_lines(status))}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left to be shown."""


class LiveDisplay:
    """A progress bar and figures below it, drawn over and over."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._lines = 0

    def show(self, status: Status) -> None:
        """Draw over what was drawn last."""
        width = shutil.get_terminal_size().columns - 1
        lines = [progress_line(status), *live_lines(status)]
        if status.cpu > BUSY and status.elapsed is not None:
            lines.append("the load tester's own CPU is the limit: use more --processes")
        text = "".join(f"\x1b[2K{line[:width]}\n" for line in lines)
        self._stream.write(self._back() + text + "\x1b[J")
        self._stream.flush()
        self._lines = len(lines)

    def close(self) -> None:
        """Clear what was drawn; the report takes its place."""
        self._stream.write(self._back() + "\x1b[J")
        self._stream.flush()
        self._lines = 0

    def _back(self) -> str:
        return f"\x1b[{self._lines}F" if self._lines else ""


def progress_line(status: Status) -> str:
    """Return the progress bar with what is being done."""
    plan = status.plan
    if status.elapsed is None:
        opened = status.figures.counts["sessions"]
        return f"preparing {plan.connections} connections, {opened}/{plan.users} sessions"
    total = plan.shape.seconds
    share = min(status.elapsed / total, 1.0)
    if plan.steps is not None:
        share = max(share, min(status.figures.completed.total() / plan.steps, 1.0))
    bar = "█" * round(share * _BAR) + "░" * (_BAR - round(share * _BAR))
    level = plan.shape.level(status.elapsed)
    wanted = f"{level:.4g}/s wanted" if plan.open_loop else f"{level:.4g} sessions wanted"
    if status.stopping or status.elapsed >= total:
        wanted = "finishing"
    passed = format_seconds(min(status.elapsed, total))
    return f"{bar} {share:4.0%}  {passed}/{format_seconds(total)}  {wanted}"


def live_lines(status: Status) -> list[str]:
    """Return two lines of figures: the last seconds, and the whole."""
    figures = status.figures
    now = int(status.elapsed or 0)
    window = min(RECENT, max(now, 1))
    recent = figures.recent(now, RECENT)
    latency = recent.latency
    first = figures.actions.get("first_token", Histogram())
    lines = [
        f"{format_number(recent.steps / window)}/s"
        f"  p50 {_show(latency, 0.5)}  p90 {_show(latency, 0.9)}  p99 {_show(latency, 0.99)}"
        f"  first token p50 {_show(first, 0.5)}"
        f"  {format_number(recent.events / window)} events/s"
    ]
    turns = figures.actions.get("turn", Histogram())
    lines.append(
        f"turns {turns.count}  errors {figures.error_count}  faults {figures.fault_count}"
        f"  sessions {status.active}  received {format_bytes(figures.counts['bytes_in'])}"
        f"  cpu {status.cpu:.0%}"
    )
    return lines


def _show(histogram: Histogram, share: float) -> str:
    return format_micros(histogram.quantile(share)) if histogram.count else "-"
