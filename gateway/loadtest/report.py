"""What a run came to: the table at the end and the JSON file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from gateway import __version__
from gateway.errors import EXIT_FAILURE, EXIT_OK
from gateway.loadtest.figures import ACTIONS, Figures
from gateway.loadtest.histogram import Histogram
from gateway.loadtest.plan import Plan
from gateway.loadtest.progress import BUSY
from gateway.loadtest.runner import Status
from gateway.loadtest.thresholds import Threshold, Verdict
from gateway.loadtest.units import format_bytes, format_micros, format_number, format_seconds

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)

MEANING = {
    "connect": "TCP, TLS and handshake",
    "create": "session.create",
    "turn": "prompt until idle",
    "turn_service": "the same from when it was really sent",
    "send": "prompt until accepted",
    "first_token": "prompt until the first token",
    "tool": "tool answer until taken",
    "permission": "permission until taken",
    "resume": "leave and resume, or resume",
    "history": "read the conversation",
    "ping": "ping",
    "list": "list sessions",
    "detach": "session.detach",
    "delete": "session.delete",
}

_HEADS = ("action", "count", "per s", "mean", "p50", "p90", "p99", "p99.9", "max")

POINTS = 240
"""How many points a plot over time has at most."""


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run and the judgement on it.

    Attributes:
        status: what was measured.
        verdicts: what became of the thresholds.
        started: when it began.
        command: what the run was asked for, without secrets.
    """

    status: Status
    verdicts: tuple[Verdict, ...]
    started: datetime
    command: str

    @property
    def plan(self) -> Plan:
        """What was to be done."""
        return self.status.plan

    @property
    def figures(self) -> Figures:
        """What was measured."""
        return self.status.figures

    @property
    def failures(self) -> list[str]:
        """Why the run has failed; empty if it has not."""
        reasons = [f"{v.threshold.text} (it is {v.value})" for v in self.verdicts if v.missed]
        if self.figures.fault_count:
            reasons.append(f"{self.figures.fault_count} broken answers")
        if not self.figures.completed.total():
            reasons.append("not one step succeeded")
        return reasons

    @property
    def exit_status(self) -> int:
        """The exit status of the command."""
        return EXIT_FAILURE if self.failures else EXIT_OK

    @property
    def warnings(self) -> list[str]:
        """What to know before trusting the figures."""
        found = []
        unstarted = self.figures.counts["unstarted"]
        if unstarted:
            found.append(
                f"{unstarted} steps were due and never started: the rate was beyond what "
                f"{self.plan.users} sessions could carry, so the latencies above are too good"
            )
        if self.status.peak_cpu > BUSY:
            found.append(
                f"a load test process used {self.status.peak_cpu:.0%} of a core: "
                "latencies include its own delays; use more --processes"
            )
        rolled_back = self.figures.counts["rolled_back"]
        if rolled_back:
            found.append(f"{rolled_back} times a conversation went back to before its last event")
        return found


def judge(
    status: Status, thresholds: Sequence[Threshold], started: datetime, command: str
) -> Report:
    """Return the report on a finished run."""
    verdicts = tuple(each.judge(status.figures, status.seconds) for each in thresholds)
    return Report(status, verdicts, started, command)


def describe(plan: Plan) -> str:
    """Say in a line what was done."""
    kind = "open loop" if plan.open_loop else "closed loop"
    peak = f"{plan.shape.peak:g}/s" if plan.open_loop else f"{plan.shape.peak:g} sessions"
    if plan.open_loop and plan.poisson:
        peak += " at random moments"
    processes = f" from {plan.processes} processes" if plan.processes > 1 else ""
    return (
        f"{kind}, up to {peak} for {format_seconds(plan.shape.seconds)}, "
        f"{plan.connections} connections x {plan.sessions} sessions{processes}"
    )


def actions(figures: Figures) -> Iterator[tuple[str, Histogram]]:
    """Yield the actions that were done, in the order of the report."""
    for action in ACTIONS:
        histogram = figures.actions.get(action)
        if histogram is not None and histogram.count:
            yield action, histogram


# -- text ------------------------------------------------------------------------------------------


