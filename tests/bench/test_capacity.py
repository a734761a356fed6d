"""The arithmetic of the capacity page, and which result fills which table."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import __main__ as command
from bench import capacity, cli_cost, instructions, report, scenarios
from bench.results import Measured, Result, ScenarioResult, save

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
    "cli": "1.0",
}
MARKED = (
    "scenarios",
    "cli",
    "instructions",
    "table: proxies",
    "capacity-core",
    "capacity-growth",
    "capacity-memory",
    "capacity-cli",
    "capacity-users",
)
ASSUMED = capacity.Assumptions(
    online=0.5,
    sessions=2,
    turns_per_hour=36,
    events=100,
    requests=5,
    sessions_per_cli=60,
    busy=0.5,
)


@pytest.fixture
def load() -> Result:
    found = Result("d", dict(MACHINE), {"rounds": 1, "seconds": 1})
    for name in (*scenarios.PROXIES, "create", "idle-5000", "sessions-1000"):
        scenario = scenarios.by_name(name)
        assert scenario is not None
        one = {
            "cpu_us_per_message": 2.0 if name.startswith("trickle") else 10.0,
            "p99_us": 50.0,
            "proxy_cpu_share": 0.5,
            "requests_per_second": 1000.0,
            "memory_per_connection": 4096.0,
            "memory_per_session": 2048.0,
        }
        half = {metric: value / 2 for metric, value in one.items()}
        targets = {"haproxy": Measured([half]), "gateway": Measured([one])}
        found.scenarios.append(ScenarioResult(name, scenario.title, scenario.parameters(), targets))
    return found


@pytest.fixture
def cli() -> Result:
    figures = {
        "cli_memory_at_start": 200.0 * 2**20,
        "cli_memory_per_used_session": 5.0 * 2**20,
        "cli_cpu_ms_per_turn": 50.0,
        "events_per_turn": 200.0,
    }
    scenario = ScenarioResult(cli_cost.NAME, "a real CLI", {}, {"direct": Measured([figures])})
    return Result("d", dict(MACHINE), {"rounds": 1}, [scenario])


def test_formulas(load: Result, cli: Result) -> None:
    costs = capacity.costs_of(load, cli)
    assert costs is not None
    found = capacity.needed(1000, costs, ASSUMED)
    # 500 users online with 1,000 sessions start 36 turns an hour each: 5 turns per second.
    assert found.turns == pytest.approx(5)
    assert found.events == pytest.approx(500)
    # A turn: 100 events, 5 requests and 5 answers of 10 µs each: 1.1 ms, on half a core.
    assert found.gateway_cores == pytest.approx(5 * 1.1e-3 / 0.5)
    assert found.gateway_memory == pytest.approx(500 * 4096 + 1000 * 2048)
    assert found.clis == 17
    # 0.25 ms per event.
    assert found.cli_cores == pytest.approx(500 * 0.25e-3 / 0.5)
    assert found.cli_memory == pytest.approx((17 * 200 + 1000 * 5) * 2**20)


def test_a_core_carries_what_its_cpu_time_allows(load: Result) -> None:
    text = capacity.sections(load, None)["capacity-core"]
    pairs = next(line for line in text.splitlines() if "requests and their answers" in line)
    assert [cell.strip() for cell in pairs.split("|")[2:5]] == ["20.00", "50,000", "-"]
    events = next(line for line in text.splitlines() if "one by one" in line)
    assert [cell.strip() for cell in events.split("|")[2:5]] == ["2.00", "500,000", "175"]
    created = next(line for line in text.splitlines() if "sessions created" in line)
    assert [cell.strip() for cell in created.split("|")[2:5]] == ["500", "2,000", "-"]


def test_tables_need_their_figures(load: Result, cli: Result) -> None:
    assert "capacity-users" not in capacity.sections(load, None)
    load.scenarios = [each for each in load.scenarios if each.name != "idle-5000"]
    assert "capacity-users" not in capacity.sections(load, cli)
    assert capacity.costs_of(load, cli) is None


def test_the_short_table_compares_with_haproxy(load: Result) -> None:
    text = report.proxies(load, scenarios.PROXIES)
    row = next(line for line in text.splitlines() if "request/response, 32" in line)
    assert "5.00 µs" in row and "10.00 µs" in row and "2.00 (2.00-2.00)" in row


def test_each_kind_of_result_is_published_where_it_belongs(
    load: Result, cli: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "README.md"
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in MARKED))
    for name in ("README", "FRONT_PAGE", "CAPACITY_PAGE"):
        monkeypatch.setattr(command, name, page)
    counted = ScenarioResult(
        "instructions-request",
        "instructions: a request",
        {},
        {"gateway": Measured([{instructions.METRIC: 1234.0}])},
    )
    results = (load, cli, Result("d", dict(MACHINE), {"rounds": 1}, [counted]))
    paths = [str(tmp_path / f"{number}.json") for number in range(len(results))]
    for path, result in zip(paths, results, strict=True):
        save(result, Path(path))
    assert command.main(["publish", *paths]) == 0
    text = page.read_text()
    assert "\nold\n" not in text
    assert "| a request | " in text and "1,234" in text
    assert (tmp_path / "plots" / "cpu.svg").exists()


def test_the_documentation_has_the_sections() -> None:
    pages = [command.README, command.FRONT_PAGE, command.CAPACITY_PAGE]
    text = "".join(page.read_text() for page in pages)
    for name in (*MARKED, "sdk", "table: sdk"):
        assert f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text
