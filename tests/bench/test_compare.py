"""The regression guard: what it names, and what it takes for noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.compare import compare
from bench.results import BenchError, Measured, Result, ScenarioResult, load, save

METRIC = "cpu_us_per_message"


def result(
    gateway: list[float], haproxy: list[float] | None = None, metric: str = METRIC
) -> Result:
    targets = {"gateway": Measured([{metric: value} for value in gateway])}
    if haproxy is not None:
        targets["haproxy"] = Measured([{metric: value} for value in haproxy])
    scenario = ScenarioResult("request-32", "requests", {"connections": 32}, targets)
    return Result("2026-01-01T00-00-00Z", {}, {}, [scenario])


def test_a_slower_gateway_is_named() -> None:
    changes = compare(result([10, 10, 10]), result([12, 12, 12]))
    assert [(c.target, c.metric, c.worse) for c in changes] == [("gateway", METRIC, True)]
    assert changes[0].growth == pytest.approx(0.2)


def test_a_faster_gateway_is_better() -> None:
    (change,) = compare(result([10, 10, 10]), result([8, 8, 8]))
    assert change.better and not change.worse


def test_throughput_counts_the_other_way() -> None:
    name = "messages_per_second"
    (change,) = compare(result([100, 100], metric=name), result([50, 50], metric=name))
    assert change.worse and change.growth == pytest.approx(1.0)


def test_a_change_within_the_tolerance_is_not_reported() -> None:
    (change,) = compare(result([100, 100, 100]), result([104, 104, 104]))
    assert not change.worse


def test_a_change_within_the_spread_of_rounds_is_noise() -> None:
    (change,) = compare(result([8, 10, 12]), result([9, 11, 13]))
    assert change.noise > change.growth > 0.05
    assert not change.worse


def test_a_slower_machine_is_no_regression() -> None:
    before = result([10, 10, 10], haproxy=[5, 5, 5])
    after = result([20, 20, 20], haproxy=[10, 10, 10])
    (change,) = compare(before, after)
    assert change.relative and change.growth == pytest.approx(0)


def test_haproxy_itself_is_not_judged() -> None:
    changes = compare(result([10], haproxy=[5]), result([10], haproxy=[50]))
    assert {change.target for change in changes} == {"gateway"}


def test_a_scenario_that_was_redefined_is_not_compared() -> None:
    after = result([99])
    after.scenarios[0].parameters = {"connections": 64}
    assert compare(result([10]), after) == []


def test_failed_rounds_are_left_out() -> None:
    after = result([10, 10])
    after.scenarios[0].targets["gateway"].rounds.append(None)
    (change,) = compare(result([10, 10]), after)
    assert change.after.rounds == 2


def test_exit_status_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    save(result([10, 10, 10]), fast)
    save(result([20, 20, 20]), slow)
    assert main(["compare", str(fast), str(slow)]) == 1
    assert "worse:  request-32 on gateway: CPU per message" in capsys.readouterr().out
    assert main(["compare", str(slow), str(fast)]) == 0
    assert "better:" in capsys.readouterr().out


def test_results_survive_a_file(tmp_path: Path) -> None:
    original = result([1, 2], haproxy=[3, 4])
    original.scenarios[0].targets["gateway"].errors.append("lost a message")
    save(original, tmp_path / "r.json")
    assert load(tmp_path / "r.json") == original


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"schema": 99})])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(BenchError, match=r"r\.json"):
        load(path)


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "/nowhere.json", "/nowhere.json"]) == 1
    assert capsys.readouterr().err == "bench: /nowhere.json: No such file or directory\n"
