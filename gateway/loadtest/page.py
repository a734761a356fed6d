"""The report as one HTML file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from gateway import __version__
from gateway.loadtest import charts
from gateway.loadtest.charts import Series
from gateway.loadtest.figures import Tick
from gateway.loadtest.histogram import Histogram
from gateway.loadtest.plan import Check
from gateway.loadtest.report import MEANING, POINTS, Report, actions, describe
from gateway.loadtest.units import format_bytes, format_micros, format_number, format_seconds

_CURVE = ("turn", "turn_service", "first_token", "create", "resume")
"""Actions whose percentiles are drawn."""

_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999)

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --panel: #f6f8fa; --text: #1f2328;
  --faint: #656d76; --rule: #d8dee4; --good: #1a7f37; --bad: #cf222e; --warn: #9a6700;
  --c1: #0969da; --c2: #8250df; --c3: #bc4c00; --c4: #1a7f37; --c5: #cf222e; --c6: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --panel: #161b22; --text: #e6edf3;
  --faint: #8d96a0; --rule: #30363d; --good: #3fb950; --bad: #f85149; --warn: #d29922;
  --c1: #4493f8; --c2: #ab7df8; --c3: #f0883e; --c4: #3fb950; --c5: #f85149; --c6: #d29922; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 36px 0 8px; }
p { margin: 4px 0; } .faint { color: var(--faint); } code { font: 13px ui-monospace, monospace; }
.verdict { margin: 20px 0; padding: 12px 16px; border-radius: 8px; border-left: 5px solid;
  background: var(--panel); } .passed { border-color: var(--good); }
.failed { border-color: var(--bad); } .note { border-color: var(--warn); }
.cards { display: grid; gap: 12px; margin-top: 20px;
  grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
.card { background: var(--panel); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 22px; line-height: 1.3; } .card.bad b { color: var(--bad); }
.card span { color: var(--faint); font-size: 13px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 500; } .left { text-align: left; white-space: normal; }
.bad { color: var(--bad); } .good { color: var(--good); }
svg { width: 100%; height: auto; background: var(--panel); border-radius: 8px; }
svg text { fill: var(--faint); font-size: 12px; } .grid { stroke: var(--rule); }
.axis { stroke: var(--faint); } .line { fill: none; stroke: currentColor; stroke-width: 2;
  stroke-linejoin: round; } .bar, .dot { fill: currentColor; } .tip { fill: transparent; }
.tip:hover { fill: color-mix(in srgb, var(--text) 7%, transparent); }
.c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 6px; font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px;
  background: currentColor; margin: 0 6px 3px 0; }
.legend span span { color: var(--faint); }
"""


def html_report(report: Report) -> str:
    """Return the report as an HTML document."""
    status = "failed" if report.failures else "passed"
    title = f"Load test of {report.plan.host}:{report.plan.port}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(report.started.isoformat(" ", "seconds"))} · '
        f"{escape(describe(report.plan))}</p>",
        f'<p class="faint"><code>{escape(report.command)}</code></p>',
        _verdict(report, status),
        _cards(report),
        *_plots(report),
        _actions(report),
        _errors(report),
        f'<p class="faint">copilot-gateway loadtest {escape(__version__)}, '
        f"run {escape(report.plan.run)}</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: {status}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _verdict(report: Report, status: str) -> str:
    if report.failures:
        text = "<b>Failed.</b> " + "; ".join(map(escape, report.failures))
    else:
        conditions = len(report.verdicts)
        text = "<b>Passed.</b>"
        if conditions:
            text += f" {conditions} of {conditions} thresholds kept."
    boxes = [f'<div class="verdict {status}">{text}</div>']
    boxes += [f'<div class="verdict note">{escape(note)}</div>' for note in report.warnings]
    if report.verdicts:
        boxes.append(
            _table(
                ("", "fail if", "measured"),
                (
                    (
                        f'<b class="{"bad" if v.missed else "good"}">'
                        f"{'missed' if v.missed else 'kept'}</b>",
                        escape(v.threshold.text),
                        escape(v.value),
                    )
                    for v in report.verdicts
                ),
                left=2,
            )
        )
    return "".join(boxes)


def _cards(report: Report) -> str:
    figures, seconds = report.figures, report.status.seconds
    turns = figures.actions.get("turn", Histogram())
    unit = "steps/s" if len(report.plan.scenario.mix) > 1 else "turns/s"
    faults = str(figures.fault_count) if report.plan.check is not Check.OFF else "-"
    cards = [
        (format_number(figures.throughput(seconds)), unit, False),
        (_latency(turns, 0.5), "turn p50", False),
        (_latency(turns, 0.99), "turn p99", False),
        (_latency(figures.actions.get("first_token"), 0.5), "first token p50", False),
        (f"{figures.error_count}", f"errors ({figures.error_rate:.2%})", figures.error_count > 0),
        (faults, "broken answers", figures.fault_count > 0),
        (format_number(figures.counts["events"]), "events", False),
        (format_bytes(figures.counts["bytes_in"]), "received", False),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card{" bad" if bad else ""}"><b>{escape(value)}</b>'
            f"<span>{escape(label)}</span></div>"
            for value, label, bad in cards
        )
        + "</div>"
    )


