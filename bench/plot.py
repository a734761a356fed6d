"""Draws results as SVG, without a plotting library.

Bars compare the targets in each scenario; lines show how cost grows along a sweep. Whiskers and
thin marks are the smallest and the largest round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.metrics import METRICS
from bench.results import Result, ScenarioResult
from bench.scenarios import SWEEPS, Sweep
from bench.stats import Summary, figures, summarize
from bench.targets import TARGETS

_COLOURS = ("#7f7f7f", "#4c78a8", "#54a24b", "#e45756", "#f58518", "#b279a2", "#9d755d", "#72b7b2")
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'
_LABEL_WIDTH = 410
_BAR_WIDTH = 380
_BAR_HEIGHT = 13
_LEGEND_HEIGHT = 20

_BARS = (
    ("cpu", "cpu_us_per_message", "CPU of the proxy per message"),
    ("throughput", "messages_per_second", "Messages per second"),
    ("latency-p50", "p50_us", "Median latency of a request or a burst"),
    ("latency-p99", "p99_us", "99th percentile of latency"),
)


@dataclass(frozen=True, slots=True)
class _Point:
    x: float
    y: Summary


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw every plot that ``result`` has figures for; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, svg in _plots(result):
        path = folder / f"{name}.svg"
        path.write_text(svg)
        drawn.append(path)
    return drawn


def _plots(result: Result) -> Iterator[tuple[str, str]]:
    for name, metric, title in _BARS:
        having = [each for each in result.scenarios if _targets_with(each, metric)]
        if having:
            yield name, bars(having, metric, title)
    for sweep in SWEEPS:
        lines = _sweep_lines(result, sweep, "cpu_us_per_message")
        if any(len(points) > 1 for points in lines.values()):
            yield f"by-{sweep.name}", chart(lines, sweep, "cpu_us_per_message")


def _targets_with(scenario: ScenarioResult, metric: str) -> dict[str, Summary]:
    found = {}
    for name, measured in scenario.targets.items():
        summary = summarize(figures(measured.rounds, metric))
        if summary is not None:
            found[name] = summary
    return found


def _sweep_lines(result: Result, sweep: Sweep, metric: str) -> dict[str, list[_Point]]:
    lines: dict[str, list[_Point]] = {}
    for name in sweep.scenarios:
        scenario = result.scenario(name)
        if scenario is None:
            continue
        for target, summary in _targets_with(scenario, metric).items():
            point = _Point(float(scenario.parameters[sweep.parameter]), summary)
            lines.setdefault(target, []).append(point)
    return {target: sorted(points, key=lambda p: p.x) for target, points in lines.items()}


def bars(scenarios: Sequence[ScenarioResult], metric: str, title: str) -> str:
    """Horizontal bars on a logarithmic scale: scenarios one below the other, a bar per target."""
    groups = [(each.title, _targets_with(each, metric)) for each in scenarios]
    names = _names(name for _, found in groups for name in found)
    values = [value for _, found in groups for s in found.values() for value in (s.low, s.high)]
    low, high = _decades(values)
    top = 40 + _LEGEND_HEIGHT * len(names)
    body: list[str] = []
    y = float(top)

    def position(value: float) -> float:
        share = math.log10(max(value, low) / low) / math.log10(high / low)
        return _LABEL_WIDTH + _BAR_WIDTH * share

    for heading, found in groups:
        middle = y + _BAR_HEIGHT * len(found) / 2 + 4
        body.append(_text(_LABEL_WIDTH - 8, middle, heading, "end"))
        for name, summary in found.items():
            end = position(summary.median)
            body.append(
                f'<rect x="{_LABEL_WIDTH}" y="{y:.1f}" width="{end - _LABEL_WIDTH:.1f}" '
                f'height="{_BAR_HEIGHT - 2}" fill="{_colour(name)}"/>'
            )
            centre = y + _BAR_HEIGHT / 2 - 1
            body.append(_line(position(summary.low), centre, position(summary.high), centre))
            label = max(end, position(summary.high)) + 4
            body.append(_text(label, y + 10, _short(summary.median), "start"))
            y += _BAR_HEIGHT
        y += 10
    decade = low
    while decade <= high * 1.001:
        x = position(decade)
        body.append(_line(x, top - 4, x, y, "#dddddd"))
        body.append(_text(x, y + 16, _short(decade), "middle"))
        decade *= 10
    unit = METRICS[metric].unit
    heading = title if unit == "1/s" else f"{title}, {unit}"
    grid_first = sorted(body, key=lambda part: "#dddddd" not in part)
    return _svg(
        _LABEL_WIDTH + _BAR_WIDTH + 80, y + 28, f"{heading} (logarithmic)", names, grid_first
    )


def chart(lines: dict[str, list[_Point]], sweep: Sweep, metric: str) -> str:
    """Lines over a logarithmic horizontal axis, one per target; vertical axis logarithmic too."""
    left, width, height = 70.0, 520.0, 260.0
    names = _names(lines)
    top = 50.0 + _LEGEND_HEIGHT * len(names)
    points = [point for each in lines.values() for point in each]
    low, high = _decades([value for p in points for value in (p.y.low, p.y.high)])
    x_values = sorted({point.x for point in points})
    first, last = math.log(x_values[0]), math.log(x_values[-1])

    def at_x(value: float) -> float:
        return left + 20 + (width - 40) * (math.log(value) - first) / ((last - first) or 1)

    def at_y(value: float) -> float:
        return top + height * (1 - math.log(max(value, low) / low) / math.log(high / low))

    body = []
    decade = low
    while decade <= high * 1.001:
        body.append(_line(left, at_y(decade), left + width, at_y(decade), "#dddddd"))
        body.append(_text(left - 6, at_y(decade) + 4, _short(decade), "end"))
        decade *= 10
    for value in x_values:
        body.append(_text(at_x(value), top + height + 18, _short(value), "middle"))
    for name, each in lines.items():
        path = " ".join(f"{at_x(p.x):.1f},{at_y(p.y.median):.1f}" for p in each)
        colour = _colour(name)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for p in each:
            x = at_x(p.x)
            body.append(_line(x, at_y(p.y.low), x, at_y(p.y.high), colour))
            body.append(f'<circle cx="{x:.1f}" cy="{at_y(p.y.median):.1f}" r="3" fill="{colour}"/>')
    axis = sweep.parameter.replace("_", " ")
    body.append(_text(left + width / 2, top + height + 38, axis, "middle"))
    title = f"{sweep.title}: {METRICS[metric].title}, {METRICS[metric].unit}"
    return _svg(left + width + 20, top + height + 50, title, names, body)


def _svg(width: float, height: float, title: str, names: Sequence[str], body: list[str]) -> str:
    legend = []
    for number, name in enumerate(names):
        y = 36 + _LEGEND_HEIGHT * number
        legend.append(f'<rect x="12" y="{y}" width="12" height="12" fill="{_colour(name)}"/>')
        label = TARGETS[name].title if name in TARGETS else name
        legend.append(_text(30, y + 11, label, "start"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" {_FONT}>',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-weight="bold" fill="#222222">{escape(title)}</text>',
        *legend,
        *body,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#222222") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _colour(name: str) -> str:
    order = list(TARGETS)
    return _COLOURS[order.index(name) % len(_COLOURS)] if name in TARGETS else "#000000"


def _names(found: Iterator[str] | dict[str, list[_Point]]) -> list[str]:
    seen = set(found)
    return [*(name for name in TARGETS if name in seen), *sorted(seen - set(TARGETS))]


def _decades(values: Sequence[float]) -> tuple[float, float]:
    positive = [value for value in values if value > 0] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(positive)))
    high = 10.0 ** math.ceil(math.log10(max(positive)))
    return low, high if high > low else low * 10


def _short(value: float) -> str:
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"
