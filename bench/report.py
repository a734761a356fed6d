"""Markdown tables of a result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.metrics import METRICS
from bench.results import BenchError, Measured, Result, ScenarioResult
from bench.stats import Summary, figures, ratios, summarize
from bench.targets import BASELINE, TARGETS

_KIB = 1024


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the heading, columns after the first align right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
        if number == 0:
            rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
            lines.append("| " + " | ".join(rules) + " |")
    return "\n".join(lines)


def text(result: Result) -> str:
    """The whole result: how it was taken, one table per scenario, what failed."""
    parts = [conditions(result)]
    parts += [_scenario(each) for each in result.scenarios]
    if errors := _errors(result):
        parts.append("**Failed rounds**\n\n" + "\n".join(f"- {each}" for each in errors))
    return "\n\n".join(parts) + "\n"


def taken(result: Result) -> str:
    """When, of which commit and on what machine, in one line."""
    machine = result.machine
    versions = [f"Python {machine['python']}"]
    versions += [machine[name] for name in ("haproxy", "nginx") if machine.get(name)]
    return (
        f"{result.date}, commit {machine['commit']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['kernel']}, {', '.join(versions)}, "
        f"load average {machine['load_average']} at the start."
    )


def conditions(result: Result) -> str:
    """Machine and settings, in two lines."""
    settings = result.settings
    how = f"Medians of {settings['rounds']} rounds"
    if "seconds" in settings:
        how += f" of {settings['seconds']:g} s"
    if settings.get("proxy_cores"):
        cores = ", ".join(map(str, settings["proxy_cores"]))
        others = ", ".join(map(str, settings["load_cores"]))
        how += f"; proxy on core {cores}, load generator and replicas on {others}"
    how += "; ratios are taken within a round, with their range in brackets."
    return f"{taken(result)}\n{how}"


def proxies(result: Result, names: Iterable[str]) -> str:
    """The short table of scenarios: CPU per message of the baseline and the gateway."""
    rows = [["CPU per message", TARGETS[BASELINE].title, "copilot-gateway", "ratio"]]
    for name in names:
        scenario = result.scenario(name)
        if scenario is None or not {BASELINE, "gateway"} <= scenario.targets.keys():
            continue
        theirs, ours = (scenario.targets[each].rounds for each in (BASELINE, "gateway"))
        metric = "cpu_us_per_message"
        found = [summarize(figures(each, metric)) for each in (theirs, ours)]
        cells = ["-" if each is None else f"{each.median:.2f} µs" for each in found]
        rows.append([scenario.title, *cells, ratio_cell(ratios(ours, theirs, metric))])
    return f"{table(rows)}\n\n{conditions(result)}" if len(rows) > 1 else ""


def _scenario(scenario: ScenarioResult) -> str:
    shown = [
        name
        for name, metric in METRICS.items()
        if (metric.better or name == "proxy_cpu_share")
        and name not in ("requests_per_second", "p999_us", "memory_peak_growth")
        and any(figures(measured.rounds, name) for measured in scenario.targets.values())
    ]
    if "messages_per_second" not in shown and "p50_us" not in shown:
        shown = [name for name in shown if name != "proxy_cpu_share"]
    ratio_metric = _ratio_metric(scenario)
    heading = ["", *(_heading(name) for name in shown)]
    if ratio_metric:
        heading.append(f"{METRICS[ratio_metric].title} / HAProxy's")
    rows = [heading]
    baseline = scenario.targets.get(BASELINE, Measured())
    for name, measured in scenario.targets.items():
        row = [TARGETS[name].title if name in TARGETS else name]
        row += [_cell(metric, summarize(figures(measured.rounds, metric))) for metric in shown]
        if ratio_metric:
            row.append(ratio_cell(ratios(measured.rounds, baseline.rounds, ratio_metric)))
        rows.append(row)
    return f"**{scenario.title}** (`{scenario.name}`)\n\n{table(rows)}"


def _ratio_metric(scenario: ScenarioResult) -> str | None:
    baseline = scenario.targets.get(BASELINE)
    if baseline is None:
        return None
    candidates = ("cpu_us_per_message", "memory_per_connection")
    return next((each for each in candidates if figures(baseline.rounds, each)), None)


def ratio_cell(values: Iterable[float]) -> str:
    """A ratio with its range."""
    summary = summarize(values)
    if summary is None:
        return "-"
    return f"{summary.median:.2f} ({summary.low:.2f}-{summary.high:.2f})"


def _heading(name: str) -> str:
    metric = METRICS[name]
    unit = "KiB" if metric.unit == "bytes" else metric.unit
    return metric.title if unit == "1/s" else f"{metric.title}, {unit}"


def _cell(name: str, summary: Summary | None) -> str:
    if summary is None:
        return "-"
    metric = METRICS[name]
    if metric.unit == "bytes":
        return f"{summary.median / _KIB:,.1f}"
    return f"{summary.median:,.{metric.digits}f}"


def _errors(result: Result) -> list[str]:
    return [
        f"{scenario.name} on {name}: {error}"
        for scenario in result.scenarios
        for name, measured in scenario.targets.items()
        for error in measured.errors
    ]


def publish(readme: Path, section: str, content: str) -> None:
    """Replace what stands between ``<!-- section -->`` and ``<!-- /section -->`` in a file.

    Raises:
        BenchError: The file has no such markers.
    """
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    head, opened, rest = readme.read_text().partition(start)
    _, closed, tail = rest.partition(end)
    if not (opened and closed):
        raise BenchError(f"{readme}: no {start} ... {end}")
    readme.write_text(f"{head}{start}\n{content.strip()}\n{end}{tail}")
