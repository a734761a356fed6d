"""Reports: text, JSON and page of the same run."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from gateway.loadtest.charts import nice_ticks
from gateway.loadtest.figures import EXAMPLES, LABELS, OTHER, Figures
from gateway.loadtest.page import html_report
from gateway.loadtest.plan import Plan
from gateway.loadtest.progress import LiveDisplay, PlainDisplay, display_for
from gateway.loadtest.report import Report, json_report, judge, text_report
from gateway.loadtest.runner import Status
from gateway.loadtest.shape import steady
from gateway.loadtest.thresholds import Threshold
from gateway.loadtest.units import format_bytes, format_micros, format_number, format_seconds


def status(*, broken: bool = False) -> Status:
    """A run of 10 s with 10 turns per second; with ``broken``, some of it went wrong."""
    plan = Plan(
        run="abc123",
        host="10.0.0.1",
        port=4321,
        token="top-secret",
        shape=steady(10, 10),
        open_loop=True,
    )
    figures = Figures()
    for number in range(100):
        micros = 20_000 + number * 100
        figures.time("turn", micros)
        figures.completed["turn"] += 1
        tick = figures.tick(number // 10)
        tick.steps += 1
        tick.latency.record(micros)
    if broken:
        figures.error("turn: <b>timed out</b>", 3)
        figures.tick(4).errors += 3
        figures.fault("lost event", "session s-1: assistant.turn_end e7")
        figures.tick(5).faults += 1
        figures.counts.update(unstarted=7, rolled_back=1)
    return Status(plan, figures, elapsed=10.2, active=3, cpu=0.5, peak_cpu=0.95, seconds=10.0)


def report(*conditions: str, broken: bool = False) -> Report:
    thresholds = [Threshold.parse(each) for each in conditions]
    started = datetime(2026, 1, 2, tzinfo=UTC)
    return judge(status(broken=broken), thresholds, started, "copilot-gateway loadtest")


def test_a_good_run_passes() -> None:
    good = report("p99>2s", "throughput<9/s")
    assert (good.exit_status, good.failures) == (0, [])
    text = text_report(good)
    assert re.search(r"^turn +100 +10 +24\.9ms +25\.0ms", text, re.MULTILINE)
    assert text.endswith("passed\n")


@pytest.mark.parametrize(
    ("conditions", "broken", "reason"),
    [
        (("p99>1ms",), False, "p99>1ms (it is 29.8ms)"),
        ((), True, "1 broken answers"),
        (("errors>0",), True, "errors>0 (it is 3)"),
    ],
)
def test_a_bad_run_fails_and_says_why(
    conditions: tuple[str, ...], broken: bool, reason: str
) -> None:
    bad = report(*conditions, broken=broken)
    assert bad.exit_status == 1
    assert reason in text_report(bad).splitlines()[-1]


def test_a_run_without_a_single_success_fails() -> None:
    nothing = judge(Status(status().plan), [], datetime.now(UTC), "")
    assert nothing.exit_status == 1
    assert "not one step succeeded" in text_report(nothing)
    assert "<svg" in html_report(nothing)


def test_what_makes_figures_doubtful_is_said() -> None:
    text = text_report(report(broken=True))
    assert "7 steps were due and never started" in text
    assert "95% of a core" in text
    assert "went back" in text


def test_the_json_holds_the_figures_and_no_secrets() -> None:
    text = json.dumps(json_report(report("p99>1ms", broken=True)))
    values = json.loads(text)
    assert values["throughput"] == 10
    assert values["actions"]["turn"]["count"] == 100
    assert values["actions"]["turn"]["cumulative"][-1] == [29_900, 100]
    assert [tick["steps"] for tick in values["timeline"]] == [10] * 10
    assert values["thresholds"][0]["missed"] is True
    assert values["passed"] is False
    assert "top-secret" not in text


def test_the_page_is_whole_escaped_and_needs_nothing_else() -> None:
    page = html_report(report("p99>1ms", broken=True))
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 4
    for plot in plots:
        ElementTree.fromstring(plot)
    assert "&lt;b&gt;timed out" in page
    assert not re.search(r'(src|href)="|url\(|@import|top-secret', page)
    assert len(re.findall(r"<svg", html_report(report()))) == 3


def test_figures_stay_small_and_survive_json() -> None:
    figures = Figures()
    for number in range(LABELS + 10):
        figures.error(f"turn: error {number}")
        figures.fault("lost event", str(number))
    assert (len(figures.errors), figures.errors[OTHER]) == (LABELS + 1, 10)
    assert len(figures.examples) == EXAMPLES
    again = Figures.load(json.loads(json.dumps(figures.dump())))
    again.merge(figures)
    assert again.error_count == 2 * (LABELS + 10)
    assert len(again.examples) == EXAMPLES


def test_a_long_run_is_drawn_in_few_points() -> None:
    width, ticks = status().figures.timeline(10, 4)
    assert (width, [tick.steps for tick in ticks]) == (3, [30, 30, 30, 10])


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_is_drawn_over() -> None:
    stream = Terminal()
    display = display_for(stream, quiet=False)
    assert isinstance(display, LiveDisplay)
    running = status()
    running.elapsed = 5.0
    display.show(running)
    assert "50%" in stream.getvalue()
    assert "5.0s/10.0s" in stream.getvalue()
    display.show(running)
    assert "\x1b[3F" in stream.getvalue()
    display.close()
    assert stream.getvalue().endswith("\x1b[3F\x1b[J")


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    display = display_for(stream, quiet=False)
    assert isinstance(display, PlainDisplay)
    running = status()
    for second in range(10):
        running.elapsed = float(second)
        display.show(running)
    assert len(stream.getvalue().splitlines()) == 1
    assert "turns 100" in stream.getvalue()
    quiet = io.StringIO()
    display_for(quiet, quiet=True).show(running)
    assert quiet.getvalue() == ""


def test_figures_are_written_as_people_read_them() -> None:
    assert [format_micros(v) for v in (0, 850, 12_345, 4_560_000, 999_499)] == [
        "0",
        "850us",
        "12.3ms",
        "4.56s",
        "999ms",
    ]
    assert [format_number(v) for v in (0, 0.333, 9.5, 42, 12_345, 4_560_000)] == [
        "0",
        "0.33",
        "9.5",
        "42",
        "12.3k",
        "4.56M",
    ]
    assert [format_seconds(v) for v in (12, 185, 7200)] == ["12.0s", "3m05s", "2h00m"]
    assert [format_bytes(v) for v in (512, 1_500_000, 2e12)] == ["512 B", "1.50 MB", "2000 GB"]


@pytest.mark.parametrize("top", [0, 0.003, 1, 7, 99, 101, 123_456])
def test_axes_have_few_round_ticks_that_reach_the_top(top: float) -> None:
    ticks = nice_ticks(top)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == 0
    assert ticks[-1] >= top * 0.999
