"""Plots and tables drawn from result files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import plot, report, scenarios
from bench.__main__ import main
from bench.results import BenchError, Measured, Result, ScenarioResult, save
from bench.targets import TARGETS

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "cpu": "test",
    "cores": 2,
    "memory_gib": 1,
    "kernel": "Linux",
    "python": "3",
    "haproxy": None,
    "nginx": None,
    "commit": "abc",
    "load_average": 0,
}


def measured(factor: float) -> Measured:
    figures = {
        "messages_per_second": 1000 / factor,
        "p50_us": 10 * factor,
        "p99_us": 30 * factor,
        "cpu_us_per_message": 2 * factor,
    }
    return Measured([dict(figures), {name: value * 1.1 for name, value in figures.items()}])


@pytest.fixture
def result() -> Result:
    found = Result("2026-01-01T00-00-00Z", dict(MACHINE), {"rounds": 2, "seconds": 1})
    for connections in (1, 32, 256):
        scenario = scenarios.by_name(f"request-{connections}")
        assert scenario is not None
        targets = {"haproxy": measured(1), "gateway": measured(1.25)}
        found.scenarios.append(
            ScenarioResult(scenario.name, scenario.title, scenario.parameters(), targets)
        )
    return found


def test_plots_are_wellformed_and_hold_every_figure(result: Result, tmp_path: Path) -> None:
    drawn = plot.draw(result, tmp_path)
    assert {path.stem for path in drawn} == {
        "cpu",
        "throughput",
        "latency-p50",
        "latency-p99",
        "by-connections",
    }
    bars = ElementTree.parse(tmp_path / "cpu.svg").getroot()
    heights = [each for each in bars.iter(f"{SVG}rect") if each.get("height") == "11"]
    assert len(heights) == 3 * 2
    lines = ElementTree.parse(tmp_path / "by-connections.svg").getroot()
    assert len(list(lines.iter(f"{SVG}circle"))) == 3 * 2
    assert len(list(lines.iter(f"{SVG}polyline"))) == 2


def test_longer_bars_mean_more(result: Result) -> None:
    svg = ElementTree.fromstring(plot.bars(result.scenarios[:1], "cpu_us_per_message", "CPU"))
    widths = [
        float(each.get("width", "0"))
        for each in svg.iter(f"{SVG}rect")
        if each.get("height") == "11"
    ]
    assert 0 < widths[0] < widths[1]


def test_the_table_gives_the_ratio_within_rounds(result: Result) -> None:
    text = report.text(result)
    row = next(line for line in text.splitlines() if line.startswith("| copilot-gateway"))
    assert "1.25 (1.25-1.25)" in row


def test_failed_rounds_are_shown(result: Result) -> None:
    gateway = result.scenarios[0].targets["gateway"]
    gateway.rounds.append(None)
    gateway.errors.append("event lost")
    assert "request-1 on gateway: event lost" in report.text(result)


def test_publishing_replaces_only_its_section(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- sdk -->\nold\n<!-- /sdk -->\nafter\n")
    report.publish(readme, "sdk", "new")
    assert readme.read_text() == "before\n<!-- sdk -->\nnew\n<!-- /sdk -->\nafter\n"
    with pytest.raises(BenchError, match="no <!-- other -->"):
        report.publish(readme, "other", "new")


def test_plot_and_report_commands(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    save(result, path)
    assert main(["plot", str(path), "--out", str(tmp_path / "plots")]) == 0
    assert str(tmp_path / "plots" / "cpu.svg") in capsys.readouterr().out
    assert main(["report", str(path)]) == 0
    assert "request/response, 32 connections" in capsys.readouterr().out


def test_scenarios_and_sweeps_refer_to_what_exists() -> None:
    names = [each.name for each in scenarios.SCENARIOS]
    assert len(names) == len(set(names))
    assert {target for each in scenarios.SCENARIOS for target in each.targets} == set(TARGETS)
    assert set(scenarios.PROXIES) <= set(names)
    for sweep in scenarios.SWEEPS:
        chosen = [scenarios.by_name(name) for name in sweep.scenarios]
        values = [each.parameters()[sweep.parameter] for each in chosen if each is not None]
        assert len(values) == len(sweep.scenarios)
        assert values == sorted(set(values))
