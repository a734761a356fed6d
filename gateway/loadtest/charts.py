"""Plots as inline SVG, drawn without a plotting library. Pure.

Colours come from classes that the page's style sheet defines, so that plots follow its light or
dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 900
HEIGHT = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 34
_PLOT_WIDTH = WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = HEIGHT - _TOP - _BOTTOM

Show = Callable[[float], str]

Curve = tuple[str, str, Sequence[tuple[float, float]]]
"""Name, CSS class, and pairs of share (0 to 1) and latency, in order."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one layer of bars.

    Attributes:
        name: what the legend says.
        style: CSS class that gives the colour.
        values: one per position; None leaves a hole in a line.
    """

    name: str
    style: str
    values: Sequence[float | None]


def nice_ticks(top: float, count: int = 5) -> list[float]:
    """Return round values from 0 to at least ``top``, about ``count`` of them."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    return [step * i for i in range(math.ceil(top / step * 0.999) + 1)]


def over_time(
    series: Sequence[Series], width: float, show: Show, show_time: Show, *, bars: bool = False
) -> str:
    """Draw values over time.

    Args:
        series: what to draw; all have one value per interval.
        width: seconds per interval.
        show: writes a value.
        show_time: writes a time.
        bars: stack the series as bars instead of drawing lines.
    """
    count = max((len(each.values) for each in series), default=0)
    columns = [[each.values[i] or 0.0 for each in series] for i in range(count)]
    top = max((sum(c) if bars else max(c) for c in columns), default=0.0)
    ticks = nice_ticks(top)
    seconds = max(count * width, width)
    step = _PLOT_WIDTH / max(count, 1)
    parts = [_grid(ticks, show), _time_axis(seconds, show_time)]
    if bars:
        parts.append(_bars(series, ticks[-1], step))
    else:
        for each in series:
            points = [
                None if v is None else (_LEFT + step * (i + 0.5), _height(v, ticks[-1]))
                for i, v in enumerate(each.values)
            ]
            parts.append(_line(points, each.style))
    parts.extend(_tips(series, step, width, show, show_time))
    return _svg(parts)


def percentiles(
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], show: Show
) -> str:
    """Draw latency by percentile, the rare ones spread out.

    Args:
        series: the curves.
        show: writes a latency.
    """
    finest = max((1 / (1 - q) for _, _, points in series for q, _ in points if q < 1), default=10.0)
    nines = max(1.0, math.ceil(math.log10(finest) - 1e-9))
    ticks = nice_ticks(max((v for _, _, points in series for _, v in points), default=0.0))

    def across(share: float) -> float:
        depth = nines if share >= 1 else min(-math.log10(1 - share), nines)
        return _LEFT + _PLOT_WIDTH * depth / nines

    parts = [_grid(ticks, show)]
    marks = [0.0, 0.5, *(1 - 10.0**-n for n in range(1, int(nines) + 1))]
    for share in marks:
        x = across(share)
        label = f"{share * 100:.10g}%"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_base()}"/>')
        at_edge = x > WIDTH - _RIGHT - 1
        parts.append(_text(x, _base() + 18, label, "end" if at_edge else "middle"))
    for name, style, points in series:
        dots: list[tuple[float, float] | None] = [
            (across(share), _height(value, ticks[-1])) for share, value in points
        ]
        parts.append(_line(dots, style))
        parts.extend(
            f'<circle class="tip" cx="{across(q):.1f}" cy="{_height(v, ticks[-1]):.1f}" r="6">'
            f"<title>{escape(name)}: {q * 100:.6g}% within {escape(show(v))}</title></circle>"
            for q, v in points
        )
    return _svg(parts)


def _base() -> float:
    return _TOP + _PLOT_HEIGHT


def _height(value: float, top: float) -> float:
    return _base() - _PLOT_HEIGHT * value / top


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(ticks: Sequence[float], show: Show) -> str:
    parts = []
    for tick in ticks:
        y = _height(tick, ticks[-1])
        style = "axis" if tick == 0 else "grid"
        parts.append(
            f'<line class="{style}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, show(tick), "end"))
    return "".join(parts)


_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)


def _time_axis(seconds: float, show_time: Show) -> str:
    step = next((s for s in _TIME_STEPS if seconds / s <= 10), _TIME_STEPS[-1])
    parts = []
    moment = 0
    while moment <= seconds:
        x = _LEFT + _PLOT_WIDTH * moment / seconds
        parts.append(_text(x, _base() + 18, show_time(moment), "middle"))
        moment += step
    return "".join(parts)


def _line(points: Sequence[tuple[float, float] | None], style: str) -> str:
    """Draw a line with holes; a point on its own becomes a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    parts = []
    for run in runs:
        if len(run) == 1:
            x, y = run[0]
            parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
        elif run:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            parts.append(f'<polyline class="line {style}" points="{path}"/>')
    return "".join(parts)


def _bars(series: Sequence[Series], top: float, step: float) -> str:
    parts = []
    bottoms: dict[int, float] = {}
    for each in series:
        for i, value in enumerate(each.values):
            if not value:
                continue
            bottom = bottoms.get(i, 0.0)
            y, foot = _height(bottom + value, top), _height(bottom, top)
            parts.append(
                f'<rect class="bar {each.style}" x="{_LEFT + step * i + step * 0.1:.1f}" '
                f'y="{y:.1f}" width="{max(step * 0.8, 1):.1f}" height="{foot - y:.1f}"/>'
            )
            bottoms[i] = bottom + value
    return "".join(parts)


def _tips(
    series: Sequence[Series], step: float, width: float, show: Show, show_time: Show
) -> list[str]:
    """Return invisible columns that show the values below the pointer."""
    tips = []
    for i in range(max((len(each.values) for each in series), default=0)):
        lines = [f"{show_time(i * width)}"]
        for each in series:
            value = each.values[i]
            if value is not None:
                lines.append(f"{each.name}: {show(value)}")
        tips.append(
            f'<rect class="tip" x="{_LEFT + step * i:.1f}" y="{_TOP}" width="{step:.1f}" '
            f'height="{_PLOT_HEIGHT}"><title>{escape(chr(10).join(lines))}</title></rect>'
        )
    return tips


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