def text_report(report: Report) -> str:
    """Return the report for a terminal."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    plan, figures, seconds = report.plan, report.figures, report.status.seconds
    yield f"{plan.host}:{plan.port}: {describe(plan)}"
    yield ""
    rows: list[tuple[str, ...]] = [
        ("action", "count", "per s", "mean", "p50", "p90", "p99", "p99.9", "max")
    ]
    for action, histogram in actions(figures):
        latencies = (
            histogram.mean,
            *(histogram.quantile(share) for share in (0.5, 0.9, 0.99, 0.999)),
            histogram.high,
        )
        rate = figures.throughput(seconds, action)
        shown = (str(histogram.count), format_number(rate), *map(format_micros, latencies))
        rows.append((action, *shown))
    yield from _table(rows)
    yield ""
    counts = figures.counts
    steps = "steps" if len(plan.scenario.mix) > 1 else "turns"
    yield (
        f"{format_number(figures.throughput(seconds))} {steps}/s over {format_seconds(seconds)}; "
        f"{counts['sessions']} sessions, {counts['events']} events, "
        f"{counts['tools']} tool calls, {counts['permissions']} permissions, "
        f"{counts['reconnects']} reconnects; "
        f"{format_bytes(counts['bytes_in'])} in, {format_bytes(counts['bytes_out'])} out"
    )
    yield f"errors: {figures.error_count} ({figures.error_rate:.3%} of all actions)"
    for label, count in figures.errors.most_common():
        yield f"  {count:>8}  {label}"
    if plan.check == "off":
        yield "faults: not looked for (--check off)"
    else:
        known = "answers, events" if plan.echo else "events"
        if plan.check == "history":
            known += " and histories"
        yield f"faults: {figures.fault_count} ({known} checked)"
    for kind, count in figures.faults.most_common():
        yield f"  {count:>8}  {kind}"
    for example in figures.examples[:5]:
        yield f"            {example}"
    for warning in report.warnings:
        yield f"note: {warning}"
    if report.verdicts:
        yield "thresholds:"
    for verdict in report.verdicts:
        outcome = "missed" if verdict.missed else "ok"
        yield f"  {outcome:>8}  {verdict.threshold.text} (it is {verdict.value})"
    yield "FAILED: " + "; ".join(report.failures) if report.failures else "passed"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


# -- JSON ------------------------------------------------------------------------------------------


def json_report(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; latencies are in microseconds, times in seconds."""
    plan, figures, seconds = report.plan, report.figures, report.status.seconds
    until = int(seconds + plan.warmup + 0.999)
    width, ticks = figures.timeline(until, POINTS)
    return {
        "tool": f"copilot-gateway loadtest {__version__}",
        "run": plan.run,
        "started": report.started.isoformat(timespec="seconds"),
        "command": report.command,
        "target": f"{plan.host}:{plan.port}",
        "load": {
            "loop": "open" if plan.open_loop else "closed",
            "arrivals": ("poisson" if plan.poisson else "constant") if plan.open_loop else None,
            "stages": [asdict(stage) for stage in plan.shape.stages],
            "connections": plan.connections,
            "sessions_per_connection": plan.sessions,
            "processes": plan.processes,
            "mix": dict(plan.scenario.mix),
            "warmup_seconds": plan.warmup,
            "check": plan.check.value,
        },
        "seconds": round(seconds, 3),
        "throughput": round(figures.throughput(seconds), 3),
        "error_rate": figures.error_rate,
        "errors": dict(figures.errors),
        "faults": dict(figures.faults),
        "fault_examples": figures.examples,
        "counts": dict(figures.counts),
        "actions": {
            action: _json_histogram(histogram, figures.throughput(seconds, action))
            for action, histogram in actions(figures)
        },
        "timeline": [
            {
                "second": number * width,
                "width": width,
                "steps": tick.steps,
                "errors": tick.errors,
                "faults": tick.faults,
                "events": tick.events,
                "turn_p50": tick.latency.quantile(0.5),
                "turn_p99": tick.latency.quantile(0.99),
                "turn_max": tick.latency.high,
            }
            for number, tick in enumerate(ticks)
        ],
        "thresholds": [
            {"condition": v.threshold.text, "value": v.value, "missed": v.missed}
            for v in report.verdicts
        ],
        "warnings": report.warnings,
        "failures": report.failures,
        "passed": not report.failures,
    }


def _json_histogram(histogram: Histogram, rate: float) -> dict[str, Any]:
    return {
        "count": histogram.count,
        "per_second": round(rate, 3),
        "mean": round(histogram.mean, 1),
        "min": histogram.low,
        "max": histogram.high,
        **{f"p{percent:g}": histogram.quantile(percent / 100) for percent in PERCENTILES},
        "cumulative": [list(step) for step in histogram.steps()],
    }