def _latency(histogram: Histogram | None, share: float) -> str:
    if histogram is None or not histogram.count:
        return "-"
    return format_micros(histogram.quantile(share))


def _plots(report: Report) -> Iterable[str]:
    figures, plan = report.figures, report.plan
    until = max(int(report.status.seconds + plan.warmup + 0.999), 1)
    width, ticks = figures.timeline(until, POINTS)
    yield "<h2>Turn latency over time</h2>"
    yield _time_plot(
        [
            Series("p50", "c1", _quantiles(ticks, 0.5)),
            Series("p90", "c2", _quantiles(ticks, 0.9)),
            Series("p99", "c3", _quantiles(ticks, 0.99)),
            Series("max", "c5", [t.latency.high if t.latency.count else None for t in ticks]),
        ],
        width,
        format_micros,
    )
    yield "<h2>Throughput over time</h2>"
    # The last interval may be cut short by the end of the run.
    spans = [
        max(min(width, report.status.seconds + plan.warmup - i * width), 1e-3)
        for i in range(len(ticks))
    ]
    lines = [
        Series("done", "c1", [tick.steps / s for tick, s in zip(ticks, spans, strict=True)]),
    ]
    if plan.open_loop:
        wanted = [plan.shape.level((i + 0.5) * width) for i in range(len(ticks))]
        lines.append(Series("wanted", "c6", wanted))
    yield _time_plot(lines, width, lambda value: f"{format_number(value)}/s")
    if figures.error_count or figures.fault_count:
        yield "<h2>Errors over time</h2>"
        yield _time_plot(
            [
                Series("errors", "c3", [tick.errors for tick in ticks]),
                Series("broken answers", "c5", [tick.faults for tick in ticks]),
            ],
            width,
            format_number,
            bars=True,
        )
    curves = [(name, h) for name, h in actions(figures) if name in _CURVE]
    if curves:
        yield "<h2>Latency by percentile</h2>"
        drawn = [
            (name, f"c{number % 6 + 1}", _curve(histogram))
            for number, (name, histogram) in enumerate(curves)
        ]
        yield _legend((style, name, MEANING[name]) for name, style, _ in drawn)
        yield charts.percentiles(drawn, format_micros)


def _quantiles(ticks: Sequence[Tick], share: float) -> list[float | None]:
    return [tick.latency.quantile(share) if tick.latency.count else None for tick in ticks]


def _curve(histogram: Histogram) -> list[tuple[float, float]]:
    """Return the percentiles that so many values can tell."""
    finest = 1 - 1 / max(histogram.count, 1)
    return [(q, float(histogram.quantile(q))) for q in _SHARES if q <= finest]


def _time_plot(
    series: Sequence[Series], width: float, show: charts.Show, *, bars: bool = False
) -> str:
    def show_time(seconds: float) -> str:
        return format_seconds(seconds) if seconds >= 99.95 else f"{seconds:g}s"

    return _legend((each.style, each.name, "") for each in series) + charts.over_time(
        series, width, show, show_time, bars=bars
    )


def _legend(entries: Iterable[tuple[str, str, str]]) -> str:
    items = "".join(
        f'<span><i class="{style}"></i>{escape(name)}'
        + (f" <span>{escape(more)}</span></span>" if more else "</span>")
        for style, name, more in entries
    )
    return f'<div class="legend">{items}</div>'


def _actions(report: Report) -> str:
    figures, seconds = report.figures, report.status.seconds
    heads = ("action", "", "count", "per s", "mean", "p50", "p90", "p99", "p99.9", "max")
    rows = (
        (
            escape(name),
            f'<span class="faint">{escape(MEANING[name])}</span>',
            str(histogram.count),
            format_number(figures.throughput(seconds, name)),
            format_micros(histogram.mean),
            *(format_micros(histogram.quantile(q)) for q in (0.5, 0.9, 0.99, 0.999)),
            format_micros(histogram.high),
        )
        for name, histogram in actions(figures)
    )
    return "<h2>Actions</h2>" + _table(heads, rows, left=2)


def _errors(report: Report) -> str:
    figures = report.figures
    parts = []
    if figures.errors:
        rows = ((escape(label), str(n)) for label, n in figures.errors.most_common())
        parts.append("<h2>Errors</h2>" + _table(("what went wrong", "count"), rows, left=1))
    if figures.faults:
        rows = ((escape(kind), str(n)) for kind, n in figures.faults.most_common())
        parts.append("<h2>Broken answers</h2>" + _table(("kind", "count"), rows, left=1))
        parts.append("<p>The first of them:</p>")
        parts += [f"<p><code>{escape(example)}</code></p>" for example in figures.examples]
    return "".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return a table; cells are HTML, the first ``left`` columns are text."""

    def line(tag: str, cells: Sequence[str]) -> str:
        inner = "".join(
            f'<{tag} class="left">{cell}</{tag}>' if i < left else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table>{line("th", heads)}{body}</table></div>'
